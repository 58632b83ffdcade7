package site

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/imagesync"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/imagesync/spread"
	"heliotrope/imagesync/storetest"
	"heliotrope/imagesync/volume"
)

// along is a host that passes a version on.
type along struct {
	id     heliotrope.HostID
	source *Source
	site   *Site
	node   *spread.Node
	ctx    context.Context
	end    context.CancelFunc
	wg     sync.WaitGroup
}

// fleet are hosts that reach each other, with one store.
type fleet struct {
	*testing.T
	dir     string
	silence time.Duration
	rate    int64      // of what comes from the store
	mu      sync.Mutex // guards hosts and their ends
	hosts   map[heliotrope.HostID]*along
}

func newFleet(t *testing.T, content []byte, silence time.Duration) *fleet {
	f := &fleet{T: t, dir: t.TempDir(), silence: silence, hosts: map[heliotrope.HostID]*along{}}
	storetest.Import(t, filepath.Join(f.dir, "store"), filepath.Join(f.dir, "keys"), "debian", content)
	return f
}

func (f *fleet) store(ctx context.Context) (*imagesync.Store, error) {
	d, err := depot.OpenDir(filepath.Join(f.dir, "store"))
	if err != nil {
		return nil, err
	}
	return imagesync.Open(ctx, "store", d, imagesync.Options{Keys: keyring.Dir(filepath.Join(f.dir, "keys"))})
}

// dial reaches the host that has the name, if it lives.
func (f *fleet) dial(_ context.Context, to heliotrope.HostID) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[to]
	if h == nil || h.ctx.Err() != nil {
		return nil, fmt.Errorf("%s is not there", to)
	}
	near, far := net.Pipe()
	h.wg.Go(func() { _ = h.node.Serve(h.ctx, far, nil) })
	return near, nil
}

// start has a host take part, after those before it.
func (f *fleet) start(id heliotrope.HostID, room func() bool, before ...heliotrope.HostID) *along {
	f.Helper()
	h := &along{id: id, source: &Source{Dial: f.store}, node: spread.NewNode(spread.Config{Dial: f.dial, Silence: f.silence})}
	h.ctx, h.end = context.WithCancel(context.WithoutCancel(f.Context()))
	store, err := h.source.Store(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	v, err := store.Version(f.Context(), "debian")
	if err != nil {
		f.Fatal(err)
	}
	dir := filepath.Join(f.dir, string(id))
	base, err := h.source.Base(f.Context(), dir, v)
	if err != nil {
		f.Fatal(err)
	}
	if h.site, err = Open(dir, v, base, Options{Room: room, Rate: f.rate, Log: slog.New(slog.NewTextHandler(f.Output(), nil)).With("host", id)}); err != nil {
		f.Fatal(err)
	}
	f.mu.Lock()
	f.hosts[id] = h
	f.mu.Unlock()
	var feeders []spread.Feeder
	for _, b := range before {
		feeders = append(feeders, spread.Feeder{Host: b})
	}
	h.wg.Go(func() {
		if err := h.site.Along(h.ctx, h.node, feeders); !errors.Is(err, context.Canceled) {
			f.Errorf("%s: %v", id, err)
		}
	})
	f.Cleanup(func() {
		f.kill(h)
		h.wg.Wait()
		if err := errors.Join(h.site.Close(), h.source.Close()); err != nil {
			f.Error(err)
		}
	})
	return h
}

// kill ends what a host does for others and for itself.
func (f *fleet) kill(h *along) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h.end()
}

// whole waits until a host has everything, and holds it against the image.
func (f *fleet) whole(h *along, content []byte) {
	f.Helper()
	p := make([]byte, len(content))
	for !h.site.Cache().ReadNow(p, 0) {
		if !sleep(f.Context(), 5*time.Millisecond) {
			f.Fatalf("%s has %d chunks", h.id, h.site.Present())
		}
	}
	if !bytes.Equal(p, content) {
		f.Errorf("%s has something else", h.id)
	}
}

func image(chunks int) []byte {
	content := make([]byte, (chunks+2)*volume.ChunkSize+4096)
	rand.NewChaCha8([32]byte{9}).Read(content)
	clear(content[3*volume.ChunkSize:][:2*volume.ChunkSize]) // these are nowhere
	return content
}

// A version comes from the store to one host of the chain, and from there to all others.
func TestAlong(t *testing.T) {
	content := image(100)
	f := newFleet(t, content, time.Minute)
	first := f.start("a", nil)
	second := f.start("b", nil, "a")
	third := f.start("c", nil, "b", "a")
	for _, h := range []*along{first, second, third} {
		f.whole(h, content)
	}
	const all = 101 * volume.ChunkSize // the last one is a part of one
	for _, h := range []struct {
		*along
		store, hosts int64
	}{{first, all, 0}, {second, 0, all}, {third, 0, all}} {
		if c := &h.source.Counters; c.Bytes.Load() != h.store || c.Hosts.Load() != h.hosts {
			t.Errorf("%s has %d bytes from the store, %d from hosts; want %d and %d", h.id, c.Bytes.Load(), c.Hosts.Load(), h.store, h.hosts)
		}
	}
	late := f.start("d", nil, "c", "b", "a")
	f.whole(late, content)
	if n := late.source.Counters.Bytes.Load(); n != 0 {
		t.Errorf("who came later has %d bytes from the store", n)
	}
}

// The host in the middle dies, or the first one too, when something has come: the rest is passed on all the same,
// and comes from the store once more only if nobody before is left.
func TestAlongWhoDies(t *testing.T) {
	const all = 601 * volume.ChunkSize
	for _, both := range []bool{false, true} {
		content := image(600)
		f := newFleet(t, content, 2*time.Second)
		f.rate = 16 << 20 // so that it takes longer than a death
		first, second, third := f.start("a", nil), f.start("b", nil, "a"), f.start("c", nil, "b", "a")
		for third.site.Present() == 0 {
			if !sleep(t.Context(), time.Millisecond) {
				t.Fatal("nothing comes")
			}
		}
		f.kill(second)
		if both {
			f.kill(first)
		}
		f.whole(third, content)
		hosts, store := third.source.Counters.Hosts.Load(), third.source.Counters.Bytes.Load()
		if both && (hosts == 0 || store == 0 || store == all) || !both && (hosts != all || store != 0) {
			t.Errorf("the first host dies %v: %d bytes are from hosts, %d from the store", both, hosts, store)
		}
	}
}

// Who has no room takes nothing, neither from hosts nor from the store.
func TestAlongWithoutRoom(t *testing.T) {
	content := image(20)
	f := newFleet(t, content, 500*time.Millisecond)
	first := f.start("a", nil)
	full := f.start("b", func() bool { return false }, "a")
	behind := f.start("c", nil, "b", "a")
	f.whole(first, content)
	f.whole(behind, content)
	if n := full.site.Present(); n != 0 {
		t.Errorf("%d chunks came", n)
	}
}
