package scheduler

import (
	"fmt"
	"maps"
	"strings"
	"text/tabwriter"
	"time"

	"heliotrope"
	"heliotrope/scheduler/atlas"
)

// Plan says what to move where, in which order, and why. It is a value that can be printed,
// compared and refused. One without moves is an answer too: Reason says why.
type Plan struct {
	At     time.Time `json:"at"` // of the snapshot
	Policy string    `json:"policy"`
	Seed   uint64    `json:"seed"`

	Moves   []Move    `json:"moves"`
	Blocked []Blocked `json:"blocked,omitempty"`
	Reason  string    `json:"reason"`

	Before Cost `json:"before"`
	After  Cost `json:"after"`

	// No placement that keeps all constraints costs less than Bound, which is certain; the
	// best is no more than Gap, as a share, below After. Bounded says that they are known.
	Bound   float64 `json:"bound_usd_per_hour,omitempty"`
	Gap     float64 `json:"gap,omitempty"`
	Bounded bool    `json:"bounded"`

	Broken []Violation `json:"broken,omitempty"` // constraints that are not kept after it
	Ways   []Path      `json:"ways,omitempty"`   // that its moves rest on, where whoever made the snapshot says
	Map    *atlas.Map  `json:"map,omitempty"`    // to draw it, where whoever made the snapshot tells (survey.Map)
}

// Move is one VM's way to another host.
type Move struct {
	Step       int               `json:"step"` // those of a step go side by side; the next begins when they have ended
	VM         heliotrope.VMID   `json:"vm"`
	From       heliotrope.HostID `json:"from,omitempty"`
	FromSite   heliotrope.SiteID `json:"from_site,omitempty"`
	To         heliotrope.HostID `json:"to"`
	ToSite     heliotrope.SiteID `json:"to_site"`
	Temporary  bool              `json:"temporary,omitempty"` // it goes on from there
	USDPerHour float64           `json:"gain_usd_per_hour"`   // its share of what the plan gains
	Ms         float64           `json:"gain_ms"`             // that its traffic, by bytes, is nearer
	Seconds    float64           `json:"predicted_seconds"`
	PauseMs    float64           `json:"predicted_pause_ms"`
	PaidUntil  time.Time         `json:"paid_until,omitzero"`  // its place, where whole periods are paid and it leaves within one
	WastesUSD  float64           `json:"wastes_usd,omitempty"` // of what is paid, if it begins now
	Better     time.Time         `json:"better_at,omitzero"`   // it had better begin then, just before that; zero: now
	Why        string            `json:"why"`
	Evidence   []Evidence        `json:"evidence,omitempty"`
	Confidence float64           `json:"confidence,omitempty"` // share of the parts of the traffic's window in which it would gain; 0: not known
}

// sure is how sure a move is, for people.
func (m Move) sure() string {
	if m.Confidence == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f %%", 100*m.Confidence)
}

// Blocked is a VM that ought to move and cannot.
type Blocked struct {
	VM  heliotrope.VMID   `json:"vm"`
	To  heliotrope.HostID `json:"to,omitempty"`
	Why string            `json:"why"`
}

// Gain is what the plan saves, in USD per hour.
func (p Plan) Gain() float64 { return p.Before.Total() - p.After.Total() }

// Steps are the moves by step.
func (p Plan) Steps() [][]Move {
	var steps [][]Move
	for i, m := range p.Moves {
		if i == 0 || m.Step != p.Moves[i-1].Step {
			steps = append(steps, nil)
		}
		steps[len(steps)-1] = append(steps[len(steps)-1], m)
	}
	return steps
}

// Apply is the placement after all moves.
func (p Plan) Apply(before Placement) Placement {
	after := maps.Clone(before)
	for _, m := range p.Moves {
		after[m.VM] = m.To
	}
	return after
}

// String is the plan for people.
func (p Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "policy %s: USD %.4f/h now, USD %.4f/h after, %d moves\n", p.Policy, p.Before.Total(), p.After.Total(), len(p.Moves))
	if p.Bounded {
		fmt.Fprintf(&b, "nothing can cost less than USD %.4f/h: this is at most %.2f %% above the best\n", p.Bound, 100*p.Gap)
	}
	fmt.Fprintf(&b, "%s\n", p.Reason)
	if len(p.Moves) > 0 {
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "step\tvm\tfrom\tto\tUSD/h\tms nearer\tsure\ttakes s\tpause ms\twhy")
		for _, m := range p.Moves {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%.4f\t%.3g\t%s\t%.1f\t%.0f\t%s\n", m.Step, m.VM, m.From, m.To, m.USDPerHour, m.Ms, m.sure(), m.Seconds, m.PauseMs, m.Why)
		}
		_ = w.Flush() // into memory: it cannot fail
	}
	for _, x := range p.Blocked {
		fmt.Fprintf(&b, "blocked: %s to %s: %s\n", x.VM, x.To, x.Why)
	}
	for _, v := range p.Broken {
		fmt.Fprintf(&b, "not kept: %s\n", v)
	}
	return b.String()
}
