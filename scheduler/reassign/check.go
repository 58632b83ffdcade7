package reassign

import "fmt"

// Cost is what an assignment costs, weighted.
type Cost struct {
	Load        int64 `json:"load"`
	Balance     int64 `json:"balance"`
	ProcessMove int64 `json:"process_move"`
	ServiceMove int64 `json:"service_move"`
	MachineMove int64 `json:"machine_move"`
}

// Total is the objective.
func (c Cost) Total() int64 {
	return c.Load + c.Balance + c.ProcessMove + c.ServiceMove + c.MachineMove
}

// Check reckons what an assignment costs that comes after another, and lists what it breaks. It is
// written after the challenge's definition, formula by formula, and shares nothing with the search.
// Both must have a machine for each process.
func (p *Problem) Check(initial, a Assignment) (Cost, []string) {
	c := p.moves(initial, a)
	used := make([][]int64, len(p.Machines))
	held := make([][]int64, len(p.Machines)) // and what those that left still take
	for m := range used {
		used[m], held[m] = make([]int64, len(p.Resources)), make([]int64, len(p.Resources))
	}
	for i, q := range p.Processes {
		for r, n := range q.Needs {
			used[a[i]][r] += n
			held[a[i]][r] += n
			if p.Resources[r].Transient && a[i] != initial[i] {
				held[initial[i]][r] += n
			}
		}
	}
	var broken []string
	for m, machine := range p.Machines {
		for r, res := range p.Resources {
			c.Load += res.LoadWeight * max(0, used[m][r]-machine.Safety[r])
			if held[m][r] > machine.Capacity[r] {
				broken = append(broken, fmt.Sprintf("machine %d holds %d of resource %d: its capacity is %d", m, held[m][r], r, machine.Capacity[r]))
			}
		}
		for _, b := range p.Balances {
			free := func(r int) int64 { return machine.Capacity[r] - used[m][r] }
			c.Balance += b.Weight * max(0, b.Target*free(b.A)-free(b.B))
		}
	}
	return c, append(broken, p.brokenServices(a)...)
}

// moves are the costs of moves.
func (p *Problem) moves(initial, a Assignment) Cost {
	var c Cost
	moved := make([]int64, len(p.Services))
	for i, q := range p.Processes {
		c.MachineMove += p.MachineMoveWeight * p.Machines[initial[i]].MoveCost[a[i]]
		if a[i] != initial[i] {
			c.ProcessMove += p.ProcessMoveWeight * q.MoveCost
			moved[q.Service]++
			c.ServiceMove = max(c.ServiceMove, p.ServiceMoveWeight*moved[q.Service])
		}
	}
	return c
}

// brokenServices lists the rules of services that are broken.
func (p *Problem) brokenServices(a Assignment) []string {
	var broken []string
	type at struct{ service, place int }
	machines, locations, neighbourhoods := map[at]int{}, map[at]bool{}, map[at]bool{}
	spread := make([]int, len(p.Services))
	for i, q := range p.Processes {
		m := p.Machines[a[i]]
		machines[at{q.Service, a[i]}]++
		if n := machines[at{q.Service, a[i]}]; n > 1 {
			broken = append(broken, fmt.Sprintf("machine %d has %d processes of service %d", a[i], n, q.Service))
		}
		if !locations[at{q.Service, m.Location}] {
			locations[at{q.Service, m.Location}] = true
			spread[q.Service]++
		}
		neighbourhoods[at{q.Service, m.Neighbourhood}] = true
	}
	for s, service := range p.Services {
		if spread[s] < service.Spread {
			broken = append(broken, fmt.Sprintf("service %d is in %d locations: its spread is %d", s, spread[s], service.Spread))
		}
	}
	for i, q := range p.Processes {
		n := p.Machines[a[i]].Neighbourhood
		for _, on := range p.Services[q.Service].DependsOn {
			if !neighbourhoods[at{on, n}] {
				broken = append(broken, fmt.Sprintf("process %d of service %d is in neighbourhood %d without service %d", i, q.Service, n, on))
			}
		}
	}
	return broken
}
