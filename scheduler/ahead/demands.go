package ahead

import (
	"cmp"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/forecast"
)

const (
	// Slot is how much time one value is of.
	Slot = time.Hour

	coverage    = 0.8 // of the intervals: one in ten is above, one below
	fewestSlots = 48  // that a demand must have been seen for to be expected: two days
)

// asker is one demand, of bytes or of requests.
type asker struct {
	vm       heliotrope.VMID
	region   scheduler.RegionID
	requests bool
}

func compareAskers(a, b asker) int {
	requests := map[bool]int{true: 1}
	return cmp.Or(cmp.Compare(a.vm, b.vm), cmp.Compare(a.region, b.region), requests[a.requests]-requests[b.requests])
}

// known is what was learned of one demand.
type known struct {
	series   *forecast.Series
	slots    int
	greatest float64
}

// Demands learn what is asked. The zero value knows nothing.
type Demands struct {
	known map[asker]*known
}

// Learn takes in what was asked in the slot that began at a time. What was asked before and
// is not any more was asked nothing.
func (d *Demands) Learn(at time.Time, list []scheduler.Demand) error {
	now := rates(list)
	if d.known == nil {
		d.known = map[asker]*known{}
	}
	for a := range now {
		if d.known[a] == nil {
			series, err := forecast.New(Slot, coverage)
			if err != nil {
				return err
			}
			d.known[a] = &known{series: series}
		}
	}
	for a, k := range d.known {
		k.series.Observe(at, now[a])
		k.series.Advance(at.Add(Slot))
		k.slots++
		k.greatest = max(k.greatest, now[a])
	}
	return nil
}

// rates are demands by who asks.
func rates(list []scheduler.Demand) map[asker]float64 {
	all := map[asker]float64{}
	for _, d := range list {
		if d.BytesPerSecond > 0 {
			all[asker{d.VM, d.Region, false}] += d.BytesPerSecond
		}
		if d.RequestsPerSecond > 0 {
			all[asker{d.VM, d.Region, true}] += d.RequestsPerSecond
		}
	}
	return all
}

// demands are rates as a snapshot has them.
func demands(all map[asker]float64) []scheduler.Demand {
	askers := make([]asker, 0, len(all))
	for a := range all {
		askers = append(askers, a)
	}
	slices.SortFunc(askers, compareAskers)
	var list []scheduler.Demand
	for _, a := range askers {
		d := scheduler.Demand{VM: a.vm, Region: a.region, BytesPerSecond: all[a]}
		if a.requests {
			d = scheduler.Demand{VM: a.vm, Region: a.region, RequestsPerSecond: all[a]}
		}
		list = append(list, d)
	}
	return list
}

// Expected is a snapshot with what is expected on average over a horizon from now on, where
// enough is known, and how many demands that is. The regions of s are those that it has a
// distance to.
func (d *Demands) Expected(s scheduler.Snapshot, now time.Time, horizon time.Duration) (scheduler.Snapshot, int) {
	all, n := rates(s.Demands), 0
	for a, k := range d.usable(s) {
		if mean, ok := k.series.Mean(now, horizon); ok {
			all[a] = mean
			n++
		}
	}
	s.Demands = demands(all)
	return s, n
}

// usable are the demands of VMs and regions of s of which enough is known.
func (d *Demands) usable(s scheduler.Snapshot) map[asker]*known {
	regions, vms := map[scheduler.RegionID]bool{}, map[heliotrope.VMID]bool{}
	for _, r := range s.Reaches {
		regions[r.Region] = true
	}
	for _, v := range s.VMs {
		vms[v.ID] = true
	}
	list := map[asker]*known{}
	for a, k := range d.known {
		if regions[a.region] && vms[a.vm] && k.slots >= fewestSlots {
			list[a] = k
		}
	}
	return list
}

