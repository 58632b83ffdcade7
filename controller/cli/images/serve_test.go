package images_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"heliotrope/controller/cli"
	"heliotrope/controller/cli/images"
)

// Here the clients are those that people use.

// said is what a command says, for who waits for it.
type said struct {
	mu    sync.Mutex
	text  bytes.Buffer
	want  string
	there chan struct{}
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Write(p)
	if s.want != "" && strings.Contains(s.text.String(), s.want) {
		close(s.there)
		s.want = ""
	}
	return len(p), nil
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// serve runs "image serve" until it has said something, which may be its socket's line; stop ends it.
func (b *bench) serve(line, until string) (out *said, stop func()) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	out = &said{want: until, there: make(chan struct{})}
	args := []string{"image", "--store", filepath.Join(b.dir, "store"), "--keys", filepath.Join(b.dir, "keys"), "serve", "--dir", filepath.Join(b.dir, "host"), "--socket", filepath.Join(b.dir, "sock")}
	root := cli.Command("test")
	root.AddCommand(images.Command())
	root.SetArgs(append(args, strings.Fields(line)...))
	root.SetOut(out)
	root.SetErr(out)
	ended := make(chan struct{})
	var err error
	go func() {
		defer close(ended)
		err = root.ExecuteContext(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-ended
		if err != nil {
			b.Errorf("serve %s: %v: %s", line, err, out)
		}
	})
	b.Cleanup(stop)
	select {
	case <-out.there:
	case <-ended:
		stop()
		b.Fatalf("serve %s has ended: %v: %s", line, err, out)
	}
	return out, stop
}

// program runs a program that has to do its work.
func (b *bench) program(name string, args ...string) string {
	b.Helper()
	out, err := b.try(name, args...)
	if err != nil {
		b.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func (b *bench) try(name string, args ...string) (string, error) {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), name, args...)
	cmd.Dir = b.dir
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		b.Fatalf("there is no %s: run make deps", name)
	}
	return string(out), err
}

func (b *bench) uri(export string) string {
	return "nbd+unix:///" + export + "?socket=" + filepath.Join(b.dir, "sock")
}

// write4k writes 4 KiB of one byte at an offset of an export.
func (b *bench) write4k(export string, pattern byte, off int) {
	b.Helper()
	out := b.program("qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P %d %d 4k", pattern, off), "-c", "flush", b.uri(export))
	if !strings.Contains(out, "wrote 4096/4096") {
		b.Fatal(out)
	}
}

// compare compares an export with a file.
func (b *bench) compare(export, file string) {
	b.Helper()
	b.program("nbdcopy", b.uri(export), "copy.raw")
	b.same("copy.raw", file)
	os.Remove(filepath.Join(b.dir, "copy.raw"))
}

