package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"

	"encoding/json"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/libvirt"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/nbd"
	"heliotrope/imagesync/site"
	"heliotrope/imagesync/spread"
	"heliotrope/imagesync/volume"
)

func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(v); err != nil {
		return fmt.Errorf("read order: %w", err)
	}
	return nil
}

// openAll opens all volumes that there are. One that cannot be opened is no reason to let the
// others wait; whoever connects to it tries again.
func (s *server) openAll(ctx context.Context) error {
	names, err := site.Volumes(s.c.Dir)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		if _, err := s.open(ctx, name); err != nil && !errors.Is(err, errHasLeft) {
			s.log.Error("a disk cannot be served", "vm", name, "error", err)
		}
	}
	return s.openPulled(ctx)
}

// openPulled goes on with versions that were to come when the last server ended. The lock is held.
func (s *server) openPulled(ctx context.Context) error {
	all, err := listCaches(s.c.Dir)
	for _, c := range all {
		p, pulled := site.Pulled(s.c.Dir, c.root)
		if !pulled {
			continue
		}
		v, err := site.Cached(s.c.Dir, c.root)
		var on *opened
		if err == nil {
			on, err = s.version(ctx, v)
		}
		if err != nil {
			s.log.Warn("a version that was to come does not", "root", c.root, "error", err)
			continue
		}
		on.pulled = true
		on.pull.Store(&p)
		on.setRate()
		s.come(on)
	}
	return err
}

// errHasLeft is that of a volume that is kept in case it comes back: as a VM's disk it is not there.
var errHasLeft = fmt.Errorf("the disk has left: %w", fs.ErrNotExist)

// open opens a volume that is there. The lock is held.
func (s *server) open(ctx context.Context, name string) (*served, error) {
	if d := s.disks[name]; d != nil {
		return d, nil
	}
	o, err := site.ReadOrigin(s.c.Dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		delete(s.broken, name)
		return nil, err
	}
	if err == nil && o.Moves.Left != "" {
		return nil, errHasLeft
	}
	var d *served
	if err == nil {
		d, err = s.openOn(ctx, o.Base, name, o.Copied)
	}
	if err != nil {
		s.broken[name] = err
		return nil, err
	}
	delete(s.broken, name)
	return d, nil
}

// openOn opens a volume on a version, or makes it; copied says that a move writes all of it, and
// nothing of the version has to come. The lock is held.
func (s *server) openOn(ctx context.Context, v manifest.Version, name string, copied bool) (*served, error) {
	on, err := s.version(ctx, v)
	if err != nil {
		return nil, err
	}
	open := on.Open
	if copied {
		open = on.OpenCopy
	}
	d, err := open(name)
	if err != nil {
		return nil, errors.Join(err, s.closeIfIdle(on))
	}
	if !d.Origin.Copied {
		on.needed.Store(true)
		s.come(on)
	}
	out := &served{Disk: d, on: on}
	var life context.Context
	life, out.end = context.WithCancel(s.background)
	on.run.Go(func() { on.Record(life, d) })
	s.disks[name] = out
	return out, nil
}

// version opens a version, if it is not open. The lock is held.
func (s *server) version(ctx context.Context, v manifest.Version) (*opened, error) {
	if on := s.sites[v.Root]; on != nil {
		return on, nil
	}
	on, err := s.openVersion(ctx, v)
	if err == nil && on.seen().Here < v.Content {
		s.openNear(ctx, v)
	}
	return on, err
}

func (s *server) openVersion(ctx context.Context, v manifest.Version) (*opened, error) {
	base, err := s.source.Base(ctx, s.c.Dir, v)
	if err != nil {
		return nil, err
	}
	on := &opened{}
	room := func() bool { return on.mayCome() && s.budget.room() }
	if on.Site, err = site.Open(s.c.Dir, v, base, site.Options{Record: bootTime, Log: s.log, Room: room}); err != nil {
		return nil, err
	}
	on.life, on.end = context.WithCancel(s.background)
	s.sites[v.Root] = on
	s.source.Lend(on.Site)
	return on, nil
}

// nearVersions is how many others of an image are opened for one of which something is missing.
const nearVersions = 2

// openNear opens what has come of an image's other versions, those that were used last, so that a
// new one takes from there what it can. They stay open until the caches need their room.
func (s *server) openNear(ctx context.Context, v manifest.Version) {
	all, err := listCaches(s.c.Dir)
	n := 0
	for _, c := range slices.Backward(all) {
		other, err := site.Cached(s.c.Dir, c.root)
		if err != nil || other.Image != v.Image || other.Root == v.Root || n == nearVersions {
			continue
		}
		n++
		if s.sites[other.Root] == nil {
			if on, err := s.openVersion(ctx, other); err == nil {
				on.pulled = true
			}
		}
	}
	if err != nil {
		s.log.Warn("what is here of an image's other versions is not known", "image", v.Image, "error", err)
	}
}

