package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"heliotrope/imagesync/volume/bitmap"
	"heliotrope/imagesync/volume/disk"
	"heliotrope/imagesync/volume/present"
)

// Base is an image that volumes stand on, wherever it is. Chunk i is the ChunkSize bytes at
// i*ChunkSize; the last one is as if zeros followed the image.
type Base interface {
	// Size is in bytes.
	Size() int64
	// Zero says whether a chunk is known to be zeros, and need not be fetched.
	Zero(i int) bool
	// Fetch fills dst, of ChunkSize bytes, with a chunk whose content has been checked. It may
	// take as long as a way around the world, and is called by several goroutines.
	Fetch(ctx context.Context, i int, dst []byte) error
}

type backgroundKey struct{}

func withBackground(ctx context.Context) context.Context {
	return context.WithValue(ctx, backgroundKey{}, true)
}

// IsBackground says of the context of a fetch whether nobody waited for it when it began. A
// Base whose line is shared lets the others go before.
func IsBackground(ctx context.Context) bool { return ctx.Value(backgroundKey{}) != nil }

// ManyFetcher is a Base that fetches neighbours together for less.
type ManyFetcher interface {
	// FetchMany fills dst with the chunks from first on, as many as it has room for.
	FetchMany(ctx context.Context, first int, dst []byte) error
}

// CacheOptions say how a cache is used.
type CacheOptions struct {
	// Identity names the base, at most 256 bytes: the root of its manifest. A cache and a volume
	// of another base are refused.
	Identity string
	// Limit is asked before each background fetch of so many bytes, and returns when it may
	// begin. nil: at once.
	Limit func(ctx context.Context, bytes int) error
	// Workers is how many background fetches are under way at once; 0 for 4.
	Workers int
}

// ChunksFile is the name of a cache's file of chunks, each at its place; package present has the other.
const ChunksFile = "chunks"

// Cache has what has come of a base to this host, for all volumes that stand on it: a sparse
// file, and a bitmap of the chunks that are in it. A chunk is in the bitmap on the disk only
// after its bytes were synced, so a crash forgets chunks at worst. What was checked when it came
// is not checked again. Its methods may be called from several goroutines.
type Cache struct {
	dir      disk.Directory
	lock     io.Closer
	base     Base
	size     int64
	identity string
	o        CacheOptions
	chunks   disk.File

	ctx    context.Context // ends with the cache
	cancel context.CancelFunc
	wg     sync.WaitGroup // demand fetches

	// content is held for reading by who uses chunks, for writing by Drop.
	content sync.RWMutex

	syncing sync.Mutex // guards present and durable; before mu
	present disk.File
	durable bitmap.Set // chunks that the bitmap on the disk has

	mu       sync.Mutex // guards what follows; nobody does I/O with it
	here     bitmap.Set // chunks that can be read
	unsynced bitmap.Set // of these, those that a crash would forget
	flights  map[int64]*flight
	streams  []stream      // the last one read on last
	demand   int           // demand fetches under way
	quiet    chan struct{} // closed when demand is 0 again; nil while it is
	closed   bool
	stats    CacheStats
}

// CacheStats count since the cache was opened.
type CacheStats struct {
	Demand     int64 // chunks fetched because somebody waited
	Background int64 // chunks fetched by Fill, or ahead of a reader
	Hits       int64 // reads, each of a part of a chunk, that were answered by what was here
}

// OpenCache opens the cache of a base, or makes it. One process at a time has it open.
func OpenCache(name string, base Base, o CacheOptions) (*Cache, error) {
	if err := os.MkdirAll(name, 0o700); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	c, err := openCache(disk.OSDirectory(name), base, o)
	if err != nil {
		return nil, fmt.Errorf("open cache %s: %w", name, err)
	}
	return c, nil
}

