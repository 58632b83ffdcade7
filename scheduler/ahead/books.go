package ahead

import (
	"maps"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/forecast"
	"heliotrope/scheduler/pace"
)

const (
	// Window is the time in which following forecasts may cost no more than the bound.
	Window = 24 * time.Hour
	// proof is how long a forecast must have been the better one after it was stopped.
	proof = 24 * time.Hour
)

// Paper is where a policy that is not carried out has VMs.
type Paper struct {
	At    scheduler.Placement `json:"at"`
	Moved []pace.Moved        `json:"moved,omitempty"` // in the last window
	USD   float64             `json:"usd"`             // of moves since the last account
}

// Books are a pool's: what was paid, and what either policy would have.
type Books struct {
	Guard      *forecast.Guard     `json:"guard"`
	Reactive   Paper               `json:"reactive"`
	Predictive Paper               `json:"predictive"`
	Real       scheduler.Placement `json:"real"`
	At         time.Time           `json:"at"` // up to when it is accounted for
	Follows    bool                `json:"follows"`
}

// Open begins the books of VMs that are somewhere, with a bound of what forecasts may cost in
// a Window.
func Open(boundUSD float64, now time.Time, real scheduler.Placement) (*Books, error) {
	g, err := forecast.NewGuard(boundUSD, Window, proof)
	b := &Books{Guard: g, At: now}
	b.Reset(real)
	return b, err
}

// Reset makes both policies have VMs where they are.
func (b *Books) Reset(real scheduler.Placement) {
	b.Real, b.Reactive.At, b.Predictive.At = maps.Clone(real), maps.Clone(real), maps.Clone(real)
}

// Account pays for the time since the last account by what was asked in it; s has VMs where
// they are. A VM that is elsewhere than it was, and not where either policy has it, was moved
// by somebody: both have it there from now on, as they have one that is new.
func (b *Books) Account(s scheduler.Snapshot, p scheduler.Policy, now time.Time) error {
	hours := now.Sub(b.At).Hours()
	real := s.Placement()
	moved, err := moving(s, p, b.Real, real)
	if err != nil {
		return err
	}
	costs := [3]float64{moved, b.Reactive.USD, b.Predictive.USD}
	for i, at := range []scheduler.Placement{b.Real, b.Reactive.At, b.Predictive.At} {
		if i == 0 {
			at = real
		}
		usd, err := running(s, p, only(s, at, real))
		if err != nil {
			return err
		}
		costs[i] += usd * hours
	}
	b.Guard.Account(forecast.Period{End: now, RealUSD: costs[0], ReactiveUSD: costs[1], PredictiveUSD: costs[2]})
	b.Reactive.close(now)
	b.Predictive.close(now)
	for vm, host := range real {
		theirs := host == b.Reactive.At[vm] || host == b.Predictive.At[vm]
		if b.Real[vm] == "" || host != b.Real[vm] && !theirs {
			b.Reactive.At[vm], b.Predictive.At[vm] = host, host
		}
	}
	b.Real, b.Reactive.At, b.Predictive.At = real, only(s, b.Reactive.At, real), only(s, b.Predictive.At, real)
	b.At = now
	return nil
}

// only is a placement of those VMs that there are: where they are, if it has them at no host
// that there is.
func only(s scheduler.Snapshot, at, real scheduler.Placement) scheduler.Placement {
	hosts := map[heliotrope.HostID]bool{}
	for _, h := range s.Hosts {
		hosts[h.ID] = true
	}
	all := scheduler.Placement{}
	for vm, host := range real {
		all[vm] = host
		if hosts[at[vm]] {
			all[vm] = at[vm]
		}
	}
	return all
}

func (x *Paper) close(now time.Time) {
	x.USD = 0
	x.Moved = slices.DeleteFunc(x.Moved, func(m pace.Moved) bool { return now.Sub(m.At) > Window })
}

// Seen is a snapshot as the policy sees it: VMs are where it has them.
func (x *Paper) Seen(s scheduler.Snapshot) scheduler.Snapshot {
	s.VMs = slices.Clone(s.VMs)
	for i, v := range s.VMs {
		if x.At[v.ID] != "" {
			s.VMs[i].Host = x.At[v.ID]
		}
	}
	return s
}

// Make carries a plan out on paper.
func (x *Paper) Make(s scheduler.Snapshot, p scheduler.Policy, plan scheduler.Plan) error {
	after := plan.Apply(x.At)
	usd, err := moving(s, p, x.At, after)
	if err != nil {
		return err
	}
	for _, m := range plan.Moves {
		x.Moved = append(x.Moved, pace.Moved{VM: m.VM, At: s.At})
	}
	x.At, x.USD = after, x.USD+usd
	return nil
}

// Choose says whether the predictive policy may be followed until the next account, which is
// no later than in so long a time.
func (b *Books) Choose(s scheduler.Snapshot, p scheduler.Policy, d *Demands, period time.Duration) (bool, error) {
	worst, err := d.Worst(s, p, b.Predictive.At, b.Reactive.At)
	if err != nil {
		return false, err
	}
	there, err := moving(s, p, b.Real, b.Predictive.At)
	if err != nil {
		return false, err
	}
	back, err := moving(s, p, b.Predictive.At, b.Reactive.At)
	if err != nil {
		return false, err
	}
	return b.Guard.Allow(s.At, worst*period.Hours()+there, back), nil
}

// moving is what it costs once, in USD, that VMs go from one placement to another.
func moving(s scheduler.Snapshot, p scheduler.Policy, from, to scheduler.Placement) (float64, error) {
	if p.AmortisationHours == 0 {
		p.AmortisationHours = 1
	}
	s.VMs = slices.Clone(s.VMs)
	for i, v := range s.VMs {
		if from[v.ID] != "" {
			s.VMs[i].Host = from[v.ID]
		}
	}
	c, err := scheduler.Evaluate(s, p, to)
	return c.Moves * p.AmortisationHours, err
}

// Plan is how VMs get from where they are to where a policy has them.
func (x *Paper) Plan(s scheduler.Snapshot, p scheduler.Policy) (scheduler.Plan, error) {
	site := map[heliotrope.HostID]heliotrope.SiteID{}
	for _, h := range s.Hosts {
		site[h.ID] = h.Site
	}
	s.VMs = slices.Clone(s.VMs)
	for i := range s.VMs {
		if v := &s.VMs[i]; !v.Pinned && site[x.At[v.ID]] != "" {
			v.Allowed = []heliotrope.SiteID{site[x.At[v.ID]]}
		}
	}
	p.OnlyForced = true
	return scheduler.Solve(s, p, scheduler.Options{Iterations: -1, Passes: -1})
}
