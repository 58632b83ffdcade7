package leader

import (
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/scheduler"
)

var sites = []heliotrope.SiteID{"tokyo", "london", "virginia"}

// ms are round trips between them.
var ms = [3][3]float64{{0.3, 218, 148}, {218, 0.3, 77}, {148, 77, 0.3}}

// earth has a replica at each site, and who asks it beside it, as VMs and from outside.
func earth(asked [3]float64) scheduler.Snapshot {
	var s scheduler.Snapshot
	for i, site := range sites {
		s.Sites = append(s.Sites, scheduler.Site{ID: site, LANRTTMs: ms[i][i]})
		s.Hosts = append(s.Hosts, scheduler.Host{ID: heliotrope.HostID(site + "-1"), Site: site})
		for _, vm := range []heliotrope.VMID{"kv-", "staff-"} {
			s.VMs = append(s.VMs, scheduler.VM{ID: vm + heliotrope.VMID(site), Host: heliotrope.HostID(site + "-1"), Pinned: true})
		}
		s.Flows = append(s.Flows, scheduler.Flow{Src: "kv-" + heliotrope.VMID(site), Dst: "staff-" + heliotrope.VMID(site), BytesPerSecond: asked[i] / 2},
			scheduler.Flow{Src: "staff-" + heliotrope.VMID(site), Dst: "kv-" + heliotrope.VMID(site), BytesPerSecond: 1e9}, // what is sent is not what is got
			scheduler.Flow{Src: "kv-tokyo", Dst: "kv-london", BytesPerSecond: 1e9})                                         // replicas among themselves
		s.Demands = append(s.Demands, scheduler.Demand{VM: "kv-" + heliotrope.VMID(site), Region: scheduler.RegionID(site), BytesPerSecond: asked[i] / 2})
		for j, other := range sites {
			s.Reaches = append(s.Reaches, scheduler.Reach{Region: scheduler.RegionID(site), Site: other, RTTMs: ms[i][j]})
			if i != j {
				s.Paths = append(s.Paths, scheduler.Path{From: site, To: other, RTTMs: ms[i][j], USDPerGB: 0.08})
			}
		}
	}
	return s
}

var replicas = []heliotrope.VMID{"kv-tokyo", "kv-london", "kv-virginia"}

// The leader goes where the sum of what all wait for is least, if nothing else matters.
func TestLedWhereAnswersAreSoonest(t *testing.T) {
	policy := scheduler.Policy{ClientUSDPerGBMs: 0.1}
	rapid.Check(t, func(t *rapid.T) {
		var asked [3]float64
		for i := range asked {
			asked[i] = 1000 * float64(rapid.IntRange(0, 1000).Draw(t, string(sites[i])))
		}
		leads := rapid.SampledFrom(replicas).Draw(t, "leads")
		s := earth(asked)
		q, err := Snapshot(s, replicas, leads)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := scheduler.Solve(q, policy, scheduler.Options{Iterations: 100})
		if err != nil {
			t.Fatal(err)
		}
		at := plan.Apply(q.Placement())[ID]
		best, cost := math.Inf(1), map[heliotrope.HostID]float64{}
		for i, site := range sites {
			answer := min(ms[i][(i+1)%3], ms[i][(i+2)%3]) // of three, one other makes a majority
			sum := 0.0
			for j := range sites {
				sum += asked[j] * (ms[j][i] + answer)
			}
			cost[heliotrope.HostID(site+"-1")] = sum
			best = min(best, sum)
		}
		if cost[at] > best*(1+1e-9) {
			t.Errorf("it is led at %s: %v, %s", at, cost, plan.Reason)
		}
		if r := Replica(s, replicas, at); r != "kv-"+heliotrope.VMID(strings.TrimSuffix(string(at), "-1")) {
			t.Errorf("%s is at %s", r, at)
		}
		if is := plan.After.Clients; math.Abs(is-cost[at]*3600/1e9*0.1) > 1e-9*(1+is) {
			t.Errorf("clients cost USD %g/h, by hand %g", is, cost[at]*3600/1e9*0.1)
		}
	})
}

func TestRefused(t *testing.T) {
	s := earth([3]float64{1, 1, 1})
	for want, x := range map[string]struct {
		replicas []heliotrope.VMID
		leads    heliotrope.VMID
	}{
		"none of the replicas": {replicas, "staff-tokyo"},
		"no VM or stub":        {[]heliotrope.VMID{"kv-mars", "kv-tokyo"}, "kv-tokyo"},
		"both at":              {[]heliotrope.VMID{"kv-tokyo", "staff-tokyo"}, "kv-tokyo"},
	} {
		if _, err := Snapshot(s, x.replicas, x.leads); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", x, err, want)
		}
	}
}
