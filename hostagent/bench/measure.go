package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"syscall"
	"time"

	"heliotrope/scheduler/perf"
)

// Budget is the most that one measurement may take. Zero fields take their defaults.
type Budget struct {
	CPU    time.Duration // of all threads together; default 2 s
	Memory int64         // bytes that are mapped; default 256 MiB
	Disk   int64         // bytes of the file; default 16 MiB
	Limit  time.Duration // from beginning to end; default 60 s
}

func (b Budget) withDefaults() Budget {
	return Budget{CPU: cmp.Or(b.CPU, 2*time.Second), Memory: cmp.Or(b.Memory, 256<<20),
		Disk: cmp.Or(b.Disk, 16<<20), Limit: cmp.Or(b.Limit, time.Minute)}
}

// Shares of the CPU budget; the rest is for the disk and for setting up.
const (
	latencyShare   = 0.15
	bandwidthShare = 0.15
	singleShare    = 0.15
	allShare       = 0.35
)

// job is one measurement under way.
type job struct {
	budget Budget
	dir    string
	result perf.Measurement
}

// errMissing is why a metric cannot be measured here.
type errMissing string

func (e errMissing) Error() string { return string(e) }

// Measure measures the machine that it runs on, its disk in dir, and returns what could be
// measured; what could not has its reason. It fails only if ctx ends, and leaves nothing.
// Where it is alone in its process, all that can be done is done for others to go first.
func Measure(ctx context.Context, dir string, b Budget, alone bool) (perf.Measurement, error) {
	j := &job{budget: b.withDefaults(), dir: dir}
	ctx, cancel := context.WithTimeout(ctx, j.budget.Limit)
	defer cancel()
	j.result = perf.Measurement{At: time.Now().UTC().Truncate(time.Second), VCPUs: runtime.GOMAXPROCS(0),
		Values: map[perf.Metric]float64{}, Missing: map[perf.Metric]string{}}
	if alone {
		if err := confine(j.budget.CPU); err != nil {
			return perf.Measurement{}, err
		}
	}
	before := cpuTime()
	j.part(ctx, j.disk, perf.DiskWrite, perf.DiskRead, perf.DiskRandomRead, perf.DiskSync)
	if alone { // the disk's answers must not wait behind other tasks; the rest may
		yield()
	}
	j.part(ctx, j.memory, perf.MemoryLatency, perf.MemoryBandwidth)
	j.part(ctx, j.cpu, perf.CPUSingle, perf.CPUAll)
	j.result.CPUSeconds = (cpuTime() - before).Seconds()
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		return perf.Measurement{}, fmt.Errorf("measure host: %w", context.Cause(ctx))
	}
	return j.result, nil
}

// part measures some metrics, and notes why those that it came to nothing with are missing.
func (j *job) part(ctx context.Context, f func(context.Context) error, metrics ...perf.Metric) {
	err := f(ctx)
	for _, m := range metrics {
		if _, ok := j.result.Values[m]; ok {
			continue
		}
		why := "there was no time left"
		if err != nil && ctx.Err() == nil {
			why = err.Error()
		}
		j.result.Missing[m] = why[:min(len(why), 200)]
	}
}

// found takes a metric's value in, the median of several. Too few say nothing.
func (j *job) found(m perf.Metric, values []float64) {
	const least = 3
	if len(values) >= least {
		j.result.Values[m] = median(values)
	}
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// cpuTime is what all threads of the process have taken.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return math.MaxInt64 // whoever does not know what is spent stops
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
