package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/site"
	"heliotrope/imagesync/volume"
	"heliotrope/imagesync/volume/disk"
)

// budgetEvery is how often the caches are held against what they may have. Between two looks
// they may grow beyond it by what guests ask for; nothing else comes then.
const budgetEvery = 15 * time.Second

// budget bounds what has come of images. Caches that no volume stands on go first, the oldest
// first, and last of those the versions that were pulled. If that is not enough, what guests have not
// read from goes: it comes again when it is needed.
type budget struct {
	dir   string
	limit int64 // bytes; 0: none

	mu      sync.Mutex
	used    int64
	looked  time.Time
	before  volume.CacheStats // of caches that were closed
	evicted int64
}

// room says whether something may come that nobody waits for.
func (b *budget) room() bool {
	if b.limit == 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(b.looked) > time.Second {
		if all, err := listCaches(b.dir); err == nil {
			b.note(all)
		}
	}
	return b.used < b.limit
}

// says says in words that there is no room.
func (b *budget) says() string {
	return fmt.Sprintf("the host keeps at most %.0f MB of images (--image-cache), and has so many", float64(b.limit)/1e6)
}

// mark says of a version whether there is no room for the rest of it. The lock is held.
func (b *budget) mark(c *agentapi.ImageCache) {
	if c.Here < c.Bytes && (c.Note == "" || c.Wants) && b.limit > 0 && b.used >= b.limit {
		c.Full, c.Wants, c.Waits, c.Note = true, false, false, b.says()
	}
}

// note takes in what the caches have. The lock is held.
func (b *budget) note(all []cacheDir) {
	b.used, b.looked = 0, time.Now()
	for _, c := range all {
		b.used += c.used
	}
}

// closed remembers the counters of a cache that is closed.
func (b *budget) closed(s volume.CacheStats) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.before.Demand, b.before.Background, b.before.Hits = b.before.Demand+s.Demand, b.before.Background+s.Background, b.before.Hits+s.Hits
}

// cacheDir is a cache on the disk.
type cacheDir struct {
	path string
	root manifest.ID
	used int64 // bytes of the disk
	last time.Time
}

// listCaches lists them, that which was changed last at the end.
func listCaches(dir string) ([]cacheDir, error) {
	at := filepath.Join(dir, "caches")
	entries, err := os.ReadDir(at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list caches: %w", err)
	}
	var all []cacheDir
	for _, e := range entries {
		c := cacheDir{path: filepath.Join(at, e.Name())}
		if c.root, err = manifest.ParseID(e.Name()); err != nil {
			continue
		}
		if c.used, err = disk.OSDirectory(c.path).Used(); err != nil {
			continue // it has just gone
		}
		for _, name := range []string{"present", "lock"} { // the one is written when something comes, the other when it is opened
			if info, err := os.Stat(filepath.Join(c.path, name)); err == nil && info.ModTime().After(c.last) {
				c.last = info.ModTime()
			}
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b cacheDir) int { return cmp.Or(a.last.Compare(b.last), cmp.Compare(a.path, b.path)) })
	return all, nil
}

