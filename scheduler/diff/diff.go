// Package diff compares plans, by where VMs end: what one moves and another does not says why
// the second is not worth making again.
package diff

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"heliotrope"
	"heliotrope/scheduler"
)

// Difference is how one plan differs from another, by where VMs end.
type Difference struct {
	Added     []scheduler.Move   `json:"added,omitempty"`     // only in the second
	Dropped   []scheduler.Move   `json:"dropped,omitempty"`   // only in the first
	Elsewhere [][]scheduler.Move `json:"elsewhere,omitempty"` // in both, to other hosts: the first's, the second's

	USDPerHour float64 `json:"usd_per_hour"` // that the second costs more
}

// Plans compares two plans.
func Plans(a, b scheduler.Plan) Difference {
	first, second := last(a), last(b)
	d := Difference{USDPerHour: b.After.Total() - a.After.Total()}
	for _, id := range slices.Sorted(maps.Keys(first)) {
		if m, ok := second[id]; !ok {
			d.Dropped = append(d.Dropped, first[id])
		} else if m.To != first[id].To {
			d.Elsewhere = append(d.Elsewhere, []scheduler.Move{first[id], m})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(second)) {
		if _, ok := first[id]; !ok {
			d.Added = append(d.Added, second[id])
		}
	}
	return d
}

// Same says whether the plans end alike.
func (d Difference) Same() bool { return len(d.Added)+len(d.Dropped)+len(d.Elsewhere) == 0 }

func (d Difference) String() string {
	if d.Same() {
		return "the same moves\n"
	}
	var b strings.Builder
	for _, m := range d.Dropped {
		fmt.Fprintf(&b, "- %s to %s: %s\n", m.VM, m.To, m.Why)
	}
	for _, m := range d.Added {
		fmt.Fprintf(&b, "+ %s to %s: %s\n", m.VM, m.To, m.Why)
	}
	for _, m := range d.Elsewhere {
		fmt.Fprintf(&b, "~ %s to %s, not %s: %s\n", m[0].VM, m[1].To, m[0].To, m[1].Why)
	}
	fmt.Fprintf(&b, "USD %+.4f/h\n", d.USDPerHour)
	return b.String()
}

// last is each VM's last move.
func last(p scheduler.Plan) map[heliotrope.VMID]scheduler.Move {
	ends := map[heliotrope.VMID]scheduler.Move{}
	for _, m := range p.Moves {
		ends[m.VM] = m
	}
	return ends
}
