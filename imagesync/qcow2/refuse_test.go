package qcow2

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// patient is an image in memory that bytes are changed of.
type patient struct{ b []byte }

func (p *patient) get32(at int64) uint32    { return binary.BigEndian.Uint32(p.b[at:]) }
func (p *patient) get64(at int64) uint64    { return binary.BigEndian.Uint64(p.b[at:]) }
func (p *patient) set32(at int64, v uint32) { binary.BigEndian.PutUint32(p.b[at:], v) }
func (p *patient) set64(at int64, v uint64) { binary.BigEndian.PutUint64(p.b[at:], v) }

func (p *patient) cluster() uint64  { return 1 << p.get32(20) }
func (p *patient) l1() int64        { return int64(p.get64(40)) }
func (p *patient) ref() int64       { return int64(p.get64(48)) }
func (p *patient) l2(i int64) int64 { return int64(p.get64(p.l1()+8*i) & entryOffset) }

// add puts content at the file's end, at a cluster's beginning, and returns where.
func (p *patient) add(content []byte) uint64 {
	for uint64(len(p.b))%p.cluster() != 0 {
		p.b = append(p.b, 0)
	}
	at := len(p.b)
	p.b = append(p.b, content...)
	for len(p.b)%512 != 0 {
		p.b = append(p.b, 0)
	}
	return uint64(at)
}

// pack makes guest cluster 1, which nobody has written, a compressed one.
func (p *patient) pack(content []byte) {
	p.packAt(p.add(content), uint64(len(content)+511)/512-1)
}

func (p *patient) packAt(at, sectors uint64) {
	p.set64(p.l2(0)+8, l2Compressed|sectors<<(62-(p.get32(20)-8))|at)
}

