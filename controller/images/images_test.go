package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/rest"
)

// answers keeps nothing for good: keys are tested where they are kept.
type answers struct{ api.Answers }

func (answers) Claim(context.Context, string, string) (string, []byte, error) {
	return api.Claimed, nil, nil
}
func (answers) Keep(context.Context, string, string, []byte) error { return nil }
func (answers) Release(context.Context, string, string) error      { return nil }

// rig is a controller's images behind its REST API, and may be restarted.
type rig struct {
	t      *testing.T
	dir    string
	images *Images
	api    *api.Client
	stop   func()

	mu    sync.Mutex
	told  []string
	news  chan struct{} // something was told since it was last read
	hosts []Host
	term  uint64

	policies Policies
}

// ImageHosts makes the rig a world.
func (r *rig) ImageHosts() ([]Host, uint64) { return slices.Clone(r.hosts), r.term }

func (r *rig) ImagePolicies() Policies {
	p := Policies{Images: map[heliotrope.ImageID]heliotrope.ImagePolicy{}, Uses: r.policies.Uses}
	maps.Copy(p.Images, r.policies.Images)
	return p
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, dir: t.TempDir(), news: make(chan struct{}, 1)}
	r.start(true)
	t.Cleanup(func() { r.stop() })
	return r
}

// start begins; with no imports, whoever is restarted before one ends.
func (r *rig) start(imports bool) {
	r.t.Helper()
	m, err := Open(Config{Store: filepath.Join(r.dir, "store"), Keys: filepath.Join(r.dir, "keys"), Dir: filepath.Join(r.dir, "uploads"), ScrubFile: filepath.Join(r.dir, "scrub.json"), Scrub: scrubPeriod, Hosts: r, Log: slog.New(slog.NewTextHandler(r.t.Output(), nil)),
		Tell: func(image, message string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.told = append(r.told, image+": "+message)
			select {
			case r.news <- struct{}{}:
			default:
			}
		}})
	if err != nil {
		r.t.Fatal(err)
	}
	handler, err := rest.NewHandler(api.Backend{Images: m, Answers: answers{},
		ParseTopology:  func([]byte, string) (t heliotrope.Topology, wrong []api.FieldProblem) { return t, nil },
		FormatTopology: func(heliotrope.Topology) ([]byte, error) { return nil, nil }}, rest.Options{})
	if err != nil {
		r.t.Fatal(err)
	}
	socket := filepath.Join(r.dir, "api.sock")
	s, err := rest.Listen(r.t.Context(), rest.ServerConfig{Socket: socket, Handler: handler})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { _ = s.Serve(ctx) })
	if imports {
		all.Go(func() { _ = m.Run(ctx) })
	}
	r.images, r.api = m, api.NewUnixClient(socket)
	r.stop = func() {
		r.api.Close()
		cancel()
		all.Wait()
		if err := m.Close(); err != nil {
			r.t.Error(err)
		}
	}
}

func (r *rig) restart(imports bool) { r.stop(); r.start(imports) }

// ended waits until an upload is done or failed.
func (r *rig) ended(id string) api.Upload {
	r.t.Helper()
	for {
		u, err := r.api.Upload(r.t.Context(), id)
		if err != nil {
			r.t.Fatal(err)
		}
		if u.State == api.UploadDone || u.State == api.UploadFailed {
			return u
		}
		select {
		case <-r.t.Context().Done():
			r.t.Fatalf("it is %+v", u)
		case <-r.news: // an import tells its end
		}
	}
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
	return b
}

func hash(b []byte) string { h := sha256.Sum256(b); return hex.EncodeToString(h[:]) }

