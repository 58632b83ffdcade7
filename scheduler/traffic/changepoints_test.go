package traffic_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"heliotrope/scheduler/traffic"
)

// A level that changes by half or more is found within a window of where it did; noise and
// single bursts are not levels.
func TestChangePoints(t *testing.T) {
	type level struct {
		windows int
		rate    float64
	}
	for _, c := range []struct {
		name   string
		levels []level
		want   []int
	}{
		{"nothing", nil, nil},
		{"silence", []level{{50, 0}}, nil},
		{"one level", []level{{200, 1e6}}, nil},
		{"double", []level{{40, 1e6}, {40, 2e6}}, []int{40}},
		{"down and up", []level{{30, 1e6}, {30, 1e5}, {30, 1e6}}, []int{30, 60}},
		{"starts", []level{{20, 0}, {20, 1e6}}, []int{20}},
		{"ends", []level{{20, 1e6}, {20, 0}}, []int{20}},
		{"burst", []level{{30, 1e6}, {1, 1e8}, {30, 1e6}}, nil},
	} {
		for seed := range uint64(50) {
			r := rand.New(rand.NewPCG(seed, 1))
			var rates []float64
			for _, l := range c.levels {
				for range l.windows {
					rates = append(rates, l.rate*math.Exp(0.1*r.NormFloat64()))
				}
			}
			got := traffic.ChangePoints(rates)
			near := func(a, b int) bool { return max(a-b, b-a) <= 1 }
			if !slices.EqualFunc(got, c.want, near) {
				t.Errorf("%s, seed %d: %v, want %v", c.name, seed, got, c.want)
				break
			}
		}
	}
}

func BenchmarkChangePoints(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	rates := make([]float64, 3600)
	for i := range rates {
		rates[i] = math.Exp(r.NormFloat64())
	}
	for b.Loop() {
		traffic.ChangePoints(rates)
	}
}
