package wan

import (
	"bytes"
	"errors"
	"fmt"
	"heliotrope/migration/wan/ramstream"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"
)

// pair is an encoder, a way, and a decoder.
type pair struct {
	enc    *Encoder
	packer Packer
	un     Unpacker
	dec    *Decoder
	got    Batch
	out    []byte
	frames [][]byte
	keep   bool // frames
	stats  Stats

	arrived func(*Batch) // may be nil
}

func newPair(source, destination Config) *pair {
	p := &pair{dec: NewDecoder(destination)}
	p.enc = NewEncoder(source, new(Batch), p.cross)
	return p
}

func (p *pair) cross(b *Batch) (*Batch, error) {
	frame := p.packer.Pack(nil, b)
	if p.keep {
		p.frames = append(p.frames, frame)
	}
	s := b.Stats()
	p.stats.Add(&s)
	b.Reset()
	return b, p.arrive(frame)
}

func (p *pair) arrive(frame []byte) error {
	head := (*[FrameHead]byte)(frame)
	if n, err := BodySize(head); err != nil || n != len(frame)-FrameHead {
		return fmt.Errorf("body of %d bytes, %v", n, err)
	}
	if err := p.un.Unpack(&p.got, head, frame[FrameHead:]); err != nil {
		return err
	}
	if p.arrived != nil {
		p.arrived(&p.got)
	}
	var err error
	p.out, err = p.dec.Decode(p.out, &p.got)
	return err
}

// same writes stream as cut says and compares.
func (p *pair) same(stream []byte, cut func(left int) int) error {
	for left := stream; len(left) > 0; {
		n := cut(len(left))
		if _, err := p.enc.Write(left[:n]); err != nil {
			return err
		}
		left = left[n:]
	}
	if err := p.enc.Drain(); err != nil {
		return err
	}
	if !bytes.Equal(p.out, stream) {
		return fmt.Errorf("%d bytes came out, not the %d that went in", len(p.out), len(stream))
	}
	return nil
}

func whole(left int) int { return left }

var config = Config{MirrorPages: 1 << 16, Seed: 42}

func TestCaptures(t *testing.T) {
	streams := map[string][]byte{"guest": moved(2048, 6, 1)}
	for _, name := range []string{"qemu10-bios", "qemu10-rounds", "qemu10-xbzrle", "qemu72-rounds"} {
		streams[name] = capture(t, name)
	}
	for name, stream := range streams {
		for l := range Level(Levels) {
			p := newPair(config, config)
			p.enc.SetLevel(l)
			if err := p.same(stream, whole); err != nil {
				t.Errorf("%s, %s: %v", name, l, err)
				continue
			}
			in, out := p.stats.Total()
			if in != uint64(len(stream)) || !p.enc.Whole() {
				t.Errorf("%s: counted %d bytes of %d, whole: %t", name, in, len(stream), p.enc.Whole())
			}
			t.Logf("%s, %s: %d of %d bytes (%.3f), pages %v, out %v, heads %d",
				name, l, out, in, float64(out)/float64(in), p.stats.Pages, p.stats.Out, p.stats.Heads)
			if limit := 0.5; l >= Fast && float64(out) > limit*float64(in) {
				t.Errorf("%s, %s: %d of %d bytes cross", name, l, out, in)
			}
		}
	}
}

