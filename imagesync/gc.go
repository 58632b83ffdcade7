package imagesync

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/pack"
	"heliotrope/imagesync/process"
)

// GCOptions of a collection.
type GCOptions struct {
	DryRun bool
	// Dense is the share of a pack that must be needed; of one with less what is needed
	// goes to a new pack. 0: 0.5.
	Dense float64
}

// GCReport is what a collection did, or would do.
type GCReport struct {
	Packs, Manifests int   // deleted
	Bytes            int64 // of them
	Rewritten        int64 // bytes that went to new packs
	Waiting          int   // files that wait for writers to end
	Writers          []string
	Full             bool // the disk has no room to rewrite packs of which little is needed
}

// GC frees what nobody needs. In short, with W a writer:
//
//  1. What no version, no hold and no disk (Need) needs is condemned, in a file. A W that begins later takes its
//     lease first and reads that file then, so it does not build upon these files.
//  2. The leases that there are now are those that began before; the condemnation notes them.
//  3. When none of them is there any more, what is needed is reckoned anew: what such a W
//     has committed meanwhile keeps its files, all others go.
//
// So a collection never waits: it deletes what it can and leaves the rest to the next one. A crash
// anywhere leaves a condemnation, which the next one takes up.
func (s *Store) GC(ctx context.Context, o GCOptions) (GCReport, error) {
	var r GCReport
	o.Dense = cmp.Or(o.Dense, 0.5)
	if !o.DryRun {
		lock, err := s.lockGC(ctx)
		if err != nil {
			return r, err
		}
		defer lock.end(ctx)
	}
	if err := s.Refresh(ctx); err != nil {
		return r, err
	}
	if err := s.condemn(ctx, o, &r); err != nil {
		return r, fmt.Errorf("condemn: %w", err)
	}
	if o.DryRun {
		return r, nil
	}
	if err := s.Refresh(ctx); err != nil { // what is condemned is found elsewhere first from now on
		return r, err
	}
	all, err := s.condemnations(ctx)
	if err != nil {
		return r, err
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if err := s.execute(ctx, name, all[name], &r); err != nil {
			return r, fmt.Errorf("free what is condemned: %w", err)
		}
	}
	if err := s.sweepSketches(ctx); err != nil {
		return r, err
	}
	s.reserve()
	return r, s.Refresh(ctx)
}

// lockGC lets one collection work at a time: two could each rely on what the other deletes.
func (s *Store) lockGC(ctx context.Context) (*lease, error) {
	l := &lease{store: s, id: "gc", file: leaseFile{By: gcName, Process: process.Self(), Expires: s.now().UTC().Add(leaseTime)}}
	if _, err := s.leases(ctx); err != nil { // sweeps one that has expired
		return nil, err
	}
	err := s.depot.Create(ctx, leaseDir+"/"+l.id, encodeJSON(l.file))
	if errors.Is(err, fs.ErrExist) {
		return nil, errors.New("another collection is at work; one that was killed at another machine is forgotten after 75 minutes")
	}
	return l, err
}

const gcName = "gc"

// needed are the chunks and the roots that versions, holds and disks need.
func (s *Store) needed(ctx context.Context) (chunks map[manifest.ID]struct{}, roots map[manifest.ID]bool, err error) {
	versions, err := s.roots(ctx)
	if err != nil {
		return nil, nil, err
	}
	leases, err := s.leases(ctx)
	if err != nil {
		return nil, nil, err
	}
	roots, chunks = map[manifest.ID]bool{}, map[manifest.ID]struct{}{}
	for root := range versions {
		roots[root] = true
	}
	for _, l := range leases {
		for _, root := range l.Roots {
			roots[root] = true
		}
	}
	// After the leases: who gives a lease up once his need is written is seen here.
	needs, err := s.neededRoots(ctx)
	if err != nil {
		return nil, nil, err
	}
	for root := range needs {
		roots[root] = true
	}
	for root := range roots {
		m, err := s.Manifest(ctx, root)
		if owner := needs[root]; err != nil && owner != "" {
			err = fmt.Errorf("the disk of %s: %w", owner, err)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("nothing is freed: %w", err)
		}
		for _, id := range m.Content() {
			chunks[id] = struct{}{}
		}
	}
	return chunks, roots, nil
}

