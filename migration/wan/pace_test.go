package wan

import (
	"testing"
	"time"
)

// way is a wire and a core, as Pace meets them: bytes a second, of each level packed a second,
// and bytes of frames for one of the stream.
type way struct {
	link  float64
	speed [Levels]float64
	ratio [Levels]float64
	slow  float64 // how much slower packers are beside each other; 0: not at all
}

func (w way) crowd() float64 { return max(w.slow, 1) }

// settle sends n bytes over the way and returns the level at their end, and how long it took.
func (w way) settle(p *Pace, n, packers int) (Level, time.Duration) {
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	var took time.Duration
	l := p.Level(packers, Plain, Fast)
	for ; n > 0; n -= BatchBytes {
		b := &Batch{Level: l, size: BatchBytes, frame: int(w.ratio[l] * BatchBytes)}
		packing, sending := seconds(BatchBytes/w.speed[l]), seconds(float64(b.frame)/w.link)
		each := time.Duration(w.crowd() * float64(packing) / float64(packers))
		p.Saw(b, packing, max(each-sending, 0), sending)
		took += max(each, sending)
		l = p.Level(packers, Plain, Fast)
	}
	return l, took
}

func TestPace(t *testing.T) {
	const MB = 1e6
	core := [Levels]float64{4000 * MB, 600 * MB, 400 * MB}
	pages := [Levels]float64{1, 0.48, 0.37}
	noise := [Levels]float64{1, 1, 1}
	for name, c := range map[string]struct {
		way     way
		packers int
		want    Level
	}{
		"100 Mbit/s":                            {way{12.5 * MB, core, pages, 0}, 1, Fast},
		"465 Mbit/s":                            {way{58 * MB, core, pages, 0}, 2, Fast},
		"1 Gbit/s, two cores":                   {way{125 * MB, core, pages, 0}, 2, Fast},
		"2.5 Gbit/s, one core":                  {way{312 * MB, core, pages, 0}, 1, Light},
		"465 Mbit/s, two cores that others use": {way{58 * MB, core, pages, 4}, 2, Fast},
		"10 Gbit/s":                             {way{1250 * MB, core, pages, 0}, 1, Plain},
		"10 Gbit/s, eight cores":                {way{1250 * MB, core, pages, 0}, 8, Fast},
		"noise over 1 Gbit/s":                   {way{125 * MB, core, noise, 0}, 1, Fast}, // none is better
		"noise over 10 Gbit/s":                  {way{1250 * MB, core, noise, 0}, 1, Plain},
		"very slow cores, 1 Gbit/s":             {way{125 * MB, [Levels]float64{1000 * MB, 60 * MB, 40 * MB}, pages, 0}, 1, Plain},
	} {
		const n = 512 << 20
		var p Pace
		if got := p.Level(c.packers, Plain, Fast); got != Fast {
			t.Errorf("%s: begins as %s", name, got)
		}
		got, took := c.way.settle(&p, n, c.packers)
		if got != c.want {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
		// Never slower than without, but for what is learned first.
		plain := time.Duration(float64(n)/c.way.link*float64(time.Second)) + 500*time.Millisecond
		if took > plain+plain/20 {
			t.Errorf("%s: took %s, without codec %s", name, took, plain)
		}
	}
}

func TestPaceFollowsTheWire(t *testing.T) {
	fast := way{1250e6, [Levels]float64{4000e6, 600e6, 400e6}, [Levels]float64{1, 0.48, 0.37}, 0}
	slow := fast
	slow.link = 20e6
	var p Pace
	for _, c := range []struct {
		way  way
		want Level
	}{{fast, Plain}, {slow, Fast}, {fast, Plain}} {
		if got, _ := c.way.settle(&p, 256<<20, 1); got != c.want {
			t.Errorf("at %.0f MB/s: got %s, want %s", c.way.link/1e6, got, c.want)
		}
	}
}

func TestPaceKeepsToItsBounds(t *testing.T) {
	fast := way{1250e6, [Levels]float64{4000e6, 600e6, 400e6}, [Levels]float64{1, 0.48, 0.37}, 0}
	for least := range Level(Levels) {
		for most := least; most < Levels; most++ {
			var p Pace
			for range 200 {
				l := p.Level(1, least, most)
				if l < least || l > most {
					t.Fatalf("%s is not from %s to %s", l, least, most)
				}
				p.Saw(&Batch{Level: l, size: BatchBytes, frame: int(fast.ratio[l] * BatchBytes)}, time.Millisecond, 0, time.Millisecond/10)
			}
		}
	}
}
