package guest

import (
	"bufio"
	"bytes"
	"context"
	_ "embed" // of made.go.txt
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
)

// Kernel is the kernel's file, which deps.sh puts there.
func Kernel() (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	kernel := filepath.Join(cache, "vmlinuz")
	if _, err := os.Stat(kernel); err != nil {
		return "", fmt.Errorf("no guest kernel: run make deps: %w", err)
	}
	return kernel, nil
}

//go:embed made.go.txt
var common []byte

// Make writes an initial RAM disk whose process 1 is the program that source is, a Go file of
// the standard library ("//go:build ignore" is left out of it), with what all such programs
// have in common (made.go.txt: begin mounts the disk at /root), the drivers in /modules, and
// files, by name.
func Make(ctx context.Context, name string, source []byte, files map[string][]byte) (err error) {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "heliotrope-guest-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	program := filepath.Join(work, "init")
	text, shared := filepath.Join(work, "init.go"), filepath.Join(work, "made.go")
	err = errors.Join(os.WriteFile(text, bytes.Replace(source, []byte("//go:build ignore"), nil, 1), 0o600), os.WriteFile(shared, common, 0o600))
	if err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, text, shared)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GO111MODULE=off")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("compile init: %w: %s", err, bytes.TrimSpace(out))
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	a := archive{w: w}
	a.add("root", modeDirectory|0o755, device{}, nil)
	made := map[string]bool{}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		if dir := path.Dir(file); dir != "." && !made[dir] {
			made[dir] = true
			a.add(dir, modeDirectory|0o755, device{}, nil)
		}
		a.add(file, modeFile|0o755, device{}, files[file])
	}
	if err := writeInto(&a, program, filepath.Join(cache, "modules")); err != nil {
		return err
	}
	return w.Flush()
}
