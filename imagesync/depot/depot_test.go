package depot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"
)

// startS3 starts a gateway that speaks S3 and keeps its bucket "lab" in a directory.
func startS3(t *testing.T) (url string) {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(cache, "heliotrope", "bin", "versitygw")
	if dir := os.Getenv("HELIOTROPE_CACHE"); dir != "" {
		program = filepath.Join(dir, "bin", "versitygw")
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: run make deps", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	root, about := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "lab"), 0o750); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "test-key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
	cmd := exec.Command(program, "--port", address, "--quiet", "posix", "--sidecar", about, root)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY=test-key", "ROOT_SECRET_KEY=test-secret")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		if response, err := http.Get("http://" + address); err == nil {
			response.Body.Close()
			return fmt.Sprintf("s3://lab?region=us-east-1&endpoint=http://%s", address)
		}
		select {
		case <-ctx.Done():
			t.Fatal("the S3 server does not answer")
		case <-tick.C:
		}
	}
}

// everywhere runs a test in a directory and in a bucket.
func everywhere(t *testing.T, test func(t *testing.T, d Depot)) {
	for name, place := range map[string]func(*testing.T) string{"directory": func(t *testing.T) string { return t.TempDir() }, "s3": startS3} {
		t.Run(name, func(t *testing.T) {
			d, _, err := Open(t.Context(), place(t))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			})
			test(t, d)
		})
	}
}

func TestFiles(t *testing.T) {
	everywhere(t, func(t *testing.T, d Depot) {
		ctx := t.Context()
		content := bytes.Repeat([]byte("heliotrope"), 100_000)
		for _, name := range []string{"packs/a", "packs/b", "images/x/00000001"} {
			if err := d.Put(ctx, name, bytes.NewReader(content)); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := d.Get(ctx, "packs/a", 1<<20); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if _, err := d.Get(ctx, "packs/a", 1000); err == nil || !strings.Contains(err.Error(), "more than 1000 bytes") {
			t.Error(err)
		}
		p := make([]byte, 25)
		if err := d.ReadAt(ctx, "packs/b", p, 13); err != nil || string(p) != string(content[13:38]) {
			t.Errorf("%q, %v", p, err)
		}
		if err := d.ReadAt(ctx, "packs/b", p, int64(len(content)-5)); err == nil {
			t.Error("bytes beyond the end were read")
		}
		var names []string
		for info, err := range d.List(ctx, "packs") {
			if err != nil || info.Size != int64(len(content)) {
				t.Errorf("%+v, %v", info, err)
			}
			names = append(names, info.Name)
		}
		if slices.Sort(names); !slices.Equal(names, []string{"packs/a", "packs/b"}) {
			t.Error(names)
		}
		for range d.List(ctx, "nix") {
			t.Error("something is in a directory that is not there")
		}
		for range 2 {
			if err := d.Delete(ctx, "packs/a"); err != nil {
				t.Error(err)
			}
		}
		if _, err := d.Get(ctx, "packs/a", 10); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if err := d.ReadAt(ctx, "packs/a", p, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
}

// Of many who create a file one is told that it was him.
func TestCreateIsWonOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, d Depot) {
		for round := range 10 {
			var wg sync.WaitGroup
			won := make(chan int, 8)
			for i := range 8 {
				wg.Go(func() {
					err := d.Create(t.Context(), fmt.Sprintf("images/x/%d", round), fmt.Append(nil, i))
					if err == nil {
						won <- i
					} else if !errors.Is(err, fs.ErrExist) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			close(won)
			winner, ok := <-won
			if _, second := <-won; !ok || second {
				t.Fatalf("round %d: it was not won once", round)
			}
			if got, err := d.Get(t.Context(), fmt.Sprintf("images/x/%d", round), 10); err != nil || string(got) != fmt.Sprint(winner) {
				t.Errorf("round %d: %q of %d, %v", round, got, winner, err)
			}
		}
	})
}

// What breaks while it is written is not there.
func TestHalfAFileIsNone(t *testing.T) {
	everywhere(t, func(t *testing.T, d Depot) {
		err := d.Put(t.Context(), "packs/a", iotest.DataErrReader(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("abc")))))
		if err == nil {
			t.Error("half a file was written")
		}
		for info := range d.List(t.Context(), "packs") {
			t.Errorf("%+v is there", info)
		}
	})
}

func TestNamesStayInside(t *testing.T) {
	d, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../x", "/x", "a/../../x", "", "a//b", "a/.part-x"} {
		if err := d.Put(t.Context(), name, strings.NewReader("x")); err == nil {
			t.Errorf("%q was written", name)
		}
	}
}
