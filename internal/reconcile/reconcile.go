// Package reconcile is the one loop that everything with an outside world is made of:
// observe what is there, subtract it from what is wanted, apply the difference.
//
// It is level-triggered. An event only kicks the loop; what the event said is never acted
// on, because it may be lost, doubled or late. Kicks that arrive while a round runs are
// coalesced into one more round. A round that fails is tried again after a growing pause,
// and every Resync a round runs unasked, so that a change nobody reported is put right too.
package reconcile

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// Op says what a Change does to its key.
type Op uint8

const (
	Create Op = iota + 1
	Update
	Delete
)

func (o Op) String() string { return [...]string{"?", "create", "update", "delete"}[o] }

// Change is one difference between what is wanted and what is there.
// Want is zero for Delete, Have is zero for Create.
type Change[K cmp.Ordered, V any] struct {
	Op   Op
	Key  K
	Want V
	Have V
}

// Diff returns the changes that turn have into want, deletions first, each kind ordered by key.
func Diff[K cmp.Ordered, V any](want, have map[K]V, equal func(want, have V) bool) []Change[K, V] {
	var changes []Change[K, V]
	for k, h := range have {
		if _, ok := want[k]; !ok {
			changes = append(changes, Change[K, V]{Op: Delete, Key: k, Have: h})
		}
	}
	for k, w := range want {
		h, ok := have[k]
		switch {
		case !ok:
			changes = append(changes, Change[K, V]{Op: Create, Key: k, Want: w})
		case !equal(w, h):
			changes = append(changes, Change[K, V]{Op: Update, Key: k, Want: w, Have: h})
		}
	}
	// Ordered now and not before: there are many keys, and few changes.
	slices.SortFunc(changes, func(a, b Change[K, V]) int {
		if (a.Op == Delete) != (b.Op == Delete) {
			return cmp.Compare(b.Op, a.Op) // Delete is the greatest
		}
		return cmp.Compare(a.Key, b.Key)
	})
	return changes
}

// Target is one outside world. Observe must leave out what is not ours; Apply must be
// safe to repeat, since a crash may come between it and the next Observe.
type Target[K cmp.Ordered, V any] interface {
	Observe(ctx context.Context) (map[K]V, error)
	Apply(ctx context.Context, changes []Change[K, V]) error
}

// Loop keeps a Target at what Want says. Make it with New.
type Loop[K cmp.Ordered, V any] struct {
	target Target[K, V]
	want   func(ctx context.Context) (map[K]V, error)
	equal  func(want, have V) bool
	opts   Options
	kick   chan struct{}
}

// Options of a Loop; the zero value of each field takes its default.
type Options struct {
	Resync   time.Duration // longest time between two rounds; default 30 s
	RetryMin time.Duration // pause after a first failure; default 100 ms
	RetryMax time.Duration // longest pause after failures; default 5 s
	Done     func(Round)   // told of every round, for logs and metrics
	_        struct{}      // fields are named
}

// Round is what one round of a Loop did.
type Round struct {
	Changes int
	Took    time.Duration
	Err     error
}

// New returns a loop; want is asked anew in every round.
func New[K cmp.Ordered, V any](target Target[K, V], want func(context.Context) (map[K]V, error), equal func(want, have V) bool, opts Options) *Loop[K, V] {
	opts.Resync = cmp.Or(opts.Resync, 30*time.Second)
	opts.RetryMin = cmp.Or(opts.RetryMin, 100*time.Millisecond)
	opts.RetryMax = cmp.Or(opts.RetryMax, 5*time.Second)
	if opts.Done == nil {
		opts.Done = func(Round) {}
	}
	return &Loop[K, V]{target: target, want: want, equal: equal, opts: opts, kick: make(chan struct{}, 1)}
}

// Kick asks for a round soon. It never blocks, and N kicks may lead to fewer than N rounds.
func (l *Loop[K, V]) Kick() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// Run runs rounds until ctx ends, the first at once, and returns ctx's cause.
func (l *Loop[K, V]) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	retry := l.opts.RetryMin
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-l.kick:
		case <-timer.C:
		}
		start := time.Now()
		n, err := l.Round(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		l.opts.Done(Round{Changes: n, Took: time.Since(start), Err: err})
		if err != nil {
			timer.Reset(retry)
			retry = min(2*retry, l.opts.RetryMax)
			continue
		}
		retry = l.opts.RetryMin
		timer.Reset(l.opts.Resync)
	}
}

// Round runs one round now and returns how many changes it applied.
func (l *Loop[K, V]) Round(ctx context.Context) (int, error) {
	want, err := l.want(ctx)
	if err != nil {
		return 0, err
	}
	have, err := l.target.Observe(ctx)
	if err != nil {
		return 0, err
	}
	changes := Diff(want, have, l.equal)
	if len(changes) == 0 {
		return 0, nil
	}
	return len(changes), l.target.Apply(ctx, changes)
}
