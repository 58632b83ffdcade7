package images

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/hostagent/agentapi"
)

// lines is a world of hosts to which images come as fast as they are given parts.
type lines struct {
	mu     sync.Mutex
	term   uint64
	hosts  map[heliotrope.HostID]*far
	images *Images
	broken []string // what must not be
}

// far is such a host.
type far struct {
	w      *lines
	host   Host
	away   bool // it is not connected
	deaf   bool // it does not hear what it is told
	mute   bool // it hears, and its answer is lost
	coming map[string]*arriving
}

type arriving struct {
	cache agentapi.ImageCache
	bits  float64 // that have come
	until time.Time
	broke bool // nothing comes, whatever it is given
	last  bool // it has somebody before it
}

func newLines(links map[heliotrope.SiteID]map[heliotrope.LinkID]heliotrope.BitRate, hosts ...heliotrope.HostID) *lines {
	w := &lines{term: 1, hosts: map[heliotrope.HostID]*far{}}
	for _, id := range hosts {
		f := &far{w: w, coming: map[string]*arriving{}}
		f.host = Host{ID: id, Site: heliotrope.SiteID(id[:1]), Agent: f, Shared: links[heliotrope.SiteID(id[:1])]}
		w.hosts[id] = f
	}
	w.images = &Images{cfg: Config{Hosts: w, Log: slog.New(slog.DiscardHandler)}, shares: sharing{kick: make(chan struct{}, 1)}}
	return w
}

func (w *lines) ImagePolicies() Policies { return Policies{} }

// ImageHosts tells what hosts have said five seconds ago at the latest: now and then.
func (w *lines) ImageHosts() (all []Host, term uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.hosts {
		h := f.host
		if f.away {
			h.Agent = nil
		}
		if h.Images == nil || time.Now().Second()%5 == 0 {
			f.host.Images = &agentapi.ImageStatus{}
			for _, a := range f.coming {
				f.host.Images.Caches = append(f.host.Images.Caches, a.now())
			}
			h.Images = f.host.Images
		}
		all = append(all, h)
	}
	return all, w.term
}

func (a *arriving) now() agentapi.ImageCache {
	c := a.cache
	if !time.Now().Before(a.until) {
		c.Part = 0
	}
	c.Here = min(int64(a.bits/8), c.Bytes)
	c.Wants = c.Here < c.Bytes && !a.last
	return c
}

// PullImage hears of a part.
func (f *far) PullImage(_ context.Context, o agentapi.PullOrder) (agentapi.ImageCache, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	a := f.coming[o.Image]
	if f.away || f.deaf || a == nil || o.Part == nil {
		return agentapi.ImageCache{}, errors.New("the line is cut")
	}
	a.cache.Part, a.cache.Shared, a.until = o.Part.Rate, o.Part.Shared, time.Now().Add(time.Duration(o.Part.For))
	if f.mute {
		return agentapi.ImageCache{}, errors.New("the answer is lost")
	}
	return a.now(), nil
}

// push has an image come to a host.
func (w *lines) push(host heliotrope.HostID, ref, priority string, most heliotrope.BitRate, bytes int64) *arriving {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.hosts[host]
	a := f.coming[ref]
	if a == nil {
		a = &arriving{}
		f.coming[ref] = a
	}
	a.cache.Image, a.cache.Bytes, a.cache.Pushed, a.cache.Priority, a.cache.Rate, a.cache.Shared = ref, bytes, true, priority, most, true
	h, c, term := f.host, a.now(), w.term
	w.mu.Unlock()
	w.images.shares.ordered(h, c, term)
	kicked(w.images.shares.kick)
	w.mu.Lock()
	return a
}

// pass lets time pass, and looks at each moment that no link carries more than images may take of it.
func (w *lines) pass(d time.Duration) {
	const step = 100 * time.Millisecond
	for ; d > 0; d -= step {
		time.Sleep(step)
		w.mu.Lock()
		carried, most := map[heliotrope.LinkID]heliotrope.BitRate{}, map[heliotrope.LinkID]heliotrope.BitRate{}
		for _, f := range w.hosts {
			maps.Copy(most, f.host.Shared)
			for ref, a := range f.coming {
				c := a.now()
				if c.Wants && !a.broke {
					a.bits += float64(c.Part) * step.Seconds()
				}
				if c.Wants && c.Rate > 0 && c.Part > c.Rate {
					w.broken = append(w.broken, fmt.Sprintf("%s at %s may take %v, of its %v", ref, f.host.ID, c.Part, c.Rate))
				}
				for l := range f.host.Shared {
					if c.Wants {
						carried[l] += c.Part
					}
				}
			}
		}
		for l, rate := range carried {
			if rate > most[l] {
				w.broken = append(w.broken, fmt.Sprintf("%s carries %v, of %v", l, rate, most[l]))
			}
		}
		w.mu.Unlock()
	}
}