// A file comes in parts, over two restarts, one of them while it was imported, and is what was sent.
func TestUpload(t *testing.T) {
	r := newRig(t)
	file := append(random(1, 20<<20), make([]byte, 5<<20)...)
	u, err := r.api.CreateUpload(t.Context(), api.UploadRequest{Image: "debian", SizeBytes: int64(len(file)), SHA256: hash(file), From: "debian.raw"}, "k")
	if err != nil || u.State != api.UploadReceiving || u.OffsetBytes != 0 {
		t.Fatalf("got %+v, %v", u, err)
	}
	again, err := r.api.CreateUpload(t.Context(), api.UploadRequest{Image: "debian", SizeBytes: int64(len(file)), SHA256: hash(file), From: "debian.raw"}, "k")
	if err != nil || again.ID != u.ID {
		t.Errorf("the same key: got %+v, %v", again, err)
	}
	if u, err = r.api.AppendUpload(t.Context(), u.ID, 0, file[:3<<20]); err != nil || u.OffsetBytes != 3<<20 {
		t.Fatalf("got %+v, %v", u, err)
	}
	r.restart(false)
	if u, err = r.api.Upload(t.Context(), u.ID); err != nil || u.OffsetBytes != 3<<20 || u.State != api.UploadReceiving {
		t.Fatalf("after a restart: got %+v, %v", u, err)
	}
	parts := 0
	u, err = r.api.Send(t.Context(), u, bytes.NewReader(file), time.Minute, func(api.Upload) { parts++ })
	if err != nil || u.State != api.UploadImporting || parts < 3 {
		t.Fatalf("%d parts: got %+v, %v", parts, u, err)
	}
	r.restart(true)
	u = r.ended(u.ID)
	if u.State != api.UploadDone || u.Made == nil || u.Made.Ref() != "debian@1" || u.Made.From != "debian.raw" || u.Progress != 1 || u.NewBytes < 20<<20 || u.NewBytes > 21<<20 {
		t.Fatalf("got %+v", u)
	}
	if got := r.content("debian"); !bytes.Equal(got, file) {
		t.Errorf("%d bytes are not what was sent", len(got))
	}
	if left, err := os.ReadDir(filepath.Join(r.dir, "uploads")); err != nil || len(left) != 0 {
		t.Errorf("%v stay, %v", left, err)
	}
	if len(r.told) != 1 || r.told[0] != "debian: version 1 was uploaded" {
		t.Errorf("told: %q", r.told)
	}
}

func (r *rig) content(ref string) []byte {
	r.t.Helper()
	s, err := r.images.open(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	image, err := s.Open(r.t.Context(), ref)
	if err != nil {
		r.t.Fatal(err)
	}
	defer image.Close()
	b := make([]byte, image.Size())
	if _, err := image.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		r.t.Fatal(err)
	}
	return b
}

