package collector

import (
	"testing"
	"testing/synctest"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
)

// A plan rests on what was counted; only who leads has counted.
func TestPlan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fabric()
		f.Topology.Sites = map[heliotrope.SiteID]heliotrope.Site{"us": {}, "eu": {}}
		f.Topology.Hosts = map[heliotrope.HostID]heliotrope.Host{"us-1": {Site: "us"}, "eu-1": {Site: "eu"}}
		f.Topology.Links = map[heliotrope.LinkID]heliotrope.Link{"us-eu": {Between: [2]heliotrope.SiteID{"us", "eu"}, Delay: 1e6}}
		c := open(t, still{fabric: f, leads: true})
		start := time.Now().Truncate(time.Second)
		c.counts("us-1", true)
		time.Sleep(5 * time.Second) // virtual
		c.Take(bin("us-1", 1, start.Add(time.Second), sent("web", "db", 100)))
		p, err := c.Plan(t.Context(), api.PlanQuery{Policy: api.DefaultPolicy, Window: time.Minute, Seed: 3})
		if err != nil || p.Policy != api.DefaultPolicy || p.Seed != 3 || p.Reason == "" || len(p.Broken) > 0 {
			t.Errorf("%+v, %v", p, err)
		}
		if _, err := c.Plan(t.Context(), api.PlanQuery{Policy: "dearest"}); err == nil {
			t.Error("a policy that nobody knows")
		}
		idle := open(t, still{fabric: f})
		if _, err := idle.Plan(t.Context(), api.PlanQuery{Policy: api.DefaultPolicy}); err == nil {
			t.Error("who does not lead has a plan")
		}
	})
}
