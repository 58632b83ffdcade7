package images

import (
	"bytes"
	"context"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/imagesync/site"
)

// give gives the image a part and returns what the host has of it.
func (h *host) give(c *client, ref string, p agentapi.ImagePart) agentapi.ImageCache {
	h.Helper()
	got, err := c.pull(h.Context(), ref, pulling{Part: &p})
	h.must(err)
	return got
}

// until asks for the image's state until it is as wanted.
func (h *host) until(c *client, what string, ok func(agentapi.ImageCache) bool) agentapi.ImageCache {
	h.Helper()
	for {
		s, err := c.status(h.Context())
		h.must(err)
		for _, cache := range s.Caches {
			if ok(cache) {
				return cache
			}
		}
		if pause(h.Context(), time.Millisecond); h.Context().Err() != nil {
			h.Fatalf("%s: it is %+v", what, s.Caches)
		}
	}
}

// What shares a link waits for its part, comes by it, and waits again when it is not given anew: with no error, and
// also in the next server of disks.
func TestPart(t *testing.T) {
	h := newHost(t)
	content := h.image("debian", 1, 8)
	c, stop := h.serve()
	order := pulling{Pull: site.Pull{Shared: true, Priority: heliotrope.ImageHigh, Rate: 1e9}}
	_, err := c.pull(t.Context(), "debian", order)
	h.must(err)
	waits := func(c agentapi.ImageCache) bool { return c.Pushed && c.Shared && c.Wants && c.Waits && c.Note != "" }
	first := h.until(c, "it waits", waits)
	if first.Here != 0 || first.Priority != heliotrope.ImageHigh || first.Rate != 1e9 || first.Part != 0 {
		t.Errorf("before it has a part it is %+v", first)
	}
	const slow = 8 << 20 // bit/s: a MiB a second
	if got := h.give(c, "debian@1", agentapi.ImagePart{Shared: true, Rate: slow, For: heliotrope.Duration(time.Hour)}); got.Part != slow || got.Waits || !got.Wants {
		t.Errorf("with a part it is %+v", got)
	}
	some := h.until(c, "some comes", func(c agentapi.ImageCache) bool { return c.Here > 0 })
	if some.Here == some.Bytes {
		t.Errorf("all of it came at once: %+v", some)
	}
	paused := h.give(c, "debian@1", agentapi.ImagePart{Shared: true, Held: true})
	if !paused.Waits || paused.Part != 0 {
		t.Errorf("without a part it is %+v", paused)
	}

	// A guest reads on meanwhile.
	h.put(c, "web", wanted{Image: "debian"})
	h.read("web", int64(len(content)-100), 100)
	h.must(c.remove(t.Context(), "web"))

	// A part ends by itself.
	h.give(c, "debian@1", agentapi.ImagePart{Shared: true, Rate: slow, For: heliotrope.Duration(time.Millisecond)})
	lapsed := h.until(c, "its part lapses", waits)
	if lapsed.Here == lapsed.Bytes || h.until(c, "it waits", waits).Note == "" {
		t.Errorf("it is %+v", lapsed)
	}
	stop()
	c, _ = h.serve()
	again := h.until(c, "the next server waits", waits)
	if again.Priority != heliotrope.ImageHigh || again.Rate != 1e9 {
		t.Errorf("the next server has %+v", again)
	}

	// What is not shared any more comes as its order says.
	h.give(c, "debian@1", agentapi.ImagePart{})
	if all := h.until(c, "all comes", func(c agentapi.ImageCache) bool { return c.Here == c.Bytes }); all.Shared || all.Waits || all.Wants && all.Here < all.Bytes {
		t.Errorf("it is %+v", all)
	}
	if got := h.give(c, "nix@7", agentapi.ImagePart{Shared: true, Rate: slow}); got.Bytes != 0 || got.Pushed {
		t.Errorf("what nobody has come is %+v", got)
	}
}

// What another version here has takes nothing of a rate.
func TestWhatIsHereTakesNoPart(t *testing.T) {
	h := newHost(t)
	content := h.image("debian", 1, 8)
	c, _ := h.serve()
	_, err := c.pull(t.Context(), "debian", pulling{})
	h.must(err)
	h.until(c, "the first comes", func(c agentapi.ImageCache) bool { return c.Here == c.Bytes })
	next := bytes.Clone(content)
	next[1<<20]++
	h.content = next
	h.image("debian", 0, 0)
	began := time.Now()
	_, err = c.pull(t.Context(), "debian", pulling{Pull: site.Pull{Shared: true}})
	h.must(err)
	h.give(c, "debian@2", agentapi.ImagePart{Shared: true, Rate: 256_000, For: heliotrope.Duration(time.Hour)}) // all of it would take four minutes
	h.until(c, "the next comes", func(c agentapi.ImageCache) bool { return c.Image == "debian@2" && c.Here == c.Bytes })
	if took := time.Since(began); took > 2*time.Minute {
		t.Errorf("64 KiB took %v", took)
	}
}

// A part that is raised takes effect for who waits for it.
func TestPartIsRaised(t *testing.T) {
	h := newHost(t)
	h.image("debian", 1, 8)
	c, _ := h.serve()
	_, err := c.pull(t.Context(), "debian", pulling{Pull: site.Pull{Shared: true}})
	h.must(err)
	hour := heliotrope.Duration(time.Hour)
	h.give(c, "debian@1", agentapi.ImagePart{Shared: true, Rate: 80_000, For: hour}) // the rest would take a quarter of an hour
	h.until(c, "some comes", func(c agentapi.ImageCache) bool { return c.Here > 0 })
	h.give(c, "debian@1", agentapi.ImagePart{Shared: true, Rate: 8e9, For: hour})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for h.until(c, "more comes", func(c agentapi.ImageCache) bool { return true }).Here < 8<<20 {
		if pause(ctx, time.Millisecond); ctx.Err() != nil {
			t.Fatal("it does not come faster")
		}
	}
}
