package autopilot

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
)

// sun is what clients at us and eu get of web: the one's noon is the other's midnight. From
// broken on, if that is a time, all are at us.
func sun(broken time.Duration) func(t time.Time) (us, eu float64) {
	begin := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // where virtual time begins
	return func(t time.Time) (us, eu float64) {
		if since := t.Sub(begin); broken > 0 && since >= broken && since < broken+18*time.Hour {
			return 2e6, 0
		}
		hours := t.Sub(t.Truncate(24 * time.Hour)).Hours()
		c := math.Cos(2 * math.Pi * hours / 24)
		return 1e6 * (1 + c), 1e6 * (1 - c)
	}
}

// seasons is a world with such clients, of which the history knows the last weeks too.
func seasons(asked func(time.Time) (us, eu float64), forecast time.Duration, loss float64) *planet {
	p := newPlanet("web")
	p.topology.Pools["all"] = heliotrope.Pool{Autopilot: heliotrope.AutopilotAuto, Window: heliotrope.Duration(10 * time.Minute), Interval: heliotrope.Duration(10 * time.Minute),
		Forecast: heliotrope.Duration(forecast), ForecastLoss: loss}
	p.traffic = func(from, to time.Time) (cells []traffic.Cell) {
		us, eu := asked(from.Add(to.Sub(from) / 2))
		for site, rate := range map[string]float64{"us": us, "eu": eu} {
			cells = append(cells, serves("web", site, rate)(from, to)...)
		}
		return cells
	}
	return p
}

// paid is what distance and egress cost, minute by minute, while the world turns for a while.
func paid(t *testing.T, p *planet, asked func(time.Time) (us, eu float64), span time.Duration) []float64 {
	var usd []float64
	fly(t, p, func(*testing.T, *Autopilot) {
		for range int(span / time.Minute) {
			time.Sleep(time.Minute)
			us, eu := asked(time.Now())
			away := eu
			if site := p.topology.Hosts[p.at("web")].Site; site == "eu" {
				away = us
			}
			usd = append(usd, away*60/1e9*(80*0.001+0.02))
		}
	})
	return usd
}

// A pool that goes by forecasts acts before its clients are elsewhere; one that does not acts
// after.
func TestForecastActsBeforeThePeak(t *testing.T) {
	for name, c := range map[string]struct {
		forecast time.Duration
		loss     float64
		early    bool
	}{"forecast": {2 * time.Hour, 1, true}, "reactive": {}} {
		t.Run(name, func(t *testing.T) {
			p := seasons(sun(0), c.forecast, c.loss)
			fly(t, p, func(t *testing.T, a *Autopilot) {
				time.Sleep(29*time.Hour + 50*time.Minute) // ten minutes before more of them are at eu
				if eu := p.at("web")[:2] == "eu"; eu != c.early {
					pool, err := a.Pool(t.Context(), "all")
					t.Errorf("web is at %s; %s %v; %q", p.at("web"), pool.Says, err, p.told)
				}
				time.Sleep(time.Hour)
				if p.at("web")[:2] != "eu" {
					t.Errorf("web is at %s", p.at("web"))
				}
			})
		})
	}
}

// A day that breaks the pattern costs no more than it may, and forecasts are given up with an event.
func TestBrokenForecastIsBounded(t *testing.T) {
	const broken = 29*time.Hour + 30*time.Minute // half past five on the second day
	const bound = 0.8
	asked := sun(broken)
	with, without := seasons(asked, 2*time.Hour, bound), seasons(asked, 0, 0)
	a, b := paid(t, with, asked, 48*time.Hour), paid(t, without, asked, 48*time.Hour)
	worst, sum := 0.0, 0.0
	for i := len(a) - 24*60; i < len(a); i++ {
		sum += a[i] - b[i]
		worst = max(worst, sum)
	}
	worst += float64(max(0, with.count()-without.count())) * 0.02
	if worst > bound || worst < 0.2 {
		t.Errorf("it cost USD %.3f more", worst)
	}
	t.Logf("it cost USD %.3f more at most, with %d moves next to %d", worst, with.count(), without.count())
	if told := strings.Join(with.told, "\n"); !strings.Contains(told, "pool all: forecasts are not followed any more") || with.placements["web"].Host[:2] != "us" {
		t.Errorf("web is at %s: %s", with.placements["web"].Host, told)
	}
}

// What only varies is expected to vary, and moves nothing.
func TestForecastOfNoise(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	p := seasons(func(time.Time) (us, eu float64) {
		return 3e5 * math.Exp(random.NormFloat64()), 2e5 * math.Exp(random.NormFloat64())
	}, 2*time.Hour, 1)
	fly(t, p, func(t *testing.T, _ *Autopilot) {
		time.Sleep(2 * 24 * time.Hour)
		if p.count() > 0 {
			t.Errorf("%d moves: %v", p.count(), p.told[:min(9, len(p.told))])
		}
	})
}

// The next leader goes on with the books of the one before.
func TestBooksAreKept(t *testing.T) {
	p, s := seasons(sun(0), 2*time.Hour, 1), &shelf{}
	synctest.Test(t, func(t *testing.T) {
		lead(t, p, s, 1, func(*testing.T, *Autopilot) { time.Sleep(9 * time.Hour) })
		first, err := s.Books(t.Context(), "all")
		if err != nil || first == nil || len(first.Guard.Past) == 0 || !first.Follows {
			t.Fatalf("%+v, %v", first, err)
		}
		lead(t, p, s, 2, func(*testing.T, *Autopilot) { time.Sleep(2 * time.Hour) })
		second, err := s.Books(t.Context(), "all")
		if err != nil || second == nil || second.Guard.Past[0].End.After(first.Guard.Past[len(first.Guard.Past)-1].End) {
			t.Errorf("%+v, %v", second, err)
		}
	})
}
