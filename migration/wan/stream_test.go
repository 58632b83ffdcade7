package wan

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// request is one of an NBD client, with the data of a write.
func request(kind uint16, offset uint64, length int, data []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, 0x25609513)
	b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, 0), kind)
	b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, offset^5), offset)
	return append(binary.BigEndian.AppendUint32(b, uint32(length)), data...)
}

// written is what a client sends that writes a disk in pieces.
func written(disk []byte, piece int) (stream []byte) {
	for at := 0; at < len(disk); at += piece {
		data := disk[at:min(at+piece, len(disk))]
		stream = append(stream, request(1, uint64(at), len(data), data)...)
	}
	return append(stream, request(3, 0, 0, nil)...)
}

// carried are the pages that a stream carries, as both of its ends know them.
type carried struct {
	own   uint64
	has   map[PageHash]uint64
	told  [2]uint64
	pages [2][][pageSize]byte
}

func (c *carried) Find(page PageHash) (Ref, bool) {
	number, ok := c.has[page]
	return Ref{Stream: c.own, Number: number}, ok
}

func (c *carried) Carries(page PageHash, noise bool) {
	kind := uint64(0)
	if noise {
		kind = 1
	}
	c.has[page] = c.told[kind]<<1 | kind
	c.told[kind]++
}

func (c *carried) keep(b *Batch) {
	literal, noisy := b.Bodies()
	for kind, col := range [][]byte{literal, noisy} {
		for ; len(col) > 0; col = col[pageSize:] {
			c.pages[kind] = append(c.pages[kind], [pageSize]byte(col))
		}
	}
}

func (c *carried) CarriedPage(ref Ref, dst *[4096]byte) (bool, error) {
	number := ref.Number
	all := c.pages[number&1]
	if ref.Stream != c.own || number>>1 >= uint64(len(all)) {
		return false, nil
	}
	*dst = all[number>>1]
	return true, nil
}

// diskPair is a pair for a disk's stream, which finds what it has carried itself.
func diskPair(c Config) *pair {
	has := &carried{own: 7, has: map[PageHash]uint64{}}
	c.Disk = true
	source, destination := c, c
	source.Carrying, destination.CarriedPages = has, has
	p := newPair(source, destination)
	p.arrived = has.keep
	return p
}

func TestEveryDiskComesOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 3))
		contents := make([]byte, 8*pageSize) // zeros first
		for i := range contents[2*pageSize:] {
			contents[2*pageSize+i] = byte(rnd.IntN(1 << (1 + i>>pageBits)))
		}
		var stream []byte
		for range rapid.IntRange(0, 60).Draw(t, "requests") {
			align := []uint64{1, 512, pageSize, pageSize}[rnd.IntN(4)]
			offset, from := uint64(rnd.IntN(1<<22))/align*align, rnd.IntN(8)*pageSize
			switch data := contents[from : from+rnd.IntN(len(contents)-from+1)]; rnd.IntN(8) {
			case 0:
				stream = append(stream, request([]uint16{0, 3, 4, 6, 7}[rnd.IntN(5)], offset, rnd.IntN(1<<30), nil)...)
			default:
				stream = append(stream, request(1, offset, len(data), data)...)
			}
		}
		if rapid.Bool().Draw(t, "garbage") {
			stream = append(stream, rapid.SliceOfN(rapid.Byte(), 1, 9000).Draw(t, "tail")...)
		}
		p := diskPair(Config{MirrorPages: rapid.SampledFrom([]int{0, 0, 10, 1000}).Draw(t, "mirror"), Seed: rapid.Uint64().Draw(t, "hash seed")})
		p.anyhow(t, stream, rnd)
	})
}

// A disk that is empty, or all alike, costs nothing, and one that is half the other a half.
func TestSparseAndDuplicateBlocksCostNothing(t *testing.T) {
	const size = 16 << 20
	noise := make([]byte, size)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < size; i += 8 {
		binary.LittleEndian.PutUint64(noise[i:], rnd.Uint64())
	}
	for name, c := range map[string]struct {
		disk  []byte
		most  int // bytes that cross
		class Class
		pages uint64 // at least
	}{
		"zeros":          {make([]byte, size), size / 500, Zero, size / pageSize},
		"one block":      {bytes.Repeat(noise[:pageSize], size/pageSize), size / 500, Peer, size/pageSize - 1},
		"twice, shifted": {append(append(noise[:size/2-pageSize:size/2-pageSize], make([]byte, pageSize)...), noise[:size/2]...), size/2 + size/200, Peer, size/2/pageSize - 1},
		"nothing alike":  {noise, size + size/100, Noise, size/pageSize - 20},
	} {
		p := diskPair(Config{})
		stream := written(c.disk, 64<<10)
		if err := p.same(stream, func(left int) int { return min(left, 128<<10) }); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		in, out := p.stats.Total()
		t.Logf("%s: %d of %d bytes, pages %v", name, out, in, p.stats.Pages)
		if in != uint64(len(stream)) || out > uint64(c.most) || p.stats.Pages[c.class] < c.pages || !p.enc.Whole() {
			t.Errorf("%s: %d of %d bytes cross, pages %v, want %d of %s in no more than %d bytes", name, out, in, p.stats.Pages, c.pages, c.class, c.most)
		}
	}
}

// With a mirror a block that is written again is told by what it was.
func TestRewrittenBlocksOfAMirror(t *testing.T) {
	g := newGuest(256, 4)
	disk := make([]byte, 0, 256*pageSize)
	for i := range g.pages {
		disk = append(disk, g.pages[i][:]...)
	}
	stream := written(disk, 1<<20)
	for at := 0; at < len(disk); at += pageSize {
		disk[at+at/pageSize] ^= 1
	}
	p := diskPair(Config{MirrorPages: 256})
	if err := p.same(append(stream, written(disk, 1<<20)...), whole); err != nil {
		t.Fatal(err)
	}
	if n := p.stats.Pages[Delta]; n < 192 { // a quarter was of zeros
		t.Errorf("%d deltas, pages %v", n, p.stats.Pages)
	}
}

// FuzzDiskColumns is FuzzColumns of a disk's stream.
func FuzzDiskColumns(f *testing.F) {
	f.Add([]byte{byte(Verbatim), opNext, opNext | byte(Literal)}, []byte{3, 200}, []byte("abc"), make([]byte, pageSize))
	f.Add([]byte{opBlock}, []byte{1, 1, 0, 0}, []byte("x"), []byte{})
	f.Fuzz(func(t *testing.T, op, arg, oth, literal []byte) {
		d := NewDecoder(Config{Disk: true, MirrorPages: 4})
		b := &Batch{size: 1 << 16, columns: [columns][]byte{0: op, args: arg, other: oth, literals: literal}}
		if out, err := d.Decode(nil, b); err == nil && len(out) != b.size {
			t.Errorf("%d bytes", len(out))
		}
	})
}
