package wan

import (
	"encoding/binary"
	"fmt"
	"heliotrope/migration/wan/ramstream"
)

// maxStreams is how many other streams one refers to.
const maxStreams = 256

// Ref names a page that a stream carries: the stream, by whatever number both ends know it, and by how
// many pages of its kind that stream carried before: twice that, and one more for Noise.
type Ref struct {
	Stream, Number uint64
	// At is where else it is than at the destination itself, which asks there; at most 255 bytes, and
	// the same for all that a stream carries.
	At string
}

// Carrying are pages that other streams carry to the destination or near it, or this one has, as its
// Encoder knows of them.
type Carrying interface {
	// Find returns the name of the page with that hash, if it is or will come to be there.
	Find(page PageHash) (Ref, bool)
	// Carries takes note that this stream carries the page itself.
	Carries(page PageHash, noise bool)
}

// CarriedPages is the destination's side of Carrying.
type CarriedPages interface {
	// CarriedPage writes a page into dst, and waits for it if it has yet to come. It is not ok if
	// the page is not to be had.
	CarriedPage(page Ref, dst *[4096]byte) (ok bool, err error)
}

// Bodies are the pages that the batch carries, in the order of their numbers.
func (b *Batch) Bodies() (literal, noisy []byte) { return b.columns[literals], b.columns[noise] }

// SwapReferred returns the pages that the batch, as it was encoded, tells by where they are, in
// their order, and takes an empty buffer for the next ones.
func (b *Batch) SwapReferred(empty []byte) []byte {
	referred := b.referred
	b.referred = empty[:0]
	return referred
}

// Again is a batch that stands for no part of the stream, but has the pages that another one
// referred to.
func Again(referred []byte) *Batch {
	b := &Batch{Level: Fast}
	b.columns[literals] = referred
	return b
}

// End is a batch that stands for nothing and says that this is all. Its frame has no body.
func (e *Encoder) End() *Batch { return &Batch{sum: e.hash.Sum128().Bytes()} }

// End compares what an Encoder says at its end: an error if that is not all that was decoded.
func (d *Decoder) End(b *Batch) error {
	if sum := d.hash.Sum128().Bytes(); sum != b.sum {
		return fmt.Errorf("%w: it ends, where the source goes on", ErrCorrupt)
	}
	return nil
}

// StreamSize is how many bytes of the stream a frame with this head stands for.
func StreamSize(head *[FrameHead]byte) int { return int(binary.BigEndian.Uint32(head[4:])) }

// elsewhere says of a page where else the destination has it, if it does.
func (e *Encoder) elsewhere(t *ramstream.Token, block int, page uint64, data *[pageSize]byte, hash PageHash) (Class, bool) {
	p := &e.places
	if e.image != nil { // it costs a tenth of what a digest does
		if number, ok := e.image.Find(data); ok {
			e.op(Image, t, block, page)
			e.arg(zigzag(int64(number - p.image)))
			p.image = number + 1
			e.batch.referred = append(e.batch.referred, data[:]...)
			return Image, true
		}
	}
	if e.known != nil {
		if ref, ok := e.known.Lookup(digest(e.keyed, data)); ok {
			e.op(Site, t, block, page)
			e.arg(zigzag(int64(ref - p.site)))
			p.site = ref + 1
			e.batch.referred = append(e.batch.referred, data[:]...)
			return Site, true
		}
	}
	if e.carrying == nil {
		return 0, false
	}
	ref, ok := e.carrying.Find(hash)
	k, named := e.streams[ref.Stream]
	if !ok || !named && len(e.streams) == maxStreams {
		return 0, false
	}
	e.op(Peer, t, block, page)
	switch {
	case named:
		e.arg(k)
	case ref.At == "":
		e.arg(uint64(len(e.streams)))
		e.arg(ref.Stream)
	default:
		e.arg(maxStreams)
		e.arg(ref.Stream)
		e.arg(uint64(len(ref.At)))
		e.batch.columns[other] = append(e.batch.columns[other], ref.At...)
	}
	if !named {
		e.streams[ref.Stream] = uint64(len(e.streams))
	}
	e.arg(zigzag(int64(ref.Number - p.peer)))
	p.peer = ref.Number + 2
	e.batch.referred = append(e.batch.referred, data[:]...)
	return Peer, true
}

