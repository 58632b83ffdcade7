package site

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/pages"
	"heliotrope/imagesync/volume"
)

// workingSet is what a boot has read.
type workingSet struct {
	Of     string      `json:"of"`
	Root   manifest.ID `json:"root"`
	Chunks []int       `json:"chunks"`
}

// leastBoot is how many chunks a record has at least: 1 MiB. Who reads less looks at a disk, and
// does not boot from it.
const leastBoot = 16

// How long after an error everything that is not here is asked for again, or after nothing was to
// come.
const retry = 10 * time.Second

// errNoRoom ends a fill of which nothing may come now (Options.Room).
var errNoRoom = errors.New("nothing may come that nobody waits for")

// Background lets the image come, unless it is not to, and lets the store hear that it is in
// use, until ctx ends.
func (s *Site) Background(ctx context.Context) {
	g := new(errgroup.Group)
	g.Go(func() error { s.Fill(ctx); return nil })
	s.keep(ctx)
	_ = g.Wait()
}

// limitedKey is in the context of fetches that the limit of what nobody waits for has let through. Those that
// read ahead of a guest are not among them.
type limitedKey struct{}

// Fill lets the image come, unless it is not to: what the last boot has read, then the rest.
func (s *Site) Fill(ctx context.Context) {
	if s.o.NoPrefetch {
		return
	}
	s.wants.Add(1)
	defer s.wants.Add(-1)
	var boot workingSet
	b, err := os.ReadFile(s.o.WorkingSet)
	if err == nil {
		err = json.Unmarshal(b, &boot)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.o.Log.Warn("cannot read what a boot reads", "error", err)
	}
	for {
		began := time.Now()
		err := errNoRoom
		if s.o.Room == nil || s.o.Room() {
			err = s.cache.Fill(context.WithValue(ctx, limitedKey{}, true), boot.Chunks, nil)
		}
		if ctx.Err() != nil {
			return
		}
		switch {
		case err == nil:
			s.failed(nil)
			s.o.Log.Info("all of the image is here", "image", s.Version.Ref(), "seconds", time.Since(began).Seconds())
			s.index(ctx)
			return
		case errors.Is(err, errNoRoom):
			s.failed(nil)
		default:
			s.failed(err)
			s.o.Log.Warn("the image does not come; trying again", "image", s.Version.Ref(), "error", err)
		}
		s.index(ctx)
		if !sleep(ctx, retry) {
			return
		}
	}
}

// index sees to it that memory's pages are found in what has come.
func (s *Site) index(ctx context.Context) {
	err := s.cache.Sync()
	if err == nil {
		err = pages.Make(ctx, cacheDir(s.dir, s.Version.Root))
	}
	if err != nil && ctx.Err() == nil {
		s.o.Log.Warn("VMs' pages are not looked for in their image", "image", s.Version.Ref(), "error", err)
	}
}

// keepTime is how often the store hears of a version that is in use: it takes who is quiet for an
// hour for dead.
const keepTime = 10 * time.Minute

// keep reads a chunk now and then.
func (s *Site) keep(ctx context.Context) {
	i, last := 0, int((s.base.Size()-1)/volume.ChunkSize)
	for i < last && s.base.Zero(i) {
		i++
	}
	chunk := make([]byte, volume.ChunkSize)
	for sleep(ctx, keepTime) {
		if err := s.base.Fetch(ctx, i, chunk); err != nil && ctx.Err() == nil {
			s.o.Log.Warn("the store does not hear that the image is in use", "image", s.Version.Ref(), "error", err)
		}
	}
}

// Record writes what a new volume's boot has read, once its time is over or ctx is. Another
// volume's boot is none.
func (s *Site) Record(ctx context.Context, d *Disk) {
	if !d.Fresh || s.o.Record <= 0 {
		return
	}
	select {
	case <-d.connected:
	case <-ctx.Done():
		return
	}
	sleep(ctx, s.o.Record)
	chunks := d.Trace()
	if len(chunks) < leastBoot {
		return
	}
	if err := writeJSON(s.o.WorkingSet, workingSet{s.Version.Ref(), s.Version.Root, chunks}); err != nil {
		s.o.Log.Warn("cannot write what a boot reads", "error", err)
		return
	}
	s.o.Log.Info("recorded what a boot reads", "volume", d.Name, "chunks", len(chunks), "file", s.o.WorkingSet)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// fillers is how many neighbourhoods come at once that nobody waits for. What a boot reads lies in
// runs of two chunks, of which so many fill the line; of the rest they are 16 MiB, and who needs a
// chunk of those waits for its turn.
const fillers = 16

// inAir is how many chunks that nobody waits for are under way at once. At half their size, as
// they cross, that is what a line of 100 Mbit/s and 80 ms holds; who asks for something that is
// needed waits a tenth of a second behind them.
const inAir = 32

// remote is a base that is far away: neighbours come at the same time and not one after the other.
type remote struct {
	volume.Base
	air chan struct{}
}

// Fetch implements volume.Base.
func (r *remote) Fetch(ctx context.Context, i int, dst []byte) error {
	if volume.IsBackground(ctx) {
		select {
		case r.air <- struct{}{}:
			defer func() { <-r.air }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return r.Base.Fetch(ctx, i, dst)
}

// FetchMany implements volume.ManyFetcher.
func (r *remote) FetchMany(ctx context.Context, first int, dst []byte) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range len(dst) / volume.ChunkSize {
		// Each has its own capacity too: who unpacks may write behind what he has unpacked.
		part := dst[i*volume.ChunkSize : (i+1)*volume.ChunkSize : (i+1)*volume.ChunkSize]
		g.Go(func() error { return r.Fetch(ctx, first+i, part) })
	}
	return g.Wait()
}
