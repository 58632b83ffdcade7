package scheduler

import (
	"fmt"
	"time"

	"heliotrope/scheduler/billing"
)

// idle is what is left unused of what is paid at a VM's place when it leaves for another site
// now. Within a site what is paid goes with the VM.
type idle struct {
	period time.Duration
	until  time.Time
	usd    float64
}

func (m *model) idle(vm, to int) idle {
	from := m.site[m.home[vm]]
	period := seconds(m.s.Sites[from].BillingSeconds)
	if from == to || period <= 0 {
		return idle{}
	}
	leaves := m.s.At.Add(seconds(m.moveSeconds(vm, from, to)))
	until := billing.Until(m.s.VMs[vm].PaidSince, leaves, period)
	return idle{period, until, m.standing(vm, from).Compute * until.Sub(leaves).Hours()}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// billed tells a move what leaving now wastes, and when it had better begin: just before what
// is paid ends, if being elsewhere gains less until then than the old place costs, which is
// paid in any case.
func (m *model) billed(move *Move, v, from, to int, r reason) {
	if from == none || from != m.home[v] {
		return
	}
	x := m.idle(v, m.site[to])
	if x.usd <= 0 {
		return
	}
	move.PaidUntil, move.WastesUSD = x.until, x.usd
	takes := seconds(move.Seconds)
	begin := x.until.Add(-takes - billing.Spare(takes, x.period))
	running := r.gain.Total() - r.gain.Moves
	if begin.After(m.s.At) && !m.mustLeave(v) && m.unlicensed(m.home, v, from) == "" && running < m.standing(v, m.site[from]).Compute {
		move.Better = begin
	}
}

// says is that in words, of a site.
func (x idle) says(m *model, site int) string {
	return fmt.Sprintf("its %s at %s is paid until %s: moving now wastes USD %.3g", billing.Name(x.period), m.s.Sites[site].ID, billing.Clock(x.until, m.s.At), x.usd)
}
