// Package guest builds the image of the lab's virtual machines: a Debian cloud kernel and an
// initial RAM disk that holds one static program (package init, beside this one) and the
// virtio drivers. There is no shell, no libc and no disk to boot from, so a guest is up in
// seconds even where every instruction is emulated (1.6 s on an idle core). It needs 96 MiB.
//
// The program is compiled with the Go toolchain from the source tree and kept in the cache
// under the hash of its sources. Where there is no source tree (an installed binary), a
// prebuilt initial RAM disk is taken: $HELIOTROPE_GUEST_INITRD, or guest-initrd.img beside
// the running program.
package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// CommandLine is what the kernel boots with; the guest's own heliotrope.… words come after it.
// Of twenty options tried under emulation only two changed the boot's 1.8 s of processor time:
// cryptomgr.notests (-0.28 s) and acpi=off (-0.2 s, but then a guest cannot be asked to shut
// down). The others keep a guest on a busy machine from mistrusting its clocks and make it
// cheaper while it runs.
const CommandLine = "console=ttyS0 quiet panic=-1 cryptomgr.notests random.trust_cpu=on " +
	"tsc=reliable no_timer_check mitigations=off nokaslr net.ifnames=0"

// diskSize is the guest's scratch disk, bytes.
const diskSize = 16 << 20

// Build writes the image into dir, which it makes: vmlinuz, initrd.img, disk.img (16 MiB, blank,
// sparse: a template to copy) and cmdline. It compiles only what changed; a second call costs
// milliseconds. Files appear whole or not at all, so two labs may build at once.
// The kernel and its modules come from the cache that deps.sh fills.
func Build(ctx context.Context, dir string) error {
	cache, err := cacheDir()
	if err != nil {
		return fmt.Errorf("build guest: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("build guest: %w", err)
	}
	kernel := filepath.Join(cache, "vmlinuz")
	if _, err := os.Stat(kernel); err != nil {
		return fmt.Errorf("build guest: no guest kernel: run make deps: %w", err)
	}
	initrd, err := initialRAMDisk(ctx, cache)
	if err != nil {
		return fmt.Errorf("build guest: %w", err)
	}
	return errors.Join(
		replace(filepath.Join(dir, "initrd.img"), func(path string) error { return linkOrCopy(initrd, path) }),
		replace(filepath.Join(dir, "vmlinuz"), func(path string) error { return linkOrCopy(kernel, path) }),
		replace(filepath.Join(dir, "cmdline"), func(path string) error { return os.WriteFile(path, []byte(CommandLine+"\n"), 0o644) }),
		replace(filepath.Join(dir, "disk.img"), func(path string) error {
			f, err := os.Create(path)
			if err != nil {
				return err
			}
			return errors.Join(f.Truncate(diskSize), f.Close())
		}),
	)
}

// cacheDir is where deps.sh puts the kernel.
func cacheDir() (string, error) {
	if dir := os.Getenv("HELIOTROPE_CACHE"); dir != "" {
		return filepath.Join(dir, "guest"), nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache: %w", err)
	}
	return filepath.Join(dir, "heliotrope", "guest"), nil
}

// initialRAMDisk returns the path of the initial RAM disk, building it where it has to be.
func initialRAMDisk(ctx context.Context, cache string) (string, error) {
	if path := os.Getenv("HELIOTROPE_GUEST_INITRD"); path != "" {
		return path, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return prebuilt(err)
	}
	files, err := inputs(root, cache)
	if err != nil {
		return "", err
	}
	hash, err := fingerprint(files)
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, "initrd-"+hash+".img")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := replace(path, func(path string) error { return pack(ctx, root, cache, path) }); err != nil {
		return "", err
	}
	return path, prune(cache, path)
}

// prune removes what other versions of the sources left in the cache. Another tree may use
// one that is new; images have their own link to the content.
func prune(cache, keep string) error {
	all, err := filepath.Glob(filepath.Join(cache, "initrd-*.img"))
	if err != nil {
		return err
	}
	for _, path := range all {
		info, err := os.Stat(path)
		if path == keep || err != nil || time.Since(info.ModTime()) < 24*time.Hour {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("prune cache: %w", err)
		}
	}
	return nil
}

