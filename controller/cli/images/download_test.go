package images

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// mirror serves a file, and breaks off answers.
type mirror struct {
	mu        sync.Mutex // held while it answers
	content   []byte
	etag      string
	cuts      []int // after so many bytes of each answer; then none
	unsized   bool
	status    int // of all answers; 0: as it is
	sent      int
	questions []string // their Range
}

func (m *mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.questions = append(m.questions, r.Header.Get("Range"))
	if m.status != 0 {
		http.Error(w, "no", m.status)
		return
	}
	if m.etag != "" {
		w.Header().Set("ETag", m.etag)
	}
	out := &cutter{ResponseWriter: w, left: -1, mirror: m}
	if len(m.cuts) > 0 {
		out.left, m.cuts = m.cuts[0], m.cuts[1:]
	}
	if m.unsized {
		out.Write(m.content)
		return
	}
	http.ServeContent(out, r, "disk.raw", time.Time{}, bytes.NewReader(m.content))
}

type cutter struct {
	http.ResponseWriter
	left   int // -1: no end
	mirror *mirror
}

func (c *cutter) Write(p []byte) (int, error) {
	if c.left >= 0 && len(p) > c.left {
		n, _ := c.ResponseWriter.Write(p[:c.left])
		c.mirror.sent += n
		http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	n, err := c.ResponseWriter.Write(p)
	c.mirror.sent += n
	if c.left >= 0 {
		c.left -= n
	}
	return n, err
}

func sumOf(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }

// attempt downloads once, as a process of its own does.
func attempt(t *testing.T, where, dir string, limit int64, sum string) (content []byte, err error) {
	t.Helper()
	d, err := newDownload(where, dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	d.pause = 0
	if err := d.get(t.Context()); err != nil {
		return nil, err
	}
	if _, err := d.check(sum); err != nil {
		return nil, err
	}
	content, err = os.ReadFile(d.file)
	if err != nil {
		t.Fatal(err)
	}
	return content, nil
}

func TestDownload(t *testing.T) {
	content := make([]byte, 3<<20+77)
	rand.NewChaCha8([32]byte{9}).Read(content)
	const half = 1 << 20
	for name, c := range map[string]struct {
		mirror *mirror
		limit  int64
		sum    string
		wrong  string // what the error says
		most   int    // bytes that cross
	}{
		"whole":              {mirror: &mirror{etag: `"a"`}, sum: sumOf(content), most: len(content)},
		"broken off":         {mirror: &mirror{etag: `"a"`, cuts: []int{half, 100, half}}, most: len(content)},
		"cannot be resumed":  {mirror: &mirror{cuts: []int{half}}, most: half + len(content)},
		"weak tag":           {mirror: &mirror{etag: `W/"a"`, cuts: []int{half}}, most: half + len(content)},
		"size is not told":   {mirror: &mirror{unsized: true}, most: len(content)},
		"broken for good":    {mirror: &mirror{etag: `"a"`, cuts: []int{half, 0, 0, 0, 0, 0, 0, 0, 0}}, wrong: "the same command goes on there", most: half},
		"too large":          {mirror: &mirror{etag: `"a"`}, limit: 1000, wrong: "--max-size", most: len(content)},
		"too large, unsized": {mirror: &mirror{unsized: true}, limit: half, wrong: "--max-size", most: len(content)},
		"wrong sum":          {mirror: &mirror{etag: `"a"`}, sum: sumOf(nil), wrong: "it is deleted here", most: len(content)},
		"not there":          {mirror: &mirror{status: http.StatusNotFound}, wrong: "404"},
		"overloaded":         {mirror: &mirror{status: http.StatusServiceUnavailable}, wrong: "503"},
	} {
		t.Run(name, func(t *testing.T) {
			m := c.mirror
			m.content = content
			s := httptest.NewServer(m)
			defer s.Close()
			dir := t.TempDir()
			if c.limit == 0 {
				c.limit = 1 << 30
			}
			got, err := attempt(t, s.URL+"/disk.raw", dir, c.limit, c.sum)
			s.Close() // it has counted all
			switch {
			case c.wrong == "" && err != nil:
				t.Fatal(err)
			case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)):
				t.Errorf("it says %v", err)
			case c.wrong == "" && !bytes.Equal(got, content):
				t.Error("it is another file")
			}
			if m.sent > c.most {
				t.Errorf("%d bytes crossed, %d are enough", m.sent, c.most)
			}
			if m.status == http.StatusNotFound && len(m.questions) > 1 {
				t.Errorf("asked %d times for what is not there", len(m.questions))
			}
		})
	}
}

// What one process has of a file the next one need not fetch again, unless it is another file by then.
func TestDownloadGoesOn(t *testing.T) {
	content := make([]byte, 2<<20)
	rand.NewChaCha8([32]byte{10}).Read(content)
	m := &mirror{content: content, etag: `"a"`, cuts: []int{1 << 20, 0, 0, 0, 0, 0, 0, 0}}
	s := httptest.NewServer(m)
	defer s.Close()
	dir := t.TempDir()
	if _, err := attempt(t, s.URL, dir, 1<<30, ""); err == nil {
		t.Fatal("it ended too early, and nobody says so")
	}
	m.mu.Lock()
	m.cuts, m.questions = nil, nil
	m.mu.Unlock()
	got, err := attempt(t, s.URL, dir, 1<<30, sumOf(content))
	if err != nil || !bytes.Equal(got, content) {
		t.Fatal("it is another file", err)
	}
	m.mu.Lock()
	if want := fmt.Sprintf("bytes=%d-", 1<<20); len(m.questions) != 1 || m.questions[0] != want {
		t.Errorf("asked for %q, not for %s", m.questions, want)
	}
	m.sent = 0
	m.mu.Unlock()
	if _, err := attempt(t, s.URL, dir, 1<<30, sumOf(content)); err != nil {
		t.Error(err)
	}
	m.mu.Lock()
	if m.sent > 100 { // all is here, and the server says so
		t.Errorf("%d bytes crossed again", m.sent)
	}
	other := bytes.Repeat([]byte{7}, 3<<20)
	m.content, m.etag = other, `"b"`
	m.mu.Unlock()
	if got, err := attempt(t, s.URL, dir, 1<<30, ""); err != nil || !bytes.Equal(got, other) {
		t.Error("what was there of another file is in it", err)
	}
}

// Two at once would write into each other's file.
func TestDownloadIsLocked(t *testing.T) {
	dir := t.TempDir()
	d, err := newDownload("http://192.0.2.1/x", dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := newDownload("http://192.0.2.1/x", dir, 1); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second one says %v", err)
	}
	if from := (&download{url: d.url}).origin("00"); from != "http://192.0.2.1/x sha256:00" {
		t.Error(from)
	}
}
