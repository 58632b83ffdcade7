package reassign

import "slices"

const none = -1

// state is an assignment with the tables in which a change is weighed.
type state struct {
	p     *Problem
	home  []int // machine of each process at first
	at    []int
	here  [][]int // processes at each machine, in no order
	slot  []int   // of each process, in here
	cost  int64
	terms int
	sums  []int64 // machine × terms: it pays for the positive ones
	rows  []int64 // process × terms: what each adds

	kinds int
	free  []int64 // machine × resources
	over  int64   // what is asked for that there is no room for
	full  int     // resources of machines of which more is
	needs []int64 // process × resources
	// What a process takes at its home: what is transient is taken there at any rate.
	needsHome []int64
	barred    []bool  // process × machine: there can never be room
	leaving   []int64 // of each process: the cost of not being at home
	ways      []int64 // home × machine: the cost of being there

	services
}

func newState(p *Problem, home, at Assignment) *state {
	s := &state{
		p: p, home: home, at: slices.Clone(at), kinds: len(p.Resources),
		here: make([][]int, len(p.Machines)), slot: make([]int, len(at)),
	}
	terms := p.terms()
	s.terms = len(terms)
	for _, m := range p.Machines {
		for _, t := range terms {
			s.sums = append(s.sums, t.machine(m))
		}
		s.free = append(s.free, m.Capacity...)
		for _, c := range m.MoveCost {
			s.ways = append(s.ways, c*p.MachineMoveWeight)
		}
	}
	for i, q := range p.Processes {
		for _, t := range terms {
			s.rows = append(s.rows, t.process(q))
		}
		s.needs = append(s.needs, q.Needs...)
		s.leaving = append(s.leaving, q.MoveCost*p.ProcessMoveWeight)
		for r, n := range q.Needs {
			if p.Resources[r].Transient {
				s.free[home[i]*s.kinds+r] -= n
				n = 0
			}
			s.needsHome = append(s.needsHome, n)
		}
	}
	for _, free := range s.free {
		s.overfull(free, 1)
	}
	for i := range at {
		for k := range p.Machines {
			s.barred = append(s.barred, s.exceeds(i, k))
		}
	}
	s.services.init(p)
	for i, k := range s.at {
		s.cost += s.being(i, k)
		s.enter(i, k)
		s.services.enter(i, k)
		if k != home[i] {
			s.count(s.of[i], 1)
		}
	}
	for _, sum := range s.sums {
		s.cost += max(0, sum)
	}
	s.cost += s.serviceCost()
	return s
}

// being is what it costs to move a process to a machine.
func (s *state) being(i, k int) int64 {
	cost := s.ways[s.home[i]*len(s.here)+k]
	if k != s.home[i] {
		cost += s.leaving[i]
	}
	return cost
}

// takes is what a process takes of a machine's room.
func (s *state) takes(i, k int) []int64 {
	if k == s.home[i] {
		return s.needsHome[i*s.kinds : i*s.kinds+s.kinds]
	}
	return s.needs[i*s.kinds : i*s.kinds+s.kinds]
}

func (s *state) enter(i, k int) {
	s.slot[i] = len(s.here[k])
	s.here[k] = append(s.here[k], i)
	s.add(i, k, 1)
}

func (s *state) leave(i int) {
	k := s.at[i]
	last := len(s.here[k]) - 1
	moved := s.here[k][last]
	s.here[k][s.slot[i]] = moved
	s.slot[moved] = s.slot[i]
	s.here[k] = s.here[k][:last]
	s.add(i, k, -1)
}

func (s *state) add(i, k int, sign int64) {
	sums := s.sums[k*s.terms : k*s.terms+s.terms]
	for t, x := range s.rows[i*s.terms : i*s.terms+s.terms] {
		sums[t] += sign * x
	}
	free := s.free[k*s.kinds : k*s.kinds+s.kinds]
	for r, x := range s.takes(i, k) {
		s.overfull(free[r], -1)
		free[r] -= sign * x
		s.overfull(free[r], 1)
	}
}

// overfull counts what is free, if it is less than nothing.
func (s *state) overfull(free, sign int64) {
	if free < 0 {
		s.over -= sign * free
		s.full += int(sign)
	}
}

// exceeds says whether a process takes more than is free.
func (s *state) exceeds(i, k int) bool {
	free := s.free[k*s.kinds : k*s.kinds+s.kinds]
	for r, x := range s.takes(i, k) {
		if x > free[r] {
			return true
		}
	}
	return false
}

// spill is how much more than there is room for is asked for when a machine gets a process and
// another leaves it, and at how many more resources; none: no process.
func (s *state) spill(in, out, k int) (more int64, times int) {
	free := s.free[k*s.kinds : k*s.kinds+s.kinds]
	for r, left := range free {
		after := left
		if in != none {
			after -= s.takes(in, k)[r]
		}
		if out != none {
			after += s.takes(out, k)[r]
		}
		if after < 0 {
			more -= after
			times++
		}
		if left < 0 {
			more += left
			times--
		}
	}
	return more, times
}

// pay is what it adds to a machine's cost when it gets a process and another leaves it.
func (s *state) pay(in, out, k int) int64 {
	var cost int64
	sums := s.sums[k*s.terms : k*s.terms+s.terms]
	switch {
	case out == none:
		for t, x := range s.rows[in*s.terms : in*s.terms+s.terms] {
			cost += max(0, sums[t]+x) - max(0, sums[t])
		}
	case in == none:
		for t, x := range s.rows[out*s.terms : out*s.terms+s.terms] {
			cost += max(0, sums[t]-x) - max(0, sums[t])
		}
	default:
		less := s.rows[out*s.terms : out*s.terms+s.terms]
		for t, x := range s.rows[in*s.terms : in*s.terms+s.terms] {
			cost += max(0, sums[t]+x-less[t]) - max(0, sums[t])
		}
	}
	return cost
}

// away is 1 for a process that leaves its home, and -1 for one that comes back.
func (s *state) away(i, to int) int {
	switch s.home[i] {
	case s.at[i]:
		return 1
	case to:
		return -1
	}
	return 0
}
