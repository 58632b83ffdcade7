package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/nbd"
	"heliotrope/imagesync/spread"
	"heliotrope/imagesync/volume"
)

// What a directory of volumes consists of:
//
//	caches/ROOT/            what has come of a version, for all its volumes
//	volumes/NAME/disk/      a volume (package volume)
//	volumes/NAME/origin.json    what it was made from, and what it has become
//	boots/IMAGE.json        what the last boot of an image has read, in its order
const (
	cachesDir  = "caches"
	volumesDir = "volumes"
	bootsDir   = "boots"
	diskDir    = "disk"
	originFile = "origin.json"
)

// SiteOptions say how a Site lets an image come.
type SiteOptions struct {
	NoPrefetch bool          // only what somebody waits for comes
	Rate       int64         // bytes of content a second that nobody waits for; 0: as many as come
	Record     time.Duration // for how long a new volume's reads are its boot's, from its first client on; 0: there is no record
	WorkingSet string        // file of the record; "": that of the image in the directory
	Log        *slog.Logger  // nil: nothing is logged
}

// Site is a version of an image on a host, and volumes that stand on it. One process has it open,
// and opens its volumes (Exports) before it serves them.
type Site struct {
	dir     string
	version manifest.Version
	o       SiteOptions
	base    volume.Base
	cache   *volume.Cache
	disks   map[string]*disk
}

// disk is a volume that is open.
type disk struct {
	*volume.Volume
	dir       string
	origin    origin
	fresh     bool          // it was made just now
	connected chan struct{} // closed when the first client comes
	first     func()        // closes it
}

// origin is what a volume remembers of images.
type origin struct {
	Base    manifest.Version `json:"base"`    // what it stands on, for good
	Version manifest.Version `json:"version"` // what its clean blocks are: Base, or what the last commit made
	// Pending is a commit that began and was not heard of again: the version's From, and its image.
	Pending      string `json:"pending,omitempty"`
	PendingImage string `json:"pending_image,omitempty"`
}

// workingSet is what a boot has read.
type workingSet struct {
	Of     string      `json:"of"`
	Root   manifest.ID `json:"root"`
	Chunks []int       `json:"chunks"`
}

// leastBoot is how many chunks a record has at least: 1 MiB. Who reads less looks at a disk, and
// does not boot from it.
const leastBoot = 16

// OpenSite opens what dir has of a version, or makes it. base is that version, wherever it is.
func OpenSite(dir string, v manifest.Version, base volume.Base, o SiteOptions) (*Site, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.WorkingSet == "" {
		o.WorkingSet = filepath.Join(dir, bootsDir, v.Image+".json")
	}
	s := &Site{dir: dir, version: v, o: o, base: base, disks: map[string]*disk{}}
	limit := spread.NewLimit(o.Rate)
	c, err := volume.OpenCache(filepath.Join(dir, cachesDir, v.Root.String()), &remote{Base: base, air: make(chan struct{}, inAir)}, volume.CacheOptions{
		Identity: v.Root.String(), Workers: fillers,
		Limit: func(ctx context.Context, n int) error { return limit.Wait(ctx, n, spread.Background) },
	})
	if errors.Is(err, volume.ErrInUse) {
		err = fmt.Errorf("another process has the volumes of %s in %s (%w): one serves them all, give it each --volume", v.Ref(), dir, err)
	}
	if err != nil {
		return nil, err
	}
	s.cache = c
	return s, nil
}

// Close flushes the volumes and closes them.
func (s *Site) Close() error {
	var errs []error
	for name, d := range s.disks {
		if err := d.Close(); err != nil {
			errs = append(errs, fmt.Errorf("volume %s: %w", name, err))
		}
	}
	return errors.Join(append(errs, s.cache.Close())...)
}

// readOrigin is what a volume remembers; fs.ErrNotExist if there is none of that name.
func readOrigin(dir, name string) (o origin, err error) {
	if manifest.CheckName(name) != nil {
		return o, fmt.Errorf("%.80q is no name of a volume: use letters, digits, and after the first . _ -", name)
	}
	b, err := os.ReadFile(filepath.Join(dir, volumesDir, name, originFile))
	if err == nil {
		err = json.Unmarshal(b, &o)
	}
	if err != nil {
		return o, fmt.Errorf("read origin of volume %s: %w", name, err)
	}
	return o, nil
}