// prebuilt is what is left without a source tree.
func prebuilt(why error) (string, error) {
	program, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(program), "guest-initrd.img")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("no source tree (%w) and no %s: set HELIOTROPE_GUEST_INITRD", why, path)
	}
	return path, nil
}

// moduleRoot finds the source tree upwards from the working directory or the program.
func moduleRoot() (string, error) {
	var starts []string
	if dir, err := os.Getwd(); err == nil {
		starts = append(starts, dir)
	}
	if program, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(program))
	}
	for _, dir := range starts {
		for {
			text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
			if err == nil && bytes.HasPrefix(text, []byte("module heliotrope\n")) {
				return dir, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
			dir = filepath.Dir(dir)
		}
	}
	return "", fmt.Errorf("no module heliotrope above %s", strings.Join(starts, " or "))
}

const (
	initPath   = "topologies/lab/guest/init"
	recordPath = "topologies/lab/guest/record" // of which the program consists too
)

// inputs are the files that the initial RAM disk is made of.
func inputs(root, cache string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(initPath), "*.go"))
	shared, err2 := filepath.Glob(filepath.Join(root, filepath.FromSlash(recordPath), "*.go"))
	if err := errors.Join(err, err2); err != nil {
		return nil, err
	}
	files = append(files, shared...)
	files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
	if len(files) == 0 {
		return nil, fmt.Errorf("no sources in %s: %w", filepath.Join(root, initPath), fs.ErrNotExist)
	}
	modules, err := filepath.Glob(filepath.Join(cache, "modules", "*.ko"))
	if err != nil {
		return nil, err
	}
	if len(modules) == 0 {
		return nil, fmt.Errorf("no kernel modules in %s: run make deps: %w", filepath.Join(cache, "modules"), fs.ErrNotExist)
	}
	return append(append(files, filepath.Join(root, "go.mod")), modules...), nil
}

// fingerprint names the content of files and the compiler.
func fingerprint(files []string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d\n", runtime.Version(), layoutVersion)
	for _, name := range files {
		content, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n", filepath.Base(name), len(content))
		h.Write(content)
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// layoutVersion changes when pack writes something else from the same inputs.
const layoutVersion = 1

// pack compiles init and writes the archive.
func pack(ctx context.Context, root, cache, path string) error {
	work, err := os.MkdirTemp("", "heliotrope-guest-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	program := filepath.Join(work, "init")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./"+initPath)
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH, "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("compile init: %w: %s", err, bytes.TrimSpace(out))
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(writeArchive(f, program, filepath.Join(cache, "modules")), f.Close())
}

// writeArchive does not compress: under emulation either way boots in the same time.
func writeArchive(w io.Writer, program, modules string) error {
	return writeInto(&archive{w: w}, program, modules)
}

// writeInto ends an archive with what every guest has.
func writeInto(a *archive, program, modules string) error {
	a.add("dev", modeDirectory|0o755, device{}, nil)
	a.add("dev/console", modeCharacter|0o600, device{5, 1}, nil) // else init has no output
	a.add("modules", modeDirectory|0o755, device{}, nil)
	a.addFile("init", 0o755, program)
	names, err := filepath.Glob(filepath.Join(modules, "*.ko"))
	if err != nil {
		return err
	}
	for _, name := range names {
		a.addFile("modules/"+filepath.Base(name), 0o644, name)
	}
	return a.end()
}

// replace makes a file whole under another name first.
func replace(path string, write func(path string) error) error {
	work, err := os.MkdirTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.RemoveAll(work)
	fresh := filepath.Join(work, filepath.Base(path))
	if err := write(fresh); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// linkOrCopy shares the content where both are on one file system.
func linkOrCopy(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, source)
	return errors.Join(err, f.Close())
}
