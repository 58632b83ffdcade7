package bench

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope/hostagent/agentapi"
	"heliotrope/scheduler/perf"
)

// tiny is a budget that every machine has.
var tiny = Budget{CPU: 100 * time.Millisecond, Disk: 4 << 20}

// TestMain lets the test's program stand for the agent's: with the word "bench" it measures.
func TestMain(m *testing.M) {
	flag.Parse()
	switch flag.Arg(0) {
	case "bench":
		r, err := Measure(context.Background(), flag.Arg(1), tiny, true)
		var l unix.Rlimit
		if err = errors.Join(err, unix.Getrlimit(unix.RLIMIT_CPU, &l)); err != nil || l.Max != 1 {
			fmt.Fprintln(os.Stderr, err, "limit", l.Max)
			os.Exit(1)
		}
		if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case "hang":
		select {}
	}
	os.Exit(m.Run())
}

func self(t *testing.T, args ...string) []string {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{program}, args...)
}

func still() (bool, <-chan struct{}) { return false, nil }

// plausible is what no machine is outside of.
var plausible = map[perf.Metric][2]float64{
	perf.CPUSingle: {1e5, 1e10}, perf.CPUAll: {1e5, 1e10}, perf.MemoryBandwidth: {1e6, 1e12}, perf.MemoryLatency: {1e-9, 1e-4},
	perf.DiskWrite: {1e3, 1e12}, perf.DiskRead: {1e3, 1e12}, perf.DiskRandomRead: {0.1, 1e8}, perf.DiskSync: {1e-7, 10},
}

// The real measurement: each metric has a value that can be, or a reason; the work is that
// of the budget; and nothing is left.
func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	m, err := Measure(t.Context(), dir, tiny, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Check(); err != nil {
		t.Error(err)
	}
	for metric := range plausible {
		v, ok := m.Values[metric]
		why, missing := m.Missing[metric]
		if ok == missing || missing && why == "" {
			t.Errorf("%s: %v, missing because %q", metric, v, why)
		}
		if bounds := plausible[metric]; ok && (v < bounds[0] || v > bounds[1]) {
			t.Errorf("%s: %s is out of this world", metric, metric.Text(v))
		}
		t.Log(metric, metric.Text(v), why)
	}
	if _, ok := m.Values[perf.CPUAll]; !ok {
		t.Errorf("every machine has a CPU: %v", m.Missing)
	}
	if most := 2*tiny.Disk + (diskSyncs+diskReads)*diskPage; m.DiskBytes > most {
		t.Errorf("%d bytes written and read, at most %d may be", m.DiskBytes, most)
	}
	if m.MemoryBytes > tiny.withDefaults().Memory {
		t.Errorf("%d bytes mapped", m.MemoryBytes)
	}
	empty(t, dir)
}

func empty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// countdown is a context that ends after it was asked some times.
type countdown struct {
	context.Context
	left *int
}

func (c countdown) Err() error {
	if *c.left--; *c.left < 0 {
		return context.Canceled
	}
	return nil
}

// Wherever it is interrupted, a part ends early and what it did is counted.
func TestInterrupted(t *testing.T) {
	for _, asked := range []int{0, 1, 3, 7, 30} {
		dir := t.TempDir()
		left := asked
		j := &job{budget: tiny.withDefaults(), dir: dir, result: perf.Measurement{Values: map[perf.Metric]float64{}, Missing: map[perf.Metric]string{}}}
		ctx := countdown{t.Context(), &left}
		if err := j.writesOnly(ctx); err != nil {
			t.Error(err)
		}
		if most := int64(asked) * diskBlock; j.result.DiskBytes > most {
			t.Errorf("asked %d times: %d bytes written after the end", asked, j.result.DiskBytes-most)
		}
		onThread(func(th *thread) {
			left = asked
			if n := len(spin(ctx, th, time.Hour)); n > asked+1 {
				t.Errorf("asked %d times: %d slices", asked, n)
			}
			left = asked
			if n := len(triad(ctx, th, make([]float64, 3*triadBytes/24), time.Hour)); n > asked {
				t.Errorf("asked %d times: %d slices", asked, n)
			}
			left = asked
			if n := len(chase(ctx, th, make([]uint64, 1<<10), time.Hour)); n > asked {
				t.Errorf("asked %d times: %d slices", asked, n)
			}
		})
		empty(t, dir)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Measure(ctx, t.TempDir(), tiny, false); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was canceled", err)
	}
}

