package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/libvirt"
	"heliotrope/imagesync"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/nbd"
	"heliotrope/imagesync/storetest"
)

// serverEnv makes the test's program a server of disks of the configuration in it.
const serverEnv = "HELIOTROPE_TEST_DISKS"

func TestMain(m *testing.M) {
	text := os.Getenv(serverEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	var c Config
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	c.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := Serve(context.Background(), c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// host is one with a store.
type host struct {
	testing.TB
	c       Config
	keys    string
	content []byte // of the next image, in place of random bytes
}

func newHost(t testing.TB) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "h") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &host{TB: t, c: Config{Store: filepath.Join(dir, "store"), Keys: filepath.Join(dir, "trust"), Dir: filepath.Join(dir, "v"), DiskDir: filepath.Join(dir, "d"),
		Host: "left-1", Version: "one", Log: slog.New(slog.NewTextHandler(t.Output(), nil))}, keys: filepath.Join(dir, "keys")}
	return h
}

func (h *host) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

// store is the store as its owner has it.
func (h *host) store(do func(s *imagesync.Store)) {
	h.Helper()
	d, err := depot.OpenDir(h.c.Store)
	h.must(err)
	s, err := imagesync.Open(h.Context(), h.c.Store, d, imagesync.Options{Keys: keyring.Dir(h.keys)})
	h.must(err)
	defer s.Close()
	do(s)
}

// image makes a version of an image, of so many MiB and a bit.
func (h *host) image(name string, seed byte, mib int) (content []byte) {
	h.Helper()
	content = make([]byte, mib<<20+4096)
	rand.NewChaCha8([32]byte{seed}).Read(content)
	if h.content != nil {
		content = h.content
	}
	storetest.Import(h, h.c.Store, h.keys, name, content)
	return content
}

// serve runs a server until stop.
func (h *host) serve() (c *client, stop func()) {
	h.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(h.Context()))
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, h.c) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			h.Errorf("serve: %v", err)
		}
	})
	h.Cleanup(stop)
	c = newClient(h.c.controlSocket())
	for {
		if _, err := c.status(h.Context()); err == nil {
			return c, stop
		}
		select {
		case err := <-ended:
			h.Fatalf("serve: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
}

func (h *host) dial(vm heliotrope.VMID) *nbd.Client {
	h.Helper()
	c, err := nbd.Dial(h.Context(), "unix", libvirt.VolumeSocket(h.c.DiskDir), libvirt.VolumeExport(h.c.DiskDir, vm))
	h.must(err)
	return c
}

func (h *host) read(vm heliotrope.VMID, off int64, n int) []byte {
	h.Helper()
	c := h.dial(vm)
	defer c.Close()
	p := make([]byte, n)
	h.must(c.Do(nbd.Op{Kind: nbd.Read, Offset: off, Length: n}, p))
	return p
}

func (h *host) write(vm heliotrope.VMID, off int64, p []byte) {
	h.Helper()
	c := h.dial(vm)
	defer c.Close()
	h.must(c.Do(nbd.Op{Kind: nbd.Write, Offset: off, Length: len(p), Data: p}, nil))
}

func (h *host) put(c *client, vm string, w wanted) made {
	h.Helper()
	m, err := c.put(h.Context(), vm, w)
	h.must(err)
	return m
}

// A volume stays on its version, and the version with it.
func TestVolumeKeepsItsVersion(t *testing.T) {
	h := newHost(t)
	first := h.image("debian", 1, 1)
	c, stop := h.serve()
	if _, err := c.put(t.Context(), "web", wanted{Image: "nix"}); !errors.Is(err, ErrNoImage) || !strings.Contains(err.Error(), h.c.Store) {
		t.Errorf("an image that is not there: %v", err)
	}
	if _, err := c.put(t.Context(), "web", wanted{Image: "debian@x"}); err == nil || !strings.Contains(err.Error(), "debian@1") {
		t.Errorf("a version that is none: %v", err)
	}
	m := h.put(c, "web", wanted{Image: "debian"})
	if m.Bytes != int64(len(first)) || !strings.HasPrefix(m.Base, "debian@1 ") {
		t.Errorf("made is %+v", m)
	}
	second := h.image("debian", 2, 1)
	if again := h.put(c, "web", wanted{Image: "debian"}); again != m {
		t.Errorf("the disk was %+v, and is %+v now that there is a newer image", m, again)
	}
	h.put(c, "db", wanted{Image: "debian"})
	h.put(c, "old", wanted{Image: "debian@1"})
	for vm, want := range map[heliotrope.VMID][]byte{"web": first, "db": second, "old": first} {
		if !bytes.Equal(h.read(vm, 0, len(want)), want) {
			t.Errorf("%s has another disk", vm)
		}
	}
	mine := bytes.Repeat([]byte{5}, 8192)
	h.write("web", 4096, mine)

	h.store(func(s *imagesync.Store) {
		if _, err := s.Remove(t.Context(), "debian@1"); !errors.Is(err, imagesync.ErrNeeded) || !strings.Contains(err.Error(), "left-1.") || !strings.Contains(err.Error(), "/old") {
			t.Errorf("removed although it is needed: %v", err)
		}
	})
	h.must(c.remove(t.Context(), "old"))
	h.must(c.remove(t.Context(), "old"))
	stop()
	c, _ = h.serve()
	if s, err := c.status(t.Context()); err != nil || len(s.Volumes) != 2 || s.Volumes[1].VM != "web" || s.Volumes[1].Base != "debian@1" || s.Volumes[1].Written < 8192 {
		t.Errorf("after a restart there are %+v, %v", s.Volumes, err)
	}
	if got := h.read("web", 0, 16384); !bytes.Equal(got[4096:12288], mine) || !bytes.Equal(got[:4096], first[:4096]) {
		t.Error("what was written is not there after a restart")
	}
	if fresh := h.put(c, "web", wanted{Image: "debian", Fresh: true}); !strings.HasPrefix(fresh.Base, "debian@2 ") {
		t.Errorf("a fresh disk is %+v", fresh)
	}
	if !bytes.Equal(h.read("web", 0, len(second)), second) {
		t.Error("a fresh disk has something of the old one")
	}
	h.store(func(s *imagesync.Store) {
		_, err := s.Remove(t.Context(), "debian@1")
		h.must(err)
	})
}

// The destination of a move stands on the very version of the source, or does not stand at all.
func TestVolumeOnTheSameVersion(t *testing.T) {
	h := newHost(t)
	h.image("debian", 1, 1)
	c, _ := h.serve()
	m := h.put(c, "web", wanted{Image: "debian"})
	h.image("debian", 2, 1)
	if there := h.put(c, "moved", wanted{Base: m.Base, Fresh: true}); there != m {
		t.Errorf("the destination's is %+v, the source's %+v", there, m)
	}
	h.must(c.remove(t.Context(), "web"))
	if s, err := c.status(t.Context()); err != nil || len(s.Caches) != 1 || s.Caches[0].Volumes != 1 {
		t.Errorf("%+v, %v", s.Caches, err)
	}
	for name, on := range map[string]string{
		"another store": "debian@2 " + strings.Fields(m.Base)[1],
		"not there":     "debian@7 " + strings.Fields(m.Base)[1],
		"no root":       "debian@1",
		"zero root":     "debian@1 " + manifest.ID{}.String(),
		"newest":        "debian " + strings.Fields(m.Base)[1],
		"a path":        "../x@1 " + strings.Fields(m.Base)[1],
	} {
		if got, err := c.put(t.Context(), "wrong", wanted{Base: on, Fresh: true}); err == nil {
			t.Errorf("%s: %q gives %+v", name, on, got)
		}
	}
	if _, err := c.put(t.Context(), "../x", wanted{Image: "debian"}); err == nil {
		t.Error("a VM of any name has a disk")
	}
}

// Of what a move writes nothing has to come from the store.
func TestWhatIsCopiedIsNotFetched(t *testing.T) {
	h := newHost(t)
	content := h.image("debian", 1, 2)
	c, stop := h.serve()
	m := h.put(c, "web", wanted{Image: "debian"})
	h.must(c.remove(t.Context(), "web"))
	stop()
	h.must(os.RemoveAll(filepath.Join(h.c.Dir, "caches")))
	c, stop = h.serve()
	for range 2 {
		h.put(c, "moved", wanted{Base: m.Base})
		h.write("moved", 0, content[:1<<20])
		if s, err := c.status(t.Context()); err != nil || s.Fetched > 0 || s.Caches[0].Here > 0 {
			t.Errorf("fetched was %+v, %v", s, err)
		}
		stop()
		c, stop = h.serve()
	}
	h.put(c, "other", wanted{Image: "debian"}) // which reads
	for {
		s, err := c.status(t.Context())
		h.must(err)
		if s.Caches[0].Here == s.Caches[0].Bytes {
			break
		}
		pause(t.Context(), time.Millisecond)
	}
	if !bytes.Equal(h.read("moved", 0, len(content)), content) {
		t.Error("it has another disk")
	}
}

// A host whose store cannot be reached goes on with what it has, and with the rest once it can.
func TestStoreAway(t *testing.T) {
	h := newHost(t)
	content := h.image("debian", 1, 4)
	c, stop := h.serve()
	h.put(c, "web", wanted{Image: "debian"})
	h.write("web", 0, []byte("written"))
	for { // all has come
		s, err := c.status(t.Context())
		h.must(err)
		if s.Caches[0].Here == s.Caches[0].Bytes {
			break
		}
		pause(t.Context(), time.Millisecond)
	}
	stop()
	h.must(os.Rename(h.c.Store, h.c.Store+".away"))
	c, stop = h.serve()
	if got := h.read("web", 0, len(content)); string(got[:7]) != "written" || !bytes.Equal(got[7:], content[7:]) {
		t.Error("a disk that is all here is not what it was")
	}
	if _, err := c.put(t.Context(), "db", wanted{Image: "debian"}); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a new disk without a store: %v", err)
	}
	stop()
	cache, err := filepath.Glob(filepath.Join(h.c.Dir, "caches", "*", "present"))
	if err != nil || len(cache) != 1 {
		t.Fatal(cache, err)
	}
	h.must(os.Remove(cache[0]))
	_, stop = h.serve()
	got := make(chan []byte)
	go func() { got <- h.read("web", 1<<20, 4096) }()
	h.must(os.Rename(h.c.Store+".away", h.c.Store))
	if p := <-got; !bytes.Equal(p, content[1<<20:][:4096]) {
		t.Error("what came late is wrong")
	}
	stop()
}

// The end of a machine leaves needs that nobody has; the next server tells.
func TestNeedsAreSwept(t *testing.T) {
	h := newHost(t)
	h.image("debian", 1, 1)
	c, stop := h.serve()
	h.put(c, "web", wanted{Image: "debian"})
	h.put(c, "db", wanted{Image: "debian"})
	stop()
	h.must(os.RemoveAll(filepath.Join(h.c.Dir, "volumes", "db")))
	owners := func() (all []string) {
		h.store(func(s *imagesync.Store) {
			v, err := s.Version(t.Context(), "debian")
			h.must(err)
			all, err = s.Needs(t.Context(), v)
			h.must(err)
		})
		return all
	}
	h.store(func(s *imagesync.Store) { // another host of that name
		v, err := s.Version(t.Context(), "debian")
		h.must(err)
		h.must(s.Need(t.Context(), v, "left-1.other/db"))
	})
	h.serve()
	for all := owners(); len(all) != 2; all = owners() {
		pause(t.Context(), time.Millisecond)
	}
	if all := strings.Join(owners(), " "); !strings.Contains(all, "left-1.other/db") || !strings.Contains(all, "/web") {
		t.Errorf("needed by %s", all)
	}
}

// What has come of images is bounded: first goes what no disk stands on, then what comes again.
func TestBudget(t *testing.T) {
	h := newHost(t)
	one, two := h.image("one", 1, 4), h.image("two", 2, 4)
	c, stop := h.serve()
	h.put(c, "a", wanted{Image: "one"})
	h.put(c, "b", wanted{Image: "two"})
	h.read("a", 0, len(one))
	h.read("b", 0, len(two))
	h.must(c.remove(t.Context(), "a"))
	stop()
	seen := func() (used int64, caches int) {
		all, err := listCaches(h.c.Dir)
		h.must(err)
		for _, c := range all {
			used += c.used
		}
		return used, len(all)
	}
	if used, caches := seen(); used < 8<<20 || caches != 2 {
		t.Fatalf("%d caches have %d bytes", caches, used)
	}
	h.c.Cache = 6 << 20
	c, stop = h.serve()
	evicted := func(n int64) {
		t.Helper()
		for {
			s, err := c.status(t.Context())
			h.must(err)
			if s.Evicted >= n {
				return
			}
			pause(t.Context(), time.Millisecond)
		}
	}
	evicted(1)
	if used, caches := seen(); used > 6<<20 || caches != 1 {
		t.Errorf("%d caches have %d bytes", caches, used)
	}
	stop()
	h.c.Cache = 1 << 20
	c, _ = h.serve()
	evicted(1)
	if got := h.read("b", 0, len(two)); !bytes.Equal(got, two) {
		t.Error("what was dropped came again as something else")
	}
	if b := (budget{dir: h.c.Dir, limit: 1 << 20}); b.room() {
		t.Error("there is room beyond the budget")
	}
}

// An agent starts a server, finds the one that is there, and replaces one of another version; a
// write that was answered is there each time, also when the server was killed.
func TestServersComeAndGo(t *testing.T) {
	h := newHost(t)
	h.image("debian", 1, 1)
	spawn := func() *exec.Cmd {
		text, err := json.Marshal(h.c)
		h.must(err)
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), serverEnv+"="+string(text))
		return cmd
	}
	c := newClient(h.c.controlSocket())
	t.Cleanup(func() { _ = c.stop(context.WithoutCancel(t.Context())) })
	// agent is one until it has heard of a server that is not this one.
	agent := func(not int) (s agentapi.ImageStatus) {
		ctx, cancel := context.WithCancel(t.Context())
		d := New(h.c, spawn)
		var life sync.WaitGroup
		defer life.Wait()
		defer cancel()
		life.Go(func() { d.Run(ctx) })
		for {
			h.must(d.wait(ctx))
			if s, err := c.status(ctx); err == nil && s.PID != not {
				return s
			}
			pause(ctx, time.Millisecond)
		}
	}
	first := agent(0)
	h.put(c, "web", wanted{Image: "debian"})
	h.write("web", 0, []byte("one"))
	if again := agent(0); again.PID != first.PID {
		t.Errorf("the server was process %d, and is %d", first.PID, again.PID)
	}
	h.must(syscall.Kill(first.PID, syscall.SIGKILL))
	second := agent(first.PID)
	if got := h.read("web", 0, 3); string(got) != "one" {
		t.Errorf("after a kill the disk has %q", got)
	}
	h.write("web", 3, []byte("two"))
	h.c.Version = "two"
	third := agent(second.PID)
	if third.Server != "two" {
		t.Errorf("the server is of version %s", third.Server)
	}
	if got := h.read("web", 0, 6); string(got) != "onetwo" {
		t.Errorf("the next server's disk has %q", got)
	}
	h.c.Cache, h.c.Kept = 1<<30, 1<<20 // as who changes agent.yaml and restarts the agent
	if told := agent(third.PID); told.Budget != 1<<30 || told.KeptBudget != 1<<20 {
		t.Errorf("a server with other budgets is %+v", told)
	}
}
