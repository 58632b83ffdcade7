// Package images is the controller's store of VM images: what there is, uploads, which become
// new versions, and how versions get to hosts before VMs there need them.
//
// The store is a directory or a bucket (package imagesync), which hosts' agents and the command
// line use as well; nothing that they do needs this package. It is opened when it is first asked
// for, and asked for again after it could not be opened.
//
// An upload is a file that comes in parts, in order, and may take days: each part is on the disk
// before it is answered, so that neither end needs to begin anew after a crash. It is a file of
// this controller's, DIR/ID.part, with its request beside it; other controllers of a cluster do
// not know of it. Once it is whole it is looked at like any file that a stranger made (package
// imagesync/source), and imported, one upload at a time. A controller that was killed while it
// imported imports again: what the first attempt stored is not stored twice.
//
// Hosts are told to get a version by a push, which somebody orders, or by the topology's policies
// (policies.go): what these have hosts told is a function of a snapshot, which Distribute takes each minute and
// carries out while this controller leads. It remembers what it has told for no other reason than not to say it
// too often; a host that is told twice does nothing. Windows and rates are the hosts' own to keep to,
// so that they hold while there is no controller. Both ways tell the hosts of a site of each other in one
// order (chain.go), so that what they lack crosses the WAN once. A link that images share is divided here (divide.go), by
// parts that hosts are lent for a short time (share.go), so that its rate holds too while there is no controller.
//
// What lies in the store is read again and again, slowly, for bits that have turned (scrub.go).
package images

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"heliotrope/controller/api"
	"heliotrope/imagesync"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/imagesync/manifest"
)

// Config says where the images are.
type Config struct {
	Store string // a directory, or a bucket's URL
	Keys  string // directory of the keys that sign for stores
	Dir   string // of uploads
	// ScrubFile is where is kept how far the scrub is, and Scrub in what time all of the store is
	// read once; 0: only when somebody asks.
	ScrubFile string
	Scrub     time.Duration
	Hosts     Hosts
	Log       *slog.Logger
	// Tell records what happened to an image.
	Tell func(image, message string)
}

var _ api.Images = (*Images)(nil)

// Images is a store and its uploads. Make it with Open; Run imports.
type Images struct {
	cfg   Config
	whole chan struct{} // of size 1: an upload may be whole

	opening sync.Mutex // held while store is opened
	store   *imagesync.Store

	mu      sync.Mutex // guards uploads and what they point at
	uploads map[string]*upload

	made    chan struct{} // of size 1: there may be a new version, or another topology
	spreads distribution
	shares  sharing
	scrub   scrubbing
}

// Open takes up the uploads that there are. The caller calls Close after Run has ended.
func Open(cfg Config) (*Images, error) {
	m := &Images{cfg: cfg, whole: make(chan struct{}, 1), uploads: map[string]*upload{}, made: make(chan struct{}, 1),
		spreads: distribution{ordered: map[order]time.Time{}, ways: map[order]how{}}, shares: sharing{kick: make(chan struct{}, 1)},
		scrub: scrubbing{asked: make(chan struct{}, 1)}}
	if err := m.load(); err != nil {
		return nil, fmt.Errorf("take up uploads: %w", err)
	}
	return m, nil
}

// Look has policies and links looked at now: the topology is another.
func (m *Images) Look() {
	kicked(m.made)
	kicked(m.shares.kick)
}

// Close closes the store, if it was opened.
func (m *Images) Close() error {
	m.opening.Lock()
	defer m.opening.Unlock()
	if m.store == nil {
		return nil
	}
	return m.store.Close()
}

// open is the store. That it cannot be reached is the caller's to hear, and may pass.
func (m *Images) open(ctx context.Context) (*imagesync.Store, error) {
	m.opening.Lock()
	defer m.opening.Unlock()
	if m.store != nil {
		return m.store, nil
	}
	d, where, err := depot.Open(ctx, m.cfg.Store)
	if err != nil {
		return nil, api.Unavailable(fmt.Sprintf("the image store cannot be opened: %v", err))
	}
	s, err := imagesync.Open(ctx, where, d, imagesync.Options{Keys: keyring.Dir(m.cfg.Keys)})
	if err != nil {
		d.Close()
		return nil, api.Unavailable(fmt.Sprintf("the image store cannot be opened: %v", err))
	}
	m.store = s
	return s, nil
}

