package history

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What a user can get wrong is told in words that mend it.
func TestOpenSaysWhatIsWrong(t *testing.T) {
	s3, readOnly := startS3(t), startS3(t, "--readonly")
	for name, c := range map[string]struct {
		url, key, secret string
		want             []string
	}{
		"scheme":     {url: "ftp://lab", want: []string{"nothing is known of ftp://", "s3://NAME", "azblob://NAME"}},
		"slashes":    {url: "s3:/lab", want: []string{"write s3://lab"}},
		"bucket":     {url: s3.url("nope"), want: []string{`no bucket "nope" at http://` + s3.address, "mend its name"}},
		"name":       {url: s3.url("No_pe"), want: []string{`bucket "No_pe"`, "refuses", "InvalidBucketName"}},
		"key":        {url: s3.url("lab"), key: "other", secret: secretKey, want: []string{"refuses", "AWS_ACCESS_KEY_ID", "No user exists"}},
		"secret":     {url: s3.url("lab"), key: accessKey, secret: "other", want: []string{"refuses", "AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"}},
		"no key":     {url: s3.url("lab"), key: "-", want: []string{"no credentials for Amazon S3", "set AWS_ACCESS_KEY_ID"}},
		"read only":  {url: readOnly.url("lab"), want: []string{"write heliotrope-check-main", "refuses", "AccessDenied"}},
		"region":     {url: strings.Replace(s3.url("lab"), "us-east-1", "eu-west-3", 1), want: []string{`the region "eu-west-3" is wrong; expecting "us-east-1"`}},
		"no region":  {url: "s3://lab", want: []string{`which region bucket "lab" is in`, "?region="}},
		"endpoint":   {url: "s3://lab?endpoint=" + s3.address, want: []string{"write http://" + s3.address}},
		"TLS":        {url: strings.Replace(s3.url("lab"), "http:", "https:", 1), want: []string{"cannot reach", "gave HTTP response to HTTPS client"}},
		"parameter":  {url: s3.url("lab") + "&endpont=x", want: []string{`unknown query parameter "endpont"`}},
		"no account": {url: "azblob://lab", want: []string{"no credentials for Azure", "set AZURE_STORAGE_ACCOUNT"}},
		"away":       {url: "s3://lab?region=us-east-1&endpoint=http://" + nobody(t), want: []string{"cannot reach", `bucket "lab"`, "refused", "is right and up"}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := t.Context(), func() {}
			switch {
			case c.key == "-": // and no role of the machine's: who would tell it is not there
				t.Setenv("AWS_ACCESS_KEY_ID", "")
				t.Setenv("AWS_EC2_METADATA_DISABLED", "")
				t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://"+nobody(t))
				ctx, cancel = context.WithTimeout(ctx, time.Second) // or it is asked for openWithin
			case c.key != "":
				t.Setenv("AWS_ACCESS_KEY_ID", c.key)
				t.Setenv("AWS_SECRET_ACCESS_KEY", c.secret)
			}
			defer cancel()
			journal := t.TempDir()
			started := time.Now()
			h, err := Open(ctx, c.url, Options{Controller: "main", Journal: journal})
			if err == nil {
				t.Fatal("it was opened", h.Close())
			}
			t.Log(err)
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not said", want)
				}
			}
			if took := time.Since(started); took > openWithin+time.Second {
				t.Errorf("it took %v", took)
			}
			if left, _ := os.ReadDir(journal); len(left) != 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
}

// nobody is an address that nobody listens at.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A server that takes connections and never answers does not keep a controller from starting.
func TestOpenEndsInTime(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	s.stop(t)
	started := time.Now()
	_, err := Open(t.Context(), s.url("lab"), Options{Journal: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "did not answer in time") || time.Since(started) > openWithin+time.Second {
		t.Errorf("after %v: %v", time.Since(started), err)
	}
}

// cutAway is a Cut while the bucket is away. It does not wait for S3's client, which tries
// thrice before it says so.
func cutAway(t *testing.T, h *History) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if h.Cut(ctx, one.Add(time.Hour)) == nil {
		t.Error("a bucket that is away takes files")
	}
}

// A bucket goes away and comes back: what was counted meanwhile is in it then, once. The
// controller may be killed and started in between.
func TestABucketGoesAwayAndComesBack(t *testing.T) {
	s := startS3(t)
	o := Options{Journal: t.TempDir()}
	h := mustOpen(t, s.url("lab"), o)
	want := 0.0
	add := func(seq int) {
		keep(t, h, bin(seq, time.Duration(seq)*time.Minute, tcp("a", "b", 1<<seq)))
		want += float64(uint64(1) << seq)
	}
	away := func() { t.Helper(); cutAway(t, h) }
	add(0)
	cut(t, h)
	s.kill()
	for seq := 1; seq < 20; seq += 5 {
		add(seq)
		away()
	}
	if len(h.over) != 0 || len(h.windows) != 0 {
		t.Errorf("%d and %d windows are in memory", len(h.over), len(h.windows))
	}
	h = reopened(t, h, s.url("lab"), o) // that it is known and away keeps no controller from starting
	keep(t, h, bin(6, 6*time.Minute, tcp("a", "b", 1<<6)))
	add(22)
	away()
	add(24) // which is not over
	if files, size, shed := h.Waiting(); files != 5 || size == 0 || shed != 0 {
		t.Errorf("%d files of %d bytes wait, %d shed", files, size, shed)
	}
	s.start(t)
	if got := total(rows(t, h, 0, time.Hour)); got != want {
		t.Errorf("%v bytes before what waits is written, want %v", got, want)
	}
	for range 2 {
		cut(t, h)
		if got := total(rows(t, h, 0, time.Hour)); got != want {
			t.Errorf("%v bytes, want %v", got, want)
		}
	}
	if got := files(t, h); len(got) != 7 {
		t.Errorf("%v", got)
	}
	h = reopened(t, h, s.url("lab"), o)
	if left, _ := filepath.Glob(filepath.Join(o.Journal, "*.waiting*")); len(left) != 0 || total(rows(t, h, 0, time.Hour)) != want {
		t.Errorf("%v is left, %v bytes", left, total(rows(t, h, 0, time.Hour)))
	}
}