// elsewhere fills a page in that the destination has of its own.
func (d *Decoder) elsewhere(data *[pageSize]byte, class Class) error {
	var ok bool
	var err error
	switch class {
	case Site:
		ok, err = d.own(d.config.Pages, &d.places.site, data)
	case Image:
		ok, err = d.own(d.config.ImagePages, &d.places.image, data)
	default:
		ok, err = d.peer(data)
	}
	at := d.referred * pageSize
	d.referred++
	if ok || err != nil {
		return err
	}
	if d.again == nil {
		if d.config.Again == nil {
			return fmt.Errorf("%w: a page that is not here", ErrCorrupt)
		}
		b, err := d.config.Again()
		if err != nil {
			return fmt.Errorf("ask for pages again: %w", err)
		}
		d.again, _ = b.Bodies()
	}
	if len(d.again) < at+pageSize {
		return fmt.Errorf("%w: %d bytes of what it refers to, less than %d", ErrCorrupt, len(d.again), at+pageSize)
	}
	copy(data[:], d.again[at:])
	return nil
}

// own fills a page in that one of the destination's own has. next is the reference behind the last one.
func (d *Decoder) own(pages Pages, next *uint64, data *[pageSize]byte) (ok bool, err error) {
	distance, err := d.arg()
	if err != nil {
		return false, err
	}
	ref := *next + uint64(unzigzag(distance))
	*next = ref + 1
	return pages != nil && pages.Page(ref, data) == nil, nil
}

func (d *Decoder) peer(data *[pageSize]byte) (ok bool, err error) {
	ref, err := d.refs.next(&d.cursor)
	if err != nil || d.config.CarriedPages == nil {
		return false, err
	}
	return d.config.CarriedPages.CarriedPage(ref, data)
}

// refs follows an Encoder's Refs.
type refs struct {
	streams []Ref  // that were named; without numbers
	number  uint64 // behind the last one
}

func (r *refs) next(c *cursor) (Ref, error) {
	k, err := c.arg()
	if err != nil {
		return Ref{}, err
	}
	switch n := uint64(len(r.streams)); {
	case n < maxStreams && (k == n || k == maxStreams):
		ref, err := named(c, k == maxStreams)
		if err != nil {
			return Ref{}, err
		}
		r.streams, k = append(r.streams, ref), n
	case k >= n:
		return Ref{}, fmt.Errorf("%w: stream %d", ErrCorrupt, k)
	}
	distance, err := c.arg()
	if err != nil {
		return Ref{}, err
	}
	ref := r.streams[k]
	ref.Number = r.number + uint64(unzigzag(distance))
	r.number = ref.Number + 2
	return ref, nil
}

// named reads what a new stream is called, and where else than here it is.
func named(c *cursor, elsewhere bool) (ref Ref, err error) {
	if ref.Stream, err = c.arg(); err != nil || !elsewhere {
		return ref, err
	}
	n, err := c.arg()
	if err != nil {
		return ref, err
	}
	at, err := c.take(other, n)
	if err == nil && (n == 0 || n > 255) {
		err = fmt.Errorf("%w: a stream is at a place of %d bytes", ErrCorrupt, n)
	}
	ref.At = string(at)
	return ref, err
}

// Foresight says what batches refer to that is at no destination of theirs, before they are decoded: it is
// shown all of a stream's, in their order.
type Foresight struct {
	refs
	blocks uint64
}

// NewForesight returns one of a Decoder of the same configuration, which has decoded nothing yet.
func NewForesight(c Config) *Foresight {
	f := &Foresight{}
	if c.Mirror != nil {
		f.blocks = uint64(len(c.Mirror.blocks))
	}
	return f
}

// Look appends what the batch refers to at other places.
func (f *Foresight) Look(all []Ref, b *Batch) ([]Ref, error) {
	c := cursor{columns: b.columns}
	for _, op := range b.columns[ops] {
		ref, err := f.op(&c, op)
		if err != nil {
			return all, err
		}
		if ref.At != "" {
			all = append(all, ref)
		}
	}
	return all, nil
}

func (f *Foresight) op(c *cursor, op byte) (ref Ref, err error) {
	class := Class(op & opClass)
	if op&opBlock != 0 && class != Verbatim {
		block, err := c.arg()
		if err != nil {
			return ref, err
		}
		if block == f.blocks {
			f.blocks++
			if err := c.skip(); err != nil { // its name
				return ref, err
			}
		}
	}
	if op&opNext == 0 && class != Verbatim {
		if _, err := c.arg(); err != nil {
			return ref, err
		}
	}
	switch class {
	case Verbatim:
		err = c.skip()
	case Zero, Dup, Site, Image, Delta:
		_, err = c.arg()
	case Peer:
		return f.next(c)
	case Same, Literal, Noise:
	default:
		err = fmt.Errorf("%w: op %#x", ErrCorrupt, op)
	}
	return ref, err
}