// Store is the store, for who has something else to do with it.
func (m *Images) Store(ctx context.Context) (*imagesync.Store, error) { return m.open(ctx) }

// Changed says that there may be a new version, which policies are to hear of.
func (m *Images) Changed() {
	select {
	case m.made <- struct{}{}:
	default: // Distribute looks anyway
	}
}

// Images implements api.Images, as do the methods below.
func (m *Images) Images(ctx context.Context, image string) ([]api.Image, error) {
	if image != "" {
		if err := manifest.CheckName(image); err != nil {
			return nil, api.Invalid("the image cannot be", api.FieldProblem{Pointer: "query.image", Detail: err.Error()})
		}
	}
	s, err := m.open(ctx)
	if err != nil {
		return nil, err
	}
	versions, err := s.Versions(ctx, image)
	if err != nil {
		return nil, err
	}
	var all []api.Image
	for _, v := range versions {
		i, err := seen(ctx, s, v)
		if err != nil {
			return nil, err
		}
		all = append(all, i)
	}
	return all, nil
}

// seen is a version as the API shows it.
func seen(ctx context.Context, s *imagesync.Store, v manifest.Version) (api.Image, error) {
	pinned, err := s.Pinned(ctx, v)
	if err != nil {
		return api.Image{}, err
	}
	needed, err := s.Needs(ctx, v)
	return api.Image{Image: v.Image, Version: v.Number, Root: v.Root.String(), SizeBytes: v.Size, ContentBytes: v.Content, CreatedAt: v.Created, From: v.From,
		Pinned: pinned, NeededBy: needed}, err
}

// Image is one version.
func (m *Images) Image(ctx context.Context, ref string) (api.Image, error) {
	return m.one(ctx, ref, func(*imagesync.Store, api.Image) error { return nil })
}

// one looks a version up, does something with it, and says how it is then.
func (m *Images) one(ctx context.Context, ref string, do func(*imagesync.Store, api.Image) error) (api.Image, error) {
	s, err := m.open(ctx)
	if err != nil {
		return api.Image{}, err
	}
	image, number, exact := strings.Cut(ref, "@")
	n, err := strconv.Atoi(number)
	if manifest.CheckName(image) != nil || exact && (err != nil || n < 1) {
		return api.Image{}, api.NotFound("image", ref)
	}
	v, err := s.Version(ctx, ref)
	if errors.Is(err, imagesync.ErrNotFound) {
		return api.Image{}, api.NotFound("image", ref)
	}
	if err != nil {
		return api.Image{}, err
	}
	i, err := seen(ctx, s, v)
	if err == nil {
		err = do(s, i)
	}
	return i, err
}

// RemoveImage removes a version.
func (m *Images) RemoveImage(ctx context.Context, ref string) (api.Image, error) {
	return m.one(ctx, ref, func(s *imagesync.Store, i api.Image) error {
		if i.Pinned {
			return api.Conflict(i.Ref()+" is pinned", "unpin it first")
		}
		_, err := s.Remove(ctx, i.Ref())
		if errors.Is(err, imagesync.ErrNeeded) {
			return api.Conflict(err.Error(), "")
		}
		if err == nil {
			m.cfg.Tell(i.Image, fmt.Sprintf("version %d was removed", i.Version))
		}
		return err
	})
}

// PinImage keeps a version from being removed, or ends that.
func (m *Images) PinImage(ctx context.Context, ref string, pin bool) (api.Image, error) {
	i, err := m.one(ctx, ref, func(s *imagesync.Store, i api.Image) error {
		if pin {
			return s.Pin(ctx, i.Ref())
		}
		return s.Unpin(ctx, i.Ref())
	})
	i.Pinned = pin
	return i, err
}

// Run imports what is whole, and forgets what nobody sends any more, until ctx ends.
func (m *Images) Run(ctx context.Context) error {
	again := time.NewTicker(time.Minute)
	defer again.Stop()
	for {
		for id := m.next(); id != ""; id = m.next() {
			m.importOne(ctx, id)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		m.expire(time.Now())
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.whole:
		case <-again.C:
		}
	}
}