// onDisk is what files in a directory take of the disk, bytes.
func (b *bench) onDisk(dir string) (n int64) {
	b.Helper()
	err := filepath.WalkDir(filepath.Join(b.dir, dir), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			n += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return n
}

const serving = "for a VM:"

// compressible makes content be stored in less than it has, as most of an image is.
func compressible(content []byte) []byte {
	for i := range content {
		content[i] &= 0x0f
	}
	return content
}

func TestServeAsItIs(t *testing.T) {
	b, _ := newBench(t)
	b.must("import debian ./disk.raw")
	out, stop := b.serve("debian --read-only", serving)
	if text := out.String(); !strings.Contains(text, "debian@1") || !strings.Contains(text, "format=raw,if=virtio,readonly=on") {
		t.Error(text)
	}
	b.program("nbdinfo", "--is", "readonly", b.uri(""))
	if size := b.program("nbdinfo", "--size", b.uri("")); size != "3145728\n" {
		t.Error(size)
	}
	var extents []struct{ Offset, Length, Type int64 }
	if err := json.Unmarshal([]byte(b.program("nbdinfo", "--json", "--map", b.uri(""))), &extents); err != nil || len(extents) != 2 || extents[0].Length != 1<<20 || extents[0].Type != 3 {
		t.Errorf("%v, %v", extents, err)
	}
	b.compare("", "disk.raw")
	for _, write := range []string{"write 0 4k", "write -z 0 4k", "discard 0 4k"} {
		if out, err := b.try("qemu-io", "-f", "raw", "-c", write, b.uri("")); err == nil && !strings.Contains(out, "failed") {
			t.Errorf("%s is not refused: %s", write, out)
		}
	}
	stop()
	b.serve("debian --read-only --prefetch off", serving)
	b.compare("", "disk.raw")
}

func TestVolumesWay(t *testing.T) {
	b, content := newBench(t)
	b.write("disk.raw", compressible(content))
	b.must("import debian ./disk.raw")
	out, stop := b.serve("debian --volume web", serving)
	if !strings.Contains(out.String(), "volume web on debian@1 (new)") {
		t.Error(out)
	}
	b.compare("", "disk.raw")
	b.write4k("", 7, 1<<20+8192)
	b.write4k("web", 9, 4096)
	if _, code := b.run("commit web --dir ./host"); code == 0 {
		t.Error("a volume that is served was committed from")
	}
	stop()

	// A newer version is no reason for a disk to change.
	b.write("other.raw", make([]byte, 1<<20))
	b.must("import debian ./other.raw")
	copy(content[1<<20+8192:], bytes.Repeat([]byte{7}, 4096))
	copy(content[4096:], bytes.Repeat([]byte{9}, 4096))
	b.write("changed.raw", content)
	out, stop = b.serve("debian --volume web --volume db", "volume db")
	if text := out.String(); !strings.Contains(text, "volume web on debian@1:") || !strings.Contains(text, "volume db on debian@1 (new)") {
		t.Error(text)
	}
	b.compare("web", "changed.raw")
	b.compare("db", "disk.raw")
	stop()

	// Somebody has made a newer version than the volume's; another name is free, but for one that is taken.
	if said, code := b.run("commit web --dir ./host"); code != 1 || !strings.Contains(said, "--as") {
		t.Error(code, said)
	}
	b.must("clone debian@2 taken")
	if said, code := b.run("commit web --dir ./host --as taken"); code != 1 || !strings.Contains(said, "choose another name") {
		t.Error(code, said)
	}
	var made struct {
		Version int   `json:"version"`
		Read    int64 `json:"read_bytes"`
		New     int64 `json:"new_bytes"`
	}
	commit := func(line string) {
		t.Helper()
		if err := json.Unmarshal([]byte(b.must(line+" -o json")), &made); err != nil {
			t.Fatal(err)
		}
	}
	commit("commit web --dir ./host --as web")
	if made.Version != 1 || made.Read != 2<<16 || made.New != 2<<16 {
		t.Errorf("%+v: two chunks were written to", made)
	}
	b.must("export web ./out.raw")
	b.same("out.raw", "changed.raw")
	if said, code := b.run("commit web --dir ./host"); code != 1 || !strings.Contains(said, "nothing was written since web@1") {
		t.Error(code, said)
	}

	// It goes on from there.
	_, stop = b.serve("debian@1 --volume web", serving)
	b.compare("", "changed.raw")
	b.write4k("", 11, 2<<20)
	stop()
	copy(content[2<<20:], bytes.Repeat([]byte{11}, 4096))
	b.write("changed.raw", content)
	commit("commit web --dir ./host")
	if made.Version != 2 || made.Read != 1<<16 {
		t.Errorf("%+v: one chunk was written to", made)
	}
	b.must("export web ./out.raw")
	b.same("out.raw", "changed.raw")
	b.must("export debian@1 ./out.raw")
	b.same("out.raw", "disk.raw")
	for line, want := range map[string]string{
		"serve debian@2 --volume web --dir ./host --socket ./sock":               "was made from debian@1",
		"serve debian@1 --dir ./host --socket ./sock":                            "--read-only",
		"serve debian@1 --volume ../x --dir ./host --socket ./sock":              "no name of a volume",
		"serve debian@1 --volume x --prefetch much --dir ./host --socket ./sock": "such as 5M",
		"commit nix --dir ./host":                                                "no such volume",
	} {
		if said, code := b.run(line); code != 1 || !strings.Contains(said, want) {
			t.Errorf("%s: exit code %d: %s", line, code, said)
		}
	}
}

// A commit that crashed after it had made the version is found by the next.
func TestCommitAfterACrash(t *testing.T) {
	b, _ := newBench(t)
	b.must("import debian ./disk.raw")
	_, stop := b.serve("debian --volume web", serving)
	b.write4k("", 7, 2<<20)
	stop()
	file := filepath.Join(b.dir, "host", "volumes", "web", "origin.json")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b.must("commit web --dir ./host")
	var v struct {
		From string `json:"from"`
	}
	if err := json.Unmarshal([]byte(b.must("show debian -o json")), &v); err != nil {
		t.Fatal(err)
	}
	var origin map[string]any
	if err := json.Unmarshal(before, &origin); err != nil {
		t.Fatal(err)
	}
	origin["pending"], origin["pending_image"] = v.From, "debian"
	crashed, err := json.Marshal(origin)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, crashed, 0o600); err != nil {
		t.Fatal(err)
	}
	_, stop = b.serve("debian@1 --volume web", serving)
	b.write4k("", 8, 2<<20)
	stop()
	if out := b.must("commit web --dir ./host"); !strings.Contains(out, "debian@3") {
		t.Error(out)
	}
}

