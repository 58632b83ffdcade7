package wan

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

// imageIndex finds pages of an image.
type imageIndex map[[pageSize]byte]uint64

func (x imageIndex) Find(page *[4096]byte) (uint64, bool) { n, ok := x[*page]; return n, ok }

// indexOf is the index of some pages, each under its place.
func indexOf(all pages) imageIndex {
	x := imageIndex{}
	for i, p := range all {
		x[p] = uint64(i)
	}
	return x
}

func TestImage(t *testing.T) {
	g := newGuest(4096, 5) // whose first pages are what its disk has
	image := pages(g.pages[:2048])
	stream := moved(4096, 3, 5)
	try := func(has Pages, again func(p *pair) func() (*Batch, error)) (*pair, error) {
		destination := config
		destination.ImagePages = has
		var p *pair
		if again != nil {
			destination.Again = func() (*Batch, error) { return again(p)() }
		}
		p = newPair(config, destination)
		p.enc.KnowImage(indexOf(image))
		return p, p.same(stream, whole)
	}
	p, err := try(image, nil)
	if err != nil {
		t.Fatal(err)
	}
	in, out := p.stats.Total()
	t.Logf("%d of %d bytes, pages %v", out, in, p.stats.Pages)
	if p.stats.Pages[Image] < 1000 || p.stats.Out[Image] != 0 {
		t.Errorf("pages %v, bytes %v", p.stats.Pages, p.stats.Out)
	}
	if _, err := try(image[:100], nil); err == nil {
		t.Error("a page that is not there is no error")
	}
	if _, err := try(nil, nil); err == nil {
		t.Error("an image that is not there is no error")
	}
	changed := append(pages(nil), image...)
	for i := range changed {
		changed[i][7]++
	}
	if _, err := try(changed, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another image: %v", err)
	}
}

// halves finds a page in the one half that a host has of what both know, and gives out those that are left.
type halves struct {
	pages
	gone map[uint64]bool
}

func (h halves) Page(ref uint64, dst *[4096]byte) error {
	if h.gone[ref] {
		return errors.New("it has gone")
	}
	return h.pages.Page(ref, dst)
}

// Whatever of a guest's pages are the image's, those of the site, or both, and whatever has gone at the destination since:
// what comes out is what went in.
func TestImageAndSiteTogether(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		g := newGuest(256, seed)
		cut := rapid.IntRange(0, 256).Draw(t, "image's end")
		from := rapid.IntRange(0, 256).Draw(t, "site's beginning")
		gone := map[uint64]bool{}
		for _, n := range rapid.SliceOfN(rapid.Uint64Range(0, 255), 0, 20).Draw(t, "gone") {
			gone[n] = true
		}
		destination := config
		destination.ImagePages = halves{g.pages[:cut], gone}
		destination.Pages = halves{g.pages, gone}
		var sent []byte // what the batch on its way refers to
		destination.Again = func() (*Batch, error) { return Again(sent), nil }
		p := newPair(config, destination)
		cross := p.enc.sink
		p.enc.sink = func(b *Batch) (*Batch, error) { sent = append(sent[:0], b.referred...); return cross(b) }
		known, key := site{}, [32]byte{1, 2, 3}
		digester, err := NewDigester(key)
		if err != nil {
			t.Fatal(err)
		}
		for i := from; i < 256; i++ {
			known[digester.Page(&g.pages[i])] = uint64(i)
		}
		if err := p.enc.Know(key, known); err != nil {
			t.Fatal(err)
		}
		p.enc.KnowImage(indexOf(g.pages[:cut]))
		if err := p.same(moved(256, 2, seed), whole); err != nil {
			t.Fatal(err)
		}
		if cut == 0 && p.stats.Pages[Image] > 0 || from == 256 && p.stats.Pages[Site] > 0 {
			t.Fatalf("pages %v", p.stats.Pages)
		}
	})
}
