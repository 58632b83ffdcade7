// Package site is what one host has of images in a store: for each version what has come of it
// (a cache), and the disks that stand on it (volumes), in one directory.
//
//	caches/ROOT/                what has come of a version, for all its volumes
//	caches/ROOT/version.json    which version that is
//	caches/ROOT/manifest        what it consists of: the store need not be there to go on
//	caches/ROOT/pages           finds memory's pages in it (package pages), for VMs that move
//	volumes/NAME/disk/          a volume (package volume)
//	volumes/NAME/origin.json    what it was made from, and what it has become
//	boots/IMAGE.json            what the last boot of an image has read, in its order
//
// A Site is one version. One process has it open, and so all volumes that stand on it: they
// share what comes. A disk can be read before anything of it is here; what somebody waits for
// comes first, then what the last boot of the image has read, then the rest (fill.go).
//
// A version that is to come to several hosts comes along a chain of them, and from the store to the first that
// lives (along.go).
//
// A volume that moves from one directory to another remembers by which moves (moves.go), so that
// who copies it can leave out what the other has.
package site

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/nbd"
	"heliotrope/imagesync/spread"
	"heliotrope/imagesync/volume"
)

const (
	cachesDir  = "caches"
	volumesDir = "volumes"
	bootsDir   = "boots"
	diskDir    = "disk"
	originFile = "origin.json"
)

// Options say how a Site lets an image come.
type Options struct {
	NoPrefetch bool          // only what somebody waits for comes
	Rate       int64         // bytes of content a second that nobody waits for; 0: as many as come
	Record     time.Duration // for how long a new volume's reads are its boot's, from its first client on; 0: there is no record
	WorkingSet string        // file of the record; "": that of the image in the directory
	Log        *slog.Logger  // nil: nothing is logged
	// Room is asked before something comes that nobody waits for; while it says no, nothing does.
	// nil: there is always room.
	Room func() bool
}

// Site is a version of an image on a host, and the volumes that stand on it.
type Site struct {
	Version manifest.Version

	dir   string
	o     Options
	base  volume.Base
	cache *volume.Cache
	limit *spread.Limit // of what nobody waits for
	wants atomic.Int32  // calls of Fill that are under way
	held  atomic.Bool   // it waits, and so do other hosts

	trouble atomic.Pointer[string] // why it does not come

	mu    sync.Mutex
	disks map[string]*Disk
}

// SetRate changes Options.Rate; spread.Nothing: nothing comes that nobody waits for, until it is changed again.
func (s *Site) SetRate(bytesPerSecond int64) { s.limit.Set(bytesPerSecond) }

// Wants says whether the rest of it is to come from its base, and not from other hosts.
func (s *Site) Wants() bool { return s.wants.Load() > 0 }

// Hold says whether other hosts wait for it as this one does, so that it is not their fault if nothing comes from them.
func (s *Site) Hold(on bool) { s.held.Store(on) }

// Trouble is why the rest of the version did not come when it was last tried, for people; empty: nothing is wrong.
func (s *Site) Trouble() string {
	if t := s.trouble.Load(); t != nil {
		return *t
	}
	return ""
}

// failed keeps why it does not come; nil: it comes.
func (s *Site) failed(err error) {
	if err == nil {
		s.trouble.Store(nil)
		return
	}
	t := err.Error()
	s.trouble.Store(&t)
}

// Disk is a volume that is open.
type Disk struct {
	*volume.Volume
	Name   string
	Origin Origin
	Fresh  bool // it was made just now

	dir       string
	connected chan struct{} // closed when the first client comes
	first     func()        // closes it
	telling   atomic.Pointer[telling]
}

