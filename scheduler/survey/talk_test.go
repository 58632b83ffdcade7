package survey_test

import (
	"net/netip"
	"testing"
	"time"

	"heliotrope/scheduler"
	"heliotrope/scheduler/survey"
	"heliotrope/scheduler/traffic"
)

func TestTraffic(t *testing.T) {
	from := time.Unix(0, 0)
	web, db, paris := traffic.VM("web"), traffic.VM("db"), traffic.Outside(netip.MustParsePrefix("192.0.2.0/24"))
	m := traffic.Matrix{From: from, To: from.Add(10 * time.Second), Cells: []traffic.Cell{
		{Src: web, Dst: db, Bytes: 100}, {Src: web, Dst: paris, Bytes: 1000}, {Src: paris, Dst: web, Bytes: 10},
		{Src: db, Dst: traffic.Outside(netip.MustParsePrefix("198.51.100.0/24")), Bytes: 5},
	}}
	flows, demands := survey.Traffic(m, func(p netip.Prefix) (scheduler.RegionID, bool) { return "france", p == paris.Prefix })
	if len(flows) != 1 || flows[0] != (scheduler.Flow{Src: "web", Dst: "db", BytesPerSecond: 10}) || len(demands) != 1 || demands[0] != (scheduler.Demand{VM: "web", Region: "france", BytesPerSecond: 100}) {
		t.Errorf("%v %v", flows, demands)
	}
}
