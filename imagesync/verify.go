package imagesync

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/pack"
)

// Finding is what Verify found to be wrong.
type Finding struct {
	What   string // a pack, a manifest, a version
	Err    error
	Images []string // versions that need it
}

// Report is what Verify looked at.
type Report struct {
	Versions, Packs int
	Chunks          int64
	Bytes           int64 // that were read
	Findings        []Finding

	bad       map[string]bool          // packs whose content is not what it was
	wrong     map[manifest.ID]error    // chunks
	users     map[manifest.ID][]string // versions that need them
	manifests map[manifest.ID]string   // that cannot be read, with a version that needs each
}

// Verify checks the whole store: each version's signature and manifest, and that each chunk
// that it needs is there; if deep, every pack is read and every chunk in it hashed as well.
func (s *Store) Verify(ctx context.Context, deep bool, progress func(done, all int64)) (Report, error) {
	var r Report
	packs, err := s.Packs(ctx)
	if err != nil {
		return r, err
	}
	var bad []string
	if deep {
		if bad, err = s.scrub(ctx, packs, &r, progress); err != nil {
			return r, err
		}
	}
	return r, s.judge(ctx, bad, &r)
}

// VerifyKnowing is Verify that reads no packs, of a store of which these are known to be bad
// (CheckPack).
func (s *Store) VerifyKnowing(ctx context.Context, bad []string) (Report, error) {
	var r Report
	if err := s.Refresh(ctx); err != nil {
		return r, err
	}
	return r, s.judge(ctx, bad, &r)
}

// judge finds out what is wrong with versions, where these packs are bad.
func (s *Store) judge(ctx context.Context, bad []string, r *Report) error {
	r.bad, r.wrong, r.users, r.manifests = map[string]bool{}, map[manifest.ID]error{}, map[manifest.ID][]string{}, map[manifest.ID]string{}
	for _, name := range bad {
		r.bad[name] = true
		r.Findings = append(r.Findings, Finding{What: name, Err: ErrDamaged})
	}
	for _, err := range s.Damaged() {
		r.Findings = append(r.Findings, Finding{What: "pack", Err: err})
	}
	if err := s.scrubChunks(ctx, r); err != nil {
		return err
	}
	for info, err := range s.depot.List(ctx, imageDir) {
		if err != nil {
			return fmt.Errorf("verify: %w", err)
		}
		v, err := s.version(ctx, info.Name)
		if err != nil {
			r.Findings = append(r.Findings, Finding{What: info.Name, Err: err})
			continue
		}
		r.Versions++
		m, err := s.Manifest(ctx, v.Root)
		if err != nil {
			r.Findings, r.manifests[v.Root] = append(r.Findings, Finding{What: "manifest", Err: err, Images: []string{v.Ref()}}), v.Ref()
			continue
		}
		for _, id := range m.Content() {
			r.Chunks++
			s.need(id, v.Ref(), r)
		}
	}
	for _, id := range sortedIDs(r.wrong) {
		r.Findings = append(r.Findings, Finding{What: "chunk " + id.String()[:16], Err: r.wrong[id], Images: r.users[id]})
	}
	return nil
}

// need notes that a version needs a chunk, if that is wrong or missing.
func (s *Store) need(id manifest.ID, version string, r *Report) {
	if _, _, ok := s.find(id); !ok && r.wrong[id] == nil {
		r.wrong[id] = ErrMissing
	}
	if users := r.users[id]; r.wrong[id] != nil && (len(users) == 0 || users[len(users)-1] != version) {
		r.users[id] = append(users, version)
	}
}

func sortedIDs(all map[manifest.ID]error) []manifest.ID {
	return slices.SortedFunc(maps.Keys(all), func(a, b manifest.ID) int { return bytes.Compare(a[:], b[:]) })
}

// Packs are the store's packs that can be read, by name.
func (s *Store) Packs(ctx context.Context) ([]depot.Info, error) {
	if err := s.Refresh(ctx); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(slices.Values(s.packs), func(a, b depot.Info) int { return strings.Compare(a.Name, b.Name) }), nil
}

// CheckPack reads a pack and holds it against its name. ErrDamaged is that of one that is not what was
// written; one that is gone, since a collection may have freed it, is fine.
func (s *Store) CheckPack(ctx context.Context, name string) error {
	content, err := s.depot.Get(ctx, name, pack.Limit)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("verify: %w", err)
	case pack.Name(content) != name:
		return fmt.Errorf("%s: %w", name, ErrDamaged)
	}
	return nil
}

// scrub reads packs, and returns the bad ones.
func (s *Store) scrub(ctx context.Context, packs []depot.Info, r *Report, progress func(done, all int64)) (bad []string, err error) {
	all := int64(0)
	for _, p := range packs {
		all += p.Size
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	var mu sync.Mutex
	for _, p := range packs {
		g.Go(func() error {
			err := s.CheckPack(ctx, p.Name)
			if err != nil && !errors.Is(err, ErrDamaged) {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				bad = append(bad, p.Name)
			}
			r.Packs++
			if r.Bytes += p.Size; progress != nil {
				progress(r.Bytes, all)
			}
			return nil
		})
	}
	err = g.Wait()
	slices.Sort(bad)
	return bad, err
}

// scrubChunks finds out which chunks of bad packs are wrong: the pack's own hash stands for
// all chunks of a good one.
func (s *Store) scrubChunks(ctx context.Context, r *Report) error {
	s.mu.RLock()
	suspects := map[manifest.ID]bool{}
	for id, at := range s.chunks {
		if r.bad[s.packs[at.Pack].Name] {
			suspects[id] = true
		}
	}
	s.mu.RUnlock()
	chunk := make([]byte, manifest.ChunkSize)
	for id := range suspects {
		err := s.ReadChunk(ctx, id, chunk)
		if errors.Is(err, ErrDamaged) {
			r.wrong[id] = err
		} else if err != nil {
			return fmt.Errorf("verify: %w", err)
		}
	}
	return nil
}
