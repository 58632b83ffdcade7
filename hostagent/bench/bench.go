// Package bench measures this host now and then: CPU, memory and disk, with a small budget
// and its uncertainty in mind. What the figures mean is package scheduler/perf's.
//
// # A process of its own
//
// A measurement is a process that the agent starts (Measure is all of it). So it can be
// stopped at any point, its memory is the kernel's again when it ends, the kernel itself
// holds it to twice its CPU budget, and it can let every other task go first: threads of
// the agent that did this would hold back the agent, whose goroutines run on them.
//
// # What is measured
//
// Slices of a few milliseconds, of which the median counts. A slice's time is that in which
// its thread could run (thread): other tasks of the host do not make it look slow, and a
// hypervisor that gives a vCPU's time to others does.
//
// One thread does rounds of fixed work, then one thread for each vCPU does at once; the
// quotient shows shared cores and steal. Memory is an area at least twice the last-level
// cache: a chain of loads through all of its lines, and STREAM's triad. The disk is a file
// without a name in the agent's state directory: 16 MiB written in order and synced, pages
// written and synced one by one, and, where O_DIRECT passes the cache by, read back. A
// volume that lends speed for bursts shows that speed.
//
// The network is not measured here: round trip, loss and MTU to every other host are
// measured all the time (package hostagent/paths), from which the controller takes the
// round trip; and a throughput that says something would fill the link that VMs use.
package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"time"

	"heliotrope/hostagent/agentapi"
	"heliotrope/scheduler/perf"
)

const (
	// firstWithin is when a host is measured first: many that start together must not all
	// be measured together.
	firstWithin = 5 * time.Minute
	again       = 10 * time.Minute // after one that did not come to its end
	jitter      = 0.1              // of the time between two, more or less
	answerLimit = 64 << 10         // bytes
	// patience is how long the process may go on after it was told to end.
	patience = time.Second
)

// Config says how a host is measured.
type Config struct {
	Program []string      // that prints a measurement as JSON
	Every   time.Duration // between two measurements; 0: only when somebody asks
	// Moving says whether a move is under way, and gives a channel that is closed when one
	// begins: nothing is measured meanwhile.
	Moving func() (bool, <-chan struct{})
	Log    *slog.Logger
}

// Bench measures one host. Make it with New.
type Bench struct {
	cfg  Config
	turn chan struct{} // of size 1: held while something is measured

	mu      sync.Mutex
	newest  perf.Measurement // zero: none yet
	changed chan struct{}    // closed at the next
}

// New returns a bench that has measured nothing.
func New(cfg Config) *Bench {
	return &Bench{cfg: cfg, turn: make(chan struct{}, 1), changed: make(chan struct{})}
}

// Run measures now and then until ctx ends.
func (b *Bench) Run(ctx context.Context) error {
	if b.cfg.Every <= 0 {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	wait := rand.N(min(firstWithin, b.cfg.Every))
	for {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		wait = time.Duration(float64(b.cfg.Every) * (1 + jitter*(2*rand.Float64()-1)))
		if _, err := b.Measure(ctx); err != nil && ctx.Err() == nil {
			wait = min(wait, again)
			b.cfg.Log.Info("host is not measured", "error", err, "again in", wait)
		}
	}
}

// errMoving is that a move is more important.
var errMoving = fmt.Errorf("%w: a move is under way at this host", agentapi.ErrBusy)

// Measure measures the host now. It fails with agentapi.ErrBusy while a move is under way,
// or when one begins, and while another measurement is.
func (b *Bench) Measure(ctx context.Context) (perf.Measurement, error) {
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	default:
		return perf.Measurement{}, fmt.Errorf("%w: this host is being measured", agentapi.ErrBusy)
	}
	moving, begins := b.cfg.Moving()
	if moving {
		return perf.Measurement{}, errMoving
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-begins:
			cancel(errMoving)
		case <-ended:
		}
	}()
	m, err := b.run(ctx)
	close(ended)
	<-watched
	if cause := context.Cause(ctx); cause != nil {
		return perf.Measurement{}, fmt.Errorf("measure host: %w", cause)
	}
	if err != nil {
		return perf.Measurement{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.newest = m
	close(b.changed)
	b.changed = make(chan struct{})
	return m, nil
}

// run runs the program, and reads what it measured.
func (b *Bench) run(ctx context.Context) (perf.Measurement, error) {
	cmd := exec.CommandContext(ctx, b.cfg.Program[0], b.cfg.Program[1:]...)
	cmd.WaitDelay = patience
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return perf.Measurement{}, fmt.Errorf("measure host: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return perf.Measurement{}, fmt.Errorf("measure host: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(out, answerLimit))
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return perf.Measurement{}, fmt.Errorf("measure host: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	m, err := perf.Parse(data)
	if err != nil {
		return perf.Measurement{}, fmt.Errorf("measure host: %w", err)
	}
	return m, nil
}

// Next returns the newest measurement that is not that of after, and waits while there is
// none.
func (b *Bench) Next(ctx context.Context, after time.Time) (perf.Measurement, error) {
	for {
		b.mu.Lock()
		m, changed := b.newest, b.changed
		b.mu.Unlock()
		if !m.At.IsZero() && !m.At.Equal(after) {
			return m, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return perf.Measurement{}, context.Cause(ctx)
		}
	}
}