func openCache(d disk.Directory, base Base, o CacheOptions) (*Cache, error) {
	size := base.Size()
	if size <= 0 || size > MaxSize {
		return nil, fmt.Errorf("a base of %d bytes; it has between 1 and %d", size, int64(MaxSize))
	}
	if len(o.Identity) > identityLimit {
		return nil, fmt.Errorf("a base's name of %d bytes; %d is the limit", len(o.Identity), identityLimit)
	}
	lock, err := d.Lock(lockFile, false)
	if err != nil {
		return nil, err
	}
	c := &Cache{dir: d, lock: lock, base: base, size: size, identity: o.Identity, o: o, flights: make(map[int64]*flight)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if err := c.load(); err != nil {
		c.closeFiles()
		return nil, err
	}
	return c, nil
}

// load opens the files, and makes them if there are none.
func (c *Cache) load() (err error) {
	c.chunks, err = c.dir.Open(ChunksFile)
	if errors.Is(err, os.ErrNotExist) {
		// A bitmap without chunks cannot be: the chunks are made first.
		if c.chunks, err = c.dir.Create(ChunksFile); err == nil {
			if err = c.dir.Sync(); err == nil {
				err = c.dir.Remove(present.File)
			}
		}
	}
	if err != nil {
		return err
	}
	if err := c.chunks.Truncate(c.count() * ChunkSize); err != nil {
		return err
	}
	c.present, err = c.dir.Open(present.File)
	if errors.Is(err, os.ErrNotExist) {
		c.present, err = c.bitmap().Create(c.dir)
	}
	if err != nil {
		return err
	}
	return c.readPresent()
}

// count is how many chunks the base has.
func (c *Cache) count() int64 { return (c.size + ChunkSize - 1) / ChunkSize }

// zero says whether a chunk is zeros, and not in the cache. What is behind the base is.
func (c *Cache) zero(i int64) bool { return i >= c.count() || c.base.Zero(int(i)) }

// bitmap says whose the bitmap's file is.
func (c *Cache) bitmap() present.Of {
	return present.Of{Size: c.size, Chunks: c.count(), Identity: c.identity}
}

// readPresent reads the bitmap.
func (c *Cache) readPresent() error {
	size, err := c.present.Size()
	if err == nil {
		c.here, err = c.bitmap().Read(c.present, size)
	}
	c.durable = c.here.Clone()
	return err
}

// Sync makes the cache remember what it has, whatever happens.
func (c *Cache) Sync() error {
	c.syncing.Lock()
	defer c.syncing.Unlock()
	return c.sync()
}

func (c *Cache) sync() error {
	c.mu.Lock()
	taken := c.unsynced
	c.unsynced = bitmap.Set{}
	c.mu.Unlock()
	if !taken.Any(0, c.count()) {
		return nil
	}
	if err := c.chunks.Datasync(); err != nil {
		// What was not synced is lost, or not; nobody may read it.
		c.mu.Lock()
		defer c.mu.Unlock()
		c.here.Subtract(&taken)
		return fmt.Errorf("sync cache: %w", err)
	}
	c.durable.Union(&taken)
	err := c.bitmap().Write(c.present, &c.durable, &taken)
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.unsynced.Union(&taken)
		return fmt.Errorf("sync cache: %w", err)
	}
	return nil
}

// Drop forgets everything, and gives the space back. Volumes go on; what they need comes again.
func (c *Cache) Drop() error {
	c.syncing.Lock()
	defer c.syncing.Unlock()
	c.content.Lock()
	defer c.content.Unlock()
	c.durable = bitmap.Set{}
	c.mu.Lock()
	c.here, c.unsynced = bitmap.Set{}, bitmap.Set{}
	c.mu.Unlock()
	// The bitmap goes first, for good; there may be no room for a new one before the chunks
	// have gone.
	err := c.dir.Remove(present.File)
	if err == nil {
		err = c.dir.Sync()
	}
	if err == nil {
		err = c.chunks.Truncate(0)
	}
	if err == nil {
		err = c.chunks.Truncate(c.count() * ChunkSize)
	}
	if err != nil {
		return fmt.Errorf("drop cache: %w", err)
	}
	fresh, err := c.bitmap().Create(c.dir)
	if err != nil {
		return fmt.Errorf("drop cache: %w", err)
	}
	c.present, fresh = fresh, c.present
	return fresh.Close()
}

// Close ends fetches that are under way, and syncs. Volumes on the cache must be closed before.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
	return errors.Join(c.Sync(), c.closeFiles())
}

func (c *Cache) closeFiles() error {
	c.cancel()
	var errs []error
	if c.chunks != nil {
		errs = append(errs, c.chunks.Close())
	}
	if c.present != nil {
		errs = append(errs, c.present.Close())
	}
	return errors.Join(append(errs, c.lock.Close())...)
}

// Size is the base's, in bytes.
func (c *Cache) Size() int64 { return c.size }

// Used is how many bytes the cache takes of the disk.
func (c *Cache) Used() (int64, error) { return c.dir.Used() }

// Here are the chunks that are here.
func (c *Cache) Here() bitmap.Set {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.here.Clone()
}

// Present is how many chunks are here.
func (c *Cache) Present() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int(c.here.Count())
}

// Stats count.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}
