// Package imagesync keeps VM images: every version of every image, each different chunk
// once, in a directory or in a bucket of any cloud.
//
// Data and consistency are two things here, as in Supercloud. Data are chunks (package
// manifest), named by their content, gathered in packs that never change; wherever they lie and
// however late they come, they cannot be wrong, since whoever reads a chunk checks its name. What has
// to be agreed on is only which version of an image is the newest: a file of a few hundred
// bytes, signed, whose creation one of several writers wins. A file that is not there when it
// is made cannot be made twice, in a directory as in a bucket, so this is linearizable without
// a lock.
//
// A Writer goes from Begin to Commit: chunks to packs, packs to the depot, then the manifest,
// then the version. A crash before the last leaves packs that no version needs; GC takes them
// away. A writer has an epoch, that of its VM; one that is older than the newest version's
// is refused (ErrFenced), and so is one whose version is not the newest any more
// (ErrConflict). A reader opens the newest version and sees that until it opens anew.
//
// GC never takes what a version, a lease, a hold or a disk needs: what it finds to be needed by nobody it
// first condemns, and writers that begin later do not build upon that; it is deleted when all
// writers that began before have ended (gc.go).
//
//	heliotrope-images.json    which format, whose key
//	packs/HASH                chunks
//	manifests/ROOT/LEASE      what an image consists of, zstd
//	sketches/ROOT             digests of its blocks, for deltas; can be made again
//	images/NAME/NUMBER        a version, signed
//	retired/NAME              the highest number that was ever removed: none comes twice
//	pins/NAME/NUMBER          a version that may not be removed
//	needs/NAME/NUMBER/OWNER   a disk that stands on a version (Need)
//	leases/ID                 a writer that is at work, or a hold
//	condemned/ID              packs that nobody needs
//	.reserve                  in a directory: room for the last three when its disk is full
package imagesync

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/pack"
)

const (
	configFile = "heliotrope-images.json"
	fileLimit  = 1 << 30
)

// Options of a store.
type Options struct {
	Keys keyring.Dir  // who may sign, and whose signature counts; required
	Log  *slog.Logger // nil: nothing is logged
	Now  func() time.Time
	// There says that the store has to be there: one is not made. That is for who only uses it,
	// to whom an empty store would look like one that has lost everything.
	There bool
}

// config is the store's own file.
type config struct {
	Format int               `json:"format"`
	Key    ed25519.PublicKey `json:"public_key"`
	Quota  int64             `json:"quota_bytes,omitempty"` // of packs; 0: none
}

// Store is an image store. Its methods may be called by several goroutines.
type Store struct {
	depot  depot.Depot
	config config
	key    ed25519.PrivateKey // nil: this user may only read
	log    *slog.Logger
	now    func() time.Time

	mu      sync.RWMutex
	packs   []depot.Info
	loaded  map[string]int // packs by name; -1: damaged
	chunks  map[manifest.ID]pack.Place
	damaged []error
}

