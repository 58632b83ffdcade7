package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// run runs a program of QEMU's, which decides what is right here.
func run(t testing.TB, program string, args ...string) {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%s is missing: run make deps", program)
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}

func create(t testing.TB, name, size string, options ...string) string {
	t.Helper()
	args := []string{"create", "-q", "-f", "qcow2"}
	for _, o := range options {
		args = append(args, "-o", o)
	}
	run(t, "qemu-img", append(args, name, size)...)
	return name
}

// qemuIO changes an image by commands of qemu-io.
func qemuIO(t testing.TB, name string, commands ...string) {
	t.Helper()
	args := []string{"-f", "qcow2", "-t", "unsafe", "-d", "unmap"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	run(t, "qemu-io", append(args, name)...)
}

// openFile opens an image and its backing files, which are found beside it.
func openFile(t testing.TB, name string) *Image {
	t.Helper()
	open := func(name string) (io.ReaderAt, int64, error) {
		f, err := os.Open(name)
		if err != nil {
			return nil, 0, err
		}
		t.Cleanup(func() { f.Close() })
		st, err := f.Stat()
		return f, st.Size(), err
	}
	r, size, err := open(name)
	if err != nil {
		t.Fatal(err)
	}
	im, err := Open(r, size, Options{Backing: func(backing, _ string) (io.ReaderAt, int64, error) {
		return open(filepath.Join(filepath.Dir(name), filepath.Base(backing)))
	}})
	if err != nil {
		t.Fatalf("open %s: %v", name, err)
	}
	return im
}

// same checks that an image reads as qemu-img converts it, and that its zero extents are.
func same(t testing.TB, name string) *Image {
	t.Helper()
	rawName := name + ".raw"
	run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", name, rawName)
	want, err := os.ReadFile(rawName)
	if err != nil {
		t.Fatal(err)
	}
	im := openFile(t, name)
	if im.Size() != int64(len(want)) {
		t.Fatalf("size %d, qemu-img has %d", im.Size(), len(want))
	}
	if err := im.Check(); err != nil {
		t.Fatalf("check: %v", err)
	}
	got := make([]byte, len(want))
	rng := rand.New(rand.NewPCG(1, uint64(len(want))))
	for off := 0; off < len(got); { // in pieces that end anywhere
		n := min(1+rng.IntN(300_000), len(got)-off)
		if _, err := im.ReadAt(got[off:off+n], int64(off)); err != nil {
			t.Fatalf("read at %d: %v", off, err)
		}
		off += n
	}
	if at := differs(got, want); at >= 0 {
		t.Fatalf("content differs at %d (%#x): %#x, qemu-img has %#x", at, at, got[at], want[at])
	}
	end := int64(0)
	err = openFile(t, name).Extents(func(off, n int64, zero bool) bool { // opened anew: nothing was checked before
		if off != end || n <= 0 {
			t.Fatalf("extent %d+%d follows one that ended at %d", off, n, end)
		}
		end = off + n
		if zero && len(bytes.Trim(want[off:end], "\x00")) != 0 {
			t.Fatalf("extent %d+%d is said to be zero and is not", off, n)
		}
		return true
	})
	if err != nil || end != im.Size() {
		t.Fatalf("extents end at %d of %d: %v", end, im.Size(), err)
	}
	return im
}

// plain makes a name of options that qemu-img does not take for options.
func plain(options string) string { return strings.NewReplacer("=", "-", ",", "-").Replace(options) }

func differs(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// script is n random commands of qemu-io within size bytes, aligned to align. If compressed is
// not 0 it begins with compressed clusters of that size; QEMU puts them only where nothing is.
func script(rng *rand.Rand, n int, size, align int64, compressed int64) []string {
	var all []string
	if compressed > 0 {
		for _, c := range rng.Perm(int(size / compressed))[:min(n/4, int(size/compressed))] {
			all = append(all, fmt.Sprintf("write -c -P %d %d %d", rng.IntN(256), int64(c)*compressed, compressed))
		}
	}
	for range n {
		off := rng.Int64N(size/align) * align
		length := min(1+rng.Int64N(1<<rng.IntN(19)), size-off)
		length = min((length+align-1)/align*align, size-off)
		switch c := rng.IntN(12); {
		case c == 0:
			all = append(all, fmt.Sprintf("write -z %d %d", off, length))
		case c == 1:
			all = append(all, fmt.Sprintf("write -z -u %d %d", off, length))
		case c == 2:
			all = append(all, fmt.Sprintf("discard %d %d", off, length))
		default:
			all = append(all, fmt.Sprintf("write -P %d %d %d", rng.IntN(256), off, length))
		}
	}
	return all
}

// plausible is a raw disk that compresses as disks do: text, noise and nothing.
func plausible(t testing.TB, name string, size int) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(2, 3))
	data := make([]byte, size)
	for off := 0; off < size; off += 16 << 10 {
		part := data[off:min(off+16<<10, size)]
		switch rng.IntN(4) {
		case 0:
			for i := range part {
				part[i] = byte(rng.Uint32())
			}
		case 1, 2:
			for i := range part {
				part[i] = "the quick brown fox "[(i*i/7+off)%20]
			}
		}
	}
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestWritesOfQEMU(t *testing.T) {
	t.Parallel()
	for _, options := range []string{
		"cluster_size=512", "cluster_size=1k", "cluster_size=4k", "cluster_size=64k", "cluster_size=256k", "cluster_size=2M",
		"compat=0.10", "compat=0.10,cluster_size=4k", "lazy_refcounts=on", "refcount_bits=1", "refcount_bits=64,cluster_size=512",
		"compression_type=zstd", "compression_type=zstd,cluster_size=4k", "compression_type=zstd,cluster_size=2M",
		"extended_l2=on,cluster_size=16k", "extended_l2=on,cluster_size=64k", "extended_l2=on,cluster_size=128k", "extended_l2=on,cluster_size=2M",
		"extended_l2=on,compression_type=zstd",
		"preallocation=metadata", "preallocation=metadata,extended_l2=on", "preallocation=falloc,cluster_size=4k",
	} {
		t.Run(plain(options), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(7, uint64(len(options))))
			image := create(t, filepath.Join(t.TempDir(), "a.qcow2"), "9876992", options)
			same(t, image)
			cluster := openFile(t, image).cluster()
			if strings.Contains(options, "preallocation") {
				cluster = 0
			}
			qemuIO(t, image, script(rng, 60, 9876992, 512, cluster)...)
			same(t, image)
		})
	}
}