// come lets all of a version come, along the chain of hosts that an order has named, or from the store. If
// it comes in another way that ends first. The lock is held.
func (s *server) come(on *opened) {
	var feeders []spread.Feeder
	along := false
	if p := on.pull.Load(); p != nil && len(p.Chain) > 0 {
		s.peers.know(p.Chain)
		feeders, along = before(p.Chain, heliotrope.HostID(s.c.Host))
	}
	last := on.coming
	if last != nil && last.along == along && slices.Equal(last.feeders, feeders) {
		return
	}
	now := &coming{along: along, feeders: feeders, done: make(chan struct{})}
	var life context.Context
	life, now.end = context.WithCancel(on.life)
	on.coming = now
	on.run.Go(func() {
		defer close(now.done)
		defer now.end()
		if last != nil {
			last.end()
			<-last.done
		}
		if along {
			err := on.Along(life, s.peers.node, feeders)
			if life.Err() != nil {
				return
			}
			s.log.Warn("an image is not passed on; it comes from the store", "image", on.Version.Ref(), "error", err)
		}
		on.Fill(life)
	})
}

// pull lets a version come that no volume needs yet, and says what there is of it. It stays open,
// to be told of, until the caches need its room.
func (s *server) pull(ctx context.Context, ref string, o pulling) (agentapi.ImageCache, error) {
	p := o.Pull
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.Part != nil {
		return s.take(ref, *o.Part)
	}
	store, err := s.source.Store(ctx)
	if err != nil {
		return agentapi.ImageCache{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	v, err := store.Version(ctx, ref)
	if err != nil {
		return agentapi.ImageCache{}, fmt.Errorf("pull %s: image store %s: %w", ref, s.c.Store, err)
	}
	on, err := s.version(ctx, v)
	if err != nil {
		return agentapi.ImageCache{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	if was := on.pull.Load(); was != nil {
		if len(p.Chain) == 0 {
			p.Chain = was.Chain // others may be fed from here
		}
		if o.Lend {
			p.Windows, p.Rate, p.Priority, p.Shared = was.Windows, was.Rate, was.Priority, was.Shared
		}
	}
	if err := site.SetPulled(s.c.Dir, v.Root, &p); err != nil {
		return agentapi.ImageCache{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	on.pulled = true
	on.pull.Store(&p)
	on.setRate()
	delete(s.dropped, v.Root)
	s.come(on)
	return on.seen(), nil
}

// seen is what there is of the version.
func (on *opened) seen() agentapi.ImageCache {
	c := agentapi.ImageCache{Image: on.Version.Ref(), Bytes: on.Version.Content, Here: int64(on.Present()) * volume.ChunkSize}
	lacks := on.coming != nil && c.Here < c.Bytes
	if p := on.pull.Load(); p != nil {
		c.Pushed, c.Priority, c.Rate, c.Shared, c.Part = true, p.Priority, p.Rate, p.Shared, on.part.now()
		c.Wants = lacks && on.Wants() && on.mayCome()
	}
	switch {
	case !lacks:
	case !on.mayCome():
		c.Waits, c.Note = true, "it waits for its window"
	case c.Shared && c.Part == 0 && (c.Wants || on.part.held):
		c.Waits, c.Note = true, "it waits for its part of a link that images share"
	default:
		c.Note = on.Trouble()
	}
	return c
}

// closeIfIdle closes a version that no volume stands on and nobody pulled. What came of it stays.
// The lock is held.
func (s *server) closeIfIdle(on *opened) error {
	if on.pulled {
		return nil
	}
	for _, d := range s.disks {
		if d.on == on {
			return nil
		}
	}
	delete(s.sites, on.Version.Root)
	on.part.forget()
	on.end()
	on.run.Wait()
	s.budget.closed(on.Cache().Stats())
	s.source.Withdraw(on.Site)
	return on.Close()
}

// release closes a volume, if it is open. The lock is held.
func (s *server) release(name string) error {
	d := s.disks[name]
	if d == nil {
		return nil
	}
	s.snapshots.stopReading(name, errDiskGone)
	delete(s.disks, name)
	d.end()
	_, err := d.on.Release(name)
	needed := false
	for _, other := range s.disks {
		needed = needed || other.on == d.on && !other.Origin.Copied
	}
	d.on.needed.Store(needed)
	return errors.Join(err, s.closeIfIdle(d.on))
}

// close closes everything.
func (s *server) close() error {
	s.mu.Lock()
	s.snapshots.ending = true
	s.mu.Unlock()
	s.snapshots.wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for name := range s.disks {
		errs = append(errs, s.release(name))
	}
	for _, on := range s.sites { // that were pulled
		on.pulled = false
		errs = append(errs, s.closeIfIdle(on))
	}
	return errors.Join(append(errs, s.source.Close())...)
}

// put sees to it that a VM has a volume, and that it is served.
func (s *server) put(ctx context.Context, vm string, w wanted) (made, error) {
	if err := manifest.CheckName(vm); err != nil {
		return made{}, fmt.Errorf("serve disk: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.snapshots.reading(vm); j != nil {
		j.keep = false // it is used again
	}
	has := site.HasLeft
	d, err := s.back(ctx, vm, w)
	if d == nil {
		has = site.HasBase
		d, err = s.get(ctx, vm, w)
	}
	if err == nil && w.Move != "" {
		err = d.Come(w.Move)
	}
	if err != nil {
		return made{}, fmt.Errorf("serve disk of %s: %w", vm, err)
	}
	return made{Base: base(d.Origin.Base), Bytes: d.Size(), Has: has}, nil
}

// get gets a volume that is there, or makes it. The lock is held.
func (s *server) get(ctx context.Context, vm string, w wanted) (*served, error) {
	if w.Fresh {
		if err := s.drop(ctx, vm); err != nil {
			return nil, err
		}
	}
	d, err := s.open(ctx, vm)
	if errors.Is(err, errHasLeft) { // and is not wanted back
		if err := s.drop(ctx, vm); err != nil {
			return nil, err
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		d, err = s.create(ctx, vm, w)
	}
	return d, err
}

// back opens the volume that has left and comes back, if this is it; else it returns nil, and any
// other will have to do. The lock is held.
func (s *server) back(ctx context.Context, vm string, w wanted) (*served, error) {
	o, err := site.ReadOrigin(s.c.Dir, vm)
	if err != nil || w.Move == "" || w.Came == "" || o.Moves.Left != w.Came || w.Base != base(o.Base) {
		return nil, nil
	}
	d, err := s.openOn(ctx, o.Base, vm, o.Copied)
	if err != nil {
		s.log.Warn("a disk that was kept cannot be opened; it is copied anew", "vm", vm, "error", err)
		return nil, nil
	}
	s.log.Info("a disk that had left comes back", "vm", vm, "image", o.Base.Ref())
	return d, nil
}

// create makes a volume. The lock is held.
func (s *server) create(ctx context.Context, vm string, w wanted) (*served, error) {
	store, err := s.source.Store(ctx)
	if err != nil {
		return nil, err
	}
	ref, root := w.Image, manifest.ID{}
	if w.Base != "" {
		if ref, root, err = parseBase(w.Base); err != nil {
			return nil, err
		}
	}
	v, err := store.Version(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("image store %s: %w", s.c.Store, err)
	}
	if w.Base != "" && v.Root != root {
		return nil, fmt.Errorf("%s of image store %s is another than that of the host which the VM comes from: is it another store?", ref, s.c.Store)
	}
	if err := store.Need(ctx, v, s.owner+"/"+vm); err != nil {
		return nil, err
	}
	d, err := s.openOn(ctx, v, vm, w.Base != "" && w.Move == "")
	if err != nil {
		return nil, errors.Join(err, store.NoNeed(context.WithoutCancel(ctx), v, s.owner+"/"+vm))
	}
	s.log.Info("disk made", "vm", vm, "image", v.Ref(), "bytes", v.Size)
	return d, nil
}

// remove removes a VM's volume, if there is one, with all that was written to it.
func (s *server) remove(ctx context.Context, vm string) error {
	if err := manifest.CheckName(vm); err != nil {
		return fmt.Errorf("remove disk: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waits(vm, false) {
		return nil // it has left, and goes once it was read
	}
	if err := s.drop(ctx, vm); err != nil {
		return fmt.Errorf("remove disk of %s: %w", vm, err)
	}
	return nil
}

// drop removes a volume. The lock is held.
func (s *server) drop(ctx context.Context, vm string) error {
	o, err := site.ReadOrigin(s.c.Dir, vm)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if release := s.release(vm); release != nil {
		s.log.Warn("a disk that is removed could not be closed", "vm", vm, "error", release)
	}
	delete(s.broken, vm)
	if failed := site.RemoveVolume(s.c.Dir, vm); failed != nil {
		return failed
	}
	s.log.Info("disk removed", "vm", vm, "image", o.Base.Ref())
	if err != nil {
		return nil // what it stood on is not known; a sweep tells the store
	}
	store, err := s.source.Store(ctx)
	if err == nil {
		err = store.NoNeed(ctx, o.Base, s.owner+"/"+vm)
	}
	if err != nil {
		s.log.Warn("the store does not hear that an image is not needed any more; the next server of disks tells it", "image", o.Base.Ref(), "error", err)
	}
	return nil
}

// Export implements nbd.Exports: a volume by the path of the file that stands for it.
func (s *server) Export(ctx context.Context, name string) (nbd.Export, error) {
	vm, ok := libvirt.VolumeName(s.c.DiskDir, name)
	if !ok || manifest.CheckName(string(vm)) != nil {
		return nbd.Export{}, fmt.Errorf("open %q: %w", name, nbd.ErrNoExport)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.open(ctx, string(vm))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("open %q: %w", name, nbd.ErrNoExport)
	}
	if err != nil {
		return nbd.Export{}, err
	}
	d.Connected()
	return d.Disk.Export(d.on.Site, nbd.Peer(ctx)), nil
}

// Names implements nbd.Exports.
func (s *server) Names(context.Context) (names []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.disks {
		names = append(names, libvirt.VolumeExport(s.c.DiskDir, heliotrope.VMID(name)))
	}
	slices.SortFunc(names, strings.Compare)
	return names, nil
}