// patients are made by qemu-img: clusters of 4 KiB, data in guest clusters 0, 2 and 600, of
// two L2 tables.
func patients(t testing.TB) map[string][]byte {
	t.Helper()
	dir := t.TempDir()
	all := make(map[string][]byte)
	for name, options := range map[string]string{"v3": "cluster_size=4k", "v2": "cluster_size=4k,compat=0.10",
		"zstd": "cluster_size=4k,compression_type=zstd", "extended": "cluster_size=16k,extended_l2=on"} {
		image := create(t, filepath.Join(dir, name), "64M", options)
		qemuIO(t, image, "write -P 1 0 4k", "write -P 2 8k 4k", "write -P 3 2400k 4k", "write -P 4 40M 4k")
		all[name] = must(os.ReadFile(image))
	}
	base := create(t, filepath.Join(dir, "base"), "64M")
	top := create(t, filepath.Join(dir, "top"), "64M", "cluster_size=4k", "backing_file="+base, "backing_fmt=qcow2")
	qemuIO(t, top, "write -P 1 0 4k")
	all["backed"] = must(os.ReadFile(top))
	return all
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// read does with an image what an importer does.
func read(b []byte, o Options) error {
	im, err := Open(bytes.NewReader(b), int64(len(b)), o)
	if err != nil {
		return err
	}
	var failed error
	err = im.Extents(func(off, n int64, zero bool) bool {
		if zero {
			return true
		}
		p := make([]byte, min(n, 1<<20))
		_, failed = im.ReadAt(p, off)
		return failed == nil
	})
	if err != nil {
		return err
	}
	return failed
}

func deflated(content []byte) []byte {
	var out bytes.Buffer
	w := must(flate.NewWriter(&out, 9))
	must(w.Write(content))
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func zstandardised(content []byte) []byte {
	return must(zstd.NewWriter(nil, zstd.WithEncoderCRC(true))).EncodeAll(content, nil)
}

type refusal struct {
	name, image string
	kind        error
	words       string
	do          func(p *patient)
}

var headerRefusals = []refusal{
	{"empty", "v3", ErrCorrupt, "0 bytes", func(p *patient) { p.b = nil }},
	{"short", "v3", ErrCorrupt, "71 bytes", func(p *patient) { p.b = p.b[:71] }},
	{"short v3", "v3", ErrCorrupt, "100 bytes", func(p *patient) { p.b = p.b[:100] }},
	{"other format", "v3", ErrUnsupported, "not qcow2 but vhdx", func(p *patient) { copy(p.b, "vhdxfile") }},
	{"version 1", "v3", ErrUnsupported, "version 1", func(p *patient) { p.set32(4, 1) }},
	{"version 4", "v3", ErrUnsupported, "version 4", func(p *patient) { p.set32(4, 4) }},
	{"small clusters", "v3", ErrCorrupt, "cluster size of 2^8", func(p *patient) { p.set32(20, 8) }},
	{"large clusters", "v3", ErrCorrupt, "cluster size of 2^22", func(p *patient) { p.set32(20, 22) }},
	{"clusters beyond all", "v3", ErrCorrupt, "cluster size", func(p *patient) { p.set32(20, 1<<31+12) }},
	{"AES", "v3", ErrUnsupported, "encrypted (AES)", func(p *patient) { p.set32(32, 1) }},
	{"LUKS", "v2", ErrUnsupported, "encrypted (LUKS)", func(p *patient) { p.set32(32, 2) }},
	{"header too short", "v3", ErrCorrupt, "header length of 96", func(p *patient) { p.set32(100, 96) }},
	{"header too long", "v3", ErrCorrupt, "header length of 8192", func(p *patient) { p.set32(100, 8192) }},
	{"header odd", "v3", ErrCorrupt, "header length of 113", func(p *patient) { p.set32(100, 113) }},
	{"header beyond all", "v3", ErrCorrupt, "header length", func(p *patient) { p.set32(100, 1<<32-8) }},
	{"refcounts", "v3", ErrCorrupt, "refcounts of 2^7", func(p *patient) { p.set32(96, 7) }},
	{"dirty", "v3", ErrUnsupported, "qemu-img check -r", func(p *patient) { p.set64(72, featureDirty) }},
	{"corrupt", "v3", ErrUnsupported, "qemu-img check -r", func(p *patient) { p.set64(72, featureCorrupt) }},
	{"external data", "v3", ErrUnsupported, "external data file", func(p *patient) { p.set64(72, featureExternalData) }},
	{"unknown feature", "v3", ErrUnsupported, "bit 5, bit 63", func(p *patient) { p.set64(72, 1<<63|1<<5) }},
	{"named feature", "v3", ErrUnsupported, `bit 40 ("holograms")`, func(p *patient) {
		p.set64(72, 1<<40)
		at := int64(p.get32(100))
		p.set32(at, extensionFeatures)
		p.set32(at+4, 48)
		copy(p.b[at+8:at+56], append([]byte{0, 40}, "holograms\x00\x00"...))
	}},
	{"compression type", "v3", ErrUnsupported, "compression type 2", func(p *patient) { p.b[104] = 2; p.set64(72, featureCompression) }},
	{"compression unsaid", "v3", ErrCorrupt, "compression type is 1", func(p *patient) { p.b[104] = 1 }},
	{"compression said", "v3", ErrCorrupt, "compression type is 0", func(p *patient) { p.set64(72, featureCompression) }},
	{"extended with small clusters", "v3", ErrCorrupt, "extended L2 entries", func(p *patient) { p.set64(72, featureExtendedL2) }},
	{"disk too large", "v3", ErrUnsupported, "the limit is 1099511627776", func(p *patient) { p.set64(24, 1<<40+512) }},
	{"disk beyond all", "v2", ErrUnsupported, "the limit is", func(p *patient) { p.set64(24, 1<<63+1) }},
	{"L1 too small", "v3", ErrCorrupt, "L1 table of 31 entries", func(p *patient) { p.set32(36, 31) }},
	{"L1 too large", "v3", ErrCorrupt, "L1 table of 4194305 entries", func(p *patient) { p.set32(36, maxL1Bytes/8+1) }},
	{"L1 nowhere", "v3", ErrCorrupt, "L1 table is at 0", func(p *patient) { p.set64(40, 0) }},
	{"L1 unaligned", "v3", ErrCorrupt, "L1 table is at", func(p *patient) { p.set64(40, p.get64(40)+8) }},
	{"L1 beyond the end", "v3", ErrCorrupt, "beyond the file's end", func(p *patient) { p.set64(40, 1<<40) }},
	{"L1 beyond all", "v3", ErrCorrupt, "beyond the file's end", func(p *patient) { p.set64(40, 1<<64-4096) }},
	{"L1 across the end", "v3", ErrCorrupt, "beyond the file's end", func(p *patient) { p.set32(36, maxL1Bytes/8) }},
	{"L1 on the refcount table", "v3", ErrCorrupt, "overlaps the L1 table", func(p *patient) { p.set64(40, p.get64(48)) }},
	{"refcount table empty", "v3", ErrCorrupt, "refcount table of 0", func(p *patient) { p.set32(56, 0) }},
	{"refcount table too large", "v3", ErrCorrupt, "refcount table of 2049", func(p *patient) { p.set32(56, 2049) }},
	{"refcount table unaligned", "v3", ErrCorrupt, "refcount table is at", func(p *patient) { p.set64(48, 4097) }},
	{"refcount table beyond the end", "v3", ErrCorrupt, "beyond the file's end", func(p *patient) { p.set64(48, 1<<50) }},
	{"refcount block unaligned", "v3", ErrCorrupt, "refcount block 0 is at", func(p *patient) { p.set64(p.ref(), 4096+512) }},
	{"refcount block reserved bits", "v3", ErrCorrupt, "reserved bits", func(p *patient) { p.set64(p.ref(), 4096+1) }},
	{"refcount block on the L1 table", "v3", ErrCorrupt, "overlaps the L1 table", func(p *patient) { p.set64(p.ref(), p.get64(40)) }},
	{"refcount block twice", "v3", ErrCorrupt, "overlaps", func(p *patient) { p.set64(p.ref()+8, p.get64(p.ref())) }},
	{"extension too long", "v3", ErrCorrupt, "reaches out of the header", func(p *patient) {
		p.set32(int64(p.get32(100)), extensionFormat)
		p.set32(int64(p.get32(100))+4, 1<<32-1)
	}},
	{"backing name too long", "v3", ErrCorrupt, "name of 1024 bytes", func(p *patient) { p.set64(8, 512); p.set32(16, 1024) }},
	{"backing name outside", "v3", ErrCorrupt, "outside the header's cluster", func(p *patient) { p.set64(8, 4000); p.set32(16, 100) }},
	{"backing name beyond all", "v3", ErrCorrupt, "outside the header's cluster", func(p *patient) { p.set64(8, 1<<63); p.set32(16, 100) }},
	{"backing name in the header", "v3", ErrCorrupt, "outside the header's cluster", func(p *patient) { p.set64(8, 8); p.set32(16, 10) }},
	{"backing file", "backed", ErrUnsupported, "qemu-img rebase", func(*patient) {}},
	{"backing format unsaid", "v3", ErrUnsupported, "qemu-img rebase -u", func(p *patient) {
		p.set64(8, 4000)
		p.set32(16, 5)
		copy(p.b[4000:], "/etc/")
	}},
}

var tableRefusals = []refusal{
	{"L1 entry reserved bits", "v3", ErrCorrupt, "reserved bits", func(p *patient) { p.set64(p.l1(), p.get64(p.l1())|1) }},
	{"L1 entry unaligned", "v3", ErrCorrupt, "no cluster of the file", func(p *patient) { p.set64(p.l1(), p.get64(p.l1())+512) }},
	{"L1 entry beyond the end", "v3", ErrCorrupt, "no cluster of the file", func(p *patient) { p.set64(p.l1(), 1<<40) }},
	{"L2 on the L1 table", "v3", ErrCorrupt, "overlaps the L1 table", func(p *patient) { p.set64(p.l1(), p.get64(40)) }},
	{"L2 on the refcount table", "v3", ErrCorrupt, "overlaps the refcount table", func(p *patient) { p.set64(p.l1(), p.get64(48)) }},
	{"L2 on a refcount block", "v3", ErrCorrupt, "overlaps a refcount block", func(p *patient) { p.set64(p.l1(), p.get64(p.ref())) }},
	{"L2 twice", "v3", ErrCorrupt, "overlaps an L2 table", func(p *patient) { p.set64(p.l1()+8*5, p.get64(p.l1())) }},
	{"L2 is data", "v3", ErrCorrupt, "overlaps an L2 table", func(p *patient) { p.set64(p.l1()+8*5, p.get64(p.l2(0))) }},
	{"entry reserved bits", "v3", ErrCorrupt, "reserved bits", func(p *patient) { p.set64(p.l2(0), p.get64(p.l2(0))|1<<57) }},
	{"entry reserved low bits", "v3", ErrCorrupt, "reserved bits", func(p *patient) { p.set64(p.l2(0), p.get64(p.l2(0))|2) }},
	{"data unaligned", "v3", ErrCorrupt, "no cluster's beginning", func(p *patient) { p.set64(p.l2(0), p.get64(p.l2(0))+512) }},
	{"data beyond the end", "v3", ErrCorrupt, "cut off", func(p *patient) { p.set64(p.l2(0), 1<<50) }},
	{"data on the refcount table", "v3", ErrCorrupt, "overlaps the refcount table", func(p *patient) { p.set64(p.l2(0), p.get64(48)) }},
	{"data on the L1 table", "v3", ErrCorrupt, "overlaps the L1 table", func(p *patient) { p.set64(p.l2(0), p.get64(40)) }},
	{"data on its L2 table", "v3", ErrCorrupt, "overlaps an L2 table", func(p *patient) { p.set64(p.l2(0), uint64(p.l2(0))) }},
	{"data on another L2 table", "v3", ErrCorrupt, "overlaps an L2 table", func(p *patient) { p.set64(p.l2(0), uint64(p.l2(1))) }},
	{"data on a refcount block", "v3", ErrCorrupt, "overlaps a refcount block", func(p *patient) { p.set64(p.l2(0), p.get64(p.ref())) }},
	{"data twice", "v3", ErrCorrupt, "another guest cluster", func(p *patient) { p.set64(p.l2(0)+8*9, p.get64(p.l2(0))) }},
	{"data twice, in two tables", "v3", ErrCorrupt, "another guest cluster", func(p *patient) { p.set64(p.l2(1), p.get64(p.l2(0))) }},
	{"data twice, once as zeros", "v3", ErrCorrupt, "another guest cluster", func(p *patient) { p.set64(p.l2(0)+8*9, p.get64(p.l2(0))|l2Zero) }},
	{"zero flag in version 2", "v2", ErrCorrupt, "zero flag", func(p *patient) { p.set64(p.l2(0), l2Zero) }},
	{"file cut off", "v3", ErrCorrupt, "cut off", func(p *patient) { p.b = p.b[:len(p.b)-1024] }},

	{"packed beyond the end", "v3", ErrCorrupt, "the file ends", func(p *patient) { p.packAt(1<<40, 0) }},
	{"packed at the header", "v3", ErrCorrupt, "overlaps the header", func(p *patient) { p.packAt(100, 0) }},
	{"packed at nothing", "v3", ErrCorrupt, "is at 0", func(p *patient) { p.packAt(0, 0) }},
	{"packed cut off", "v3", ErrCorrupt, "cut off", func(p *patient) { p.packAt(p.add(deflated(make([]byte, 4096))), 5) }},
	{"packed on data", "v3", ErrCorrupt, "another guest cluster", func(p *patient) { p.packAt(p.get64(p.l2(0))&entryOffset+100, 0) }},
	{"packed on an L2 table", "v3", ErrCorrupt, "overlaps an L2 table", func(p *patient) { p.packAt(uint64(p.l2(1)), 0) }},
	{"data on packed", "v3", ErrCorrupt, "another guest cluster", func(p *patient) {
		at := p.add(make([]byte, 4096))
		p.packAt(at, 0)
		p.set64(p.l2(0)+8*9, at|entryCopied)
	}},
	{"deflate garbage", "v3", ErrCorrupt, "inflate", func(p *patient) { p.pack(bytes.Repeat([]byte{0xff}, 100)) }},
	{"deflate too little", "v3", ErrCorrupt, "inflate, after 4000 bytes", func(p *patient) { p.pack(deflated(make([]byte, 4000))) }},
	{"deflate broken off", "v3", ErrCorrupt, "inflate", func(p *patient) {
		noise := make([]byte, 4096)
		for i := range noise {
			noise[i] = byte(rand.Uint32())
		}
		p.pack(deflated(noise)[:2048])
	}},
	{"deflate bomb", "v3", ErrCorrupt, "more than a cluster", func(p *patient) { p.pack(deflated(make([]byte, 1<<20))) }},
	{"deflate one too many", "v3", ErrCorrupt, "more than a cluster", func(p *patient) { p.pack(deflated(make([]byte, 4097))) }},
	{"zstd garbage", "zstd", ErrCorrupt, "zstd", func(p *patient) { p.pack(bytes.Repeat([]byte{0xff}, 100)) }},
	{"zstd too little", "zstd", ErrCorrupt, "4000 bytes of a cluster", func(p *patient) { p.pack(zstandardised(make([]byte, 4000))) }},
	{"zstd bomb", "zstd", ErrCorrupt, "more than a cluster", func(p *patient) { p.pack(zstandardised(make([]byte, 1<<20))) }},
	{"zstd one too many", "zstd", ErrCorrupt, "more than a cluster", func(p *patient) { p.pack(zstandardised(make([]byte, 4097))) }},
	{"zstd bomb that does not say so", "zstd", ErrCorrupt, "zstd", func(p *patient) {
		// No content size, a window of 1 KiB, and blocks of 128 KiB of one byte.
		frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0}
		for i := range 20 {
			block := uint32(128<<10)<<3 | 1<<1
			if i == 19 {
				block |= 1
			}
			frame = append(frame, byte(block), byte(block>>8), byte(block>>16), 'A')
		}
		p.pack(frame)
	}},
	{"zstd broken off", "zstd", ErrCorrupt, "unexpected EOF", func(p *patient) { p.pack([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0xff, 0xff, 0x02}) }},
	{"zstd checksum", "zstd", ErrCorrupt, "zstd", func(p *patient) {
		f := zstandardised(bytes.Repeat([]byte("qcow"), 1024))
		f[len(f)-1] ^= 1
		p.pack(f)
	}},
	{"zstd window", "zstd", ErrCorrupt, "zstd", func(p *patient) {
		p.pack([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0xff, 3, 0x80, 0, 'A'})
	}},

	{"subcluster both ways", "extended", ErrCorrupt, "data and zeros at once", func(p *patient) { p.set64(p.l2(0)+8, p.get64(p.l2(0)+8)|1<<32) }},
	{"subcluster without cluster", "extended", ErrCorrupt, "the cluster has none", func(p *patient) { p.set64(p.l2(0)+16*9+8, 1) }},
	{"subclusters of packed", "extended", ErrCorrupt, "compressed and has subclusters", func(p *patient) {
		p.set64(p.l2(0)+16, l2Compressed|p.add(deflated(make([]byte, 16<<10))))
		p.set64(p.l2(0)+24, 1)
	}},
	{"zero flag in extended entry", "extended", ErrCorrupt, "zero flag", func(p *patient) { p.set64(p.l2(0), p.get64(p.l2(0))|l2Zero) }},
	{"subcluster cut off", "extended", ErrCorrupt, "cut off", func(p *patient) {
		p.set64(p.l2(0)+16*9, p.add(make([]byte, 1024))|entryCopied)
		p.set64(p.l2(0)+16*9+8, 1<<2)
	}},
}

func TestRefused(t *testing.T) {
	t.Parallel()
	images := patients(t)
	for name, image := range images {
		if name != "backed" {
			if err := read(image, Options{}); err != nil {
				t.Fatalf("%s, in order: %v", name, err)
			}
		}
	}
	for _, c := range append(headerRefusals, tableRefusals...) {
		t.Run(c.name, func(t *testing.T) {
			p := &patient{bytes.Clone(images[c.image])}
			c.do(p)
			o := Options{MaxSize: 1 << 40}
			if c.name == "backing format unsaid" {
				o.Backing = func(name, format string) (io.ReaderAt, int64, error) {
					t.Errorf("%q (%q) was opened", name, format)
					return nil, 0, os.ErrNotExist
				}
			}
			err := read(p.b, o)
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("got %v; want %v with %q", err, c.kind, c.words)
			}
		})
	}
}

