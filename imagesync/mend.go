package imagesync

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/pack"
)

// MendOptions of a mending.
type MendOptions struct {
	From   *Store // another store, which may have what is lost here; nil: there is none
	DryRun bool
}

// MendReport is what a mending did, or would do.
type MendReport struct {
	Packs     int // bad ones, that were replaced or are needed for nothing any more
	Saved     int // chunks of them that are as they were
	Restored  int // chunks that came from the other store
	Manifests int // that did
	Lost      int // chunks and manifests that versions need and neither store has
}

// Mend makes good what Verify has found: of a bad pack the chunks that are as they were go to a
// new one, and what is lost comes from another store. The bad pack is deleted then, so that what is lost for
// good is missing and no longer there as something else: who imports it again brings it back.
//
// A crash leaves chunks in two packs, which the next mending or collection puts right. Writers at work need
// not be waited for: nothing that can be read is taken away.
func (s *Store) Mend(ctx context.Context, found Report, o MendOptions) (MendReport, error) {
	m := mender{store: s, found: &found, o: o, fresh: repacker{store: s}}
	if o.From != nil {
		if err := o.From.Refresh(ctx); err != nil {
			return m.report, fmt.Errorf("mend: %w", err)
		}
	}
	if !o.DryRun {
		lock, err := s.lockGC(ctx)
		if err != nil {
			return m.report, fmt.Errorf("mend: %w", err)
		}
		defer lock.end(ctx)
	}
	err := m.mend(ctx)
	if err != nil {
		err = fmt.Errorf("mend: %w", err)
	}
	return m.report, errors.Join(err, s.Refresh(ctx))
}

// mender is a Mend under way.
type mender struct {
	store  *Store
	found  *Report
	o      MendOptions
	fresh  repacker
	report MendReport
	chunk  [manifest.ChunkSize]byte
}

func (m *mender) mend(ctx context.Context) error {
	for root, version := range m.found.manifests {
		if err := m.manifest(ctx, root, version); err != nil {
			return err
		}
	}
	bad := slices.Sorted(maps.Keys(m.found.bad))
	for _, name := range bad {
		if err := m.save(ctx, name); err != nil {
			return err
		}
	}
	for _, id := range sortedIDs(m.found.wrong) {
		if len(m.found.users[id]) == 0 {
			continue // nobody misses it
		}
		if err := m.restore(ctx, id); err != nil {
			return err
		}
	}
	if m.report.Lost == 0 { // else somebody may mend them better
		bad = append(bad, m.store.unread()...)
	}
	m.report.Packs = len(bad)
	if m.o.DryRun {
		return nil
	}
	if _, err := m.fresh.flush(ctx); err != nil {
		return err
	}
	for _, name := range bad {
		if err := m.store.depot.Delete(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// unread are packs of which not even is known what they have.
func (s *Store) unread() (names []string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for name, at := range s.loaded {
		if at < 0 {
			names = append(names, name)
		}
	}
	return names
}

// manifest brings one back, and finds out what of it is missing.
func (m *mender) manifest(ctx context.Context, root manifest.ID, version string) error {
	if m.o.From == nil {
		m.report.Lost++
		return nil
	}
	there, err := m.o.From.Manifest(ctx, root)
	if errors.Is(err, ErrMissing) || errors.Is(err, ErrDamaged) {
		m.report.Lost++
		return nil
	}
	if err != nil {
		return err
	}
	m.report.Manifests++
	for _, id := range there.Content() {
		m.store.need(id, version, m.found)
	}
	if m.o.DryRun {
		return nil
	}
	return m.store.putCompressed(ctx, manifestDir+"/"+root.String()+"/"+newID(), there.Encode())
}

// save puts what is left of a bad pack, and is nowhere else, where it is safe.
func (m *mender) save(ctx context.Context, pack string) error {
	for _, id := range m.store.foundIn(pack) {
		if m.found.wrong[id] != nil {
			continue
		}
		err := m.store.ReadChunk(ctx, id, m.chunk[:])
		if errors.Is(err, ErrDamaged) { // since it was looked at
			m.found.wrong[id] = err
			continue
		}
		if err != nil {
			return err
		}
		m.report.Saved++
		if err := m.put(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// foundIn are the chunks that are read from a pack.
func (s *Store) foundIn(pack string) (ids []manifest.ID) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for id, at := range s.chunks {
		if s.packs[at.Pack].Name == pack {
			ids = append(ids, id)
		}
	}
	return ids
}

// restore brings a chunk from the other store.
func (m *mender) restore(ctx context.Context, id manifest.ID) error {
	if m.o.From == nil {
		m.report.Lost++
		return nil
	}
	err := m.o.From.ReadChunk(ctx, id, m.chunk[:])
	if errors.Is(err, ErrMissing) || errors.Is(err, ErrDamaged) {
		m.report.Lost++
		return nil
	}
	if err != nil {
		return err
	}
	m.report.Restored++
	return m.put(ctx, id)
}

// put takes the chunk at hand.
func (m *mender) put(ctx context.Context, id manifest.ID) error {
	if m.o.DryRun {
		return nil
	}
	if m.fresh.put(id, m.chunk[:]); m.fresh.Len() < pack.Full {
		return nil
	}
	_, err := m.fresh.flush(ctx)
	return err
}
