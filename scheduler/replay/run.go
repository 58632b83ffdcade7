package replay

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/billing"
	"heliotrope/scheduler/pace"
)

const usualHours = 24 // of a policy that does not say over how many it spreads a move

// Scenario is what happens, whatever is decided.
type Scenario struct {
	Ticks   []Tick
	End     time.Time
	Policy  scheduler.Policy // what distance and moves cost
	Billing time.Duration    // VMs are paid in whole periods of this at sites that say none; 0: by the moment
}

// Tick is when something is known anew, and may be decided.
type Tick struct {
	At   time.Time
	Now  scheduler.Snapshot  // what is true until the next one; its VMs' places count at the first tick only
	Gone []heliotrope.HostID // hosts that end at this moment
}

// Decide makes a plan at a tick. In the snapshot VMs are where they are now.
type Decide func(tick int, seen scheduler.Snapshot, past []pace.Moved) (scheduler.Plan, error)

// Still decides that nothing moves.
func Still(int, scheduler.Snapshot, []pace.Moved) (scheduler.Plan, error) {
	return scheduler.Plan{}, nil
}

// Scheduler decides as production does.
func Scheduler(p scheduler.Policy, most pace.Pace, o scheduler.Options) Decide {
	return func(_ int, seen scheduler.Snapshot, past []pace.Moved) (scheduler.Plan, error) {
		held, p := most.Allow(past, seen.At).Hold(seen, p)
		plan, err := scheduler.Solve(held, p, o)
		if err != nil {
			return plan, err
		}
		return plan, scheduler.Verify(held, p, plan)
	}
}

// Seeing decides from something else than what is true: from what was measured before, or
// from what is expected. VMs are where they are.
func Seeing(what func(tick int) scheduler.Snapshot, decide Decide) Decide {
	return func(tick int, seen scheduler.Snapshot, past []pace.Moved) (scheduler.Plan, error) {
		other := what(tick)
		other.At, other.VMs = seen.At, seen.VMs
		return decide(tick, other, past)
	}
}

// Follow sends a VM to the site that each tick has for it.
func Follow(vm heliotrope.VMID, sites []heliotrope.SiteID) Decide {
	return func(tick int, seen scheduler.Snapshot, _ []pace.Moved) (scheduler.Plan, error) {
		return goTo(seen, map[heliotrope.VMID]heliotrope.SiteID{vm: sites[tick]})
	}
}

// goTo is a plan that takes VMs to sites and nothing else.
func goTo(s scheduler.Snapshot, sites map[heliotrope.VMID]heliotrope.SiteID) (scheduler.Plan, error) {
	s.VMs = slices.Clone(s.VMs)
	for i := range s.VMs {
		v := &s.VMs[i]
		v.Forbidden, v.Pinned = nil, false
		if v.Allowed = nil; sites[v.ID] != "" {
			v.Allowed = []heliotrope.SiteID{sites[v.ID]}
		}
	}
	return scheduler.Solve(s, scheduler.Policy{Name: "as told", OnlyForced: true}, scheduler.Options{Iterations: -1, Passes: -1})
}

// Result is what it came to.
type Result struct {
	Cost          scheduler.Cost // USD in all, by what for; Moves are those that were made
	TwiceUSD      float64        // for VMs paid at two places
	Moves         []pace.Moved
	Interruptions int
	Paused        time.Duration // of all VMs, in moves
	Reached       Distances     // how far clients were
	Curve         []Point       // what was paid until each tick
	Sites         []map[heliotrope.VMID]heliotrope.SiteID
}

// Point is USD paid until a moment.
type Point struct {
	At  time.Time `json:"at"`
	USD float64   `json:"usd"`
}

// USD is all that was paid, distance at the policy's price included.
func (r *Result) USD() float64 { return r.Cost.Total() + r.TwiceUSD }

