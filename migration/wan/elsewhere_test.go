package wan

import (
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// carriers are pages that other streams carry, some of them to other places.
type carriers struct {
	at    func(hash PageHash) (Ref, bool)
	pages map[Ref][pageSize]byte
	asked []Ref // that are at another place
	gone  func() bool
}

func (c *carriers) Find(hash PageHash) (Ref, bool) { return c.at(hash) }
func (c *carriers) Carries(PageHash, bool)         {}

func (c *carriers) CarriedPage(ref Ref, dst *[4096]byte) (bool, error) {
	if ref.At != "" {
		c.asked = append(c.asked, ref)
	}
	page, ok := c.pages[ref]
	if !ok || c.gone() {
		return false, nil
	}
	*dst = page
	return true, nil
}

// TestForesight: what a batch refers to at other places is known before it is decoded, and whatever is not to be
// had there is asked for.
func TestForesight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		stream := drawn(t)
		places := []string{"", "", "c 192.0.2.1:7444", "d 192.0.2.2:7444"}
		c := &carriers{pages: map[Ref][pageSize]byte{}, gone: func() bool { return rapid.IntRange(0, 9).Draw(t, "gone") == 0 }}
		c.at = func(hash PageHash) (Ref, bool) {
			s := hash.Lo % 7
			return Ref{Stream: s << 40, Number: hash.Hi % 1000, At: places[s%4]}, s < 6
		}
		var foreseen, all []Ref
		source, destination := config, config
		source.Carrying, destination.CarriedPages = c, c
		p := newPair(source, destination)
		var sent *Batch
		p.dec.config.Again = func() (*Batch, error) { return Again(sent.referred), nil }
		f := NewForesight(destination)
		cross := func(b *Batch) (*Batch, error) {
			sent = b
			frame := p.packer.Pack(nil, b)
			if err := p.un.Unpack(&p.got, (*[FrameHead]byte)(frame), frame[FrameHead:]); err != nil {
				return nil, err
			}
			var err error
			if foreseen, err = f.Look(nil, &p.got); err != nil {
				return nil, err
			}
			c.asked = nil
			if p.out, err = p.dec.Decode(p.out, &p.got); err != nil {
				return nil, err
			}
			if !reflect.DeepEqual(foreseen, c.asked) {
				t.Fatalf("foreseen %v, asked for %v", foreseen, c.asked)
			}
			all = append(all, foreseen...)
			b.Reset()
			return b, nil
		}
		p.enc = NewEncoder(source, new(Batch), cross)
		if err := p.same(stream, whole); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzForesight: what no Encoder has made does no harm, and what a Decoder takes, it understands.
func FuzzForesight(f *testing.F) {
	f.Add([]byte{0x20 | 0x14, 0x14}, []byte{0, 2, 0x80, 2, 9, 3, 0, 0, 4}, []byte("xyc:1"), []byte{})
	f.Add([]byte{0x34}, []byte{0, 2, 0, 9, 0}, []byte("xy"), []byte{})
	f.Fuzz(func(t *testing.T, op, arg, oth, delta []byte) {
		b := &Batch{size: 1 << 16, columns: [columns][]byte{0: op, args: arg, other: oth, deltas: delta}}
		refs, err := NewForesight(config).Look(nil, b)
		if err != nil {
			return
		}
		for _, r := range refs {
			if r.At == "" || len(r.At) > 255 {
				t.Errorf("a place of %d bytes", len(r.At))
			}
		}
		c := config
		carried := &carriers{pages: map[Ref][pageSize]byte{}, gone: func() bool { return true }}
		c.CarriedPages, c.Again = carried, func() (*Batch, error) { return Again(make([]byte, 1<<20)), nil }
		_, _ = NewDecoder(c).Decode(nil, b)
		if n := len(carried.asked); n > len(refs) || !reflect.DeepEqual(carried.asked, refs[:n:n]) && n > 0 {
			t.Errorf("asked for %v, foreseen %v", carried.asked, refs)
		}
	})
}
