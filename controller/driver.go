package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/controller/store"
	"heliotrope/controller/world"
	"heliotrope/migration"
)

// driver carries out moves while this controller leads: it stores what the machine says,
// then does it. One goroutine per move.
type driver struct {
	world *world.World
	store *store.Store
	term  uint64
	log   *slog.Logger
	event func(kind, subject, message string, fields map[string]string)

	mu     sync.Mutex
	aborts map[heliotrope.MoveID]chan struct{} // closed when somebody asks for an abort
}

// saveEvery bounds how often mere progress is written to the store.
const saveEvery = time.Second

// run takes up every move that has not ended, now and as they appear, until ctx ends.
func (d *driver) run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	taken := make(map[heliotrope.MoveID]bool)
	return world.Follow(ctx, d.world, func(v *world.View) int64 { return v.Revision }, func(v *world.View) {
		for id, m := range v.Moves {
			if taken[id] || m.Phase.Ended() {
				continue
			}
			taken[id] = true
			group.Go(func() {
				err := d.drive(ctx, m)
				if err != nil && ctx.Err() == nil {
					d.log.Error("move stopped", "move", m.ID, "vm", m.VM, "err", err)
				}
			})
		}
	})
}

// abort asks for the move to be undone, also if it has not been taken up yet.
func (d *driver) abort(id heliotrope.MoveID) {
	c := d.aborted(id)
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-c:
	default:
		close(c)
	}
}

// aborted is closed when somebody asks for the move to be undone.
func (d *driver) aborted(id heliotrope.MoveID) chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, ok := d.aborts[id]
	if !ok {
		c = make(chan struct{})
		d.aborts[id] = c
	}
	return c
}

func (d *driver) forget(id heliotrope.MoveID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.aborts, id)
}

// drive runs one move to its end.
func (d *driver) drive(ctx context.Context, m world.Move) error {
	ctx, cancel := context.WithCancel(ctx)
	r := &moveRun{driver: d, move: m, events: make(chan migration.Event), running: make(map[migration.Action]context.CancelFunc)}
	defer r.group.Wait()
	defer cancel()
	abort := d.aborted(m.ID)
	defer d.forget(m.ID)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()

	if err := r.step(ctx, migration.Event{Restart: true}); err != nil {
		return err
	}
	for !r.move.Phase.Ended() {
		var ev migration.Event
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case ev = <-r.events:
		case <-abort:
			ev, abort = migration.Event{Abort: true}, nil
		case <-tick.C:
			ev = migration.Event{Tick: true}
		}
		if err := r.step(ctx, ev); err != nil {
			return err
		}
	}
	return nil
}

// moveRun is one move that is being driven.
type moveRun struct {
	*driver
	move    world.Move
	savedAt time.Time
	events  chan migration.Event
	running map[migration.Action]context.CancelFunc
	group   sync.WaitGroup
}

// step feeds one event to the machine, stores what came of it, then acts.
func (r *moveRun) step(ctx context.Context, ev migration.Event) error {
	before := r.move.Move
	next, begin := before.Step(ev, time.Now().UTC())
	turned := next.Phase != before.Phase || !slices.Equal(next.Open, before.Open) || next.Aborted != before.Aborted
	r.move.Move = next
	if turned || time.Since(r.savedAt) > saveEvery && ev.Report != nil {
		if err := r.save(ctx); err != nil {
			return err
		}
	}
	if next.Phase != before.Phase {
		r.tell(before.Phase)
	}
	for a, stop := range r.running {
		if !slices.Contains(next.Open, a) {
			stop()
			delete(r.running, a)
		}
	}
	for _, a := range begin {
		if _, ok := r.running[a]; ok {
			continue
		}
		actx, stop := context.WithCancel(ctx)
		r.running[a] = stop
		m := next
		r.group.Go(func() { r.act(actx, a, m) })
	}
	return nil
}

// save retries while the store is away: until it is stored, nothing may be done.
func (r *moveRun) save(ctx context.Context) error {
	for {
		rev, err := r.write(ctx)
		if err == nil {
			r.move.Revision, r.savedAt = rev, time.Now()
			return nil
		}
		if ctx.Err() != nil || errors.Is(err, store.ErrStaleTerm) || errors.Is(err, store.ErrConflict) {
			return fmt.Errorf("save move: %w", err)
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

func (r *moveRun) write(ctx context.Context) (int64, error) {
	m := r.move.Move
	if m.Phase.Ended() {
		return r.store.EndMove(ctx, r.term, m.VM, m.ID, m, r.move.Revision)
	}
	return store.Put(ctx, r.store, store.MoveKey(m.ID), m, r.move.Revision, r.store.Fenced(r.term))
}

func (r *moveRun) tell(before migration.Phase) {
	m := r.move.Move
	r.log.Info("move", "move", m.ID, "vm", m.VM, "from", m.From, "to", m.To, "phase", m.Phase, "was", before, "err", m.Error)
	fields := map[string]string{"vm": string(m.VM), "from": string(m.From), "to": string(m.To), "phase": string(m.Phase)}
	message := fmt.Sprintf("%s from %s to %s: %s", m.VM, m.From, m.To, m.Phase)
	if m.Error != "" {
		message += ": " + m.Error
		fields["error"] = m.Error
	}
	r.event("migration", string(m.ID), message, fields)
}

// act gets one action done and sends what came of it, unless ctx ends first.
func (r *moveRun) act(ctx context.Context, a migration.Action, m migration.Move) {
	send := func(ev migration.Event) {
		select {
		case r.events <- ev:
		case <-ctx.Done():
		}
	}
	if role, step, ok := a.Step(); ok {
		r.orderHost(ctx, a, role, step, m, send)
		return
	}
	for {
		err := r.own(ctx, a, m)
		var no refusal
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			send(migration.Event{Done: a})
			return
		case errors.As(err, &no):
			send(migration.Event{Refused: migration.Refusal{Action: a, Reason: no.Error()}})
			return
		}
		r.log.Warn("action again", "move", m.ID, "action", a, "err", err)
		if pause(ctx, 300*time.Millisecond) != nil {
			return
		}
	}
}

// refusal is an error that trying again does not mend.
type refusal struct{ reason string }

func (r refusal) Error() string { return r.reason }

func refuse(format string, args ...any) error { return refusal{fmt.Sprintf(format, args...)} }

// pause waits for d or ctx's end.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
