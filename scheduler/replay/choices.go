package replay

import (
	"cmp"
	"fmt"
	"slices"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/billing"
)

// Choices tells what one VM could have done in a scenario, others staying where they are at
// the first tick: at which of some hosts, of different sites, it costs what, so that Optimum
// and Run of Follow come to the same sum. Distances and what a move takes are those of the
// first tick; ticks are whole billing periods, and longer than moves.
func Choices(s Scenario, vm heliotrope.VMID, hosts []heliotrope.HostID) (Costs, error) {
	c := Costs{Day: func(tick int) int { return int(s.Ticks[tick].At.Unix() / (24 * 3600)) }}
	rates, compute := make([][]float64, len(s.Ticks)), make([][]float64, len(s.Ticks)) // tick, host: USD per hour
	for tick, t := range s.Ticks {
		var stay []float64
		for _, h := range hosts {
			now := put(t.Now, s.Ticks[0].Now.Placement(), vm, h)
			all, err := scheduler.Evaluate(now, s.Policy, now.Placement())
			if err != nil {
				return c, fmt.Errorf("reckon choices: %w", err)
			}
			own, err := scheduler.Evaluate(now, s.Policy, scheduler.Placement{vm: h})
			if err != nil {
				return c, fmt.Errorf("reckon choices: %w", err)
			}
			rates[tick], compute[tick] = append(rates[tick], all.Total()), append(compute[tick], own.Compute)
			stay = append(stay, all.Total()*s.until(tick).Sub(t.At).Hours())
		}
		c.Stay = append(c.Stay, stay)
	}
	once, hours, err := s.ways(vm, hosts)
	if err != nil {
		return c, fmt.Errorf("reckon choices: %w", err)
	}
	site := map[heliotrope.HostID]heliotrope.SiteID{}
	for _, h := range s.Ticks[0].Now.Hosts {
		site[h.ID] = h.Site
	}
	c.Move = func(t, a, b int) float64 {
		h := hours[a][b]
		idle := billing.Unused(seconds(h*3600), s.billing(s.Ticks[t].Now, site[hosts[a]])).Hours()
		return once[a][b] + h*(rates[t][a]-rates[t][b]+compute[t][b]) + idle*compute[t][a]
	}
	return c, nil
}

// put is a snapshot with VMs where they were and one elsewhere.
func put(s scheduler.Snapshot, where scheduler.Placement, vm heliotrope.VMID, host heliotrope.HostID) scheduler.Snapshot {
	s.VMs = slices.Clone(s.VMs)
	for i := range s.VMs {
		if v := &s.VMs[i]; v.ID == vm {
			v.Host = host
		} else {
			v.Host = where[v.ID]
		}
	}
	return s
}

// ways is what moves between hosts cost once, and how many hours they take.
func (s *Scenario) ways(vm heliotrope.VMID, hosts []heliotrope.HostID) (once, hours [][]float64, err error) {
	now, where := unbilled(s.Ticks[0].Now), s.Ticks[0].Now.Placement()
	site := map[heliotrope.HostID]heliotrope.SiteID{}
	now.Hosts = slices.Clone(now.Hosts)
	for i, h := range now.Hosts {
		site[h.ID] = h.Site
		now.Hosts[i].Drained = false // it may be open later
	}
	for _, a := range hosts {
		from := put(now, where, vm, a)
		usd, took := make([]float64, len(hosts)), make([]float64, len(hosts))
		for k, b := range hosts {
			if a == b {
				continue
			}
			to := put(now, where, vm, b)
			cost, err := scheduler.Evaluate(from, s.Policy, to.Placement())
			if err != nil {
				return nil, nil, err
			}
			plan, err := goTo(from, map[heliotrope.VMID]heliotrope.SiteID{vm: site[b]})
			if err != nil {
				return nil, nil, err
			}
			if len(plan.Moves) != 1 || plan.Moves[0].To != b {
				return nil, nil, fmt.Errorf("%s cannot go from %s to %s by itself", vm, a, b)
			}
			usd[k] = cost.Moves * cmp.Or(s.Policy.AmortisationHours, usualHours)
			took[k] = seconds(plan.Moves[0].Seconds).Hours()
		}
		once, hours = append(once, usd), append(hours, took)
	}
	return once, hours, nil
}
