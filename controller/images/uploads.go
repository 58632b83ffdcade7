package images

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope/controller/api"
	"heliotrope/imagesync"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/source"
)

const (
	mostUploads = 64             // that are under way, or ended lately
	uploadKept  = 24 * time.Hour // after its last part, or its end
	leaveFree   = 1 << 30        // bytes of the disk that uploads leave to the controller
)

// upload is a file that comes, or came.
type upload struct {
	id      string
	request api.UploadRequest
	offset  int64
	state   string
	note    string
	touched time.Time // when a part came last, or when it ended
	made    *api.Image
	fresh   int64 // bytes that the store did not have
	taking  bool  // a part is being written

	done atomic.Uint64 // of the import, in millionths
}

func (u *upload) seen() api.Upload {
	progress := float64(u.done.Load()) / 1e6
	if u.state == api.UploadDone {
		progress = 1
	}
	return api.Upload{ID: u.id, Image: u.request.Image, SizeBytes: u.request.SizeBytes, OffsetBytes: u.offset, State: u.state, Progress: progress, Note: u.note,
		Made: u.made, NewBytes: u.fresh, ExpiresAt: u.touched.Add(uploadKept).UTC().Truncate(time.Second)}
}

func (m *Images) part(id string) string { return filepath.Join(m.cfg.Dir, id+".part") }
func (m *Images) note(id string) string { return filepath.Join(m.cfg.Dir, id+".json") }

// load takes up what was under way. How much of a file has come its length says.
func (m *Images) load() error {
	if err := os.MkdirAll(m.cfg.Dir, 0o700); err != nil {
		return err
	}
	notes, err := filepath.Glob(filepath.Join(m.cfg.Dir, "*.json"))
	if err != nil {
		return err
	}
	for _, name := range notes {
		u := &upload{id: strings.TrimSuffix(filepath.Base(name), ".json"), state: api.UploadReceiving}
		data, err := os.ReadFile(name)
		if err == nil {
			err = json.Unmarshal(data, &u.request)
		}
		info, statErr := os.Stat(m.part(u.id))
		if err = errors.Join(err, statErr); err != nil {
			m.cfg.Log.Warn("upload is lost", "id", u.id, "err", err)
			m.forget(u.id)
			continue
		}
		u.offset, u.touched = min(info.Size(), u.request.SizeBytes), info.ModTime()
		if u.offset == u.request.SizeBytes {
			u.state = api.UploadImporting
		}
		m.uploads[u.id] = u
	}
	parts, err := filepath.Glob(filepath.Join(m.cfg.Dir, "*.part"))
	for _, name := range parts { // begun, and nobody was told
		if id := strings.TrimSuffix(filepath.Base(name), ".part"); m.uploads[id] == nil {
			m.forget(id)
		}
	}
	return err
}

// forget removes an upload's files; that there are none is as well.
func (m *Images) forget(id string) {
	for _, name := range []string{m.note(id), m.part(id)} {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			m.cfg.Log.Warn("file of an upload stays", "file", name, "err", err)
		}
	}
}

// CreateUpload begins an upload.
func (m *Images) CreateUpload(_ context.Context, id string, r api.UploadRequest) (api.Upload, error) {
	if err := manifest.CheckName(r.Image); err != nil {
		return api.Upload{}, api.Invalid("the upload cannot be", api.FieldProblem{Pointer: "/image", Detail: err.Error()})
	}
	if r.SizeBytes > manifest.MaxSize {
		return api.Upload{}, api.Invalid("the upload cannot be", api.FieldProblem{Pointer: "/size_bytes", Detail: fmt.Sprintf("no image has more than %d bytes", int64(manifest.MaxSize))})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if u := m.uploads[id]; u != nil {
		return u.seen(), nil
	}
	if len(m.uploads) >= mostUploads {
		return api.Upload{}, api.Conflict(fmt.Sprintf("there are %d uploads", len(m.uploads)), "drop one that is not needed: GET /v1/uploads lists them")
	}
	if err := m.room(r.SizeBytes); err != nil {
		return api.Upload{}, err
	}
	u := &upload{id: id, request: r, state: api.UploadReceiving, touched: time.Now()}
	data, err := json.Marshal(r)
	if err == nil {
		err = errors.Join(os.WriteFile(m.part(id), nil, 0o600), os.WriteFile(m.note(id), data, 0o600))
	}
	if err != nil {
		m.forget(id)
		return api.Upload{}, fmt.Errorf("begin upload: %w", full(err))
	}
	m.uploads[id] = u
	return u.seen(), nil
}

// room says whether so many bytes more fit, those that other uploads still lack aside. The
// lock is held.
func (m *Images) room(bytes int64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(m.cfg.Dir, &s); err != nil {
		return fmt.Errorf("ask for room: %w", err)
	}
	free := int64(s.Bavail)*s.Bsize - leaveFree
	for _, u := range m.uploads {
		if u.state == api.UploadReceiving {
			free -= u.request.SizeBytes - u.offset
		}
	}
	if bytes > free {
		return &api.Problem{Type: api.TypeFull, Title: "No room", Status: 507,
			Detail: fmt.Sprintf("the file has %d bytes, and the controller has room for %d", bytes, max(0, free)), Hint: "drop uploads that are not needed, or import the file where the store is, with: heliotrope image import"}
	}
	return nil
}

// full makes the disk's "no room" the caller's to hear.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &api.Problem{Type: api.TypeFull, Title: "No room", Status: 507, Detail: "the controller's disk is full", Hint: "make room there, and send the part again"}
	}
	return err
}