// run runs f while links are divided.
func (w *lines) run(f func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	defer done.Wait()
	defer cancel()
	done.Go(func() { _ = w.images.Share(ctx) })
	synctest.Wait()
	f()
}

// seen is what an image is at its host.
func (w *lines) seen(a *arriving) agentapi.ImageCache {
	w.mu.Lock()
	defer w.mu.Unlock()
	return a.now()
}

// whole says whether all of it has come.
func (w *lines) whole(a *arriving) bool { c := w.seen(a); return c.Here == c.Bytes }

// states are how places of a version are, with why.
func (w *lines) states(ref string) (all string) {
	hosts, _ := w.ImageHosts()
	for _, h := range hosts {
		p := []api.ImagePlace{place(h, api.Image{Image: strings.TrimSuffix(ref, "@1"), Version: 1})}
		w.images.explain(ref, p)
		all += p[0].State + " " + p[0].Note
	}
	return all
}

var oneLink = map[heliotrope.SiteID]map[heliotrope.LinkID]heliotrope.BitRate{"a": {"wan": 80 * mbit}}

// A higher image comes at all of the rate, the others after it; when their priorities change so does the order, and
// what has come leaves its part to others within seconds.
func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLines(oneLink, "a-1")
		w.run(func() {
			low := w.push("a-1", "low@1", "low", 0, 300e6)
			w.pass(10 * time.Second)
			if here := low.bits / 8; here < 95e6 {
				t.Errorf("alone %.0f MB came in 10 s, want 100", here/1e6)
			}
			high := w.push("a-1", "high@1", "high", 0, 200e6)
			before := low.bits
			w.pass(10 * time.Second)
			if low.bits > before+8e6 || high.bits/8 < 95e6 {
				t.Errorf("beside a higher one %.1f MB came, and %.1f MB of that", (low.bits-before)/8e6, high.bits/8e6)
			}
			if got, want := w.states("low@1"), "waits high@1 goes first over wan"; got != want {
				t.Errorf("it %s; want %s", got, want)
			}
			if got, want := w.states("high@1"), "coming takes up to 80Mbit of wan"; got != want {
				t.Errorf("it is %s; want %s", got, want)
			}
			w.push("a-1", "low@1", "high", 0, 300e6) // the order changes midway
			w.push("a-1", "high@1", "", 0, 200e6)
			kept := high.bits
			w.pass(15 * time.Second)
			if high.bits > kept+8e6 || low.bits-before < 8*140e6 {
				t.Errorf("after the change %.1f MB came of what was high, and %.1f MB of what was low", (high.bits-kept)/8e6, (low.bits-before)/8e6)
			}
			for began := time.Now(); !w.whole(low) || !w.whole(high); {
				if w.pass(time.Second); time.Since(began) > 20*time.Second {
					t.Fatalf("they have %.0f and %.0f MB", low.bits/8e6, high.bits/8e6)
				}
			}
		})
		if len(w.broken) > 0 {
			t.Errorf("%d times: %s", len(w.broken), w.broken[0])
		}
	})
}

// One that takes nothing of its part does not keep others from theirs, and has it again when it can take it.
func TestShareWithABrokenOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLines(oneLink, "a-1", "a-2")
		w.run(func() {
			high := w.push("a-1", "high@1", "high", 0, 300e6)
			high.broke = true
			low := w.push("a-2", "low@1", "low", 0, 1e9)
			w.pass(60 * time.Second)
			if low.bits/8 < 300e6 {
				t.Errorf("%.0f MB came in a minute beside a version that does not", low.bits/8e6)
			}
			if got := w.states("high@1"); !strings.Contains(got, "others have its part") {
				t.Errorf("it is %s", got)
			}
			w.mu.Lock()
			high.broke = false
			w.mu.Unlock()
			w.pass(40 * time.Second)
			if !w.whole(high) {
				t.Errorf("%.0f MB came since it could again", high.bits/8e6)
			}
		})
		if len(w.broken) > 0 {
			t.Errorf("%d times: %s", len(w.broken), w.broken[0])
		}
	})
}