// writesOnly is the part of disk that can be interrupted in one place only.
func (j *job) writesOnly(ctx context.Context) error {
	f, err := nameless(j.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return j.writes(ctx, f, make([]byte, diskBlock), j.budget.Disk/diskBlock)
}

// The chain of loads goes through every line before it comes back.
func TestChainIsWhole(t *testing.T) {
	area := make([]uint64, 1<<14)
	left := 2
	onThread(func(th *thread) { chase(countdown{t.Context(), &left}, th, area, time.Hour) })
	seen := map[uint64]bool{}
	for at := uint64(0); !seen[at]; at = area[at] {
		seen[at] = true
	}
	if len(seen) != len(area)*8/cacheLine {
		t.Errorf("%d lines of %d", len(seen), len(area)*8/cacheLine)
	}
}

func TestNoRoom(t *testing.T) {
	j := &job{budget: Budget{Disk: 1 << 60 / diskSpare, Memory: 1}, dir: t.TempDir(), result: perf.Measurement{Values: map[perf.Metric]float64{}, Missing: map[perf.Metric]string{}}}
	j.part(t.Context(), j.disk, perf.DiskSync)
	j.part(t.Context(), j.memory, perf.MemoryLatency)
	if why := j.result.Missing; !strings.Contains(why[perf.DiskSync], "MiB left") || !strings.Contains(why[perf.MemoryLatency], "may be taken") || j.result.DiskBytes != 0 {
		t.Errorf("%+v", j.result)
	}
}

// The agent runs a process that measures, and whoever waits for its result gets it.
func TestProcess(t *testing.T) {
	dir := t.TempDir()
	b := New(Config{Program: self(t, "bench", dir), Moving: still, Log: slog.New(slog.DiscardHandler)})
	m, err := b.Measure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	next, err := b.Next(t.Context(), time.Time{})
	if err != nil || !next.At.Equal(m.At) || len(next.Values) == 0 {
		t.Errorf("%+v, %v", next, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Next(ctx, m.At); !errors.Is(err, context.Canceled) {
		t.Errorf("there is no newer: %v", err)
	}
	empty(t, dir)

	b.cfg.Program = self(t, "none such")
	b.cfg.Program[0] = filepath.Join(dir, "none")
	if _, err := b.Measure(t.Context()); err == nil {
		t.Error("a program that is not there measures")
	}
}

// A move that begins ends the measurement at once; while one is under way none begins; and
// there is one at a time.
func TestMovesGoFirst(t *testing.T) {
	begins, asked := make(chan struct{}), make(chan struct{})
	moving := false
	b := New(Config{Program: self(t, "hang"), Moving: func() (bool, <-chan struct{}) {
		defer func() { asked <- struct{}{} }()
		return moving, begins
	}})
	failed := make(chan error)
	measure := func() {
		_, err := b.Measure(t.Context())
		failed <- err
	}
	go measure()
	<-asked
	if _, err := b.Measure(t.Context()); !errors.Is(err, agentapi.ErrBusy) {
		t.Errorf("two at once: %v", err)
	}
	close(begins)
	if err := <-failed; !errors.Is(err, agentapi.ErrBusy) {
		t.Errorf("got %v, want ErrBusy", err)
	}
	moving = true
	go measure()
	<-asked
	if err := <-failed; !errors.Is(err, agentapi.ErrBusy) {
		t.Errorf("while a move is under way: %v", err)
	}
}

// It is measured within minutes after the start, then about once a day; after a failure
// soon again; and never where nobody asked for it.
func TestNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		start, moving := time.Now(), true
		ctx, cancel := context.WithCancel(t.Context())
		b := New(Config{Program: []string{"/none"}, Every: 24 * time.Hour, Log: slog.New(slog.DiscardHandler), Moving: func() (bool, <-chan struct{}) {
			at = append(at, time.Since(start))
			return moving, nil
		}})
		done := make(chan error)
		go func() { done <- b.Run(ctx) }()
		time.Sleep(time.Hour) // virtual
		cancel()
		<-done
		if len(at) < 5 || at[0] > firstWithin {
			t.Errorf("measured at %v", at)
		}
		gaps := map[time.Duration]bool{}
		for i := range at[1:] {
			gaps[at[i+1]-at[i]] = true
		}
		if len(gaps) != 1 || !gaps[again] {
			t.Errorf("again after %v", gaps)
		}

		at = nil
		ctx, cancel = context.WithCancel(t.Context())
		b = New(Config{Moving: func() (bool, <-chan struct{}) { at = append(at, 0); return true, nil }})
		go func() { done <- b.Run(ctx) }()
		time.Sleep(100 * 24 * time.Hour) // virtual
		cancel()
		<-done
		if len(at) != 0 {
			t.Errorf("nobody asked: %v", at)
		}
	})
}

func TestMedian(t *testing.T) {
	if got := []float64{median([]float64{3, 1, 2}), median([]float64{4, 1, 2, 3})}; !slices.Equal(got, []float64{2, 2.5}) {
		t.Error(got)
	}
}