// Uploads are those there are, the newest first.
func (m *Images) Uploads(context.Context) ([]api.Upload, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []api.Upload
	for _, u := range m.uploads {
		all = append(all, u.seen())
	}
	slices.SortFunc(all, func(a, b api.Upload) int {
		return cmp.Or(b.ExpiresAt.Compare(a.ExpiresAt), strings.Compare(a.ID, b.ID))
	})
	return all, nil
}

// Upload is one of them.
func (m *Images) Upload(_ context.Context, id string) (api.Upload, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u, err := m.find(id)
	if err != nil {
		return api.Upload{}, err
	}
	return u.seen(), nil
}

func (m *Images) find(id string) (*upload, error) {
	if u := m.uploads[id]; u != nil {
		return u, nil
	}
	return nil, &api.Problem{Type: api.TypeNotFound, Title: "Not found", Status: 404, Detail: fmt.Sprintf("there is no upload %q", id),
		Hint: "it ended, was dropped, or nothing came for a day: begin a new one"}
}

// AppendUpload adds a part. Two of the same upload at once are one too many.
func (m *Images) AppendUpload(_ context.Context, id string, offset int64, part []byte) (api.Upload, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u, err := m.find(id)
	if err != nil {
		return api.Upload{}, err
	}
	switch {
	case u.state != api.UploadReceiving:
		return api.Upload{}, api.Conflict("the file has come whole: it is "+u.state, "")
	case u.taking:
		return api.Upload{}, api.Conflict("another part of the file is coming just now", "send parts one after another")
	case offset != u.offset:
		return api.Upload{}, api.Conflict(fmt.Sprintf("the next part begins at %d, not at %d", u.offset, offset), "ask for the upload's offset and go on from there")
	case int64(len(part)) > u.request.SizeBytes-offset:
		return api.Upload{}, api.Conflict(fmt.Sprintf("the file would be longer than the %d bytes that were announced", u.request.SizeBytes), "")
	}
	u.taking = true
	m.mu.Unlock()
	err = write(m.part(id), offset, part)
	m.mu.Lock()
	u.taking = false
	if err != nil {
		return api.Upload{}, fmt.Errorf("write part: %w", full(err))
	}
	u.offset, u.touched = offset+int64(len(part)), time.Now()
	if u.offset == u.request.SizeBytes {
		u.state = api.UploadImporting
		select {
		case m.whole <- struct{}{}:
		default: // Run looks anyway
		}
	}
	return u.seen(), nil
}

// write has a part on the disk when it returns.
func write(name string, offset int64, part []byte) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.WriteAt(part, offset); err != nil {
		return err
	}
	return f.Sync()
}

// DropUpload forgets an upload.
func (m *Images) DropUpload(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	u, err := m.find(id)
	if err != nil {
		return err
	}
	if u.state == api.UploadImporting || u.taking {
		return api.Conflict("it is "+u.state, "wait until that has ended")
	}
	delete(m.uploads, id)
	m.forget(id)
	return nil
}

// expire forgets what nobody sends any more, and what ended long ago.
func (m *Images) expire(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, u := range m.uploads {
		if u.state != api.UploadImporting && !u.taking && now.Sub(u.touched) > uploadKept {
			delete(m.uploads, id)
			m.forget(id)
		}
	}
}

// next is an upload that waits to be imported, the first that was whole; "": none.
func (m *Images) next() (id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var first *upload
	for _, u := range m.uploads {
		if u.state == api.UploadImporting && (first == nil || u.touched.Before(first.touched)) {
			first = u
		}
	}
	if first == nil {
		return ""
	}
	return first.id
}

// importOne imports an upload, and says in it what became of it. Where ctx ends it stays what
// it was: whoever comes next imports it.
func (m *Images) importOne(ctx context.Context, id string) {
	m.mu.Lock()
	u := m.uploads[id]
	m.mu.Unlock()
	made, fresh, err := m.imported(ctx, u)
	if ctx.Err() != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	u.touched = time.Now()
	if err != nil {
		u.state, u.note = api.UploadFailed, err.Error()
		m.cfg.Tell(u.request.Image, "an upload could not be imported: "+u.note)
	} else {
		u.state, u.made, u.fresh = api.UploadDone, &made, fresh
		m.cfg.Tell(made.Image, fmt.Sprintf("version %d was uploaded", made.Version))
		m.Changed()
	}
	m.forget(id)
}

func (m *Images) imported(ctx context.Context, u *upload) (made api.Image, fresh int64, err error) {
	name := m.part(u.id)
	if err := m.hashed(ctx, u, name); err != nil {
		return made, 0, err
	}
	src, err := source.Open(name, u.request.Format, false) // what it names as its backing file is no business of the sender's
	if err != nil {
		return made, 0, errors.New(strings.ReplaceAll(err.Error(), name, cmp.Or(u.request.From, "the file")))
	}
	defer src.Close()
	s, err := m.open(ctx)
	if err != nil {
		return made, 0, err
	}
	v, stats, err := s.Import(ctx, u.request.Image, src, imagesync.ImportOptions{From: cmp.Or(u.request.From, "upload"),
		Progress: func(done, all int64) { u.done.Store(uint64(1e6 * float64(done) / float64(max(all, 1)))) }})
	if err != nil {
		return made, 0, err
	}
	made, err = seen(ctx, s, v)
	return made, stats.New, err
}

// hashed checks the file against what the sender said of it.
func (m *Images) hashed(ctx context.Context, u *upload, name string) error {
	if u.request.SHA256 == "" {
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, cancelled{ctx, f}); err != nil {
		return fmt.Errorf("read upload: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != u.request.SHA256 {
		return fmt.Errorf("the file's SHA-256 is %s, not %s: it is another, or was damaged on the way; send it again", got, u.request.SHA256)
	}
	return nil
}

// cancelled is a reader that ends with ctx.
type cancelled struct {
	ctx context.Context
	io.Reader
}

func (c cancelled) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.Reader.Read(p)
}