// send uploads a file whole.
func (r *rig) send(q api.UploadRequest, file []byte) api.Upload {
	r.t.Helper()
	q.SizeBytes = int64(len(file))
	u, err := r.api.CreateUpload(r.t.Context(), q, "")
	if err == nil {
		u, err = r.api.Send(r.t.Context(), u, bytes.NewReader(file), time.Minute, func(api.Upload) {})
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return r.ended(u.ID)
}

// What is sent is a stranger's: what cannot be an image is refused, in words, and leaves nothing.
func TestUploadRefused(t *testing.T) {
	r := newRig(t)
	secret := filepath.Join(r.dir, "secret.raw")
	if err := os.WriteFile(secret, random(2, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	over := filepath.Join(r.dir, "over.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", over).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s (run make deps)", err, out)
	}
	backed, err := os.ReadFile(over)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		q    api.UploadRequest
		file []byte
		want string
	}{
		{"another file than was announced", api.UploadRequest{SHA256: hash([]byte("x"))}, random(3, 1<<20), "SHA-256"},
		{"packed", api.UploadRequest{From: "disk.img.gz"}, append([]byte{0x1f, 0x8b, 8, 0}, random(4, 4096)...), "disk.img.gz is packed"},
		{"a backing file of this machine", api.UploadRequest{}, backed, "difference to a backing file"},
		{"not what it is said to be", api.UploadRequest{Format: "qcow2"}, random(5, 4096), "qcow2"},
	} {
		c.q.Image = "web"
		u := r.send(c.q, c.file)
		if u.State != api.UploadFailed || !strings.Contains(u.Note, c.want) || strings.Contains(u.Note, filepath.Join(r.dir, "uploads")) {
			t.Errorf("%s: got %+v", c.name, u)
		}
	}
	if all, err := r.api.Images(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("there are %v, %v", all, err)
	}
	if left, err := os.ReadDir(filepath.Join(r.dir, "uploads")); err != nil || len(left) != 0 {
		t.Errorf("%v stay, %v", left, err)
	}
}

func status(err error) int {
	var p *api.Problem
	if errors.As(err, &p) {
		return p.Status
	}
	return 0
}

// A part that does not go on where the last one ended changes nothing.
func TestUploadParts(t *testing.T) {
	r := newRig(t)
	u, err := r.api.CreateUpload(t.Context(), api.UploadRequest{Image: "web", SizeBytes: 1000}, "")
	if err != nil {
		t.Fatal(err)
	}
	if u, err = r.api.AppendUpload(t.Context(), u.ID, 0, make([]byte, 600)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		offset int64
		part   int
		want   int
	}{
		{"again", 0, 600, http.StatusConflict},
		{"a gap", 700, 100, http.StatusConflict},
		{"beyond the end", 600, 401, http.StatusConflict},
		{"too large", 600, api.MaxPart + 1, http.StatusRequestEntityTooLarge},
		{"before the beginning", -1, 1, http.StatusUnprocessableEntity},
	} {
		if _, err := r.api.AppendUpload(t.Context(), u.ID, c.offset, make([]byte, c.part)); status(err) != c.want {
			t.Errorf("%s: got %v, want %d", c.name, err, c.want)
		}
	}
	if now, err := r.api.Upload(t.Context(), u.ID); err != nil || now.OffsetBytes != 600 {
		t.Errorf("got %+v, %v", now, err)
	}
	if err := r.api.DropUpload(t.Context(), u.ID); err != nil {
		t.Error(err)
	}
	if _, err := r.api.AppendUpload(t.Context(), u.ID, 600, make([]byte, 400)); status(err) != http.StatusNotFound {
		t.Errorf("dropped: got %v", err)
	}
	for _, q := range []api.UploadRequest{{Image: "a/b", SizeBytes: 1}, {Image: "web", SizeBytes: 1 << 60}, {Image: "web"}, {Image: "web", SizeBytes: 1, SHA256: "x"}, {Image: "web", SizeBytes: 1, Format: "vmdk"}} {
		if _, err := r.api.CreateUpload(t.Context(), q, ""); status(err) != http.StatusUnprocessableEntity {
			t.Errorf("%+v: got %v, want 422", q, err)
		}
	}
	if _, err := r.api.CreateUpload(t.Context(), api.UploadRequest{Image: "web", SizeBytes: 60 << 40}, ""); status(err) != http.StatusInsufficientStorage {
		t.Errorf("more than there is room for: got %v, want 507", err)
	}
}

// What nobody sends any more is forgotten after a day, and what lost half of itself at once.
func TestUploadsExpire(t *testing.T) {
	r := newRig(t)
	u, err := r.api.CreateUpload(t.Context(), api.UploadRequest{Image: "web", SizeBytes: 1000}, "")
	if err != nil {
		t.Fatal(err)
	}
	r.images.expire(time.Now().Add(uploadKept - time.Minute))
	if _, err := r.api.Upload(t.Context(), u.ID); err != nil {
		t.Error(err)
	}
	r.images.expire(time.Now().Add(uploadKept + time.Minute))
	if _, err := r.api.Upload(t.Context(), u.ID); status(err) != http.StatusNotFound {
		t.Errorf("got %v", err)
	}
	if u, err = r.api.CreateUpload(t.Context(), api.UploadRequest{Image: "web", SizeBytes: 1000}, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.images.note(u.ID)); err != nil {
		t.Fatal(err)
	}
	r.restart(true)
	if left, err := os.ReadDir(filepath.Join(r.dir, "uploads")); err != nil || len(left) != 0 {
		t.Errorf("%v stay, %v", left, err)
	}
}

// Versions are shown, pinned and removed.
func TestImages(t *testing.T) {
	r := newRig(t)
	for range 2 {
		r.send(api.UploadRequest{Image: "web"}, random(7, 1<<20))
	}
	r.send(api.UploadRequest{Image: "db"}, random(8, 1<<20))
	all, err := r.api.Images(t.Context(), "web")
	if err != nil || len(all) != 2 || all[0].Version != 1 || all[1].Version != 2 || all[1].Root != all[0].Root {
		t.Fatalf("got %+v, %v", all, err)
	}
	if i, err := r.api.PinImage(t.Context(), "web@1", true); err != nil || !i.Pinned {
		t.Errorf("got %+v, %v", i, err)
	}
	if err := r.api.RemoveImage(t.Context(), "web@1"); status(err) != http.StatusConflict {
		t.Errorf("pinned: got %v", err)
	}
	if i, err := r.api.PinImage(t.Context(), "web@1", false); err != nil || i.Pinned {
		t.Errorf("got %+v, %v", i, err)
	}
	if err := r.api.RemoveImage(t.Context(), "web@1"); err != nil {
		t.Error(err)
	}
	s, err := r.images.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.Version(t.Context(), "web")
	if err == nil {
		err = s.Need(t.Context(), v, "h1/vm1")
	}
	if err != nil {
		t.Fatal(err)
	}
	if i, err := r.api.Image(t.Context(), "web"); err != nil || len(i.NeededBy) != 1 || i.NeededBy[0] != "h1/vm1" {
		t.Errorf("got %+v, %v", i, err)
	}
	if err := r.api.RemoveImage(t.Context(), "web@2"); status(err) != http.StatusConflict {
		t.Errorf("needed: got %v", err)
	}
	for _, ref := range []string{"mars", "web@9", "..", "web@x"} {
		if _, err := r.api.Image(t.Context(), ref); status(err) != http.StatusNotFound {
			t.Errorf("%s: got %v, want 404", ref, err)
		}
	}
}

// A line that breaks in every other part does not keep a file from coming whole.
func TestSendOverBadLine(t *testing.T) {
	r := newRig(t)
	proxy, err := net.Listen("unix", filepath.Join(r.dir, "line.sock"))
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for n := 0; ; n++ {
			c, err := proxy.Accept()
			if err != nil {
				return
			}
			all.Go(func() { broken(c, filepath.Join(r.dir, "api.sock"), n%2 == 0) })
		}
	})
	defer all.Wait()
	defer proxy.Close()
	c := api.NewUnixClient(filepath.Join(r.dir, "line.sock"))
	defer c.Close()
	file := random(9, 5<<20)
	u, err := r.api.CreateUpload(t.Context(), api.UploadRequest{Image: "web", SizeBytes: int64(len(file)), SHA256: hash(file)}, "")
	if err == nil {
		u, err = c.Send(t.Context(), u, bytes.NewReader(file), time.Minute, func(api.Upload) {})
	}
	if err != nil {
		t.Fatal(err)
	}
	if u = r.ended(u.ID); u.State != api.UploadDone {
		t.Errorf("got %+v", u)
	}
}

// broken carries a connection, of which it lets only some bytes through if it is bad.
func broken(c net.Conn, to string, bad bool) {
	defer c.Close()
	d, err := net.Dial("unix", to)
	if err != nil {
		return
	}
	defer d.Close()
	var from io.Reader = c
	if bad {
		from = io.LimitReader(c, 700<<10)
	}
	done := make(chan struct{})
	go func() { defer close(done); _, _ = io.Copy(c, d); c.Close() }()
	_, _ = io.Copy(d, from)
	d.Close()
	<-done
}