// Fifty volumes are made at once, of nothing.
func TestFiftyVolumes(t *testing.T) {
	b, _ := newBench(t)
	content := make([]byte, 64<<20)
	rand.NewChaCha8([32]byte{2}).Read(content)
	b.write("large.raw", content)
	b.must("import large ./large.raw")
	line := "large --prefetch off"
	for i := range 50 {
		line += fmt.Sprintf(" --volume vm%d", i)
	}
	_, stop := b.serve(line, "volume vm49")
	b.write4k("vm49", 5, 0)
	b.program("qemu-io", "-f", "raw", "-c", fmt.Sprintf("read -P %d 0 1", content[0]), b.uri("vm0"))
	stop()
	if used := b.onDisk("host"); used > 50*64<<10 {
		t.Errorf("50 volumes take %d bytes of the disk, with one chunk read and one block written", used)
	}
}

// What a new volume's first client reads is made ready for the next volume, on whatever host.
func TestABootIsRecorded(t *testing.T) {
	b, _ := newBench(t)
	content := make([]byte, 40<<20)
	rand.NewChaCha8([32]byte{3}).Read(content[1<<20:])
	b.write("disk.raw", compressible(content))
	b.must("import debian ./disk.raw")
	_, stop := b.serve("debian --volume web --prefetch off --working-set "+filepath.Join(b.dir, "boot.json"), serving)
	b.program("qemu-io", "-f", "raw", "-c", "read 2m 512k", "-c", "read 1m 640k", b.uri(""))
	stop()
	text, err := os.ReadFile(filepath.Join(b.dir, "boot.json"))
	if err != nil {
		t.Fatal(err)
	}
	var boot struct{ Chunks []int }
	if err := json.Unmarshal(text, &boot); err != nil || len(boot.Chunks) != 18 || boot.Chunks[0] != 32 || boot.Chunks[17] != 25 {
		t.Errorf("%v, %v", boot, err)
	}
	if err := os.RemoveAll(filepath.Join(b.dir, "host")); err != nil {
		t.Fatal(err)
	}
	b.serve("debian --volume web --working-set "+filepath.Join(b.dir, "boot.json"), "all of the image is here")
	b.compare("", "disk.raw")
}