func TestCompressedByQEMU(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source := plausible(t, filepath.Join(dir, "source"), 5<<20+512)
	for _, options := range []string{
		"compression_type=zlib,cluster_size=512", "compression_type=zlib,cluster_size=4k", "compression_type=zlib", "compression_type=zlib,cluster_size=2M",
		"compression_type=zstd,cluster_size=512", "compression_type=zstd,cluster_size=4k", "compression_type=zstd", "compression_type=zstd,cluster_size=2M",
		"compat=0.10", "extended_l2=on",
	} {
		t.Run(plain(options), func(t *testing.T) {
			t.Parallel()
			image := filepath.Join(dir, plain(options))
			run(t, "qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", options, source, image)
			im := same(t, image)
			packedClusters := 0
			for off := int64(0); off < im.Size(); off += im.cluster() {
				if s, err := im.lookup(off); err != nil {
					t.Fatal(err)
				} else if s.kind == kindPacked {
					packedClusters++
				}
			}
			if packedClusters == 0 && im.cluster() > 512 {
				t.Error("no cluster was compressed")
			}
		})
	}
}

func TestChain(t *testing.T) {
	t.Parallel()
	for _, bottom := range []string{"raw", "qcow2"} {
		for _, top := range []string{"cluster_size=64k", "cluster_size=4k", "extended_l2=on"} {
			t.Run(plain(bottom+","+top), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				rng := rand.New(rand.NewPCG(11, uint64(len(top))))
				base := plausible(t, filepath.Join(dir, "base"), 3<<20+512)
				if bottom == "qcow2" {
					run(t, "qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", base, base+".qcow2")
					base += ".qcow2"
				}
				// The middle is larger than the base, the top smaller than the middle.
				middle := create(t, filepath.Join(dir, "middle.qcow2"), "6M", "cluster_size=32k", "backing_file="+base, "backing_fmt="+bottom)
				qemuIO(t, middle, script(rng, 20, 6<<20, 512, 0)...)
				image := create(t, filepath.Join(dir, "top.qcow2"), "5M", top, "backing_file="+middle, "backing_fmt=qcow2")
				same(t, image)
				qemuIO(t, image, script(rng, 30, 5<<20, 512, 0)...)
				if got := same(t, image).Backing(); got != middle {
					t.Errorf("backing file %q", got)
				}
			})
		}
	}
}