// Compressed clusters lie in one sector, one behind the other.
func TestPackedNeighbours(t *testing.T) {
	t.Parallel()
	images := patients(t)
	for name, compress := range map[string]func([]byte) []byte{"v3": deflated, "zstd": zstandardised} {
		p := &patient{bytes.Clone(images[name])}
		a, b := bytes.Repeat([]byte{7}, 4096), bytes.Repeat([]byte{8}, 4096)
		first := compress(a)
		at := p.add(append(bytes.Clone(first), compress(b)...))
		p.packAt(at, 0)
		p.set64(p.l2(0)+8*9, l2Compressed|(at+uint64(len(first))))
		im := must(Open(bytes.NewReader(p.b), int64(len(p.b)), Options{}))
		got := make([]byte, 4096)
		for guestAt, want := range map[int64][]byte{4096: a, 9 * 4096: b} {
			if _, err := im.ReadAt(got, guestAt); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s at %d: %v, begins with %d", name, guestAt, err, got[0])
			}
		}
	}
}

func TestLoopOfBackingFiles(t *testing.T) {
	t.Parallel()
	image := patients(t)["backed"]
	opened := 0
	err := read(image, Options{Backing: func(string, string) (io.ReaderAt, int64, error) {
		opened++
		return bytes.NewReader(image), int64(len(image)), nil
	}})
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "a loop") || opened != maxChain-1 {
		t.Errorf("after %d files: %v", opened, err)
	}
}

