package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"heliotrope/imagesync"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/spread"
	"heliotrope/imagesync/volume"
)

const (
	versionName  = "version.json"
	manifestName = manifest.File
)

// How long somebody who waits for a part of an image does, while the store cannot be reached,
// and how often it is asked meanwhile. A guest whose disk hangs goes on when the network does; one
// whose disk has failed does not.
const (
	patience = 10 * time.Minute
	askAgain = time.Second
)

// Counters count what came of images since the process began.
type Counters struct {
	Bytes  atomic.Int64 // of content that came from stores
	Near   atomic.Int64 // of content that other versions had
	Hosts  atomic.Int64 // of content that other hosts passed on
	Failed atomic.Int64 // chunks that were asked for and did not come
}

// Source is where the versions come from that a directory of volumes stands on.
type Source struct {
	// Dial opens the store. It is called when something of it is needed and there is none yet.
	Dial     func(ctx context.Context) (*imagesync.Store, error)
	Counters Counters

	near near

	mu     sync.Mutex
	store  *imagesync.Store
	failed error
	when   time.Time // of failed
}

// Store is the store, which is opened by the first who needs it. After an attempt that failed
// the next one is made a second later at the earliest.
func (s *Source) Store(ctx context.Context) (*imagesync.Store, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.store != nil {
		return s.store, nil
	}
	if s.failed != nil && time.Since(s.when) < askAgain {
		return nil, s.failed
	}
	store, err := s.Dial(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.failed, s.when = err, time.Now()
		}
		return nil, err
	}
	s.store, s.failed = store, nil
	return store, nil
}

// Close closes the store.
func (s *Source) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.store == nil {
		return nil
	}
	err := s.store.Close()
	s.store = nil
	return err
}

// Base is a version as volumes in dir stand on it. What it consists of is kept there: once it is,
// the store is needed only for what has not come.
func (s *Source) Base(ctx context.Context, dir string, v manifest.Version) (volume.Base, error) {
	at := cacheDir(dir, v.Root)
	m, err := readManifest(at, v.Root)
	if err != nil { // it is not there, or worth nothing
		m, err = s.fetchManifest(ctx, at, v)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", v.Ref(), err)
	}
	return &storeBase{Manifest: m, source: s, ref: v.Ref()}, nil
}

func readManifest(dir string, root manifest.ID) (*manifest.Manifest, error) {
	b, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		return nil, err
	}
	m, err := manifest.Decode(b)
	if err == nil && m.Root() != root {
		err = fmt.Errorf("read manifest %.16s: it is that of another version", root)
	}
	return m, err
}

func (s *Source) fetchManifest(ctx context.Context, dir string, v manifest.Version) (*manifest.Manifest, error) {
	store, err := s.Store(ctx)
	if err != nil {
		return nil, err
	}
	m, err := store.Manifest(ctx, v.Root)
	if err != nil {
		return nil, err
	}
	// The manifest comes last: where it is, all is.
	if err := writeJSON(filepath.Join(dir, versionName), v); err != nil {
		return nil, err
	}
	return m, writeFile(filepath.Join(dir, manifestName), m.Encode())
}

// storeBase is a version of a store that need not be there.
type storeBase struct {
	*manifest.Manifest
	source *Source
	ref    string
	limit  *spread.Limit // of what nobody waits for and comes from the store; nil: none
}

// Zero implements volume.Base, as does Fetch.
func (b *storeBase) Zero(i int) bool { return b.At(i).IsZero() }

func (b *storeBase) Fetch(ctx context.Context, i int, dst []byte) error {
	if b.source.near.take(b.Manifest, i, dst) {
		b.source.Counters.Near.Add(int64(len(dst)))
		if ctx.Value(limitedKey{}) != nil {
			b.limit.Return(len(dst))
		}
		return nil
	}
	began := time.Now()
	for {
		err := b.fetch(ctx, i, dst)
		if err == nil {
			b.source.Counters.Bytes.Add(int64(len(dst)))
			return nil
		}
		hopeless := errors.Is(err, imagesync.ErrMissing) || errors.Is(err, imagesync.ErrDamaged)
		if hopeless || volume.IsBackground(ctx) || time.Since(began) > patience || !sleep(ctx, askAgain) {
			b.source.Counters.Failed.Add(1)
			return fmt.Errorf("%s: %w", b.ref, err)
		}
	}
}

func (b *storeBase) fetch(ctx context.Context, i int, dst []byte) error {
	store, err := b.source.Store(ctx)
	if err != nil {
		return err
	}
	return store.ReadChunk(ctx, b.At(i), dst)
}
