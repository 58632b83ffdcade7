package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"heliotrope/imagesync/volume/disk"
)

// How a download is tried again: so often without a byte's coming, and after how long.
const (
	downloadTries = 6
	downloadPause = 2 * time.Second
	headerTimeout = time.Minute
)

// download is a file that comes by HTTP. What has come is kept in a directory, with what the server
// said of it, so that the next attempt goes on there, of this process or of the next one.
type download struct {
	url    *url.URL
	file   string // what has come
	client *http.Client
	limit  int64 // bytes
	pause  time.Duration
	tell   func(done, all int64)

	state downloadState
	lock  io.Closer
}

// downloadState is what is known of a file, beside it.
type downloadState struct {
	Size     int64  `json:"size"` // -1: the server does not say
	ETag     string `json:"etag,omitempty"`
	Modified string `json:"last_modified,omitempty"`
}

// validator is how the server tells whether its file is still the same one; "" if it does not.
func (s downloadState) validator() string {
	if s.ETag != "" && !strings.HasPrefix(s.ETag, "W/") {
		return s.ETag
	}
	return s.Modified
}

// isURL says whether what is imported is to be downloaded.
func isURL(file string) bool {
	return strings.HasPrefix(file, "http://") || strings.HasPrefix(file, "https://")
}

// newDownload begins a download into dir, or finds one that was broken off.
func newDownload(where, dir string, limit int64) (*download, error) {
	u, err := url.Parse(where)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("%q is no address to download from", where)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of downloads: %w", err)
	}
	name := sha256.Sum256([]byte(where))
	d := &download{url: u, file: filepath.Join(dir, hex.EncodeToString(name[:8])), limit: limit, pause: downloadPause}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = headerTimeout
	d.client = &http.Client{Transport: transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		switch {
		case len(via) > 10:
			return errors.New("more than 10 redirections")
		case u.Scheme == "https" && r.URL.Scheme != "https":
			return fmt.Errorf("it leads from https to %s", r.URL.Redacted())
		}
		return nil
	}}
	if d.lock, err = disk.OSDirectory(dir).Lock(filepath.Base(d.file)+".lock", false); err != nil {
		return nil, fmt.Errorf("another process downloads %s: %w", u.Redacted(), err)
	}
	d.state.Size = -1
	if b, err := os.ReadFile(d.file + ".json"); err != nil || json.Unmarshal(b, &d.state) != nil {
		d.state = downloadState{Size: -1}
	}
	return d, nil
}

// Close ends the download; what has come stays.
func (d *download) Close() error { return d.lock.Close() }

// remove deletes what has come.
func (d *download) remove() error {
	return errors.Join(removed(d.file), removed(d.file+".json"))
}

func removed(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// errAgain wraps what may be otherwise when it is tried again.
type errAgain struct{ error }

// get lets the file come, and goes on where the line broke.
func (d *download) get(ctx context.Context) error {
	f, err := os.OpenFile(d.file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("download %s: %w", d.url.Redacted(), err)
	}
	defer f.Close()
	for tries := downloadTries; ; {
		before, err := f.Seek(0, io.SeekEnd)
		if err == nil {
			err = d.once(ctx, f, before)
		}
		if err == nil {
			return f.Close()
		}
		after, _ := f.Seek(0, io.SeekEnd)
		if after > before {
			tries = downloadTries
		}
		tries--
		if !errors.As(err, &errAgain{}) || tries <= 0 || ctx.Err() != nil {
			hint := ""
			if after > 0 && d.state.validator() != "" {
				hint = " (what has come stays: the same command goes on there)"
			}
			return fmt.Errorf("download %s: %w%s", d.url.Redacted(), err, hint)
		}
		t := time.NewTimer(d.pause)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// once asks for what is missing behind the first have bytes.
func (d *download) once(ctx context.Context, f *os.File, have int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept-Encoding", "identity")
	if have > 0 && d.state.validator() != "" {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
		req.Header.Set("If-Range", d.state.validator())
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return errAgain{err}
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		have = 0
		if err := d.begin(f, resp); err != nil {
			return err
		}
	case http.StatusPartialContent:
		var from, to, all int64
		if n, _ := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &all); n != 3 || from != have || d.state.Size >= 0 && all != d.state.Size {
			return fmt.Errorf("it answers a question for what is behind byte %d with %q", have, resp.Header.Get("Content-Range"))
		}
		d.state.Size = all
	case http.StatusRequestedRangeNotSatisfiable:
		if have > 0 && have == d.state.Size {
			return nil // all was here
		}
		return errors.Join(errAgain{errors.New("the file has become another one")}, d.remove(), f.Truncate(0))
	default:
		err := fmt.Errorf("the server says %s", resp.Status)
		if resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusRequestTimeout {
			return errAgain{err}
		}
		return err
	}
	return d.take(f, resp.Body, have)
}

// begin begins with the first byte.
func (d *download) begin(f *os.File, resp *http.Response) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	d.state = downloadState{Size: resp.ContentLength, ETag: resp.Header.Get("ETag"), Modified: resp.Header.Get("Last-Modified")}
	if d.state.Size > d.limit {
		return fmt.Errorf("it has %d bytes, and --max-size allows %d", d.state.Size, d.limit)
	}
	b, err := json.Marshal(d.state)
	if err == nil {
		err = os.WriteFile(d.file+".json", b, 0o600)
	}
	return err
}

// take takes what comes behind the first have bytes.
func (d *download) take(f *os.File, body io.Reader, have int64) error {
	buf := make([]byte, 1<<20)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if have+int64(n) > d.limit {
				return fmt.Errorf("it has more than the %d bytes that --max-size allows", d.limit)
			}
			if _, err := f.WriteAt(buf[:n], have); err != nil {
				return err
			}
			have += int64(n)
			if d.tell != nil && d.state.Size > 0 {
				d.tell(have, d.state.Size)
			}
		}
		switch {
		case err == io.EOF && d.state.Size >= 0 && have != d.state.Size:
			return errAgain{fmt.Errorf("it ends after %d of %d bytes", have, d.state.Size)}
		case err == io.EOF:
			return nil
		case err != nil:
			return errAgain{err}
		}
	}
}

// check holds what has come against a SHA-256 in hexadecimal digits, "" for none, and returns its
// own. What is wrong is deleted.
func (d *download) check(want string) (string, error) {
	f, err := os.Open(d.file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read download: %w", err)
	}
	got := hex.EncodeToString(h.Sum(nil))
	if want != "" && !strings.EqualFold(want, got) {
		return got, errors.Join(fmt.Errorf("%s has the SHA-256 %s, and not %s: it was damaged on its way, or is another file than you think; it is deleted here",
			d.url.Redacted(), got, want), d.remove())
	}
	return got, nil
}

// origin is where the file is from, for people: without passwords, and what a query may have of them.
func (d *download) origin(sum string) string {
	u := *d.url
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String() + " sha256:" + sum
}

// checkSum says whether a flag is a SHA-256.
func checkSum(s string) error {
	if b, err := hex.DecodeString(s); s != "" && (err != nil || len(b) != sha256.Size) {
		return fmt.Errorf("--sha256 %q: a SHA-256 has 64 hexadecimal digits", s)
	}
	return nil
}