// Origin is what a volume remembers of images.
type Origin struct {
	Base    manifest.Version `json:"base"`    // what it stands on, for good
	Version manifest.Version `json:"version"` // what its clean blocks are: Base, or what the last commit made
	// Copied says that somebody writes all of the volume: nothing of the base is read.
	Copied bool  `json:"copied,omitempty"`
	Moves  Moves `json:"moves,omitzero"`
	// Pending is a commit that began and was not heard of again: the version's From, and its image.
	Pending      string `json:"pending,omitempty"`
	PendingImage string `json:"pending_image,omitempty"`
}

// Open opens what dir has of a version, or makes it. base is that version, wherever it is.
func Open(dir string, v manifest.Version, base volume.Base, o Options) (*Site, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.WorkingSet == "" {
		o.WorkingSet = filepath.Join(dir, bootsDir, v.Image+".json")
	}
	s := &Site{Version: v, dir: dir, o: o, base: base, disks: map[string]*Disk{}}
	s.limit = spread.NewLimit(o.Rate)
	if b, ok := base.(*storeBase); ok {
		b.limit = s.limit
	}
	c, err := volume.OpenCache(cacheDir(dir, v.Root), &remote{Base: base, air: make(chan struct{}, inAir)}, volume.CacheOptions{
		Identity: v.Root.String(), Workers: fillers,
		Limit: func(ctx context.Context, n int) error {
			if err := s.limit.Wait(ctx, n, spread.Background); err != nil {
				return err
			}
			if o.Room != nil && !o.Room() {
				return errNoRoom
			}
			return nil
		},
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

// Caches is where what has come of versions is, each in a directory that its root names.
func Caches(dir string) string { return filepath.Join(dir, cachesDir) }

func cacheDir(dir string, root manifest.ID) string { return filepath.Join(Caches(dir), root.String()) }

// Close flushes the volumes and closes them.
func (s *Site) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for name, d := range s.disks {
		if err := d.Close(); err != nil {
			errs = append(errs, fmt.Errorf("volume %s: %w", name, err))
		}
	}
	clear(s.disks)
	return errors.Join(append(errs, s.cache.Close())...)
}

// ReadOrigin is what a volume remembers; fs.ErrNotExist if there is none of that name.
func ReadOrigin(dir, name string) (o Origin, err error) {
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

// Owner is by which a store knows who needs what the volumes in dir stand on (imagesync.Store.Need):
// the host's name and something that no other directory has. Two hosts of two controllers may have
// one name, and one store.
func Owner(dir, host string) (string, error) {
	file := filepath.Join(dir, "id")
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		b = []byte(strings.ToLower(rand.Text()[:12]) + "\n")
		err = writeFile(file, b)
	}
	if err != nil {
		return "", fmt.Errorf("name the directory of volumes: %w", err)
	}
	name := host + "." + strings.TrimSpace(string(b))
	return name, manifest.CheckName(name)
}

// Volumes are the names of all volumes in dir.
func Volumes(dir string) (names []string, err error) {
	entries, err := os.ReadDir(filepath.Join(dir, volumesDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && manifest.CheckName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// RemoveVolume deletes a volume that nobody has open, with all that was written to it. One that
// is not there is removed already. A crash leaves a volume, or a name that is swept the next time.
func RemoveVolume(dir, name string) error {
	if err := manifest.CheckName(name); err != nil {
		return fmt.Errorf("remove volume: %w", err)
	}
	at, gone := filepath.Join(dir, volumesDir, name), filepath.Join(dir, volumesDir, "."+name+".removed")
	err := os.RemoveAll(gone)
	if err == nil {
		if err = os.Rename(at, gone); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	if err == nil {
		err = syncDir(filepath.Join(dir, volumesDir))
	}
	if err == nil {
		err = os.RemoveAll(gone)
	}
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	return nil
}

// Open opens a volume, or makes it; one that is open stays so.
func (s *Site) Open(name string) (*Disk, error) { return s.open(name, false) }

// OpenCopy is Open for a volume that is written as a whole, if it is made now.
func (s *Site) OpenCopy(name string) (*Disk, error) { return s.open(name, true) }

func (s *Site) open(name string, copied bool) (*Disk, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.disks[name]; d != nil {
		return d, nil
	}
	d := &Disk{Name: name, dir: filepath.Join(s.dir, volumesDir, name), connected: make(chan struct{})}
	d.first = sync.OnceFunc(func() { close(d.connected) })
	var err error
	d.Origin, err = ReadOrigin(s.dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		// First what it is, then the volume: one of which that is not known could not be opened.
		if err = d.remember(Origin{Base: s.Version, Version: s.Version, Copied: copied}); err == nil {
			err = errors.Join(syncDir(filepath.Join(s.dir, volumesDir)), syncDir(s.dir))
		}
	}
	if err != nil {
		return nil, err
	}
	at, o := filepath.Join(d.dir, diskDir), volume.Options{Base: s.cache}
	d.Volume, err = volume.Open(at, o)
	if errors.Is(err, fs.ErrNotExist) {
		d.Fresh = true
		d.Volume, err = volume.Create(at, o)
	}
	if err == nil && d.Origin.Moves.Left != "" { // whoever has opened it may write to it
		if err = d.forgetMoves(context.Background()); err != nil {
			err = errors.Join(err, d.Close())
		}
	}
	if err != nil {
		return nil, err
	}
	s.disks[name] = d
	return d, nil
}

// Release flushes and closes a volume that is open; it returns how many are still.
func (s *Site) Release(name string) (left int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.disks[name]; d != nil {
		delete(s.disks, name)
		err = d.Close()
	}
	return len(s.disks), err
}

// list are the volumes that are open.
func (s *Site) list() (all []*Disk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.disks {
		all = append(all, d)
	}
	return all
}

// remember writes what the volume has become.
func (d *Disk) remember(o Origin) error {
	if err := writeJSON(filepath.Join(d.dir, originFile), o); err != nil {
		return fmt.Errorf("write origin of volume: %w", err)
	}
	d.Origin = o
	return nil
}

// writeJSON replaces a file, whatever crashes.
func writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFile(name, append(b, '\n'))
}

func writeFile(name string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name+".new"))
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
		return nbd.Static{"": {Device: fixed{s.cache, s.base}, ReadOnly: true, MultiConn: true, Description: s.Version.Ref()}}, nil
	}
	e := exports{nbd.Static{}}
	for _, name := range names {
		d, err := s.Open(name)
		if err != nil {
			return nil, err
		}
		e.Static[name] = d.Export(s, 0)
		if readOnly {
			x := e.Static[name]
			x.ReadOnly = true
			e.Static[name] = x
		}
	}
	return e, nil
}

// Export is the volume as a client of NBD has it, which is such a process (nbd.Peer).
func (d *Disk) Export(s *Site, client int) nbd.Export {
	return nbd.Export{Device: device{d.Volume, d, client}, MultiConn: true, Description: d.Name + " on " + s.Version.Ref()}
}

// Connected says that a client has come.
func (d *Disk) Connected() { d.first() }

// exports learn of the first client of a volume.
type exports struct{ nbd.Static }

// Export implements nbd.Exports.
func (e exports) Export(ctx context.Context, name string) (nbd.Export, error) {
	x, err := e.Static.Export(ctx, name)
	if d, ok := x.Device.(device); err == nil && ok {
		d.of.Connected()
	}
	return x, err
}

// Present is how many chunks of the version are here.
func (s *Site) Present() int { return s.cache.Present() }

// Cache is what has come of the version.
func (s *Site) Cache() *volume.Cache { return s.cache }

// Run serves exports, lets the image come, and records boots, until ctx ends.
func (s *Site) Run(ctx context.Context, l net.Listener, e nbd.Exports) error {
	background, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.Background(background) })
	for _, d := range s.list() {
		wg.Go(func() { s.Record(background, d) })
	}
	if err := nbd.NewServer(e, nil, s.o.Log).Serve(ctx, l); ctx.Err() == nil {
		return err
	}
	return nil
}
