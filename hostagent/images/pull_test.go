package images

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"time"

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
	if _, err := c.pull(t.Context(), "nix"); !errors.Is(err, ErrNoImage) {
		t.Errorf("an image that is not there: %v", err)
	}
	got, err := c.pull(t.Context(), "debian")
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
	s := &server{c: h.c, log: h.c.Log, source: &site.Source{Dial: h.c.dial}, sites: map[manifest.ID]*opened{}, disks: map[string]*served{}, budget: budget{dir: h.c.Dir, limit: 1 << 20}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.background = ctx
	if _, err := s.pull(ctx, "debian"); err != nil {
		t.Fatal(err)
	}
	h.must(s.evict(map[manifest.ID]volume.CacheStats{}))
	if left, err := listCaches(h.c.Dir); err != nil || len(left) != 0 || len(s.sites) != 0 {
		t.Errorf("%v stay, %d are open, %v", left, len(s.sites), err)
	}
	cancel()
	h.must(s.close())
}