// drawn is a stream: pages of few contents at few places, names spelled or not, and bytes
// that are no page.
func drawn(t *rapid.T) []byte {
	var contents [6][pageSize]byte
	rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	for i := range contents {
		for j := range contents[i] {
			contents[i][j] = byte(rnd.IntN(1 << (i + 3)))
		}
	}
	blocks := []string{"pc.ram", "pc.bios", "vga"}
	s := []byte(streamHead + ramHead + "\x00\x00\x00\x00\x00\x10\x00\x04\x06pc.ram\x00\x00\x00\x00\x00\x10\x00\x00" + eos + partHead)
	spelled := ""
	for range rapid.IntRange(0, 300).Draw(t, "records") {
		spell := spelled == "" || rnd.IntN(8) == 0
		if spell {
			spelled = blocks[rnd.IntN(len(blocks))]
		}
		offset := uint64(rnd.IntN(40)) << pageBits
		if rnd.IntN(50) == 0 {
			offset = rnd.Uint64() &^ (pageSize - 1)
		}
		switch k := rnd.IntN(10); {
		case k < 3:
			for range rnd.IntN(5) + 1 {
				s = ramstream.AppendHead(s, ramstream.Zero, []byte(spelled), spell, offset)
				offset, spell = offset+pageSize, false
			}
		case k < 9:
			s = ramstream.AppendHead(s, ramstream.Page, []byte(spelled), spell, offset)
			c := &contents[rnd.IntN(len(contents))]
			if rnd.IntN(2) == 0 {
				c[rnd.IntN(pageSize)]++
			}
			s = append(s, c[:]...)
		default:
			s = append(append(s, eos...), partHead...)
		}
	}
	if rapid.Bool().Draw(t, "garbage") {
		s = append(s, rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(t, "tail")...)
	}
	return s
}

func TestEveryStreamComesOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		stream := drawn(t)
		c := Config{MirrorPages: rapid.SampledFrom([]int{0, 1, 10, 1000}).Draw(t, "mirror"), Seed: rapid.Uint64().Draw(t, "hash seed")}
		p := newPair(c, c)
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "cuts"), 2))
		p.anyhow(t, stream, rnd)
	})
}

// anyhow passes a stream through in pieces of any size, with flushes and other levels between them.
func (p *pair) anyhow(t *rapid.T, stream []byte, rnd *rand.Rand) {
	big := rapid.SampledFrom([]int{50, 5000, 500000}).Draw(t, "size")
	err := p.same(stream, func(left int) int {
		var err error
		switch rnd.IntN(20) {
		case 0:
			err = p.enc.Flush()
		case 1:
			err = p.enc.Drain()
		case 2:
			p.enc.SetLevel(Level(rnd.IntN(Levels)))
		}
		if err != nil {
			t.Fatal(err)
		}
		return min(left, 1+rnd.IntN(big))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestDelta(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var old, page [pageSize]byte
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 3))
		for i := range old {
			old[i] = byte(rnd.IntN(3))
		}
		page = old
		for range rapid.IntRange(0, 60).Draw(t, "changes") {
			at, n := rnd.IntN(pageSize), rnd.IntN(200)
			for i := at; i < min(at+n, pageSize); i++ {
				page[i] = byte(rnd.IntN(3))
			}
		}
		delta, ok := appendDelta([]byte("x"), &old, &page)
		if delta = delta[1:]; !ok {
			if len(delta) > 0 {
				t.Fatal("half a delta")
			}
			return
		}
		if len(delta) > deltaLimit || len(delta) == 0 != (old == page) {
			t.Fatalf("%d bytes, same: %t", len(delta), old == page)
		}
		if got := old; !applyDelta(&got, delta) || got != page {
			t.Fatal("another page")
		}
	})
}

// site is what a destination has.
type site map[Digest]uint64

func (s site) Lookup(d Digest) (uint64, bool) { ref, ok := s[d]; return ref, ok }

type pages [][pageSize]byte

func (p pages) Page(ref uint64, dst *[4096]byte) error {
	if ref >= uint64(len(p)) {
		return errors.New("no such page")
	}
	*dst = p[ref]
	return nil
}