// keepBudget keeps the caches within the budget until ctx ends.
func (s *server) keepBudget(ctx context.Context) error {
	tick := time.NewTicker(budgetEvery)
	defer tick.Stop()
	seen := map[manifest.ID]volume.CacheStats{}
	for {
		if err := s.bound(ctx, seen); err != nil {
			s.log.Warn("cannot bound what images take", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// bound frees what is beyond the budgets.
func (s *server) bound(ctx context.Context, seen map[manifest.ID]volume.CacheStats) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c.Cache > 0 {
		err = s.evict(seen)
	}
	return errors.Join(err, s.boundKept(ctx))
}

// unpull closes a version that was only pulled, so that its cache can be freed like others. The lock is held.
func (s *server) unpull(on *opened) error {
	c, root := on.seen(), on.Version.Root
	on.pulled = false
	err := errors.Join(site.SetPulled(s.c.Dir, root, nil), s.closeIfIdle(on))
	if s.sites[root] == nil && on.pull.Load() != nil { // it was to come, and not only to lend
		c.Here, c.Full, c.Note = 0, true, s.budget.says()
		s.dropped[root] = c
	}
	return err
}

// over says whether the caches have more than they may, by so many bytes.
func (b *budget) over(by int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used > b.limit+by
}

// evict frees what is beyond the caches' budget: first caches that are not open, then versions that were pulled,
// then what disks stand on and have not read lately, the oldest of each first. seen is what the open ones had
// done at the last look. The lock is held.
func (s *server) evict(seen map[manifest.ID]volume.CacheStats) error {
	all, err := listCaches(s.c.Dir)
	if err != nil {
		return err
	}
	s.budget.mu.Lock()
	s.budget.note(all)
	s.budget.mu.Unlock()
	free := func(c cacheDir, how func() error) {
		if failed := how(); failed != nil {
			err = errors.Join(err, failed)
			return
		}
		s.budget.mu.Lock()
		s.budget.used -= c.used
		s.budget.evicted++
		s.budget.mu.Unlock()
		s.log.Info("what came of an image was dropped", "root", c.root, "bytes", c.used)
	}
	for _, pulled := range []bool{false, true} {
		for _, c := range all {
			on := s.sites[c.root]
			if !s.budget.over(0) || pulled != (on != nil && on.pulled) {
				continue
			}
			if on != nil && pulled {
				err = errors.Join(err, s.unpull(on))
			}
			if s.sites[c.root] == nil {
				free(c, func() error { return os.RemoveAll(c.path) })
			}
		}
	}
	idle := func(c cacheDir) bool {
		now := s.sites[c.root].Cache().Stats()
		return now.Hits+now.Demand == seen[c.root].Hits+seen[c.root].Demand
	}
	for _, quiet := range []bool{true, false} {
		for _, c := range all {
			if on := s.sites[c.root]; on != nil && s.budget.over(s.budget.limit/8) && idle(c) == quiet {
				free(c, on.Cache().Drop)
			}
		}
	}
	clear(seen)
	for root, on := range s.sites {
		seen[root] = on.Cache().Stats()
	}
	for root, c := range s.dropped {
		if !s.budget.over(-c.Bytes) { // there would be room for it
			delete(s.dropped, root)
		}
	}
	return err
}

// status is what the agent tells.
func (s *server) status() agentapi.ImageStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := agentapi.ImageStatus{Store: s.c.Store, Server: s.c.Version, Boot: s.boot, PID: os.Getpid(), Budget: s.c.Cache, KeptBudget: s.c.Kept, Spared: s.spared.Load()}
	if kept, err := listKept(s.c.Dir); err == nil {
		out.KeptDisks = len(kept)
		for _, k := range kept {
			out.Kept += k.used
		}
	}
	out.Snapshots = s.snapshots.list()
	volumes := map[manifest.ID]int{}
	for name, d := range s.disks {
		v := agentapi.ImageVolume{VM: heliotrope.VMID(name), Base: d.Origin.Base.Ref(), Bytes: d.Size()}
		if stats, err := d.Stats(); err == nil {
			v.Written = stats.Data
		} else {
			v.Error = err.Error()
		}
		out.Volumes = append(out.Volumes, v)
		volumes[d.Origin.Base.Root]++
	}
	for name, err := range s.broken {
		out.Volumes = append(out.Volumes, agentapi.ImageVolume{VM: heliotrope.VMID(name), Error: err.Error()})
	}
	slices.SortFunc(out.Volumes, func(a, b agentapi.ImageVolume) int { return cmp.Compare(a.VM, b.VM) })
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	if all, err := listCaches(s.c.Dir); err == nil {
		s.budget.note(all)
	}
	sum := s.budget.before
	for root, on := range s.sites {
		stats := on.Cache().Stats()
		sum.Demand, sum.Background, sum.Hits = sum.Demand+stats.Demand, sum.Background+stats.Background, sum.Hits+stats.Hits
		c := on.seen()
		c.Volumes = volumes[root]
		s.budget.mark(&c)
		out.Caches = append(out.Caches, c)
	}
	for root, c := range s.dropped {
		if s.sites[root] == nil {
			out.Caches = append(out.Caches, c)
		}
	}
	slices.SortFunc(out.Caches, func(a, b agentapi.ImageCache) int { return cmp.Compare(a.Image, b.Image) })
	// Last, so that what has come of a cache is in them: it is counted before it is there.
	from := &s.source.Counters
	out.Fetched, out.Near, out.FromHosts, out.Failed = from.Bytes.Load(), from.Near.Load(), from.Hosts.Load(), from.Failed.Load()
	out.Used, out.Hits, out.Demand, out.Background, out.Evicted = s.budget.used, sum.Hits, sum.Demand, sum.Background, s.budget.evicted
	return out
}