// Open opens the store in a depot. One that is empty becomes a store whose key is made now.
func Open(ctx context.Context, where string, d depot.Depot, o Options) (*Store, error) {
	s := &Store{depot: d, log: o.Log, now: o.Now, loaded: map[string]int{}, chunks: map[manifest.ID]pack.Place{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	b, err := d.Get(ctx, configFile, 1<<16)
	ours := false
	switch {
	case errors.Is(err, fs.ErrNotExist) && o.There:
		err = fmt.Errorf("there is no image store at %s: %s is missing; \"heliotrope image import\" makes one", where, configFile)
	case errors.Is(err, fs.ErrNotExist):
		b, ours, err = s.create(ctx, where, o.Keys)
	}
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if err := json.Unmarshal(b, &s.config); err != nil || s.config.Format != 1 || len(s.config.Key) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("open image store: %s has a format that this program does not know (%w)", configFile, errors.Join(err, ErrDamaged))
	}
	if err := o.Keys.Trust(where, s.config.Key, ours); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if s.key, err = o.Keys.Private(s.config.Key); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s.reserve()
	return s, s.Refresh(ctx)
}

// reserve keeps room for what has to be written to a full disk: to read, to remove, and to free.
func (s *Store) reserve() {
	if dir, ok := s.depot.(*depot.Dir); ok {
		dir.Reserve(leaseDir, condemnedDir, retiredDir)
	}
}

// create makes the store's own file; ours says whether it was this call that did.
func (s *Store) create(ctx context.Context, where string, keys keyring.Dir) (content []byte, ours bool, err error) {
	for info, err := range s.depot.List(ctx, imageDir) {
		if err != nil {
			return nil, false, err
		}
		return nil, false, fmt.Errorf("%s is missing and %s is there: this was an image store; bring the file back", configFile, info.Name)
	}
	if dir, ok := s.depot.(*depot.Dir); ok { // a bucket may have other things in it as well
		others, err := dir.Strangers()
		if err != nil {
			return nil, false, err
		}
		if len(others) > 0 {
			if b, err := s.depot.Get(ctx, configFile, 1<<16); err == nil { // somebody else was faster
				return b, false, nil
			}
			return nil, false, fmt.Errorf("%s is no image store, and other things are in it (%s): name a directory that is empty or not there",
				where, strings.Join(others, ", "))
		}
	}
	key, err := keys.Generate()
	if err != nil {
		return nil, false, err
	}
	content, err = json.MarshalIndent(config{Format: 1, Key: key}, "", "  ")
	if err != nil {
		return nil, false, err
	}
	err = s.depot.Create(ctx, configFile, append(content, '\n'))
	if errors.Is(err, fs.ErrExist) { // somebody else was faster
		content, err = s.depot.Get(ctx, configFile, 1<<16)
		return content, false, err
	}
	return content, true, err
}

// Close closes the depot.
func (s *Store) Close() error { return s.depot.Close() }

// SetQuota bounds the bytes that the store's packs may have; 0 ends that.
func (s *Store) SetQuota(ctx context.Context, bytes int64) error {
	if bytes < 0 {
		return fmt.Errorf("set quota: %d bytes cannot be", bytes)
	}
	c := s.config
	c.Quota = bytes
	b, err := json.MarshalIndent(c, "", "  ")
	if err == nil {
		err = s.depot.Put(ctx, configFile, strings.NewReader(string(b)+"\n"))
	}
	if err != nil {
		return fmt.Errorf("set quota: %w", err)
	}
	s.config = c
	return nil
}

// Quota is what SetQuota set.
func (s *Store) Quota() int64 { return s.config.Quota }

// Refresh learns of packs that others made, or took away. A damaged one is left out:
// Damaged tells of it, and what is in it counts as missing.
func (s *Store) Refresh(ctx context.Context) error {
	there := map[string]depot.Info{}
	for info, err := range s.depot.List(ctx, pack.Dir) {
		if err != nil {
			return fmt.Errorf("read image store: %w", err)
		}
		there[info.Name] = info
	}
	condemned, err := s.condemned(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := slices.ContainsFunc(slices.Collect(maps.Keys(s.loaded)), func(name string) bool {
		_, ok := there[name]
		return !ok || condemned[name]
	})
	if gone { // what was in them may be elsewhere too: begin anew
		s.packs, s.damaged = nil, nil
		clear(s.loaded)
		clear(s.chunks)
	}
	// A condemned pack serves readers that still need it, and no writer: it comes last, so that
	// a chunk that is elsewhere too is found there.
	for _, last := range []bool{false, true} {
		for _, name := range slices.Sorted(maps.Keys(there)) {
			if condemned[name] == last {
				if err := s.load(ctx, there[name]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// load takes a pack's chunks in. The lock is held.
func (s *Store) load(ctx context.Context, info depot.Info) error {
	if _, ok := s.loaded[info.Name]; ok {
		return nil
	}
	ids, where, err := pack.ReadIndex(ctx, s.depot, info)
	switch {
	case errors.Is(err, ErrDamaged):
		s.loaded[info.Name] = -1
		s.damaged = append(s.damaged, err)
		s.log.Error("a pack of the image store is left out", "error", err)
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return nil // deleted since it was listed
	case err != nil:
		return fmt.Errorf("read image store: %w", err)
	}
	s.admit(info, ids, where)
	return nil
}

// admit adds a pack. The lock is held.
func (s *Store) admit(info depot.Info, ids []manifest.ID, where []pack.Place) {
	n := len(s.packs)
	s.packs = append(s.packs, info)
	s.loaded[info.Name] = n
	for i, id := range ids {
		if _, ok := s.chunks[id]; !ok {
			where[i].Pack = int32(n)
			s.chunks[id] = where[i]
		}
	}
}

// Damaged are packs that could not be read when they were found.
func (s *Store) Damaged() []error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.damaged)
}

// find is where a chunk is.
func (s *Store) find(id manifest.ID) (name string, at pack.Place, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if at, ok = s.chunks[id]; ok {
		name = s.packs[at.Pack].Name
	}
	return name, at, ok
}

// ErrDamaged is that of bytes in the store that are not what was written.
var ErrDamaged = pack.ErrDamaged

// ErrMissing is that of a chunk which a version needs and the store does not have.
var ErrMissing = errors.New("missing in the store")

// ReadChunk reads a chunk into dst, which has ChunkSize bytes, and checks it.
func (s *Store) ReadChunk(ctx context.Context, id manifest.ID, dst []byte) error {
	if id.IsZero() {
		clear(dst)
		return nil
	}
	for again := false; ; again = true {
		name, at, ok := s.find(id)
		if ok {
			stored := make([]byte, at.Len())
			err := s.depot.ReadAt(ctx, name, stored, int64(at.Off))
			if err == nil {
				if err = pack.Expand(id, stored, at, dst); err != nil {
					return fmt.Errorf("read %s: %w", name, err)
				}
				return nil
			}
			if again || !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("read chunk %.16s: %w", id, err)
			}
		} else if again {
			return fmt.Errorf("read chunk %.16s: %w", id, ErrMissing)
		}
		// Somebody else may have made it, or moved it to another pack.
		if err := s.Refresh(ctx); err != nil {
			return err
		}
	}
}

// Manifest reads the manifest with a root, and checks that it is the one.
func (s *Store) Manifest(ctx context.Context, root manifest.ID) (*manifest.Manifest, error) {
	wrong := ErrMissing
	for info, err := range s.depot.List(ctx, manifestDir+"/"+root.String()) {
		if err != nil {
			return nil, fmt.Errorf("read manifest: %w", err)
		}
		b, err := s.getCompressed(ctx, info.Name)
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read manifest: %w", err)
		}
		if m, err := manifest.Decode(b); err == nil && m.Root() == root {
			return m, nil
		}
		wrong = ErrDamaged
	}
	return nil, fmt.Errorf("read manifest %.16s: %w", root, wrong)
}
