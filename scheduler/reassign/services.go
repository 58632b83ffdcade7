package reassign

import "slices"

// services is where those are, and which of their rules are broken.
type services struct {
	machines  int
	of        []int // service of each process
	with      []int // service × machine: its process there, or none
	location  []int // of each machine
	area      []int // of each machine: its neighbourhood
	locations int
	areas     int
	inPlace   []int32 // service × locations: processes there
	inArea    []int32 // service × neighbourhoods: processes there
	lacks     []int   // locations that each service has fewer than its spread
	dependsOn [][]int
	dependent [][]int

	// Spread that is lacking, and pairs of a neighbourhood and a dependency that it lacks.
	broken int

	serviceWeight int64
	moved         []int // processes of each service
	many          []int // services of which so many moved
	most          int   // of any service
}

// number gives names from 0 on, in order of appearance.
func number(names []int) (list []int, n int) {
	known := map[int]int{}
	for _, name := range names {
		if _, ok := known[name]; !ok {
			known[name] = len(known)
		}
		list = append(list, known[name])
	}
	return list, len(known)
}

func (s *services) init(p *Problem) {
	var locations, areas []int
	for _, m := range p.Machines {
		locations, areas = append(locations, m.Location), append(areas, m.Neighbourhood)
	}
	s.location, s.locations = number(locations)
	s.area, s.areas = number(areas)
	s.machines, s.serviceWeight = len(p.Machines), p.ServiceMoveWeight
	n := len(p.Services)
	s.inPlace, s.inArea = make([]int32, n*s.locations), make([]int32, n*s.areas)
	s.with = slices.Repeat([]int{none}, n*s.machines)
	s.dependsOn, s.dependent = make([][]int, n), make([][]int, n)
	for a, service := range p.Services {
		s.lacks = append(s.lacks, service.Spread)
		s.broken += service.Spread
		for _, b := range service.DependsOn {
			if a != b && !slices.Contains(s.dependsOn[a], b) {
				s.dependsOn[a] = append(s.dependsOn[a], b)
				s.dependent[b] = append(s.dependent[b], a)
			}
		}
	}
	s.moved, s.many = make([]int, n), make([]int, len(p.Processes)+1)
	s.many[0] = n
	for _, q := range p.Processes {
		s.of = append(s.of, q.Service)
	}
}

// enter puts a process at a machine.
func (s *services) enter(i, k int) {
	a := s.of[i]
	s.with[a*s.machines+k] = i
	here := &s.inPlace[a*s.locations+s.location[k]]
	if *here++; *here == 1 {
		if s.lacks[a]--; s.lacks[a] >= 0 {
			s.broken--
		}
	}
	area := s.area[k]
	if s.inArea[a*s.areas+area]++; s.inArea[a*s.areas+area] == 1 {
		s.broken += s.needed(a, area)
	}
}

// exit takes a process from a machine.
func (s *services) exit(i, k int) {
	a := s.of[i]
	s.with[a*s.machines+k] = none
	here := &s.inPlace[a*s.locations+s.location[k]]
	if *here--; *here == 0 {
		if s.lacks[a]++; s.lacks[a] > 0 {
			s.broken++
		}
	}
	area := s.area[k]
	if s.inArea[a*s.areas+area]--; s.inArea[a*s.areas+area] == 0 {
		s.broken -= s.needed(a, area)
	}
}

// needed is what a service that is in a neighbourhood lacks there, less what would lack it.
func (s *services) needed(a, area int) int {
	n := 0
	for _, b := range s.dependsOn[a] {
		if s.inArea[b*s.areas+area] == 0 {
			n++
		}
	}
	for _, b := range s.dependent[a] {
		if s.inArea[b*s.areas+area] > 0 {
			n--
		}
	}
	return n
}

// count has so many more processes of a service moved.
func (s *services) count(a, more int) {
	s.many[s.moved[a]]--
	s.moved[a] += more
	s.many[s.moved[a]]++
	s.most = max(s.most, s.moved[a])
	for s.many[s.most] == 0 {
		s.most--
	}
}

func (s *services) serviceCost() int64 { return s.serviceWeight * int64(s.most) }