// A link that is not shared any more holds nobody back, and one that is from now on does.
func TestLinkIsSharedNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLines(oneLink, "a-1")
		w.run(func() {
			one := w.push("a-1", "one@1", "", 0, 1e9)
			w.pass(5 * time.Second)
			w.mu.Lock()
			w.hosts["a-1"].host.Shared = nil
			w.mu.Unlock()
			w.images.Look()
			w.pass(5 * time.Second)
			if w.seen(one).Shared {
				t.Error("it still has parts of the link")
			}
			w.mu.Lock()
			w.hosts["a-1"].host.Shared = oneLink["a"]
			w.mu.Unlock()
			w.pass(15 * time.Second)
			if c := w.seen(one); !c.Shared || c.Part != 80*mbit {
				t.Errorf("it is %+v", c)
			}
		})
	})
}

// Whatever is cut, lost, killed and ordered: no link carries more than it may at any moment, no image more than its
// own rate; and when all is well again, all comes.
func TestShareHoldsWhateverBreaks(t *testing.T) {
	links := map[heliotrope.SiteID]map[heliotrope.LinkID]heliotrope.BitRate{"a": {"trunk": 100 * mbit}, "b": {"trunk": 100 * mbit, "b": 30 * mbit}, "c": {"c": 10 * mbit}}
	ids := []heliotrope.HostID{"a-1", "a-2", "b-1", "b-2", "c-1"}
	rapid.Check(t, func(rt *rapid.T) {
		type event struct {
			what, host, image int
			priority          string
			most              heliotrope.BitRate
			bytes             int64
			wait              time.Duration
		}
		events := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) event {
			return event{rapid.IntRange(0, 9).Draw(t, "what"), rapid.IntRange(0, len(ids)-1).Draw(t, "host"), rapid.IntRange(0, 2).Draw(t, "image"), rapid.SampledFrom([]string{"", "low", "normal", "high"}).Draw(t, "priority"),
				rapid.SampledFrom([]heliotrope.BitRate{0, 64_000, mbit, 50 * mbit}).Draw(t, "most"), rapid.Int64Range(1, 100e6).Draw(t, "bytes"), time.Duration(rapid.IntRange(0, 400).Draw(t, "wait")) * 100 * time.Millisecond}
		}), 1, 12).Draw(rt, "events")
		var broken []string
		synctest.Test(t, func(*testing.T) {
			w := newLines(links, ids...)
			w.run(func() {
				for _, e := range events {
					f := w.hosts[ids[e.host]]
					set := func(b *bool) {
						w.mu.Lock()
						*b = !*b
						w.mu.Unlock()
					}
					switch e.what {
					case 0:
						set(&f.away)
					case 1:
						set(&f.deaf)
					case 2:
						set(&f.mute)
					case 4, 5: // it stops to come, or comes from another host of the site from now on
						if a := f.coming[fmt.Sprintf("i%d@1", e.image)]; a != nil && e.what == 4 {
							set(&a.broke)
						} else if a != nil {
							set(&a.last)
						}
					case 3:
						w.mu.Lock()
						w.term++ // another one leads, and knows nothing
						w.mu.Unlock()
						w.images.Look()
					default:
						if !f.away {
							w.push(f.host.ID, fmt.Sprintf("i%d@1", e.image), e.priority, e.most, e.bytes)
						}
					}
					w.pass(e.wait)
				}
				w.mu.Lock()
				for _, f := range w.hosts {
					f.away, f.deaf, f.mute = false, false, false
					for _, a := range f.coming {
						a.cache.Rate, a.broke, a.last = 0, false, false
					}
				}
				w.mu.Unlock()
				w.pass(3 * time.Minute)
				for id, f := range w.hosts {
					for ref, a := range f.coming {
						if !w.whole(a) {
							w.broken = append(w.broken, fmt.Sprintf("%s at %s has %.1f MB of %+v", ref, id, a.bits/8e6, w.seen(a)))
						}
					}
				}
			})
			broken = w.broken
		})
		if len(broken) > 0 {
			rt.Fatalf("%d times: %s", len(broken), broken[0])
		}
	})
}

