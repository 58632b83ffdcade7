package report

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
)

var start = time.Date(2026, 11, 25, 13, 0, 0, 0, time.UTC)

func topology() heliotrope.Topology {
	link := func(a, b heliotrope.SiteID, delay time.Duration, price float64) heliotrope.Link {
		return heliotrope.Link{Between: [2]heliotrope.SiteID{a, b}, Delay: heliotrope.Duration(delay), PricePerGB: price}
	}
	return heliotrope.Topology{Name: "t",
		Sites: map[heliotrope.SiteID]heliotrope.Site{"us": {}, "eu": {}, "asia": {}},
		Links: map[heliotrope.LinkID]heliotrope.Link{
			"us-eu": link("us", "eu", 40*time.Millisecond, 0.02), "eu-asia": link("asia", "eu", 60*time.Millisecond, 0.05),
			"us-asia": link("us", "asia", 200*time.Millisecond, 0.01),
		},
		Hosts:    map[heliotrope.HostID]heliotrope.Host{"us-1": {Site: "us"}, "eu-1": {Site: "eu"}},
		Networks: map[heliotrope.NetworkID]heliotrope.Network{"secret": {Capture: heliotrope.CaptureOff}},
	}
}

// TestPrices takes the way of least delay, as packets do, not the cheapest.
func TestPrices(t *testing.T) {
	p := Prices(topology())
	for way, want := range map[[2]heliotrope.SiteID]float64{{"us", "eu"}: 0.02, {"eu", "us"}: 0.02, {"us", "asia"}: 0.07, {"asia", "us"}: 0.07} {
		if got := p[way]; got < want-1e-9 || got > want+1e-9 {
			t.Errorf("%v costs %g, want %g", way, got, want)
		}
	}
}

func TestBuild(t *testing.T) {
	sql := traffic.Service{Protocol: traffic.TCP, Port: 5432}
	web, db, out := traffic.VM("web"), traffic.VM("db"), traffic.Outside(netip.MustParsePrefix("203.0.113.0/24"))
	m := traffic.Matrix{Shed: 7, From: start, To: start.Add(10 * time.Second), Missing: map[heliotrope.HostID]float64{"eu-1": 0.25}, Cells: []traffic.Cell{
		{Src: db, Dst: web, Bytes: 5e9, Low: 4e9, High: 6e9, Packets: 100, Services: []traffic.ServiceShare{{Service: sql, Reply: true, Bytes: 5e9}}, RTT: 3 * time.Millisecond},
		{Src: web, Dst: db, Bytes: 1e9, Low: 1e9, High: 1e9, Services: []traffic.ServiceShare{{Service: sql, Bytes: 1e9}}},
		{Src: out, Dst: web, Bytes: 10, Low: 10, High: 10},
	}}
	in := Input{Now: start, Matrix: m, Topology: topology(), HostOf: map[heliotrope.VMID]heliotrope.HostID{"web": "us-1", "db": "eu-1"},
		Sources: []Source{{Host: "us-1", Sampling: 64}}}
	r := Build(in, Options{Top: 2})

	if len(r.Pairs) != 2 || r.Pairs[0].Rate != 5e8 || r.Pairs[0].Low != 4e8 || r.Pairs[0].From != "eu" || r.Pairs[0].RTTMs != 3 {
		t.Errorf("pairs: %+v", r.Pairs)
	}
	if r.Total.Pairs != 3 || r.Total.VMs != 2 || r.Total.Outside != 1 || r.Total.BytesPerSecond != 6e8+1 {
		t.Errorf("total: %+v", r.Total)
	}
	if len(r.Talkers) != 2 || r.Talkers[0].End != web || r.Talkers[0].Got != 5e8+1 || r.Talkers[0].Ends != 2 || r.Talkers[1].Ends != 1 {
		t.Errorf("talkers: %+v", r.Talkers)
	}
	if len(r.Services) != 1 || r.Services[0].Servers[0] != db || r.Services[0].Clients != 1 || r.Services[0].Rate != 6e8 {
		t.Errorf("services: %+v", r.Services)
	}
	// 5e8 B/s are 1,800 GB/h at 0.02.
	if len(r.Sites) != 2 || r.Sites[0].From != "eu" || r.Sites[0].USDPerHour < 35.99 || r.Sites[0].USDPerHour > 36.01 {
		t.Errorf("sites: %+v", r.Sites)
	}
	said := strings.Join(r.Notes, "\n")
	for _, want := range []string{"eu-1 did not count in 25 %", "1 of 64 packets", "7 packets of the window were not looked at", "network secret is not counted"} {
		if !strings.Contains(said, want) {
			t.Errorf("notes do not say %q:\n%s", want, said)
		}
	}
	if empty := Build(Input{Now: start}, Options{}); len(empty.Pairs) != 0 || empty.Total.BytesPerSecond != 0 {
		t.Errorf("of nothing: %+v", empty)
	}
}