func TestBackingFileThatFails(t *testing.T) {
	t.Parallel()
	image := patients(t)["backed"]
	err := read(image, Options{Backing: func(string, string) (io.ReaderAt, int64, error) { return nil, 0, os.ErrPermission }})
	if !errors.Is(err, os.ErrPermission) {
		t.Errorf("got %v", err)
	}
	err = read(image, Options{Backing: func(string, string) (io.ReaderAt, int64, error) {
		return bytes.NewReader(nil), 0, nil
	}})
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "backing file") {
		t.Errorf("got %v", err)
	}
}

// A chain as long as chains may be costs as many looks as it has files, and not 2 to the power
// of that.
func TestLongChain(t *testing.T) {
	t.Parallel()
	image := patients(t)["backed"]
	p := &patient{bytes.Clone(image)}
	for i := range int64(256) { // every other cluster is zeros, in every file
		p.set64(p.l2(0)+16*i+8, l2Zero)
	}
	bottom := bytes.Clone(image) // says that its backing file is raw
	format := bytes.Index(bottom, []byte("qcow2"))
	copy(bottom[format:], "raw\x00\x00")
	binary.BigEndian.PutUint32(bottom[format-4:], 3)
	opened := 0
	im, err := Open(bytes.NewReader(p.b), int64(len(p.b)), Options{Backing: func(_, format string) (io.ReaderAt, int64, error) {
		opened++
		switch {
		case format == "raw":
			return bytes.NewReader(nil), 0, nil
		case opened == maxChain-2:
			return bytes.NewReader(bottom), int64(len(bottom)), nil
		}
		return bytes.NewReader(p.b), int64(len(p.b)), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	pieces := 0
	if err := im.Extents(func(int64, int64, bool) bool { pieces++; return true }); err != nil || pieces < 2 {
		t.Errorf("%d extents, %v", pieces, err)
	}
}
