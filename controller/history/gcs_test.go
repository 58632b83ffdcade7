//go:build gcs

package history

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is kept at Google's is tested with the build tag that links its driver, and by hand:
// fake-gcs-server (github.com/fsouza/fake-gcs-server v1.56.1) takes minutes to build. Put it
// next to the other servers, and run go test -tags gcs.

func init() {
	places["gs"] = func(t *testing.T) string { startGCS(t); return "gs://lab" }
}

// startGCS starts an emulator of Google's with a bucket "lab", and points Google's client at it.
func startGCS(t *testing.T) *server {
	t.Helper()
	s := newServer(t, "fake-gcs-server")
	root := t.TempDir()
	_, port, err := net.SplitHostPort(s.address)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "lab"), 0o750); err != nil {
		t.Fatal(err)
	}
	s.args = []string{"-scheme", "http", "-host", "127.0.0.1", "-port", port, "-public-host", s.address,
		"-backend", "filesystem", "-filesystem-root", root, "-log-level", "error"}
	t.Setenv("STORAGE_EMULATOR_HOST", s.address)
	s.start(t)
	return s
}

func TestOpenSaysThatGoogleHasNoSuchBucket(t *testing.T) {
	startGCS(t)
	h, err := Open(t.Context(), "gs://nope", Options{Controller: "main", Journal: t.TempDir()})
	if err == nil {
		t.Fatal("it was opened", h.Close())
	}
	for _, want := range []string{`no bucket "nope" at Google Cloud Storage`, "mend its name"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}
