//go:build lab

package libvirt

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// buildGuest makes an image directory: the cloud kernel that make deps unpacked, and an
// initial RAM disk with our guest program as init.
func buildGuest(t *testing.T, dir string) {
	t.Helper()
	cache := os.Getenv("HELIOTROPE_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(user, "heliotrope")
	}
	guest := filepath.Join(dir, "init")
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", guest, "./testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build guest: %v: %s", err, out)
	}
	kernel, err := os.ReadFile(filepath.Join(cache, "guest", "vmlinuz"))
	if err != nil {
		t.Fatalf("read guest kernel (make deps puts it there): %v", err)
	}
	files := map[string]string{"init": guest}
	modules, _ := filepath.Glob(filepath.Join(cache, "guest", "modules", "*.ko"))
	for _, m := range modules {
		files["modules/"+filepath.Base(m)] = m
	}
	var ram bytes.Buffer
	for _, name := range []string{"modules", "dev", "proc", "sys"} {
		writeCPIO(&ram, name, 0o040755, nil)
	}
	for name, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		writeCPIO(&ram, name, 0o100755, content)
	}
	writeCPIO(&ram, "TRAILER!!!", 0, nil)
	for name, content := range map[string][]byte{"vmlinuz": kernel, "initrd.img": ram.Bytes()} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// writeCPIO appends one member to an archive in the kernel's "newc" format.
func writeCPIO(w *bytes.Buffer, name string, mode int, content []byte) {
	pad := func() {
		for w.Len()%4 != 0 {
			w.WriteByte(0)
		}
	}
	fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		w.Len(), mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
	pad()
	w.Write(content)
	pad()
}
