package reassign

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// Sizes that the challenge allows.
const (
	mostResources = 20
	mostMachines  = 5_000
	mostServices  = 5_000
	mostProcesses = 50_000
	mostDepends   = 5_000 // of a service
	mostBalances  = 10
	mostPlaces    = mostMachines // neighbourhoods, locations
	mostUnits     = 1 << 32
	mostCost      = 1 << 62 // of any assignment
)

// reader reads whole numbers that white space parts, until one is wrong.
type reader struct {
	r    *bufio.Reader
	line int
	err  error
}

func newReader(r io.Reader) *reader { return &reader{r: bufio.NewReader(r), line: 1} }

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("line %d: %s", r.line, fmt.Sprintf(format, args...))
	}
}

// skip reads white space and returns what comes after it; 0 at the end.
func (r *reader) skip() byte {
	for {
		c, err := r.r.ReadByte()
		switch {
		case errors.Is(err, io.EOF):
			return 0
		case err != nil:
			r.fail("read: %v", err)
			return 0
		case c == '\n':
			r.line++
		case c != ' ' && c != '\t' && c != '\r':
			return c
		}
	}
}

// number reads one from 0 to most.
func (r *reader) number(what string, most int64) int64 {
	if r.err != nil {
		return 0
	}
	c := r.skip()
	if c == 0 {
		r.fail("%s is missing", what)
		return 0
	}
	var n int64
	for ; c >= '0' && c <= '9'; c, _ = r.r.ReadByte() {
		if n = 10*n + int64(c-'0'); n > most {
			r.fail("%s is more than %d", what, most)
			return 0
		}
	}
	switch c {
	case '\n':
		r.line++
	case 0, ' ', '\t', '\r':
	default:
		r.fail("%s is no whole number: it has %q", what, c)
	}
	return n
}

func (r *reader) count(what string, most int) int { return int(r.number(what, int64(most))) }

// index reads which one of n.
func (r *reader) index(what string, n int) int {
	if n == 0 {
		r.fail("%s: there is none", what)
		return 0
	}
	return r.count(what, n-1)
}

// numbers reads n of them.
func (r *reader) numbers(what string, n int, most int64) []int64 {
	var list []int64 // grows with what is there, not with what a header says
	for i := 0; i < n && r.err == nil; i++ {
		list = append(list, r.number(what, most))
	}
	return list
}

// end sees that there is no more.
func (r *reader) end() error {
	if r.err == nil && r.skip() != 0 {
		r.fail("there is more than there should be")
	}
	return r.err
}

// ReadProblem reads a model file of the challenge. Errors tell the line.
func ReadProblem(from io.Reader) (*Problem, error) {
	r := newReader(from)
	p := &Problem{}
	for n := r.count("number of resources", mostResources); len(p.Resources) < n && r.err == nil; {
		p.Resources = append(p.Resources, Resource{r.number("transient", 1) == 1, r.number("load weight", mostUnits)})
	}
	machines := r.count("number of machines", mostMachines)
	for len(p.Machines) < machines && r.err == nil {
		p.Machines = append(p.Machines, Machine{
			Neighbourhood: r.index("neighbourhood", mostPlaces),
			Location:      r.index("location", mostPlaces),
			Capacity:      r.numbers("capacity", len(p.Resources), mostUnits),
			Safety:        r.numbers("safety capacity", len(p.Resources), mostUnits),
			MoveCost:      r.numbers("machine move cost", machines, mostUnits),
		})
	}
	services := r.count("number of services", mostServices)
	for len(p.Services) < services && r.err == nil {
		s := Service{Spread: r.count("spread", mostPlaces)}
		for n := r.count("number of dependencies", mostDepends); len(s.DependsOn) < n && r.err == nil; {
			s.DependsOn = append(s.DependsOn, r.index("dependency", services))
		}
		p.Services = append(p.Services, s)
	}
	for n := r.count("number of processes", mostProcesses); len(p.Processes) < n && r.err == nil; {
		p.Processes = append(p.Processes, Process{
			Service:  r.index("service", services),
			Needs:    r.numbers("requirement", len(p.Resources), mostUnits),
			MoveCost: r.number("process move cost", mostUnits),
		})
	}
	for n := r.count("number of balances", mostBalances); len(p.Balances) < n && r.err == nil; {
		p.Balances = append(p.Balances, Balance{
			A: r.index("resource", len(p.Resources)), B: r.index("resource", len(p.Resources)),
			Target: r.number("target", mostUnits), Weight: r.number("balance weight", mostUnits),
		})
	}
	p.ProcessMoveWeight = r.number("process move weight", mostUnits)
	p.ServiceMoveWeight = r.number("service move weight", mostUnits)
	p.MachineMoveWeight = r.number("machine move weight", mostUnits)
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("read model: %w", err)
	}
	if p.dearest() > mostCost {
		return nil, errors.New("read model: costs do not fit into 63 bits")
	}
	return p, nil
}

// dearest is more than any assignment costs, and than any sum on the way.
func (p *Problem) dearest() float64 {
	need, room := make([]float64, len(p.Resources)), make([]float64, len(p.Resources))
	var processes, machines float64
	for _, q := range p.Processes {
		for r, n := range q.Needs {
			need[r] += float64(n)
		}
		processes += float64(q.MoveCost)
	}
	for _, m := range p.Machines {
		var most int64
		for r := range m.Capacity {
			room[r] += float64(m.Capacity[r] + m.Safety[r])
		}
		for _, c := range m.MoveCost {
			most = max(most, c)
		}
		machines = max(machines, float64(most))
	}
	sum := float64(p.ProcessMoveWeight)*processes + float64(p.ServiceMoveWeight)*float64(len(p.Processes)) +
		float64(p.MachineMoveWeight)*machines*float64(len(p.Processes))
	for r, res := range p.Resources {
		sum += float64(res.LoadWeight) * (need[r] + room[r])
	}
	for _, b := range p.Balances {
		sum += float64(b.Weight) * (float64(b.Target)*(need[b.A]+room[b.A]) + need[b.B] + room[b.B])
	}
	return sum
}

// ReadAssignment reads an assignment file of the challenge: a machine for each process. Errors tell the line.
func (p *Problem) ReadAssignment(from io.Reader) (Assignment, error) {
	r := newReader(from)
	var a Assignment
	for len(a) < len(p.Processes) && r.err == nil {
		a = append(a, r.index("machine", len(p.Machines)))
	}
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("read assignment: %w", err)
	}
	return a, nil
}
