package story

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
)

// What an asker is refused it asks again, and tells of once.
func TestAsk(t *testing.T) {
	var requests atomic.Int64
	enough := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var put struct{ Key, Value []byte }
		if err := json.NewDecoder(r.Body).Decode(&put); err != nil || r.URL.Path != "/v3/kv/put" || len(put.Key) == 0 {
			t.Errorf("%s: %v, %v", r.URL, put, err)
		}
		switch requests.Add(1) {
		case 1:
			http.Error(w, "nobody leads", http.StatusServiceUnavailable)
		case 20:
			close(enough)
		}
	}))
	defer server.Close()
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- ask(t.Context(), server.URL, inR, outW) }()
	answers := json.NewDecoder(outR)
	tell := func(pace int) (a asked) {
		fmt.Fprintln(inW, pace)
		if err := answers.Decode(&a); err != nil {
			t.Fatal(err)
		}
		return a
	}
	if first := tell(200); first != (asked{}) {
		t.Errorf("before it was told to ask: %+v", first)
	}
	<-enough
	if a := tell(0); a.Answered < 18 || a.Again != 1 || a.Failed != 0 || a.MeanMS <= 0 || a.MaxMS < a.MeanMS {
		t.Errorf("%+v", a)
	}
	inW.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Two populations half a day apart: each place is near for one half, and who follows is near
// for both. What was measured is 5 ms more than the network, and an hour in which it moved 100.
func TestReckon(t *testing.T) {
	east := population{reach: map[heliotrope.SiteID]float64{"east": 10, "west": 210, "never": 500}}
	west := population{reach: map[heliotrope.SiteID]float64{"east": 210, "west": 10, "never": 500}}
	var at []heliotrope.SiteID
	for h := range dayHours {
		here, n, took := heliotrope.SiteID("east"), []float64{2, 1}, []float64{15, 215}
		switch {
		case h == dayHours/2:
			here, n, took = "", []float64{0, 3}, []float64{0, 100}
		case h > dayHours/2:
			here, n, took = "west", []float64{1, 2}, []float64{215, 15}
		}
		at = append(at, here)
		east.asked, west.asked = append(east.asked, n[0]), append(west.asked, n[1])
		east.tookMS, west.tookMS = append(east.tookMS, took[0]), append(west.tookMS, took[1])
	}
	o := reckon([]population{east, west}, at, []heliotrope.SiteID{"east", "never", "west"})
	const eastern, western, all = 24 + 11, 12 + 3 + 22, 72.0
	for what, x := range map[string][2]float64{
		"mean": {o.MeanMS, (46*15 + 23*215 + 3*100) / all}, "hourly": {o.HourlyMS, (46*10 + 23*210 + 3*10) / all}, "never": {o.StaticMS["never"], 500},
		"east": {o.StaticMS["east"], (eastern*15 + western*215) / all}, "west": {o.StaticMS["west"], (eastern*215 + western*15) / all},
		"west by the network": {o.NetworkMS["west"], (eastern*210 + western*10) / all}, "nearer": {o.Nearer, 1 - o.MeanMS/o.StaticMS["west"]},
	} {
		if math.Abs(x[0]-x[1]) > 1e-9 {
			t.Errorf("%s is %g, must be %g", what, x[0], x[1])
		}
	}
	if o.Best != "west" {
		t.Errorf("best is %s", o.Best)
	}
}

// The day's clock, and where the VM was by it.
func TestSunClock(t *testing.T) {
	dawn := time.Date(2026, 1, 12, 8, 0, 0, 0, time.UTC)
	s := &Sun{Day: 6 * time.Minute, Peak: 60, dawn: dawn, home: "l-1", hosted: map[heliotrope.SiteID]heliotrope.HostID{"london": "l-1", "virginia": "v-1"}}
	if at := s.clockAt(dawn.Add(s.hours(13) + s.hours(1)/2)); at != "01:30" {
		t.Errorf("half an hour after one it is %s", at)
	}
	moves := []passage{{Move: api.Migration{From: "l-1", To: "v-1", Phase: api.PhaseRolledBack, CreatedAt: dawn}},
		{Move: api.Migration{From: "l-1", To: "v-1", Phase: api.PhaseSucceeded, CreatedAt: dawn.Add(s.hours(5) + time.Second)}}}
	for h, want := range map[int][]heliotrope.SiteID{4: {"london"}, 5: {"london", "virginia"}, 6: {"virginia"}} {
		if got := s.sites(moves, dawn.Add(s.hours(h)), dawn.Add(s.hours(h+1))); !slices.Equal(got, want) {
			t.Errorf("in hour %d it is at %v, want %v", h, got, want)
		}
	}
	if n := s.asks(9, 24+3); n != 32 { // noon in Tokyo: at lunch
		t.Errorf("%d requests a second", n)
	}
}
