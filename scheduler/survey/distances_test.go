package survey_test

import (
	"math"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/survey"
	"heliotrope/scheduler/traffic"
)

var (
	usEU = [2]heliotrope.SiteID{"eu", "us"}
	zero = time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC)
)

// watch lets hosts of us and eu measure for a while, every ten seconds, and returns what is
// believed after each look; 0 is nothing.
func watch(d *survey.Distances, from time.Time, span time.Duration, ms func(at time.Time) []float64) []float64 {
	var believed []float64
	for at := from; at.Before(from.Add(span)); at = at.Add(10 * time.Second) {
		var samples []survey.Sample
		for i, x := range ms(at) {
			s := survey.Sample{From: "us", To: "eu", Ms: x}
			if i%2 == 1 {
				s.From, s.To = s.To, s.From
			}
			samples = append(samples, s)
		}
		d.Learn(at, near(), samples)
		believed = append(believed, d.Believed()[usEU])
	}
	return believed
}

func always(ms ...float64) func(time.Time) []float64 {
	return func(time.Time) []float64 { return ms }
}

func last(list []float64) float64 { return list[len(list)-1] }

// A distance is believed after five minutes, follows a change that stays after three quarters
// of an hour, and is forgotten when nobody has measured it for an hour.
func TestDistancesFollow(t *testing.T) {
	var d survey.Distances
	young := watch(&d, zero, 10*time.Minute, always(81, 82, 95))
	if young[29] != 0 || young[30] != 82 || last(young) != 82 {
		t.Errorf("at first %v", young)
	}
	moved := watch(&d, zero.Add(10*time.Minute), 2*time.Hour, always(160))
	if moved[44*6] != 82 && moved[0] != 82 || last(moved) != 160 {
		t.Errorf("it was %v ms at first, %v after 44 minutes, %v in the end", moved[0], moved[44*6], last(moved))
	}
	silent := watch(&d, zero.Add(130*time.Minute), 61*time.Minute, always())
	if silent[59*6] != 160 || last(silent) != 0 {
		t.Errorf("of what nobody measures: %v, then %v", silent[59*6], last(silent))
	}
}

// A way that goes to and fro within half an hour, one host that measures nonsense, what is
// no round trip and what light could not do change nothing.
func TestDistancesDoNotFlap(t *testing.T) {
	for name, ms := range map[string]func(time.Time) []float64{
		"to and fro": func(at time.Time) []float64 {
			return []float64{map[bool]float64{true: 80, false: 200}[at.Sub(zero)/(20*time.Minute)%2 == 0]}
		},
		"nonsense of one of three": always(80, 1.5, 80),
		"absurd":                   always(80, -3, 0, math.NaN(), math.Inf(1), 1e9),
		"a bit more every minute": func(at time.Time) []float64 {
			return []float64{80 + min(7, 3*at.Sub(zero).Hours())}
		},
	} {
		var d survey.Distances
		for i, x := range watch(&d, zero, 6*time.Hour, ms)[40:] {
			if math.Abs(x-80) > 0.5 {
				t.Errorf("%s: %v ms after %d looks", name, x, i)
				break
			}
		}
	}
	top := near()
	us, eu := top.Sites["us"], top.Sites["eu"]
	us.Latitude, us.Longitude, eu.Latitude, eu.Longitude = 38.9, -77.4, 50.1, 8.7 // 6,500 km
	top.Sites["us"], top.Sites["eu"] = us, eu
	var d survey.Distances
	for i := range 100 {
		d.Learn(zero.Add(time.Duration(i)*time.Minute), top, []survey.Sample{{From: "us", To: "eu", Ms: 3}, {From: "us", To: "us", Ms: 3}})
	}
	if len(d.Believed()) > 0 {
		t.Errorf("light would take 43 ms: %v", d.Believed())
	}
}

// Whatever less than a quarter of the looks say, what is believed is what the others do.
func TestDistancesStandLies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		truth := rapid.Float64Range(2, 500).Draw(t, "ms")
		lie := rapid.Float64Range(-10, 3000)
		var d survey.Distances
		watch(&d, zero, 10*time.Minute, always(truth))
		n := 0
		for i, x := range watch(&d, zero.Add(10*time.Minute), time.Hour, func(time.Time) []float64 {
			if n++; n%5 == 0 {
				return []float64{lie.Draw(t, "lie")}
			}
			return []float64{truth}
		}) {
			if x != truth {
				t.Fatalf("%v ms after %d looks, not %v", x, i, truth)
			}
		}
	})
}

// A snapshot has the measured distance where there is one, and says so, and a plan which of
// them it rests on.
func TestSurveyMeasured(t *testing.T) {
	client := traffic.Outside(netip.MustParsePrefix("10.255.9.0/24"))
	there := traffic.Outside(netip.MustParsePrefix("10.255.2.0/24"))
	top := near()
	s := survey.Take(zero, top, survey.Facts{Placements: at(map[heliotrope.VMID]heliotrope.HostID{"web": "us-1", "db": "us-1"}),
		Traffic: minute(traffic.Cell{Src: traffic.VM("web"), Dst: client, Bytes: 6000}, traffic.Cell{Src: traffic.VM("web"), Dst: there, Bytes: 6000}),
		RTTMs:   map[[2]heliotrope.SiteID]float64{usEU: 120}})
	for _, w := range s.Paths {
		if w.RTTMs != 120 || w.Source != survey.Measured {
			t.Errorf("%+v", w)
		}
	}
	for _, r := range s.Reaches {
		want := scheduler.Reach{Region: r.Region, Site: r.Site, RTTMs: 0.3}
		switch {
		case r.Region == "eu" && r.Site == "us":
			want.RTTMs = 120
		case r.Region == "internet":
			want.RTTMs = map[heliotrope.SiteID]float64{"eu": 10.3, "us": 90.3}[r.Site]
		}
		if r != want {
			t.Errorf("got %+v, want %+v", r, want)
		}
	}
	ways := survey.Ways(s, scheduler.Plan{Moves: []scheduler.Move{{VM: "web", FromSite: "us", ToSite: "eu"}}})
	told := map[string]string{}
	for _, w := range ways {
		told[string(w.From)+"-"+string(w.To)] = w.Source
	}
	if len(ways) != 3 || told["eu-us"] != survey.Measured || told["eu-internet"] != survey.Stated || told["us-internet"] != survey.Stated {
		t.Errorf("%+v", ways)
	}
}
