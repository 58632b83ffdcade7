package traffic

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// population makes the true packets of one cell.
type population struct {
	name    string
	packets func(*rand.Rand) int
	size    func(*rand.Rand) float64
}

func constant(size float64) func(*rand.Rand) float64 {
	return func(*rand.Rand) float64 { return size }
}

func either(share, a, b float64) func(*rand.Rand) float64 {
	return func(r *rand.Rand) float64 {
		if r.Float64() < share {
			return a
		}
		return b
	}
}

func around(mean float64) func(*rand.Rand) int {
	return func(r *rand.Rand) int { return int(mean * (0.5 + r.Float64())) }
}

// pareto has very many short and a few long conversations.
func pareto(r *rand.Rand) int {
	return int(min(math.Pow(1-r.Float64(), -1/0.9), 2e4))
}

// sampled thins a cell's packets binomially, 1 of n, and returns what a ledger has of it.
func sampled(r *rand.Rand, p population, n int) (truth float64, samples int, s Estimate) {
	for range p.packets(r) {
		b := p.size(r)
		truth += b
		if r.IntN(n) == 0 {
			samples++
			s.seen += b
			s.variance += float64(n) * float64(n-1) * b * b
		}
	}
	s.sampled = s.seen * float64(n)
	s.Bytes = s.sampled
	return truth, samples, s
}

func TestIntervalsCoverTheTruth(t *testing.T) {
	populations := []population{
		{"few of 1500", around(150), constant(1500)},
		{"many of 1500", around(5000), constant(1500)},
		{"few of 64 and 1500", around(200), either(0.5, 64, 1500)},
		{"mostly 64", around(300), either(0.9, 64, 1500)},
		{"many of 64 and 1500", around(5000), either(0.8, 64, 1500)},
		{"acknowledgements", around(250), constant(64)},
		{"segments of 64 KB", around(4000), either(0.3, 64, 65_000)},
		{"short and long", pareto, either(0.5, 64, 1500)},
		{"as sampling", around(40), either(0.7, 64, 1500)},
	}
	const cells = 1500
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{2, 16, 64, 400} {
		var all, hit, few, fewHit int
		var widths []float64
		for _, p := range populations {
			seen, covered := 0, 0
			for range cells {
				truth, samples, s := sampled(r, p, n)
				if samples == 0 {
					continue // there is no cell
				}
				low, high := s.Interval()
				ok := low <= truth && truth <= high
				seen++
				if ok {
					covered++
				}
				if samples <= 5 {
					few++
					if ok {
						fewHit++
					}
				}
				if samples >= 5 {
					widths = append(widths, (high-low)/2/s.Bytes)
				}
			}
			all, hit = all+seen, hit+covered
			share := float64(covered) / float64(seen)
			t.Logf("1:%d, %s: %.3f of %d cells", n, p.name, share, seen)
			// Three standard errors are chance.
			if least := 0.95 - 3*math.Sqrt(0.95*0.05/float64(seen)); share < least {
				t.Errorf("1:%d, %s: %.3f of %d cells are covered, want 0.95", n, p.name, share, seen)
			}
		}
		slices.Sort(widths)
		median := widths[len(widths)/2]
		t.Logf("1:%d: %.4f of %d cells, %.4f of %d with 1 to 5 samples; median half-width %.2f where there are 5 or more",
			n, float64(hit)/float64(all), all, float64(fewHit)/float64(few), few, median)
		if float64(hit) < 0.95*float64(all) || float64(fewHit) < 0.95*float64(few) {
			t.Errorf("1:%d: %d of %d cells are covered, %d of %d with few samples", n, hit, all, fewHit, few)
		}
		if median > 1 {
			t.Errorf("1:%d: the median half-width is %.2f of the estimate", n, median)
		}
	}
}

func TestIntervalIsNormalWithManySamples(t *testing.T) {
	const n, k, size = 64, 10_000, 1000
	seen := float64(k * size)
	low, high := Estimate{n * seen, n * seen, seen, n * (n - 1) * k * size * size}.Interval()
	want := 1.96 * math.Sqrt(n*(n-1)*k) * size
	if got := (high - low) / 2; math.Abs(got-want) > 0.02*want {
		t.Errorf("half-width %.0f, want %.0f", got, want)
	}
}

func TestWhatWasCountedWholeHasNoInterval(t *testing.T) {
	if low, high := (Estimate{Bytes: 1234}).Interval(); low != 1234 || high != 1234 {
		t.Errorf("[%v, %v]", low, high)
	}
	// A sampled part leaves the rest exact.
	low, high := Estimate{1e9 + 64_000, 64_000, 1000, 64 * 63 * 1e6}.Interval()
	if low < 1e9+1000 || high > 1e9+1e6 {
		t.Errorf("[%v, %v]", low, high)
	}
}

// Garwood's exact bounds for a count, from any table.
func TestGammaQuantileIsGarwoods(t *testing.T) {
	for _, c := range []struct{ k, low, high float64 }{{10, 4.795, 18.39}, {20, 12.22, 30.89}, {30, 20.24, 42.83}, {100, 81.36, 121.63}} {
		low, high := gammaQuantile(c.k, -z975), gammaQuantile(c.k+1, z975)
		if math.Abs(low-c.low) > 0.01*c.low || math.Abs(high-c.high) > 0.01*c.high {
			t.Errorf("%v: [%.3f, %.3f], want [%v, %v]", c.k, low, high, c.low, c.high)
		}
	}
}
