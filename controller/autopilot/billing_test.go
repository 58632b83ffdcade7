package autopilot

import (
	"maps"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
)

// A VM whose hour is paid stays for it where it gains less elsewhere than the hour costs, and
// leaves in time; the hour of its new place begins with the move.
func TestPaidHourIsUsedUp(t *testing.T) {
	p := newPlanet("web")
	p.pool(heliotrope.AutopilotAuto, heliotrope.Pace{})
	price := func(site heliotrope.SiteID, usd float64) {
		p.topology.Sites = maps.Clone(p.topology.Sites) // somebody may be reading
		s := p.topology.Sites[site]
		s.PricePerVCPUHour, s.Billing = usd, heliotrope.Duration(time.Hour)
		p.topology.Sites[site] = s
	}
	price("us", 1)
	price("eu", 0.7)
	fly(t, p, func(t *testing.T, a *Autopilot) {
		midnight := time.Now().Truncate(time.Hour)
		time.Sleep(time.Until(midnight.Add(59 * time.Minute)))
		if pool, err := a.Pool(t.Context(), "all"); err != nil || p.count() > 0 || !strings.Contains(pool.Says, "1 VMs use up first what is paid for them where they are, until 2000-01-01T00:59:2") {
			t.Fatalf("%d moves; it says %q (%v)", p.count(), pool.Says, err)
		}
		time.Sleep(time.Minute)
		if p.count() != 1 || p.at("web") == "us-1" {
			t.Fatalf("%d moves, web is at %s: %v", p.count(), p.at("web"), p.told)
		}
		// Now us is cheaper by as much; the hour at eu began just before the full one.
		p.mu.Lock()
		began := p.moves[0].CreatedAt
		price("us", 0.4)
		p.mu.Unlock()
		time.Sleep(time.Until(began.Add(59 * time.Minute)))
		if p.count() != 1 {
			t.Errorf("it leaves an hour that is paid: %v", p.told)
		}
		time.Sleep(time.Minute)
		if p.count() != 2 || p.moves[1].Phase != api.PhaseSucceeded {
			t.Errorf("%d moves: %v", p.count(), p.told)
		}
	})
}