func TestSite(t *testing.T) {
	g := newGuest(4096, 5) // what has run before, and moves again
	known, key := site{}, [32]byte{1, 2, 3}
	digester, err := NewDigester(key)
	if err != nil {
		t.Fatal(err)
	}
	for i := range g.pages {
		known[digester.Page(&g.pages[i])] = uint64(i)
	}
	stream := moved(4096, 3, 5)
	try := func(has pages) (*pair, error) {
		destination := config
		destination.Pages = has
		p := newPair(config, destination)
		if err := p.enc.Know(key, known); err != nil {
			t.Fatal(err)
		}
		return p, p.same(stream, whole)
	}
	p, err := try(g.pages)
	if err != nil {
		t.Fatal(err)
	}
	in, out := p.stats.Total()
	t.Logf("%d of %d bytes, pages %v", out, in, p.stats.Pages)
	if p.stats.Pages[Site] < 2000 || out*20 > in {
		t.Errorf("%d of %d bytes cross, pages %v", out, in, p.stats.Pages)
	}

	if _, err := try(g.pages[:100]); err == nil {
		t.Error("a page that the site no longer has is no error")
	}
	changed := append(pages(nil), g.pages...)
	for i := range changed {
		changed[i][7]++
	}
	if _, err := try(changed); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a page that has changed at the site: %v", err)
	}
}

func TestMirrorIsKept(t *testing.T) {
	g := newGuest(2048, 7)
	all := make([]int, len(g.pages))
	for i := range all {
		all[i] = i
	}
	head := g.stream
	g.send(all)
	first := g.stream
	p := newPair(config, config)
	if err := p.same(first, whole); err != nil {
		t.Fatal(err)
	}
	n := p.enc.Mirror().Len()
	if n == 0 || p.enc.Mirror().Sum(n) != p.dec.Mirror().Sum(n) {
		t.Fatalf("%d pages are kept, or others at the other end", n)
	}
	reread := func(m *Mirror) *Mirror {
		i := 0
		again, err := ReadMirror(m.Places(n), n, func(dst *[4096]byte) error { *dst = *m.Page(i); i++; return nil })
		if err != nil || again.Sum(n) != m.Sum(n) || again.Len() != n {
			t.Fatalf("read back: %v, or something else", err)
		}
		return again
	}
	g.stream = head
	g.run(1500)
	g.send(all) // it comes back
	source, destination := config, config
	source.Mirror, destination.Mirror = reread(p.dec.Mirror()), reread(p.enc.Mirror())
	back := newPair(source, destination)
	if err := back.same(g.stream, whole); err != nil {
		t.Fatal(err)
	}
	in, out := back.stats.Total()
	t.Logf("%d bytes of %d come back, pages %v", out, in, back.stats.Pages)
	if out*10 > in || back.stats.Pages[Same] < 500 || back.stats.Pages[Delta] < 500 {
		t.Errorf("%d bytes of %d come back, pages %v", out, in, back.stats.Pages)
	}
	source.Mirror, destination.Mirror = reread(p.dec.Mirror()), nil
	if err := newPair(source, destination).same(g.stream, whole); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a mirror at one end only: %v", err)
	}
}

func FuzzReadMirror(f *testing.F) {
	f.Add([]byte{1, 1, 'm', 0, 0, 0, 4, 0, 6}, 3)
	f.Fuzz(func(t *testing.T, places []byte, n int) {
		n = min(max(n, 0), 1000)
		m, err := ReadMirror(places, n, func(*[4096]byte) error { return nil })
		if err == nil && m.Len() != n {
			t.Errorf("%d pages of %d", m.Len(), n)
		}
	})
}

