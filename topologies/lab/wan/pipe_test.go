package wan

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
)

var shapes = rapid.Custom(func(t *rapid.T) Shape {
	ms := func(name string, most int) time.Duration {
		return time.Duration(rapid.IntRange(0, most*1000).Draw(t, name)) * time.Microsecond
	}
	return Shape{
		Delay:   ms("delay", 200),
		Jitter:  ms("jitter", 50),
		Normal:  rapid.Bool().Draw(t, "normal"),
		Reorder: rapid.Bool().Draw(t, "reorder"),
		Loss:    rapid.SampledFrom([]float64{0, 0, 0.01, 0.5, 1}).Draw(t, "loss"),
		Rate:    heliotrope.BitRate(rapid.SampledFrom([]uint64{0, 1, 64e3, 10e6, 465e6, 10e9, 1e15}).Draw(t, "rate")),
		Queue:   ms("queue", 100),
		Down:    rapid.IntRange(0, 9).Draw(t, "down") == 0,
	}
})

type arrival struct {
	after int64
	size  int
}

var arrivals = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) arrival {
	return arrival{
		after: rapid.Int64Range(0, int64(5*time.Millisecond)).Draw(t, "after"),
		size:  rapid.IntRange(14, cellSize-1).Draw(t, "size"),
	}
}), 1, 300)

// TestLineKeepsItsPromises draws a shape and traffic, changing the shape on the way.
func TestLineKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(1, rapid.Uint64().Draw(t, "seed")))
		var l line
		var now, last int64
		for range rapid.IntRange(1, 4).Draw(t, "shapes") {
			s := shapes.Draw(t, "shape")
			if err := s.Validate(); err != nil {
				t.Fatal(err)
			}
			for _, a := range arrivals.Draw(t, "arrivals") {
				now += a.after
				wait := l.backlog(now)
				depart, v := l.arrive(now, a.size, &s, rng)
				checkVerdict(t, s, wait, v)
				if v != pass {
					continue
				}
				checkDeparture(t, s, now, last, depart, wait, a.size)
				last = max(last, depart)
			}
		}
	})
}

func checkVerdict(t *rapid.T, s Shape, wait time.Duration, v verdict) {
	switch v {
	case linkDown:
		if !s.Down {
			t.Fatal("dropped as down on a line that is up")
		}
	case lost:
		if s.Loss == 0 {
			t.Fatal("lost on a line without loss")
		}
	case queueFull:
		if s.Rate == 0 || wait <= s.queue() {
			t.Fatalf("tail dropped with %v in a queue of %v", wait, s.queue())
		}
	case pass:
		if s.Down || s.Loss == 1 {
			t.Fatal("passed a dead line")
		}
		if s.Rate > 0 && wait > s.queue() {
			t.Fatalf("queued behind %v in a queue of %v", wait, s.queue())
		}
	}
}

func checkDeparture(t *rapid.T, s Shape, now, last, depart int64, wait time.Duration, size int) {
	sent := now
	if s.Rate > 0 {
		sent += int64(wait) + int64(uint64(size)*8*1e9/uint64(s.Rate))
	}
	earliest := max(sent+int64(s.Delay-s.Jitter), sent)
	if s.Normal && s.Jitter > 0 {
		earliest = sent
	}
	if depart < earliest {
		t.Fatalf("departs %v before the wire allows", time.Duration(earliest-depart))
	}
	if !s.Reorder && depart < last {
		t.Fatalf("overtakes the frame before it by %v", time.Duration(last-depart))
	}
	latest := sent + int64(s.Delay+s.Jitter) + 1 // one: the rate's remainder
	if !s.Reorder {
		latest = max(latest, last)
	}
	if !s.Normal && depart > latest {
		t.Fatalf("departs %v after the wire allows", time.Duration(depart-latest))
	}
}

// TestRateIsExact fills a line and counts what gets through: not a bit more or less.
func TestRateIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Uint64Range(1e5, 1e11).Draw(t, "rate")
		s := Shape{Rate: heliotrope.BitRate(rate), Queue: maxDelay}
		rng := rand.New(rand.NewPCG(1, 2))
		var l line
		var bits uint64
		var depart int64
		for range 500 {
			size := rapid.IntRange(14, 1514).Draw(t, "size")
			bits += uint64(size) * 8
			d, v := l.arrive(0, size, &s, rng)
			if v == queueFull {
				return
			}
			depart = d
		}
		exact := float64(bits) / float64(rate) * 1e9
		if math.Abs(float64(depart)-exact) > 1+exact*1e-12 {
			t.Fatalf("%d bits at %d bit/s left after %d ns, want %.1f", bits, rate, depart, exact)
		}
	})
}

func TestSpreads(t *testing.T) {
	const n = 20000
	for _, c := range []struct {
		name      string
		shape     Shape
		deviation time.Duration
	}{
		{"uniform", Shape{Delay: 100 * time.Millisecond, Jitter: 10 * time.Millisecond, Reorder: true}, 5774 * time.Microsecond},
		{"normal", Shape{Delay: 100 * time.Millisecond, Jitter: 10 * time.Millisecond, Normal: true, Reorder: true}, 10 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(3, 4))
			var l line
			var sum, squares float64
			for range n {
				d, _ := l.arrive(0, 100, &c.shape, rng)
				x := float64(d)
				sum += x
				squares += x * x
			}
			mean := sum / n
			deviation := math.Sqrt(squares/n - mean*mean)
			if math.Abs(mean-1e8) > 5e5 || math.Abs(deviation/float64(c.deviation)-1) > 0.05 {
				t.Fatalf("mean %v deviation %v, want 100ms and %v", time.Duration(mean), time.Duration(deviation), c.deviation)
			}
		})
	}
}

func TestLossShare(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	s := Shape{Loss: 0.1}
	var l line
	got := 0
	for range 100000 {
		if _, v := l.arrive(0, 100, &s, rng); v == lost {
			got++
		}
	}
	if got < 9700 || got > 10300 {
		t.Fatalf("lost %d of 100000, want about 10000", got)
	}
}

func TestValidateRefuses(t *testing.T) {
	for _, s := range []Shape{
		{Delay: -1}, {Delay: maxDelay + 1}, {Jitter: -1}, {Queue: time.Hour},
		{Loss: -0.1}, {Loss: 1.1}, {Loss: math.NaN()}, {Rate: 1e15 + 1},
	} {
		if s.Validate() == nil {
			t.Errorf("%+v is accepted", s)
		}
	}
}