func TestSnapshotsAreLeftAlone(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(13, 13))
	image := create(t, filepath.Join(t.TempDir(), "a.qcow2"), "8M")
	for i := range 3 {
		qemuIO(t, image, script(rng, 20, 8<<20, 4096, 0)...)
		run(t, "qemu-img", "snapshot", "-c", fmt.Sprint("s", i), image)
	}
	qemuIO(t, image, script(rng, 20, 8<<20, 4096, 0)...)
	run(t, "qemu-img", "bitmap", "--add", image, "b")
	im := same(t, image)
	said := strings.Join(im.Ignored(), "\n")
	for _, want := range []string{"3 internal snapshots", "dirty bitmaps"} {
		if !strings.Contains(said, want) {
			t.Errorf("nothing is said of %s: %q", want, said)
		}
	}
	run(t, "qemu-img", "bitmap", "--remove", image, "b")
	run(t, "qemu-img", "snapshot", "-a", "s1", image)
	same(t, image)
}

func TestResized(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(17, 17))
	image := create(t, filepath.Join(t.TempDir(), "a.qcow2"), "4M", "cluster_size=1k")
	qemuIO(t, image, script(rng, 20, 4<<20, 512, 0)...)
	run(t, "qemu-img", "resize", "-q", image, "20M")
	qemuIO(t, image, script(rng, 40, 20<<20, 512, 0)...)
	same(t, image)
	run(t, "qemu-img", "resize", "-q", "--shrink", image, "1000448")
	same(t, image)
}

// An empty disk of 64 TiB is a single run of zeros, and says so at once.
func TestHuge(t *testing.T) {
	t.Parallel()
	image := create(t, filepath.Join(t.TempDir(), "a.qcow2"), "63T")
	qemuIO(t, image, "write -P 1 40T 64k")
	var runs []string
	err := openFile(t, image).Extents(func(off, n int64, zero bool) bool {
		runs = append(runs, fmt.Sprint(off>>30, " ", n, " ", zero))
		return true
	})
	want := []string{fmt.Sprint("0 ", int64(40)<<40, " true"), fmt.Sprint(40<<10, " 65536 false"), fmt.Sprint(40<<10, " ", int64(23)<<40-65536, " true")}
	if err != nil || !slices.Equal(runs, want) {
		t.Errorf("%v, %q", err, runs)
	}
}

func TestReadAtKeepsItsContract(t *testing.T) {
	t.Parallel()
	image := create(t, filepath.Join(t.TempDir(), "a.qcow2"), "1M")
	qemuIO(t, image, "write -P 9 1000k 24k")
	im := openFile(t, image)
	p := make([]byte, 100)
	if n, err := im.ReadAt(p, 1<<20-40); n != 40 || err != io.EOF || p[39] != 9 {
		t.Errorf("across the end: %d, %v", n, err)
	}
	if n, err := im.ReadAt(p, 1<<20); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if _, err := im.ReadAt(p, -1); err == nil {
		t.Error("before the beginning: no error")
	}
	all, err := io.ReadAll(io.NewSectionReader(im, 0, im.Size()))
	if err != nil || len(all) != 1<<20 {
		t.Errorf("%d bytes, %v", len(all), err)
	}
}

func TestDetect(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source := plausible(t, filepath.Join(dir, "source"), 1<<20)
	for _, f := range []Format{Raw, QCOW2, QCOW, QED, VMDK, VHDX, VHD, VDI, Parallels} {
		image := filepath.Join(dir, string(f))
		run(t, "qemu-img", "convert", "-q", "-f", "raw", "-O", string(f), source, image)
		head, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		if got := Detect(head[:HeadSize]); got != f {
			t.Errorf("%s is taken for %s", f, got)
		}
	}
	for head, want := range map[string]Format{"": Raw, "QFI": Raw, "QFI\xfb\x00\x00\x00\x02": QCOW2, "QFI\xfb\x00\x00\x00\x01": QCOW,
		"\x1f\x8b\x08\x08": Gzip, "\xfd7zXZ\x00\x00\x04": XZ, "BZh91AY&SY": Bzip2, "\x28\xb5\x2f\xfd": Zstandard, "PK\x03\x04": Zip, "<!DOCTYPE html>": HTML, "# Disk DescriptorFile\nversion=1": VMDK,
		strings.Repeat("a", 257) + "ustar": Tar} {
		if got := Detect([]byte(head)); got != want {
			t.Errorf("%.20q is taken for %s, not %s", head, got, want)
		}
	}
}
