package wan

import (
	"encoding/binary"
	"fmt"
	"heliotrope/migration/wan/ramstream"
	"math/rand/v2"
	"testing"

	"heliotrope/migration/wan/ramstream/golden"
)

// capture is a stream that QEMU made.
func capture(t testing.TB, name string) []byte {
	t.Helper()
	stream, err := golden.Stream(name)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// guest makes streams as a guest's would be.
type guest struct {
	rnd    *rand.Rand
	pages  [][pageSize]byte
	zero   []bool
	stream []byte
}

const (
	streamHead = "QEVM\x00\x00\x00\x03"
	ramHead    = "\x01\x00\x00\x00\x02\x03ram\x00\x00\x00\x00\x00\x00\x00\x04"
	partHead   = "\x02\x00\x00\x00\x02"
	eos        = "\x00\x00\x00\x00\x00\x00\x00\x10\x7e\x00\x00\x00\x02"
)

// newGuest has records of text and numbers in half of its pages, an eighth is noise, an
// eighth like another, and the rest zero.
func newGuest(pages int, seed uint64) *guest {
	g := &guest{rnd: rand.New(rand.NewPCG(seed, 0)), pages: make([][pageSize]byte, pages), zero: make([]bool, pages)}
	for i := range g.pages {
		p := &g.pages[i]
		switch k := i / 16 % 8; {
		case k < 4:
			g.records(p)
		case k == 4:
			for j := 0; j < pageSize; j += 8 {
				binary.LittleEndian.PutUint64(p[j:], g.rnd.Uint64())
			}
		case k == 5:
			*p = g.pages[i-80]
		default:
			g.zero[i] = true
		}
	}
	g.stream = append(g.stream, streamHead+ramHead...)
	g.stream = binary.BigEndian.AppendUint64(g.stream, uint64(pages)<<pageBits|4)
	g.stream = append(g.stream, "\x06pc.ram"...)
	g.stream = binary.BigEndian.AppendUint64(g.stream, uint64(pages)<<pageBits)
	g.stream = append(g.stream, eos...)
	return g
}

// records fills a page with records of a table: keys, numbers, words, and digests.
func (g *guest) records(p *[pageSize]byte) {
	words := []string{"customer", "invoice", "order", "pending", "delivered", "street", "payment", "account", "reference"}
	b := p[:0]
	for len(b) < pageSize-160 {
		b = fmt.Appendf(b, "%012d|%s-%s|%016x%016x|%d.%02d|", g.rnd.IntN(1e9), words[g.rnd.IntN(len(words))], words[g.rnd.IntN(len(words))],
			g.rnd.Uint64(), g.rnd.Uint64(), g.rnd.IntN(10000), g.rnd.IntN(100))
		b = binary.LittleEndian.AppendUint64(b, 0x7f0000000000+g.rnd.Uint64N(1<<30))
		b = binary.LittleEndian.AppendUint32(b, uint32(g.rnd.IntN(4096)))
		b = append(b, make([]byte, g.rnd.IntN(40))...)
	}
}

// send adds a round with these pages.
func (g *guest) send(pages []int) {
	g.stream = append(g.stream, partHead...)
	for i, n := range pages {
		kind := ramstream.Page
		if g.zero[n] {
			kind = ramstream.Zero
		}
		g.stream = ramstream.AppendHead(g.stream, kind, []byte("pc.ram"), i == 0, uint64(n)<<pageBits)
		if !g.zero[n] {
			g.stream = append(g.stream, g.pages[n][:]...)
		}
	}
	g.stream = append(g.stream, eos...)
}

// run changes a field or two in each of n pages, and returns which.
func (g *guest) run(n int) []int {
	var dirty []int
	at := g.rnd.IntN(len(g.pages))
	for range n {
		at = (at + 1 + g.rnd.IntN(3)) % len(g.pages)
		dirty = append(dirty, at)
		if g.zero[at] && g.rnd.IntN(8) > 0 {
			continue // written to, and still zero
		}
		g.zero[at] = false
		for range g.rnd.IntN(4) {
			binary.LittleEndian.PutUint32(g.pages[at][g.rnd.IntN(pageSize/8-1)*8:], g.rnd.Uint32())
		}
		if g.rnd.IntN(32) == 0 {
			g.records(&g.pages[at])
		}
	}
	return dirty
}

// moved is the stream of a guest that was busy while it was copied.
func moved(pages, rounds int, seed uint64) []byte {
	g := newGuest(pages, seed)
	all := make([]int, pages)
	for i := range all {
		all[i] = i
	}
	g.send(all)
	for r := range rounds {
		g.send(g.run(pages / 4 / (r + 1)))
	}
	return append(g.stream, "\x00\x06\x00\x00\x00\x02{}"...)
}