// MostMovesPerDay is the most moves that began in any 24 hours.
func (r *Result) MostMovesPerDay() int {
	most := 0
	for i, m := range r.Moves {
		n := 0
		for _, other := range r.Moves[i:] {
			if other.At.Sub(m.At) < 24*time.Hour {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// run is a scenario under way.
type run struct {
	s       Scenario
	at      scheduler.Placement
	since   map[heliotrope.VMID]time.Time // from when its place is paid
	landing []landing                     // by time
	r       Result
}

// landing is a move under way.
type landing struct {
	at    time.Time
	begun time.Time
	move  scheduler.Move
}

// Run plays a scenario.
func Run(s Scenario, decide Decide) (Result, error) {
	x := start(s)
	for tick := range s.Ticks {
		if err := x.step(tick, decide); err != nil {
			return x.r, err
		}
	}
	return x.r, nil
}

func start(s Scenario) *run {
	x := &run{s: s, since: map[heliotrope.VMID]time.Time{}}
	if len(s.Ticks) > 0 {
		x.at = s.Ticks[0].Now.Placement()
		for id := range x.at {
			x.since[id] = s.Ticks[0].At
		}
	}
	return x
}

// step plays one tick until the next.
func (x *run) step(tick int, decide Decide) error {
	t := x.s.Ticks[tick]
	until := x.s.until(tick)
	x.lose(t.Gone)
	if len(x.landing) == 0 {
		seen := t.Now
		seen.At = t.At
		plan, err := decide(tick, x.placed(seen), x.r.Moves)
		if err != nil {
			return fmt.Errorf("decide at %s: %w", t.At.Format(time.RFC3339), err)
		}
		x.begin(t.At, plan)
	}
	if err := x.pass(t, until); err != nil {
		return fmt.Errorf("reckon at %s: %w", t.At.Format(time.RFC3339), err)
	}
	x.r.Curve = append(x.r.Curve, Point{until, x.r.USD()})
	x.r.Sites = append(x.r.Sites, sites(t.Now, x.at))
	return nil
}

// placed is a snapshot with VMs where they are.
func (x *run) placed(s scheduler.Snapshot) scheduler.Snapshot {
	s.VMs = slices.Clone(s.VMs)
	for i := range s.VMs {
		v := &s.VMs[i]
		v.Host, v.PaidSince = x.at[v.ID], x.since[v.ID]
	}
	return s
}

// billing is the period that VMs at a site are paid in.
func (s *Scenario) billing(now scheduler.Snapshot, site heliotrope.SiteID) time.Duration {
	for _, k := range now.Sites {
		if k.ID == site && k.BillingSeconds > 0 {
			return seconds(k.BillingSeconds)
		}
	}
	return s.Billing
}

// unbilled is a snapshot in which nothing is lost of what is paid: land reckons that by the
// moment at which a move ends.
func unbilled(s scheduler.Snapshot) scheduler.Snapshot {
	s.Sites = slices.Clone(s.Sites)
	for i := range s.Sites {
		s.Sites[i].BillingSeconds = 0
	}
	return s
}

// ends is at which sites VMs are once all moves have landed.
func (x *run) ends(s scheduler.Snapshot) map[heliotrope.VMID]heliotrope.SiteID {
	at := maps.Clone(x.at)
	for _, l := range x.landing {
		at[l.move.VM] = l.move.To
	}
	return sites(s, at)
}

func sites(s scheduler.Snapshot, at scheduler.Placement) map[heliotrope.VMID]heliotrope.SiteID {
	where := map[heliotrope.HostID]heliotrope.SiteID{}
	for _, h := range s.Hosts {
		where[h.ID] = h.Site
	}
	list := map[heliotrope.VMID]heliotrope.SiteID{}
	for id, h := range at {
		list[id] = where[h]
	}
	return list
}

// lose takes VMs off hosts that are gone, and ends moves from and to them.
func (x *run) lose(gone []heliotrope.HostID) {
	for id, h := range x.at {
		if slices.Contains(gone, h) {
			x.r.Interruptions++
			delete(x.at, id)
			delete(x.since, id)
		}
	}
	x.landing = slices.DeleteFunc(x.landing, func(l landing) bool {
		return slices.Contains(gone, l.move.From) || slices.Contains(gone, l.move.To)
	})
}

// begin starts the moves of a plan. What has no place yet gets it at once.
func (x *run) begin(now time.Time, plan scheduler.Plan) {
	for _, step := range plan.Steps() {
		end := now
		for _, m := range step {
			if m.From == "" {
				x.at[m.VM], x.since[m.VM] = m.To, now
				continue
			}
			l := landing{now.Add(seconds(m.Seconds)), now, m}
			x.landing = append(x.landing, l)
			x.r.Moves = append(x.r.Moves, pace.Moved{VM: m.VM, At: now})
			x.r.Paused += seconds(m.PauseMs / 1e3)
			if l.at.After(end) {
				end = l.at
			}
		}
		now = end
	}
	slices.SortStableFunc(x.landing, func(a, b landing) int { return a.at.Compare(b.at) })
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// pass lets time pass from a tick on, landing by landing.
func (x *run) pass(t Tick, until time.Time) error {
	from := t.At
	for len(x.landing) > 0 && x.landing[0].at.Before(until) {
		l := x.landing[0]
		x.landing = x.landing[1:]
		if err := x.reckon(t.Now, from, l.at); err != nil {
			return err
		}
		from = later(from, l.at)
		if err := x.land(t.Now, l); err != nil {
			return err
		}
	}
	return x.reckon(t.Now, from, until)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// reckon adds what a stretch of time costs as things stand.
func (x *run) reckon(now scheduler.Snapshot, from, to time.Time) error {
	hours := to.Sub(from).Hours()
	if hours <= 0 {
		return nil
	}
	c, err := scheduler.Evaluate(x.placed(now), x.s.Policy, x.at)
	if err != nil {
		return err
	}
	x.r.Cost = sum(x.r.Cost, c, hours)
	x.r.Reached.add(now, x.at, hours)
	return nil
}

// land lets a move end: the VM is at its new place, which was paid since it began, and the
// old place's billing period runs out.
func (x *run) land(now scheduler.Snapshot, l landing) error {
	id, p := l.move.VM, x.s.Policy
	rate := func(h heliotrope.HostID) (float64, error) {
		c, err := scheduler.Evaluate(now, p, scheduler.Placement{id: h})
		return c.Compute, err
	}
	old, err := rate(l.move.From)
	if err != nil {
		return err
	}
	fresh, err := rate(l.move.To)
	if err != nil {
		return err
	}
	after := maps.Clone(x.at)
	after[id] = l.move.To
	c, err := scheduler.Evaluate(unbilled(x.placed(now)), p, after)
	if err != nil {
		return err
	}
	x.r.Cost.Moves += c.Moves * cmp.Or(p.AmortisationHours, usualHours)
	if l.move.FromSite != l.move.ToSite { // what is paid at a site goes with the VM from host to host
		left := billing.Unused(l.at.Sub(x.since[id]), x.s.billing(now, l.move.FromSite))
		x.r.TwiceUSD += fresh*l.at.Sub(l.begun).Hours() + old*left.Hours()
		x.since[id] = l.begun
	}
	x.at = after
	return nil
}

func sum(a, b scheduler.Cost, hours float64) scheduler.Cost {
	a.Compute += b.Compute * hours
	a.Hosts += b.Hosts * hours
	a.Licences += b.Licences * hours
	a.Egress += b.Egress * hours
	a.Clients += b.Clients * hours
	a.EastWest += b.EastWest * hours
	a.Carbon += b.Carbon * hours
	a.Risk += b.Risk * hours
	return a
}

// Distances are how far clients were from what they asked, by requests; where nobody counts
// requests, by bytes.
type Distances struct {
	weight map[float64]float64 // by ms
	sum    float64
}

func (d *Distances) add(s scheduler.Snapshot, at scheduler.Placement, hours float64) {
	type way struct {
		region scheduler.RegionID
		site   heliotrope.SiteID
	}
	where := sites(s, at)
	ms := map[way]float64{}
	for _, r := range s.Reaches {
		ms[way{r.Region, r.Site}] = r.RTTMs
	}
	if d.weight == nil {
		d.weight = map[float64]float64{}
	}
	for _, q := range s.Demands {
		if w := cmp.Or(q.RequestsPerSecond, q.BytesPerSecond) * hours; at[q.VM] != "" {
			d.weight[ms[way{q.Region, where[q.VM]}]] += w
			d.sum += w
		}
	}
}

// MeanMs is the mean round trip.
func (d *Distances) MeanMs() float64 {
	var total float64
	for _, ms := range slices.Sorted(maps.Keys(d.weight)) { // in one order: sums of floats
		total += ms * d.weight[ms]
	}
	return total / math.Max(d.sum, math.SmallestNonzeroFloat64)
}

// QuantileMs is the round trip that a share of requests does not exceed.
func (d *Distances) QuantileMs(share float64) float64 {
	var total, last float64
	for _, ms := range slices.Sorted(maps.Keys(d.weight)) {
		last = ms
		if total += d.weight[ms]; total >= share*d.sum*(1-1e-12) {
			break
		}
	}
	return last
}
