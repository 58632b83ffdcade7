package snapshots

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"heliotrope/controller/api"
	"heliotrope/hostagent/agentapi"
	"heliotrope/imagesync"
	"heliotrope/imagesync/manifest"
)

// look has Run look at once.
func (m *Snapshots) look() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Run goes on with snapshots until ctx ends: only while this controller leads.
func (m *Snapshots) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		m.round(ctx)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.kick:
		case <-tick.C:
		}
	}
}

// round asks after all that are under way.
func (m *Snapshots) round(ctx context.Context) {
	m.mu.Lock()
	term, err := m.load(ctx)
	all := slices.DeleteFunc(m.sorted(), api.Snapshot.Over)
	m.mu.Unlock()
	if err != nil {
		m.cfg.Log.Warn("snapshots are not known", "err", err)
		return
	}
	for _, s := range all {
		now, err := m.step(ctx, term, s)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			if now.Note = err.Error(); now.Note != s.Note { // else it was said before
				m.cfg.Log.Warn("a snapshot does not go on; it is tried again", "snapshot", s.ID, "host", s.Host, "err", err)
			}
		}
		m.mu.Lock()
		if was, ok := m.now[s.ID]; ok && !was.Over() && m.term == term {
			if now.Over() {
				err = m.end(ctx, term, now)
			} else {
				m.now[s.ID] = now
			}
		}
		m.mu.Unlock()
		if now.Over() && err != nil {
			m.cfg.Log.Warn("the end of a snapshot is not stored; it is tried again", "snapshot", s.ID, "err", err)
		}
	}
}

// step asks after one, and publishes it once it is whole. An error passes.
func (m *Snapshots) step(ctx context.Context, term uint64, s api.Snapshot) (api.Snapshot, error) {
	agent, known := m.cfg.World.SnapshotAgent(s.Host)
	switch {
	case !known:
		return failed(s, string(s.Host)+" was removed"), nil
	case agent == nil:
		s.Note = fmt.Sprintf("%s is not connected", s.Host)
		return s, nil
	}
	order := agentapi.SnapshotOrder{Term: term, Snapshot: s.ID, Do: agentapi.SnapshotLook}
	told, err := ask(ctx, agent, order)
	if errors.Is(err, agentapi.ErrUnknown) && time.Since(s.BeganAt) > takenBy {
		return failed(s, fmt.Sprintf("%s does not know of it: ask for another one", s.Host)), nil
	}
	if err != nil {
		return s, err
	}
	s = seen(s, told)
	order.Do = agentapi.SnapshotEnd
	switch {
	case told.State == agentapi.SnapshotDone: // its end was not stored
		order.Made = told.Made
	case s.State != api.SnapshotPublishing || told.Sealed == nil:
		return s, nil
	default:
		if order.Made, order.Note, err = m.publish(ctx, s, *told.Sealed); err != nil {
			return s, err
		}
	}
	if _, err := ask(ctx, agent, order); err != nil {
		m.cfg.Log.Warn("a host does not hear what became of a snapshot", "host", s.Host, "snapshot", s.ID, "err", err)
	}
	if order.Made == "" {
		return failed(s, order.Note), nil
	}
	s.State, s.Made, s.Progress, s.EndedAt = api.SnapshotDone, order.Made, 1, time.Now().UTC()
	return s, nil
}

// publish makes it a version; note is why that cannot be, for good.
func (m *Snapshots) publish(ctx context.Context, s api.Snapshot, sealed manifest.Sealed) (made, note string, err error) {
	store, err := m.cfg.Store(ctx)
	if err != nil {
		return "", "", err
	}
	// What the host says is not what it becomes.
	sealed.Image, sealed.Number, sealed.Epoch = s.Image, 0, 0
	sealed.From = fmt.Sprintf("snapshot %s of %s at %s", s.ID, s.VM, s.Host)
	v, err := store.Publish(ctx, sealed, s.Next)
	switch {
	case err == nil:
		return v.Ref(), "", nil
	case errors.Is(err, imagesync.ErrMissing):
		return "", fmt.Sprintf("%v: is the image store of %s another than the controller's?", err, s.Host), nil
	case errors.Is(err, imagesync.ErrTaken), errors.Is(err, imagesync.ErrFenced), errors.Is(err, imagesync.ErrDamaged), errors.Is(err, imagesync.ErrReadOnly):
		return "", err.Error(), nil
	}
	return "", "", err
}
