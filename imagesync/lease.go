package imagesync

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"

	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/process"
)

const (
	leaseDir     = "leases"
	condemnedDir = "condemned"
	leaseTime    = time.Hour // from a writer's last sign of life until it counts as dead
)

// leaseFile is a lease as it is stored.
type leaseFile struct {
	By      string        `json:"by"`
	Process process.ID    `json:"process"`
	Expires time.Time     `json:"expires"`
	Roots   []manifest.ID `json:"roots,omitempty"` // of a hold
}

// lease is what GC respects.
type lease struct {
	store *Store
	id    string
	avoid map[string]bool // files that were condemned when it began

	mu   sync.Mutex
	file leaseFile
}

// takeLease writes a lease and then learns what not to build upon.
func (s *Store) takeLease(ctx context.Context, by string, roots []manifest.ID) (*lease, error) {
	l := &lease{store: s, id: newID(), file: leaseFile{By: by, Process: process.Self(), Expires: s.now().UTC().Add(leaseTime), Roots: roots}}
	err := s.depot.Put(ctx, leaseDir+"/"+l.id, strings.NewReader(string(encodeJSON(l.file))))
	if err == nil {
		l.avoid, err = s.condemned(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("take lease: %w", err)
	}
	return l, nil
}

func newID() string {
	var id [8]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// renew prolongs the lease when a third of it is over. One that has ended stays so: GC may
// have taken away what it stood for.
func (l *lease) renew(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := l.file.Expires.Sub(l.store.now())
	if left <= 0 {
		return fmt.Errorf("%w: nothing was heard of this writer for %s", ErrFenced, leaseTime)
	}
	if left > leaseTime*2/3 {
		return nil
	}
	name := leaseDir + "/" + l.id
	if _, err := l.store.depot.Get(ctx, name, 1<<20); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: its lease was taken away", ErrFenced)
	}
	file := l.file
	file.Expires = l.store.now().UTC().Add(leaseTime)
	if err := l.store.depot.Put(ctx, name, strings.NewReader(string(encodeJSON(file)))); err != nil {
		return fmt.Errorf("renew lease: %w", err)
	}
	l.file = file
	return nil
}

// end gives the lease up. One that cannot be deleted expires.
func (l *lease) end(ctx context.Context) {
	if err := l.store.depot.Delete(context.WithoutCancel(ctx), leaseDir+"/"+l.id); err != nil {
		l.store.log.Warn("cannot give a lease up: it will expire", "error", err)
	}
}

// Hold keeps what a version needs from GC, removed or not, until Release.
type Hold struct {
	store   *Store
	by      string
	version manifest.Version

	mu    sync.Mutex
	lease *lease
}

// Hold holds a version for a user, who renews it within an hour.
func (s *Store) Hold(ctx context.Context, by string, v manifest.Version) (*Hold, error) {
	h := &Hold{store: s, by: by, version: v}
	if err := h.take(ctx); err != nil {
		return nil, fmt.Errorf("hold: %w", err)
	}
	return h, nil
}

// take takes a lease, and looks whether GC was faster.
func (h *Hold) take(ctx context.Context) error {
	l, err := h.store.takeLease(ctx, h.by, []manifest.ID{h.version.Root})
	if err != nil {
		return err
	}
	if err := h.store.stays(ctx, h.version, l.avoid); err != nil {
		l.end(ctx)
		return err
	}
	h.lease = l
	return nil
}

// stays says whether a version is there; or, if it was removed, its manifest, and that is not
// about to be freed.
func (s *Store) stays(ctx context.Context, v manifest.Version, condemned map[string]bool) error {
	now, err := s.version(ctx, versionFile(imageDir, v.Image, v.Number))
	if err == nil && now.Root == v.Root || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for info, err := range s.depot.List(ctx, manifestDir+"/"+v.Root.String()) {
		if err != nil {
			return err
		}
		if !condemned[info.Name] {
			return nil
		}
	}
	return fmt.Errorf("%s: %w", v.Ref(), ErrMissing)
}

// Renew prolongs the hold; it costs nothing when that is not needed yet. One that has ended is
// taken anew, and is ErrFenced if GC has taken away meanwhile what it stood for.
func (h *Hold) Renew(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.lease.renew(ctx)
	if !errors.Is(err, ErrFenced) {
		return err
	}
	h.lease.end(ctx)
	if again := h.take(ctx); again != nil {
		return fmt.Errorf("%w; %w", err, again)
	}
	return nil
}

// Release ends the hold.
func (h *Hold) Release(ctx context.Context) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lease.end(ctx)
}

// leases are those that count. What has expired is deleted, and what a process of this machine
// left behind when it was killed.
func (s *Store) leases(ctx context.Context) (map[string]leaseFile, error) {
	all := map[string]leaseFile{}
	for info, err := range s.depot.List(ctx, leaseDir) {
		if err != nil {
			return nil, fmt.Errorf("list leases: %w", err)
		}
		var l leaseFile
		err := s.getJSON(ctx, info.Name, &l)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, fmt.Errorf("read lease: %w", err)
		case !l.Process.Ended() && s.now().Before(l.Expires.Add(leaseTime/4)): // for clocks that differ
			all[path.Base(info.Name)] = l
		default:
			if err := s.depot.Delete(ctx, info.Name); err != nil {
				return nil, fmt.Errorf("delete lease: %w", err)
			}
		}
	}
	return all, nil
}

// condemnation is what GC wants to delete, once those who may build upon it have ended.
type condemnation struct {
	Files   []string `json:"files"`
	Waiting []string `json:"waiting_for"` // leases; null: they are not known yet
}

func (s *Store) condemnations(ctx context.Context) (map[string]condemnation, error) {
	all := map[string]condemnation{}
	for info, err := range s.depot.List(ctx, condemnedDir) {
		if err != nil {
			return nil, fmt.Errorf("list what is condemned: %w", err)
		}
		var c condemnation
		err := s.getJSON(ctx, info.Name, &c)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read what is condemned: %w", err)
		}
		if err == nil {
			all[info.Name] = c
		}
	}
	return all, nil
}

// condemned are the files that nobody may build upon.
func (s *Store) condemned(ctx context.Context) (map[string]bool, error) {
	all, err := s.condemnations(ctx)
	files := map[string]bool{}
	for _, c := range all {
		for _, f := range c.Files {
			files[f] = true
		}
	}
	return files, err
}

func (s *Store) getJSON(ctx context.Context, name string, into any) error {
	b, err := s.depot.Get(ctx, name, fileLimit)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w (%w)", name, ErrDamaged, err)
	}
	return nil
}