func TestFaultsAreFound(t *testing.T) {
	p := newPair(config, config)
	p.keep = true
	stream := moved(500, 3, 2)
	if err := p.same(stream, whole); err != nil {
		t.Fatal(err)
	}
	frames := p.frames
	try := func(change func(frames [][]byte) [][]byte) error {
		q := newPair(config, config)
		mine := make([][]byte, len(frames))
		for i, f := range frames {
			mine[i] = bytes.Clone(f)
		}
		for _, f := range change(mine) {
			if err := q.arrive(f); err != nil {
				if !bytes.HasPrefix(stream, q.out) {
					t.Error("wrong bytes were given out")
				}
				return err
			}
		}
		if !bytes.HasPrefix(stream, q.out) {
			t.Error("wrong bytes were given out")
		}
		return nil
	}
	rapid.Check(t, func(t *rapid.T) {
		i := rapid.IntRange(0, len(frames)-1).Draw(t, "frame")
		at := rapid.IntRange(4, len(frames[i])-1).Draw(t, "byte")
		bit := rapid.IntRange(0, 7).Draw(t, "bit")
		if err := try(func(f [][]byte) [][]byte { f[i][at] ^= 1 << bit; return f }); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
	})
	for name, change := range map[string]func(f [][]byte) [][]byte{
		"one is missing":  func(f [][]byte) [][]byte { return append(f[:1], f[2:]...) },
		"one comes twice": func(f [][]byte) [][]byte { return append([][]byte{f[0]}, f...) },
		"two change":      func(f [][]byte) [][]byte { f[1], f[2] = f[2], f[1]; return f },
	} {
		if err := try(change); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := config
	other.MirrorPages = 100
	q := newPair(config, other)
	if err := q.same(stream, whole); !errors.Is(err, ErrCorrupt) {
		t.Errorf("mirrors of two sizes: %v", err)
	}
}

func TestPagesCostNoMemory(t *testing.T) {
	g := newGuest(1024, 9)
	all := make([]int, len(g.pages))
	for i := range all {
		all[i] = i
	}
	at := len(g.stream)
	g.send(all)
	e := NewEncoder(config, new(Batch), func(b *Batch) (*Batch, error) { b.Reset(); return b, nil })
	if _, err := e.Write(g.stream); err != nil {
		t.Fatal(err)
	}
	round := g.stream[at:]
	if n := testing.AllocsPerRun(5, func() { e.Write(round[:len(round)/2+5]); e.Write(round[len(round)/2+5:]); e.Flush() }); n > 1 {
		t.Errorf("%.0f allocations for a round of %d pages", n, len(all))
	}
}

func FuzzDecoder(f *testing.F) {
	small := Config{MirrorPages: 64, Seed: 42}
	p := newPair(small, small)
	p.keep = true
	level := Level(0)
	err := p.same(moved(8, 2, 3), func(left int) int {
		p.enc.Flush()
		p.enc.SetLevel(level % Levels)
		level++
		return min(left, 5000) // the fuzzer spends its time making what is long short
	})
	if err != nil {
		f.Fatal(err)
	}
	for i, frame := range p.frames {
		f.Add(frame, p.frames[(i+1)%len(p.frames)])
	}
	q := &pair{} // whose buffers are used again
	f.Fuzz(func(t *testing.T, first, second []byte) {
		q.dec, q.out = NewDecoder(small), q.out[:0]
		for _, frame := range [][]byte{first, second} {
			if len(frame) < FrameHead {
				return
			}
			if err := q.arrive(frame); err != nil {
				return
			}
		}
	})
}

// FuzzColumns spares the fuzzer hashes and compressors.
func FuzzColumns(f *testing.F) {
	f.Add([]byte{0x20 | 0x10, 7}, []byte{0, 2, 5, 3}, []byte("xyabc"), []byte{}, []byte{})
	f.Add([]byte{0x20 | 0x16, 0x11, 0x05, 0x02}, []byte{0, 1, 0, 5, 4}, []byte("xyabc"), []byte{0, 2, 1, 2}, make([]byte, pageSize))
	f.Fuzz(func(t *testing.T, op, arg, oth, delta, literal []byte) {
		d := NewDecoder(config)
		b := &Batch{size: 1 << 16, columns: [columns][]byte{0: op, args: arg, other: oth, deltas: delta, literals: literal}}
		if out, err := d.Decode(nil, b); err == nil && len(out) != b.size {
			t.Errorf("%d bytes", len(out))
		}
	})
}

// An older source packed by zstd where a wire had become slow at once.
func TestColumnsOfOlderSources(t *testing.T) {
	col := bytes.Repeat([]byte("a page of an older source\n"), 1000)
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	packed := e.EncodeAll(col, nil)
	var u Unpacker
	if got, err := u.unpack(nil, packed, len(col), zstdPacked); err != nil || !bytes.Equal(got, col) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	for _, n := range []int{0, len(col) - 1, len(col) + 1} {
		if _, err := u.unpack(nil, packed, n, zstdPacked); !errors.Is(err, ErrCorrupt) {
			t.Errorf("as %d bytes: %v", n, err)
		}
	}
}
