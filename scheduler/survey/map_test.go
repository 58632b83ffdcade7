package survey_test

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/atlas"
	"heliotrope/scheduler/survey"
	"heliotrope/scheduler/traffic"
)

func TestMap(t *testing.T) {
	client := traffic.Outside(netip.MustParsePrefix("10.255.9.0/24"))
	s := survey.Take(time.Unix(60, 0), near(), survey.Facts{Placements: at(map[heliotrope.VMID]heliotrope.HostID{"web": "us-1", "db": "us-1"}), Traffic: minute(
		traffic.Cell{Src: traffic.VM("web"), Dst: client, Bytes: 6000}, traffic.Cell{Src: traffic.VM("web"), Dst: traffic.VM("db"), Bytes: 600})})
	m := survey.Map(s, scheduler.Plan{Moves: []scheduler.Move{{VM: "web", From: "us-1", To: "eu-1"}}})
	want := map[string]atlas.Way{
		"eu-internet": {RTTMs: 10.3, After: 100}, "eu-us": {RTTMs: 80.3, After: 10}, "internet-us": {RTTMs: 90.3},
		"us-internet": {RTTMs: 90.3, Before: 100}, "us-us": {RTTMs: 0.3, Before: 10},
	}
	for _, w := range m.Ways {
		key := fmt.Sprintf("%s-%s", w.From, w.To)
		if x := want[key]; math.Abs(w.RTTMs-x.RTTMs) > 1e-9 || w.Before != x.Before || w.After != x.After {
			t.Errorf("%s is %+v, want %+v", key, w, x)
		}
		delete(want, key)
	}
	if len(want) > 0 {
		t.Errorf("there are no ways %v", want)
	}
	if len(m.Sites) != 3 || m.Sites[0] != (atlas.SiteVMs{ID: "eu", After: 1}) || m.Sites[2] != (atlas.SiteVMs{ID: "us", VMs: 2, After: 1}) {
		t.Errorf("%+v", m.Sites)
	}
	if m.Before != (atlas.Means{ClientsMs: 90.3, EastWestMs: 0.3}) || m.After != (atlas.Means{ClientsMs: 10.3, EastWestMs: 80.3}) {
		t.Errorf("%+v, then %+v", m.Before, m.After)
	}
}

// However many sites there are, a map is small; where it has all, no byte and no VM is lost.
func TestMapIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 2*atlas.Most).Draw(t, "sites")
		var s scheduler.Snapshot
		for i := range n {
			id := heliotrope.SiteID(fmt.Sprint("s", i))
			s.Sites = append(s.Sites, scheduler.Site{ID: id})
			s.Hosts = append(s.Hosts, scheduler.Host{ID: heliotrope.HostID(id), Site: id})
		}
		sum, vms := 0.0, rapid.IntRange(1, 60).Draw(t, "vms")
		for i := range vms {
			host := rapid.SampledFrom(s.Hosts).Draw(t, "host").ID
			s.VMs = append(s.VMs, scheduler.VM{ID: heliotrope.VMID(fmt.Sprint("v", i)), Host: host})
			rate := float64(rapid.IntRange(0, 1000).Draw(t, "rate"))
			s.Flows = append(s.Flows, scheduler.Flow{Src: s.VMs[i].ID, Dst: s.VMs[rapid.IntRange(0, i).Draw(t, "to")].ID, BytesPerSecond: rate})
			sum += rate
		}
		m := survey.Map(s, scheduler.Plan{Moves: []scheduler.Move{{VM: "v0", To: s.Hosts[0].ID}}})
		if len(m.Sites) > atlas.Most || len(m.Sites)+m.LeftOut != n || len(m.Ways) > atlas.Most*atlas.Most {
			t.Fatalf("%d sites of %d, %d left out", len(m.Sites), n, m.LeftOut)
		}
		talk, drawn := 0.0, m.Rest
		for _, f := range s.Flows {
			if f.Src != f.Dst {
				talk += f.BytesPerSecond
			}
		}
		for _, p := range m.Pairs {
			drawn += p.BytesPerSecond
			if p.From == p.To || p.From >= len(m.VMs) || p.To >= len(m.VMs) {
				t.Fatalf("a pair is %+v", p)
			}
		}
		if len(m.VMs) > atlas.MostVMs || len(m.Pairs) > atlas.MostPairs || drawn != talk {
			t.Fatalf("%d VMs, %d pairs, %v of %v bytes", len(m.VMs), len(m.Pairs), drawn, talk)
		}
		for _, vm := range m.VMs {
			if i := slices.IndexFunc(s.VMs, func(v scheduler.VM) bool { return v.ID == vm.ID }); string(vm.Before) != string(s.VMs[i].Host) || vm.ID != "v0" && vm.After != vm.Before || vm.ID == "v0" && vm.After != s.Sites[0].ID {
				t.Fatalf("%+v is at %s", vm, s.VMs[i].Host)
			}
		}
		before, after, here, there := 0.0, 0.0, 0, 0
		for _, w := range m.Ways {
			before, after = before+w.Before, after+w.After
		}
		for _, site := range m.Sites {
			here, there = here+site.VMs, there+site.After
		}
		if m.LeftOut == 0 && (before != sum || after != sum || here != vms || there != vms) {
			t.Fatalf("%v and %v of %v bytes, %d and %d of %d VMs", before, after, sum, here, there, vms)
		}
	})
}
