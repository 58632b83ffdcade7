package feed

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// All three kinds read the same, read nothing where there is nothing, and refuse too much.
func TestFeeds(t *testing.T) {
	dir := t.TempDir()
	path, script := filepath.Join(dir, "feed"), filepath.Join(dir, "feed.sh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ ! -e "+path+" ] || cat "+path+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) }))
	defer server.Close()
	for _, name := range []string{"file:" + path, "exec:" + script, server.URL + "/feed"} {
		read, err := Open(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			text string
			fail bool
		}{{"", false}, {"prices", false}, {strings.Repeat("x", Most), false}, {strings.Repeat("x", Most+1), true}} {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if c.text != "" {
				if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := read(t.Context())
			if (err != nil) != c.fail || !c.fail && string(got) != c.text {
				t.Errorf("%s: %d of %d bytes, %v", name, len(got), len(c.text), err)
			}
		}
	}
}

func TestWrongFeeds(t *testing.T) {
	for _, name := range []string{"", "file:", "exec:", "ftp://x", "http:x", "/etc/passwd"} {
		if _, err := Open(name); err == nil || !strings.Contains(err.Error(), "file:PATH") {
			t.Errorf("%q: %v", name, err)
		}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "busy", http.StatusBadGateway) }))
	defer server.Close()
	for _, name := range []string{"exec:/nowhere/program", "exec:/bin/false", "file:/proc/self/mem", server.URL, fmt.Sprintf("http://127.0.0.1:%d/", 1)} {
		read, err := Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if data, err := read(t.Context()); err == nil {
			t.Errorf("%s: %q", name, data)
		}
	}
}