// Sure are the VMs of a plan whose moves gain also where what is asked over the horizon is at
// the end of its interval that speaks against them; s is a snapshot of what is expected.
// What moves cost is not in it.
func (d *Demands) Sure(s scheduler.Snapshot, p scheduler.Policy, plan scheduler.Plan, now time.Time, horizon time.Duration) (map[heliotrope.VMID]bool, error) {
	p.MoveUSD, p.PauseUSDPerSecond = 0, 0
	before := s.Placement()
	after := plan.Apply(before)
	all := rates(s.Demands)
	sure := map[heliotrope.VMID]bool{}
	for a, k := range d.usable(s) {
		low, high, bounded := interval(k.series, now, horizon)
		switch nearer := cheaper(s, p, a, before[a.vm], after[a.vm]); {
		case nearer > 0:
			all[a] = low
		case nearer < 0 && !bounded:
			delete(after, a.vm) // nobody knows how much will be asked from there
		case nearer < 0:
			all[a] = high
		}
	}
	s.Demands = demands(all)
	s.VMs = slices.Clone(s.VMs)
	for i := range s.VMs {
		s.VMs[i].CopyBytes = 0
	}
	for vm := range before {
		if after[vm] == "" {
			after[vm] = before[vm]
		}
	}
	_, _, shares, err := scheduler.Compare(s, p, before, after)
	for vm, share := range shares {
		sure[vm] = share.USDPerHour > 0
	}
	return sure, err
}

// cheaper is what one unit of a demand costs less from a host than from another.
func cheaper(s scheduler.Snapshot, p scheduler.Policy, a asker, from, to heliotrope.HostID) float64 {
	site, ms, usd := map[heliotrope.HostID]heliotrope.SiteID{}, map[heliotrope.SiteID]float64{}, map[heliotrope.SiteID]float64{}
	for _, h := range s.Hosts {
		site[h.ID] = h.Site
	}
	for _, r := range s.Reaches {
		if r.Region == a.region {
			ms[r.Site] = r.RTTMs
		}
	}
	for _, x := range s.Sites {
		usd[x.ID] = x.InternetUSDPerGB
	}
	nearer := ms[site[from]] - ms[site[to]]
	if a.requests {
		return nearer * p.ClientUSDPerMillionRequestsMs
	}
	return nearer*p.ClientUSDPerGBMs + usd[site[from]] - usd[site[to]]
}

// interval is the mean of the ends of a horizon's intervals; bounded says that they have upper ones.
func interval(series *forecast.Series, now time.Time, horizon time.Duration) (low, high float64, bounded bool) {
	end := now.Add(horizon)
	var seconds float64
	bounded = true
	for _, p := range series.Ahead(now, int(horizon/Slot)+2) {
		from, to := p.At, p.At.Add(Slot)
		if from.Before(now) {
			from = now
		}
		if to.After(end) {
			to = end
		}
		part := max(0, to.Sub(from).Seconds())
		seconds += part
		low += part * p.Low
		if part > 0 && p.High == forecast.NoBound {
			bounded = false
		} else if part > 0 {
			high += part * p.High
		}
	}
	seconds = max(seconds, 1)
	return low / seconds, high / seconds, bounded
}

// margin is how many times the most that was ever asked counts as the most that can be.
const margin = 1.5

// Worst is the most, in USD per hour, that VMs can cost more where one placement has them than
// where another does, as long as nobody asks more than margin times the most that was seen.
func (d *Demands) Worst(s scheduler.Snapshot, p scheduler.Policy, at, other scheduler.Placement) (float64, error) {
	all := rates(s.Demands)
	for a, k := range d.usable(s) {
		all[a] = max(all[a], k.greatest)
	}
	for a := range all {
		if all[a] *= margin; cheaper(s, p, a, at[a.vm], other[a.vm]) <= 0 {
			delete(all, a)
		}
	}
	s.Demands = demands(all)
	x, err := running(s, p, at)
	if err != nil {
		return 0, err
	}
	y, err := running(s, p, other)
	return max(0, x-y), err
}

// running is what a placement costs in USD per hour, moves aside.
func running(s scheduler.Snapshot, p scheduler.Policy, where scheduler.Placement) (float64, error) {
	c, err := scheduler.Evaluate(s, p, where)
	return c.Total() - c.Moves, err
}