// condemn is step 1.
func (s *Store) condemn(ctx context.Context, o GCOptions, r *GCReport) error {
	already, err := s.condemned(ctx)
	if err != nil {
		return err
	}
	chunks, roots, err := s.needed(ctx)
	if err != nil {
		return err
	}
	var files []string
	for info, err := range s.depot.List(ctx, manifestDir) {
		if err != nil {
			return err
		}
		root, err := manifest.ParseID(path.Base(path.Dir(info.Name)))
		if err == nil && !roots[root] && !already[info.Name] {
			files = append(files, info.Name)
			if o.DryRun {
				r.Manifests, r.Bytes = r.Manifests+1, r.Bytes+info.Size
			}
		}
	}
	sparse := s.sparse(chunks, already, o.Dense)
	if o.DryRun {
		for _, p := range sparse {
			r.Packs, r.Bytes, r.Rewritten = r.Packs+1, r.Bytes+p.info.Size, r.Rewritten+p.bytes
		}
		return nil
	}
	moved, err := s.rewrite(ctx, sparse, r)
	files = append(files, moved...)
	if errors.Is(err, depot.ErrFull) && len(files) > 0 {
		r.Full, err = true, nil // there is more room once these have gone
	}
	if err != nil || len(files) == 0 {
		return err
	}
	return s.depot.Put(ctx, condemnedDir+"/"+newID(), strings.NewReader(string(encodeJSON(condemnation{Files: files}))))
}

// sparsePack is a pack of which little is needed.
type sparsePack struct {
	info  depot.Info
	ids   []manifest.ID // that are
	bytes int64         // of them
}

// sparse finds the packs of which less than a share is needed, in the order of their names.
func (s *Store) sparse(needed map[manifest.ID]struct{}, already map[string]bool, dense float64) []sparsePack {
	s.mu.RLock()
	defer s.mu.RUnlock()
	packs := make([]sparsePack, len(s.packs))
	for i, p := range s.packs {
		packs[i].info = p
	}
	for id, at := range s.chunks {
		if _, ok := needed[id]; ok {
			p := &packs[at.Pack]
			p.ids, p.bytes = append(p.ids, id), p.bytes+int64(at.Len())
		}
	}
	return slices.DeleteFunc(packs, func(p sparsePack) bool {
		return already[p.info.Name] || float64(p.bytes) >= dense*float64(p.info.Size)
	})
}

// rewrite puts what is needed of sparse packs into new ones, and returns the files that are
// not needed then.
func (s *Store) rewrite(ctx context.Context, sparse []sparsePack, r *GCReport) (files []string, err error) {
	fresh := repacker{store: s}
	var names []string // of packs whose chunks are in fresh, not written yet
	flush := func() error {
		n, err := fresh.flush(ctx)
		if r.Rewritten += n; err == nil {
			files, names = append(files, names...), nil
		}
		return err
	}
	chunk := make([]byte, manifest.ChunkSize)
	for _, p := range sparse {
		if len(p.ids) == 0 { // these need no room, and are safe whatever becomes of the others
			files = append(files, p.info.Name)
		}
	}
	for _, p := range sparse {
		if len(p.ids) == 0 {
			continue
		}
		for _, id := range p.ids {
			if err := s.ReadChunk(ctx, id, chunk); err != nil {
				return files, err
			}
			fresh.put(id, chunk)
		}
		names = append(names, p.info.Name)
		if fresh.Len() >= pack.Full {
			if err := flush(); err != nil {
				return files, err
			}
		}
	}
	return files, flush()
}

// repacker puts chunks that the store has into new packs.
type repacker struct {
	pack.Packer
	store *Store
	spare []byte
}

