package cli

import (
	"strings"
	"testing"
	"time"

	"heliotrope"
)

// What is asked is listed with the most of the week, in an hour that may be any.
func TestDemandList(t *testing.T) {
	root := shortDir(t)
	f := &fake{}
	serve(t, f, root)
	if r := execute(t.Context(), root, "", "demand", "list"); !strings.Contains(r.out, "no section demand") {
		t.Errorf("%+v", r)
	}
	hours := make([]float64, 24)
	hours[9] = 90000
	f.topology.Demand = map[heliotrope.RegionID]heliotrope.Demand{"tokyo": {Zone: "Asia/Tokyo", RTT: map[heliotrope.SiteID]heliotrope.Duration{"us": heliotrope.Duration(160 * time.Millisecond)},
		Asks: []heliotrope.Ask{{VMs: []heliotrope.VMID{"web"}, Requests: hours, Bytes: []float64{2e6}}}}}
	r := execute(t.Context(), root, "", "demand", "list")
	for _, want := range []string{"tokyo", "Asia/Tokyo", "web", "90000", "2.0 MB", "us 160ms"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("no %q in %+v", want, r)
		}
	}
	if r := execute(t.Context(), root, "", "demand", "list", "-o", "json"); !strings.Contains(r.out, `"local_time"`) || !strings.Contains(r.out, `"bytes_per_hour": 2000000`) {
		t.Errorf("%+v", r)
	}
}