// How long a version takes over a link that images share is foretold beside what comes over it: by its priority, its own
// rate, and what others leave.
func TestForeseeOverASharedLink(t *testing.T) {
	r := newRig(t)
	r.send(api.UploadRequest{Image: "web"}, random(7, size))
	links := map[heliotrope.LinkID]heliotrope.BitRate{"wan": 8 * mbit}
	r.hosts, r.term = []Host{{ID: "a-1", Site: "a", Agent: &agent{}, Images: has(), Link: heliotrope.Link{Rate: 80 * mbit, PricePerGB: 100}, Shared: links}}, 1
	const mib = 1.048576 // seconds that the image takes alone
	ask := func(priority string, rate int64) float64 {
		t.Helper()
		places, err := r.api.PushImage(t.Context(), "web", api.PushRequest{DryRun: true, Priority: priority, RateBitsPerS: rate})
		if err != nil || len(places) != 1 {
			t.Fatal(places, err)
		}
		return places[0].ETAS
	}
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > want*0.02 {
			t.Errorf("%s it takes %.2f s, want %.2f", what, got, want)
		}
	}
	near("alone", ask("", 0), mib)
	near("at its own rate", ask("", 2e6), 4*mib)
	r.images.shares.all = map[order]*loan{}
	r.images.shares.hear(r.hosts[0], agentapi.ImageCache{Image: "db@1", Bytes: 3 * size, Here: size, Pushed: true, Shared: true, Wants: true, Priority: "normal"}, time.Now())
	near("beside an equal one", ask("", 0), 2*mib)
	near("before a lower one", ask("high", 0), mib)
	near("after a higher one", ask("low", 0), 3*mib)
	r.images.shares.hear(r.hosts[0], agentapi.ImageCache{Image: "web@1", Bytes: size, Here: size / 2, Pushed: true, Shared: true, Wants: true, Priority: "high"}, time.Now())
	near("though it comes already", ask("low", 0), 3*mib)
	r.policies.Images = map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": {Policy: "everywhere", Priority: "low"}}
	near("as its policy says", ask("", 0), 3*mib)
	all, err := r.api.ImagePolicies(t.Context(), api.ImagePolicyQuery{})
	if err != nil || len(all) != 1 || all[0].Priority != "low" {
		t.Fatal(all, err)
	}
	near("by its policy", all[0].Comes[0].ETAS, 3*mib)
	if all, err = r.api.ImagePolicies(t.Context(), api.ImagePolicyQuery{Image: "web", Policy: "everywhere", Priority: "high"}); err != nil {
		t.Fatal(err)
	}
	near("if that were high", all[0].Comes[0].ETAS, mib)
	if _, err := r.api.ImagePolicies(t.Context(), api.ImagePolicyQuery{Image: "web", Priority: "high"}); status(err) != http.StatusUnprocessableEntity {
		t.Errorf("a priority without a policy: %v", err)
	}
}

// A policy whose priority or rate changes has hosts told at once; not what somebody has pushed by hand.
func TestPolicyThatChangesIsTold(t *testing.T) {
	r := newRig(t)
	r.send(api.UploadRequest{Image: "web"}, random(7, size))
	a := &agent{}
	r.hosts, r.term = []Host{{ID: "a-1", Site: "a", Agent: a, Images: has(), Shared: oneLink["a"]}}, 1
	round := func(p heliotrope.ImagePolicy, after time.Duration) (orders []agentapi.PullOrder) {
		t.Helper()
		p.Policy = "everywhere"
		r.policies.Images = map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": p}
		a.orders = nil
		r.images.round(t.Context(), noon.Add(after))
		return a.orders
	}
	if got := round(heliotrope.ImagePolicy{}, 0); len(got) != 1 || !got[0].Shared || got[0].Priority != "" {
		t.Fatalf("told %+v", got)
	}
	if got := round(heliotrope.ImagePolicy{Priority: "normal"}, time.Second); len(got) != 0 { // which it was
		t.Errorf("told %+v", got)
	}
	if got := round(heliotrope.ImagePolicy{Priority: "high"}, 2*time.Second); len(got) != 1 || got[0].Priority != "high" {
		t.Errorf("told %+v", got)
	}
	if got := round(heliotrope.ImagePolicy{Priority: "high", Rate: mbit}, 3*time.Second); len(got) != 1 || got[0].Rate != mbit {
		t.Errorf("told %+v", got)
	}
	if got := round(heliotrope.ImagePolicy{Priority: "high", Rate: mbit}, 4*time.Second); len(got) != 0 {
		t.Errorf("told %+v", got)
	}
	a.orders = nil
	if _, err := r.api.PushImage(t.Context(), "web", api.PushRequest{Priority: "low"}); err != nil || len(a.orders) != 1 || a.orders[0].Priority != "low" {
		t.Fatal(a.orders, err)
	}
	r.images.spreads.note(order{"a-1", "web@1"}, noon.Add(byHand-orderAgain), how{priority: "low"}) // as if it were noon
	if got := round(heliotrope.ImagePolicy{}, 5*time.Second); len(got) != 0 {
		t.Errorf("a push by hand is overruled by %+v", got)
	}
}
