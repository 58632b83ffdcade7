package images

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/site"
	"heliotrope/imagesync/volume"
)

// A version that was pulled is there before a disk needs it, and goes first when room is short.
func TestPull(t *testing.T) {
	h := newHost(t)
	content := h.image("debian", 1, 4)
	c, stop := h.serve()
	if _, err := c.pull(t.Context(), "nix", pulling{}); !errors.Is(err, ErrNoImage) {
		t.Errorf("an image that is not there: %v", err)
	}
	got, err := c.pull(t.Context(), "debian", pulling{})
	if err != nil || got.Image != "debian@1" || got.Bytes == 0 {
		t.Fatalf("got %+v, %v", got, err)
	}
	here := func() agentapi.ImageCache {
		for {
			s, err := c.status(t.Context())
			h.must(err)
			if len(s.Caches) == 1 && s.Caches[0].Here == s.Caches[0].Bytes {
				return s.Caches[0]
			}
			pause(t.Context(), time.Millisecond)
		}
	}
	if got := here(); got.Volumes != 0 || got.Image != "debian@1" {
		t.Errorf("got %+v", got)
	}
	h.put(c, "web", wanted{Image: "debian"})
	h.must(c.remove(t.Context(), "web"))
	if got := here(); got.Volumes != 0 { // it stays open though its last disk has gone
		t.Errorf("got %+v", got)
	}
	h.put(c, "web", wanted{Image: "debian"})
	h.must(os.Rename(h.c.Store, h.c.Store+".away"))
	if !bytes.Equal(h.read("web", 0, len(content)), content) {
		t.Error("what was pulled is not what the image is")
	}
	h.must(os.Rename(h.c.Store+".away", h.c.Store))
	stop()

	h.c.Cache = 1 << 20
	s := &server{c: h.c, log: h.c.Log, source: &site.Source{Dial: h.c.dial}, sites: map[manifest.ID]*opened{}, disks: map[string]*served{}, dropped: map[manifest.ID]agentapi.ImageCache{}, budget: budget{dir: h.c.Dir, limit: 1 << 20}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.background = ctx
	if _, err := s.pull(ctx, "debian", pulling{}); err != nil {
		t.Fatal(err)
	}
	h.must(s.evict(map[manifest.ID]volume.CacheStats{}))
	if left, err := listCaches(h.c.Dir); err != nil || len(left) != 0 || len(s.sites) != 0 {
		t.Errorf("%v stay, %d are open, %v", left, len(s.sites), err)
	}
	cancel()
	h.must(s.close())
}

// What was to come comes though the server of disks has ended meanwhile.
func TestPullGoesOn(t *testing.T) {
	h := newHost(t)
	content := h.image("debian", 1, 8)
	c, stop := h.serve()
	if _, err := c.pull(t.Context(), "debian", pulling{}); err != nil {
		t.Fatal(err)
	}
	stop()
	c, _ = h.serve()
	for {
		s, err := c.status(t.Context())
		h.must(err)
		if len(s.Caches) != 1 || s.Caches[0].Image != "debian@1" {
			t.Fatalf("the next server has %+v", s.Caches)
		}
		if s.Caches[0].Here == s.Caches[0].Bytes {
			break
		}
		pause(t.Context(), time.Millisecond)
	}
	h.put(c, "web", wanted{Image: "debian"})
	if !bytes.Equal(h.read("web", 0, len(content)), content) {
		t.Error("the disk is not what the image is")
	}
}

// What is to come in a window does not before, unless a disk needs it.
func TestPullInWindow(t *testing.T) {
	h := newHost(t)
	content := h.image("debian", 1, 4)
	h.image("other", 2, 1)
	c, stop := h.serve()
	now := time.Now().UTC()
	later := heliotrope.DayTime((now.Hour()*60 + now.Minute() + 120) % 1440)
	closed := pulling{Pull: site.Pull{Windows: []heliotrope.Hours{{From: later, To: later + 1}}}}
	_, err := c.pull(t.Context(), "debian", closed)
	h.must(err)
	for _, again := range []bool{false, true} {
		if again { // the next server knows of it
			stop()
			c, _ = h.serve()
		}
		_, err := c.pull(t.Context(), "other", pulling{})
		h.must(err)
		for {
			s, err := c.status(t.Context())
			h.must(err)
			if len(s.Caches) != 2 || s.Caches[0].Image != "debian@1" || s.Caches[0].Here != 0 {
				t.Fatalf("again %v: got %+v", again, s.Caches)
			}
			if s.Caches[1].Here == s.Caches[1].Bytes { // it had the time that another one took
				break
			}
			pause(t.Context(), time.Millisecond)
		}
	}
	h.put(c, "web", wanted{Image: "debian"})
	if !bytes.Equal(h.read("web", 0, len(content)), content) {
		t.Error("the disk is not what the image is")
	}
}

// A host that has no room for a version says so, until there is.
func TestPullWithoutRoom(t *testing.T) {
	h := newHost(t)
	content := h.image("debian", 1, 4)
	h.image("other", 2, 1)
	h.c.Cache = 3 << 20
	c, stop := h.serve()
	h.put(c, "web", wanted{Image: "debian"})
	h.read("web", 0, len(content))
	s, err := c.status(t.Context()) // it has looked at what is here
	h.must(err)
	_, err = c.pull(t.Context(), "other", pulling{})
	h.must(err)
	s, err = c.status(t.Context())
	h.must(err)
	if len(s.Caches) != 2 || !s.Caches[1].Full || !strings.Contains(s.Caches[1].Note, "--image-cache") || s.Caches[0].Full {
		t.Errorf("got %+v", s.Caches)
	}
	h.must(c.remove(t.Context(), "web"))
	stop() // the next server looks at once
	c, _ = h.serve()
	for {
		s, err := c.status(t.Context())
		h.must(err)
		if o := s.Caches[len(s.Caches)-1]; o.Image == "other@1" && o.Here == o.Bytes && !o.Full && o.Note == "" {
			break
		}
		pause(t.Context(), 10*time.Millisecond)
	}
}

// Of a new version only what no other one here has at the same place comes from the store.
func TestNewVersionTakesWhatIsHere(t *testing.T) {
	h := newHost(t)
	content := h.image("debian", 1, 4)
	c, stop := h.serve()
	pull := func() agentapi.ImageStatus {
		t.Helper()
		got, err := c.pull(t.Context(), "debian", pulling{})
		h.must(err)
		for {
			s, err := c.status(t.Context())
			h.must(err)
			for _, cache := range s.Caches {
				if cache.Image == got.Image && cache.Here == cache.Bytes {
					return s
				}
			}
			pause(t.Context(), time.Millisecond)
		}
	}
	first := pull()
	stop() // the next server finds it on the disk

	next := bytes.Clone(content)
	next[100]++
	next[2<<20]++
	h.content = next
	h.image("debian", 0, 0)
	c, _ = h.serve()
	s := pull()
	if chunks := int64(len(content)+volume.ChunkSize-1) / volume.ChunkSize; s.Fetched != 2*volume.ChunkSize || s.Near != (chunks-2)*volume.ChunkSize {
		t.Errorf("%d bytes came from the store, %d from the version before; all of that were %d", s.Fetched, s.Near, first.Fetched)
	}
	h.put(c, "web", wanted{Image: "debian"})
	if !bytes.Equal(h.read("web", 0, len(next)), next) {
		t.Error("the disk is not what the image is")
	}

	// What the disk has changed there is not passed on.
	flipped, err := filepath.Glob(filepath.Join(h.c.Dir, "caches", "*", "chunks"))
	h.must(err)
	for _, name := range flipped {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		h.must(err)
		_, err = f.WriteAt([]byte("flipped"), 1<<20)
		h.must(errors.Join(err, f.Close()))
	}
	next[3<<20]++
	h.image("debian", 0, 0)
	if now := pull(); now.Fetched-s.Fetched != 2*volume.ChunkSize {
		t.Errorf("%d bytes came from the store for a chunk that is new and one that is damaged", now.Fetched-s.Fetched)
	}
	h.put(c, "db", wanted{Image: "debian"})
	if !bytes.Equal(h.read("db", 0, len(next)), next) {
		t.Error("the disk has what the other version's had become")
	}
}
