package wan

import (
	"encoding/binary"
	"fmt"
	"heliotrope/migration/wan/ramstream"
)

// maxStreams is how many other streams one refers to.
const maxStreams = 256

// Carrying are pages that other streams carry to the destination, or this one has, as its Encoder
// knows of them. A page is named by the stream, by whatever number both ends know it, and by how
// many pages of its kind that stream carried before: twice that, and one more for Noise.
type Carrying interface {
	// Find returns the name of the page with that hash, if it has or will come to be there.
	Find(page PageHash) (stream, number uint64, ok bool)
	// Carries takes note that this stream carries the page itself.
	Carries(page PageHash, noise bool)
}

// CarriedPages is the destination's side of Carrying.
type CarriedPages interface {
	// CarriedPage writes a page into dst, and waits for it if it has yet to come. It is not ok if
	// the page is not to be had.
	CarriedPage(stream, number uint64, dst *[4096]byte) (ok bool, err error)
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
	stream, number, ok := e.carrying.Find(hash)
	k, named := e.streams[stream]
	if !ok || !named && len(e.streams) == maxStreams {
		return 0, false
	}
	if !named {
		k = uint64(len(e.streams))
		e.streams[stream] = k
	}
	e.op(Peer, t, block, page)
	e.arg(k)
	if !named {
		e.arg(stream)
	}
	e.arg(zigzag(int64(number - p.peer)))
	p.peer = number + 2
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
	k, err := d.arg()
	if err != nil {
		return false, err
	}
	switch {
	case k == uint64(len(d.streams)) && k < maxStreams:
		stream, err := d.arg()
		if err != nil {
			return false, err
		}
		d.streams = append(d.streams, stream)
	case k >= uint64(len(d.streams)):
		return false, fmt.Errorf("%w: stream %d", ErrCorrupt, k)
	}
	distance, err := d.arg()
	if err != nil {
		return false, err
	}
	number := d.places.peer + uint64(unzigzag(distance))
	d.places.peer = number + 2
	if d.config.CarriedPages == nil {
		return false, nil
	}
	return d.config.CarriedPages.CarriedPage(d.streams[k], number, data)
}