// open opens a volume, or makes it.
func (s *Site) open(name string) (*disk, error) {
	if d := s.disks[name]; d != nil {
		return d, nil
	}
	d := &disk{dir: filepath.Join(s.dir, volumesDir, name), connected: make(chan struct{})}
	d.first = sync.OnceFunc(func() { close(d.connected) })
	var err error
	d.origin, err = readOrigin(s.dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		// First what it is, then the volume: one of which that is not known could not be opened.
		if err = d.remember(origin{Base: s.version, Version: s.version}); err == nil {
			err = errors.Join(syncDir(filepath.Join(s.dir, volumesDir)), syncDir(s.dir))
		}
	}
	if err != nil {
		return nil, err
	}
	at, o := filepath.Join(d.dir, diskDir), volume.Options{Base: s.cache}
	d.Volume, err = volume.Open(at, o)
	if errors.Is(err, fs.ErrNotExist) {
		d.fresh = true
		d.Volume, err = volume.Create(at, o)
	}
	if err != nil {
		return nil, err
	}
	s.disks[name] = d
	return d, nil
}

// remember writes what the volume has become.
func (d *disk) remember(o origin) error {
	if err := writeJSON(filepath.Join(d.dir, originFile), o); err != nil {
		return fmt.Errorf("write origin of volume: %w", err)
	}
	d.origin = o
	return nil
}

// writeJSON replaces a file, whatever crashes.
func writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

// syncDir makes names in a directory outlive a crash.
func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Exports are volumes under their names, or the version itself if none is named.
func (s *Site) Exports(names []string, readOnly bool) (nbd.Exports, error) {
	if len(names) == 0 {
		return nbd.Static{"": {Device: fixed{s.cache, s.base}, ReadOnly: true, MultiConn: true, Description: s.version.Ref()}}, nil
	}
	e := exports{nbd.Static{}, s}
	for _, name := range names {
		d, err := s.open(name)
		if err != nil {
			return nil, err
		}
		e.Static[name] = nbd.Export{Device: device{d.Volume}, ReadOnly: readOnly, MultiConn: true, Description: name + " on " + s.version.Ref()}
	}
	return e, nil
}

// exports learn of the first client of a volume.
type exports struct {
	nbd.Static
	site *Site
}

// Export implements nbd.Exports.
func (e exports) Export(ctx context.Context, name string) (nbd.Export, error) {
	x, err := e.Static.Export(ctx, name)
	if err == nil {
		for _, d := range e.site.disks {
			if x.Device == (device{d.Volume}) {
				d.first()
			}
		}
	}
	return x, err
}

// Present is how many chunks of the version are here.
func (s *Site) Present() int { return s.cache.Present() }

// Run serves exports, lets the image come, and records boots, until ctx ends.
func (s *Site) Run(ctx context.Context, l net.Listener, e nbd.Exports) error {
	background, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	if !s.o.NoPrefetch {
		wg.Go(func() { s.fill(background) })
	}
	wg.Go(func() { s.keep(background) })
	for name, d := range s.disks {
		if d.fresh && s.o.Record > 0 {
			wg.Go(func() { s.record(background, name, d) })
		}
	}
	if err := nbd.NewServer(e, nil, s.o.Log).Serve(ctx, l); ctx.Err() == nil {
		return err
	}
	return nil
}

// retry is how long after an error everything that is not here is asked for again.
const retry = 10 * time.Second

// fill lets the image come: what the last boot has read, then the rest.
func (s *Site) fill(ctx context.Context) {
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
		err := s.cache.Fill(ctx, boot.Chunks, nil)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			s.o.Log.Info("all of the image is here", "image", s.version.Ref(), "seconds", time.Since(began).Seconds())
			return
		}
		s.o.Log.Warn("the image does not come; trying again", "image", s.version.Ref(), "error", err)
		if !sleep(ctx, retry) {
			return
		}
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
			s.o.Log.Warn("the store does not hear that the image is in use", "image", s.version.Ref(), "error", err)
		}
	}
}

// record writes what a new volume's boot has read, once its time is over or the server's is.
func (s *Site) record(ctx context.Context, name string, d *disk) {
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
	if err := writeJSON(s.o.WorkingSet, workingSet{s.version.Ref(), s.version.Root, chunks}); err != nil {
		s.o.Log.Warn("cannot write what a boot reads", "error", err)
		return
	}
	s.o.Log.Info("recorded what a boot reads", "volume", name, "chunks", len(chunks), "file", s.o.WorkingSet)
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
