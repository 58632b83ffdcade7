package bench

import (
	"context"
	"math/bits"
	"runtime"
	"sync"
	"time"

	"heliotrope/scheduler/perf"
)

const (
	// chunk is how many rounds are done between two looks at the clock: some 100 µs, of which
	// a look takes two.
	chunk = 20_000

	longestSlice, shortestSlice = 5 * time.Millisecond, time.Millisecond
	// leastSlices of a thread are measured even where the budget gives it less time.
	leastSlices = 5
)

// rounds does n rounds of the fixed work: multiply, rotate, look up and store in a table
// that the first-level cache holds, and a branch that nothing foresees. It is the same on
// every host, and no instruction set has a shortcut for it.
func rounds(n int, x uint64, table *[512]uint64) uint64 {
	for range n {
		x = bits.RotateLeft64((x^table[x>>55])*0x9e3779b97f4a7c15, 29)
		if x&7 == 0 {
			x += table[x>>55]
		}
		table[x&511] ^= x
	}
	return x
}

// cpu measures how fast one thread is, and how fast each is while all are.
func (j *job) cpu(ctx context.Context) error {
	single := time.Duration(singleShare * float64(j.budget.CPU))
	var rates []float64
	onThread(func(t *thread) { rates = spin(ctx, t, single) })
	j.found(perf.CPUSingle, rates)

	n := runtime.GOMAXPROCS(0)
	each := time.Duration(allShare * float64(j.budget.CPU) / float64(n))
	medians := make([][]float64, n)
	var ready, done sync.WaitGroup
	ready.Add(n)
	for i := range n {
		done.Go(func() {
			onThread(func(t *thread) {
				ready.Done()
				ready.Wait() // all begin together
				medians[i] = spin(ctx, t, each)
			})
		})
	}
	done.Wait()
	sum := 0.0
	for _, m := range medians {
		if len(m) < leastSlices {
			return errMissing("not every thread had its turn")
		}
		sum += median(m)
	}
	j.result.Values[perf.CPUAll] = sum / float64(n)
	return nil
}

// spin works for about d and returns the rounds per second of each slice of it.
func spin(ctx context.Context, t *thread, d time.Duration) []float64 {
	slice := min(max(d/leastSlices, shortestSlice), longestSlice)
	table, x := &[512]uint64{}, uint64(1)
	x = rounds(chunk, x, table) // warm
	var rates []float64
	for spent := time.Duration(0); (spent < d || len(rates) < leastSlices) && ctx.Err() == nil; {
		begun, n := t.now(), 0
		took := time.Duration(0)
		for took < slice && ctx.Err() == nil {
			x = rounds(chunk, x, table)
			n += chunk
			took = t.now() - begun
		}
		spent += took
		rates = append(rates, float64(n)/took.Seconds())
	}
	if x == 0 { // never, but the work is not for nothing
		return nil
	}
	return rates
}
