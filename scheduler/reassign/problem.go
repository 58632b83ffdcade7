package reassign

// Problem is an instance, as the challenge defines it (problem_definition_v1.pdf, 2011). All are whole
// numbers of units that it does not name.
type Problem struct {
	Resources []Resource
	Machines  []Machine
	Services  []Service
	Processes []Process
	Balances  []Balance

	// Weights of the costs of moves.
	ProcessMoveWeight, ServiceMoveWeight, MachineMoveWeight int64
}

// Resource is a kind of room.
type Resource struct {
	Transient  bool // a process that leaves still takes it where it was
	LoadWeight int64
}

// Machine is where processes run.
type Machine struct {
	Neighbourhood, Location int
	Capacity, Safety        []int64 // of each resource: never more, and not more for nothing
	MoveCost                []int64 // to each machine
}

// Service is processes that do the same.
type Service struct {
	Spread    int   // locations that it is in at least
	DependsOn []int // services of which each neighbourhood that has it must have a process
}

// Process is what is assigned.
type Process struct {
	Service  int
	Needs    []int64 // of each resource
	MoveCost int64
}

// Balance is a wish: for each free unit of resource A, Target of B.
type Balance struct {
	A, B           int
	Target, Weight int64
}

// Assignment is the machine of each process.
type Assignment []int

// term is one thing that machines pay for: the positive part of a sum, weighted.
type term struct {
	machine func(m Machine) int64 // what an empty one begins with
	process func(p Process) int64 // what each process adds
}

// terms lists loads and imbalances. A load is what is used less what is safe; an imbalance Target
// × (capacity - used) of A less (capacity - used) of B.
func (p *Problem) terms() []term {
	var list []term
	for r, res := range p.Resources {
		if w := res.LoadWeight; w > 0 {
			list = append(list, term{
				func(m Machine) int64 { return -w * m.Safety[r] },
				func(q Process) int64 { return w * q.Needs[r] },
			})
		}
	}
	for _, b := range p.Balances {
		if b.Weight > 0 {
			list = append(list, term{
				func(m Machine) int64 { return b.Weight * (b.Target*m.Capacity[b.A] - m.Capacity[b.B]) },
				func(q Process) int64 { return b.Weight * (q.Needs[b.B] - b.Target*q.Needs[b.A]) },
			})
		}
	}
	return list
}

// Bound is below the cost of every assignment: no moves, and each load and each imbalance as if
// all machines were one, since positive parts come to no less than that of their sum.
func (p *Problem) Bound() int64 {
	var bound int64
	for _, t := range p.terms() {
		var sum int64
		for _, m := range p.Machines {
			sum += t.machine(m)
		}
		for _, q := range p.Processes {
			sum += t.process(q)
		}
		bound += max(0, sum)
	}
	return bound
}