func (p *repacker) put(id manifest.ID, chunk []byte) {
	if p.spare == nil {
		p.spare = make([]byte, 0, pack.BufferSize)
	}
	stored, by := pack.Compress(chunk, p.spare, false)
	p.Add(id, stored, by)
}

// flush writes a pack of what was put, where the chunks are found from then on, and returns its bytes.
func (p *repacker) flush(ctx context.Context) (int64, error) {
	if p.Empty() {
		return 0, nil
	}
	s := p.store
	name, content, ids, where := p.Seal()
	if err := s.depot.Put(ctx, name, bytes.NewReader(content)); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		delete(s.chunks, id)
	}
	s.admit(depot.Info{Name: name, Size: int64(len(content))}, ids, where)
	return int64(len(content)), nil
}

// execute is steps 2 and 3.
func (s *Store) execute(ctx context.Context, name string, c condemnation, r *GCReport) error {
	active, err := s.leases(ctx)
	if err != nil {
		return err
	}
	if c.Waiting == nil {
		c.Waiting = slices.Sorted(maps.Keys(active))
		if c.Waiting == nil {
			c.Waiting = []string{}
		}
		if err := s.depot.Put(ctx, name, strings.NewReader(string(encodeJSON(c)))); err != nil {
			return err
		}
	}
	for _, id := range c.Waiting {
		if l, ok := active[id]; ok && len(l.Roots) == 0 && l.By != gcName { // a hold builds upon nothing
			r.Waiting += len(c.Files)
			r.Writers = append(r.Writers, l.By)
			return nil
		}
	}
	chunks, roots, err := s.needed(ctx)
	if err != nil {
		return err
	}
	elsewhere := s.elsewhere(c.Files)
	for _, file := range c.Files {
		keep := false
		if root, err := manifest.ParseID(path.Base(path.Dir(file))); err == nil {
			keep = roots[root]
		} else if keep, err = s.holds(ctx, file, chunks, elsewhere); err != nil {
			return err
		}
		if keep {
			continue
		}
		if err := s.free(ctx, file, r); err != nil {
			return err
		}
	}
	return s.depot.Delete(ctx, name)
}

// elsewhere says whether a chunk is in a pack that is none of these files.
func (s *Store) elsewhere(files []string) func(manifest.ID) bool {
	return func(id manifest.ID) bool {
		name, _, ok := s.find(id)
		return ok && !slices.Contains(files, name)
	}
}

// holds says whether a pack has a chunk that is needed and in no other pack.
func (s *Store) holds(ctx context.Context, file string, needed map[manifest.ID]struct{}, elsewhere func(manifest.ID) bool) (bool, error) {
	for info, err := range s.depot.List(ctx, pack.Dir) {
		if err != nil {
			return false, err
		}
		if info.Name != file {
			continue
		}
		ids, _, err := pack.ReadIndex(ctx, s.depot, info)
		if err != nil {
			return true, nil // damaged: somebody may mend it
		}
		return slices.ContainsFunc(ids, func(id manifest.ID) bool {
			_, ok := needed[id]
			return ok && !elsewhere(id)
		}), nil
	}
	return false, nil
}

func (s *Store) free(ctx context.Context, file string, r *GCReport) error {
	for info, err := range s.depot.List(ctx, path.Dir(file)) {
		if err != nil {
			return err
		}
		if info.Name != file {
			continue
		}
		if err := s.depot.Delete(ctx, file); err != nil {
			return err
		}
		r.Bytes += info.Size
		if path.Dir(file) == pack.Dir {
			r.Packs++
		} else {
			r.Manifests++
		}
	}
	return nil
}

// sweepSketches deletes those of images that are not there: they can be made again.
func (s *Store) sweepSketches(ctx context.Context) error {
	_, roots, err := s.needed(ctx)
	if err != nil {
		return err
	}
	for info, err := range s.depot.List(ctx, sketchDir) {
		if err != nil {
			return err
		}
		if root, err := manifest.ParseID(path.Base(info.Name)); err == nil && !roots[root] {
			if err := s.depot.Delete(ctx, info.Name); err != nil {
				return err
			}
		}
	}
	return nil
}