// An upload that was not answered may have come through all the same: it is one file.
func TestAnUploadThatIsNotAnswered(t *testing.T) {
	s := startS3(t)
	h := mustOpen(t, s.url("lab"), Options{Journal: t.TempDir()})
	keep(t, h, bin(1, 0, tcp("a", "b", 100)))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Cut(gone, one.Add(time.Hour)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	s.stop(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // for the upload alone
	defer cancel()
	err := h.Cut(ctx, one.Add(time.Hour))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "did not answer in time") {
		t.Errorf("%v", err)
	}
	s.signal(t, syscall.SIGCONT)
	until(t, "the file comes through", func() bool { return len(files(t, h)) == 1 })
	if got := total(rows(t, h, 0, time.Hour)); got != 100 {
		t.Errorf("%v bytes in the bucket and waiting", got)
	}
	cut(t, h)
	if got := files(t, h); len(got) != 1 || total(rows(t, h, 0, time.Hour)) != 100 {
		t.Errorf("%v, %v bytes", got, total(rows(t, h, 0, time.Hour)))
	}
}

// lines are what is logged.
type lines chan string

func (l lines) Write(line []byte) (int, error) {
	l <- string(line)
	return len(line), nil
}

// Run writes what waits by itself when the bucket is back, and says both.
func TestRunGoesOnWhenTheBucketIsBack(t *testing.T) {
	s := startS3(t)
	h := mustOpen(t, s.url("lab"), Options{Journal: t.TempDir(), Window: time.Second})
	said := make(lines, 100)
	h.Log = slog.New(slog.NewTextHandler(said, nil))
	hear := func(want string) {
		t.Helper()
		for limit := time.After(30 * time.Second); ; {
			select {
			case line := <-said:
				if strings.Contains(line, want) {
					return
				}
			case <-limit:
				t.Fatalf("%q is not said", want)
			}
		}
	}
	s.kill()
	b := bin(1, 0, tcp("a", "b", 100))
	b.Start = time.Now().Add(-time.Hour)
	keep(t, h, b)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	hear("cannot reach")
	hear("delete old traffic history")
	s.start(t)
	hear("written again")
	if got := files(t, h); len(got) != 1 {
		t.Errorf("%v", got)
	}
}

// Of what waits the oldest is shed when it gets too much, or older than is wanted; it is counted.
func TestWhatWaitsTooLongIsShed(t *testing.T) {
	s := startS3(t)
	h := mustOpen(t, s.url("lab"), Options{Journal: t.TempDir(), Retention: time.Hour})
	s.kill()
	for n := range 4 {
		keep(t, h, bin(n, time.Duration(n)*5*time.Minute, tcp("a", "b", 1<<n)))
	}
	cutAway(t, h)
	_, size, _ := h.Waiting()
	h.Backlog = size - 1
	cutAway(t, h)
	if files, size, shed := h.Waiting(); files != 3 || size > h.Backlog || shed != 1 {
		t.Errorf("%d files of %d bytes wait, %d shed", files, size, shed)
	}
	if _, err := h.Expire(t.Context(), one.Add(70*time.Minute)); err == nil {
		t.Error("a bucket that is away has no old files")
	}
	if files, _, shed := h.Waiting(); files != 2 || shed != 2 {
		t.Errorf("%d files wait, %d shed", files, shed)
	}
	s.start(t)
	cut(t, h)
	if got := total(rows(t, h, 0, time.Hour)); got != 4+8 {
		t.Errorf("%v bytes: the oldest were to go", got)
	}
	if left, _ := filepath.Glob(filepath.Join(h.Journal, "*.waiting*")); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

// A file that the bucket will not have keeps no other from it, and is tried less and less often.
func TestAFileThatIsRefusedKeepsNoOther(t *testing.T) {
	h := mustOpen(t, startS3(t).url("lab"), Options{Journal: t.TempDir()})
	h.waiting = append(h.waiting, stored{name: "traffic-20261125T130000Z-lost", key: "lost", from: one})
	keep(t, h, bin(1, 0, tcp("a", "b", 1)))
	pause := time.Duration(0)
	for _, want := range []int{1, 2, 4, 8, 16, 32, 60, 60} {
		if pause = h.round(t.Context(), one.Add(time.Hour), pause); pause != time.Duration(want)*time.Second {
			t.Errorf("the next pause is %v, want %d s", pause, want)
		}
	}
	if got := files(t, h); len(got) != 1 {
		t.Errorf("%v", got)
	}
	h.waiting = nil
	if pause = h.round(t.Context(), one.Add(time.Hour), pause); pause != 0 {
		t.Errorf("the next pause is %v after all went well", pause)
	}
}

// A file that S3 takes in parts is whole.
func TestALargeFileIsWhole(t *testing.T) {
	s := startS3(t)
	journal := t.TempDir()
	data := make([]byte, 20<<20)
	rand.Read(data)
	name := "traffic-20261125T130000Z-main-large"
	if err := os.WriteFile(filepath.Join(journal, name+".waiting"), data, 0o640); err != nil {
		t.Fatal(err)
	}
	h := mustOpen(t, s.url("lab"), Options{Journal: journal})
	cut(t, h)
	got, err := h.bucket.Get(t.Context(), key(name, one))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
