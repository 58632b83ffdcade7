package wan

import (
	"encoding/binary"
	"fmt"
	"heliotrope/migration/wan/ramstream"
	"slices"

	"github.com/zeebo/xxh3"
)

// Decoder makes the stream of batches, in their order. It is not for use by several at once.
type Decoder struct {
	config Config
	mirror *Mirror
	places places
	hash   streamHash
	err    error

	// Of the batch that is being decoded.
	cursor
	room  int // how much longer the stream may become
	stats *Stats

	refs     refs
	referred int    // how many pages the batch has told by where they are
	again    []byte // all those, if one was not there
}

// NewDecoder returns a Decoder for an Encoder of the same configuration.
func NewDecoder(c Config) *Decoder {
	return &Decoder{config: c, mirror: c.mirror(), places: c.places(), hash: newStreamHash(c.Seed)}
}

// Mirror is what last came of each page. It is the Decoder's until nothing more is decoded.
func (d *Decoder) Mirror() *Mirror { return d.mirror }

// Decode appends the stream's bytes that b stands for to dst. They are those that the
// Encoder was given, or it is an error, and so is every call after it.
func (d *Decoder) Decode(dst []byte, b *Batch) ([]byte, error) {
	if d.err != nil {
		return nil, d.err
	}
	out, err := d.decode(dst, b)
	if err != nil {
		d.err = err
		return nil, err
	}
	return out, nil
}

func (d *Decoder) decode(dst []byte, b *Batch) ([]byte, error) {
	d.columns, d.room, d.stats = b.columns, b.size, &b.stats
	d.referred, d.again = 0, nil
	for _, op := range b.columns[ops] {
		before := len(dst)
		var err error
		if dst, err = d.op(dst, op); err != nil {
			return nil, err
		}
		d.room -= len(dst) - before
		d.stats.In[op&opClass] += uint64(len(dst) - before)
		if d.room < 0 {
			return nil, fmt.Errorf("%w: more than the batch's %d bytes", ErrCorrupt, b.size)
		}
	}
	d.columns[ops] = nil
	for i, col := range d.columns {
		if len(col) > 0 {
			return nil, fmt.Errorf("%w: %d bytes left in column %d", ErrCorrupt, len(col), i)
		}
	}
	if d.room > 0 {
		return nil, fmt.Errorf("%w: %d bytes too few", ErrCorrupt, d.room)
	}
	if sum := d.hash.Sum128().Bytes(); sum != b.sum {
		return nil, fmt.Errorf("%w: its hash is %x, the source's %x", ErrCorrupt, sum, b.sum)
	}
	return dst, nil
}

// cursor reads a batch's columns.
type cursor struct {
	columns [columns][]byte // what is left of them
}

func (c *cursor) arg() (uint64, error) {
	v, n := binary.Uvarint(c.columns[args])
	if n <= 0 {
		return 0, fmt.Errorf("%w: an argument is missing", ErrCorrupt)
	}
	c.columns[args] = c.columns[args][n:]
	return v, nil
}

// take takes n bytes of a column.
func (c *cursor) take(from column, n uint64) ([]byte, error) {
	col := c.columns[from]
	if n > uint64(len(col)) {
		return nil, fmt.Errorf("%w: column %d ends too early", ErrCorrupt, from)
	}
	c.columns[from] = col[n:]
	return col[:n], nil
}

// skip passes over as many other bytes as an argument says.
func (c *cursor) skip() error {
	n, err := c.arg()
	if err == nil {
		_, err = c.take(other, n)
	}
	return err
}

func (d *Decoder) op(dst []byte, op byte) ([]byte, error) {
	class := Class(op & opClass)
	if class == Verbatim {
		return d.verbatim(dst)
	}
	if class >= Classes {
		return nil, fmt.Errorf("%w: op %#x", ErrCorrupt, op)
	}
	page, spelled, err := d.place(op)
	if err != nil {
		return nil, err
	}
	block := d.mirror.blocks[d.places.block]
	if class == Zero {
		return d.zeros(dst, block, spelled, page)
	}
	d.stats.Pages[class]++
	from := len(dst)
	dst = d.config.appendHead(dst, ramstream.Page, block, spelled, page)
	at := len(dst)
	dst = slices.Grow(dst, pageSize)[:at+pageSize]
	data := (*[pageSize]byte)(dst[at:])
	slot, kept := d.mirror.slot(d.places.block, page)
	if err := d.content(data, class, slot, kept); err != nil {
		return nil, err
	}
	d.hash.page(dst[from:at], xxh3.Hash128Seed(data[:], d.config.PageSeed))
	if class == Peer {
		d.hash.peer(data)
	}
	if !kept {
		slot, kept = d.mirror.place(d.places.block, page)
	}
	if kept && class != Same {
		*d.mirror.page(slot) = *data
	}
	return dst, nil
}

// place follows the encoder to the op's page.
func (d *Decoder) place(op byte) (page uint64, spelled bool, err error) {
	p := &d.places
	if spelled = op&opBlock != 0; spelled {
		number, err := d.arg()
		if err != nil {
			return 0, false, err
		}
		if number > uint64(len(d.mirror.blocks)) || number >= maxBlocks {
			return 0, false, fmt.Errorf("%w: block %d", ErrCorrupt, number)
		}
		if p.block, p.spelled = int(number), true; p.block == len(d.mirror.blocks) {
			if err := d.name(); err != nil {
				return 0, false, err
			}
		}
	}
	if !p.spelled {
		return 0, false, fmt.Errorf("%w: a page before any block", ErrCorrupt)
	}
	page = p.next
	if op&opNext == 0 {
		distance, err := d.arg()
		if err != nil {
			return 0, false, err
		}
		page += uint64(unzigzag(distance))
	}
	p.next = page + 1
	return page, spelled, nil
}

// name takes the name of a new block.
func (d *Decoder) name() error {
	n, err := d.arg()
	if err != nil {
		return err
	}
	name, err := d.take(other, n)
	if err != nil {
		return err
	}
	if n == 0 || n > 255 {
		return fmt.Errorf("%w: a block's name of %d bytes", ErrCorrupt, n)
	}
	d.mirror.blocks = append(d.mirror.blocks, append([]byte(nil), name...))
	return nil
}

func (d *Decoder) zeros(dst []byte, block []byte, spelled bool, page uint64) ([]byte, error) {
	more, err := d.arg()
	if err != nil {
		return nil, err
	}
	if more > uint64(d.room)/d.config.zeroBytes() {
		return nil, fmt.Errorf("%w: %d pages of zeros", ErrCorrupt, more)
	}
	from := len(dst)
	dst = d.config.appendHead(dst, ramstream.Zero, block, spelled, page)
	for range more {
		dst = d.config.appendHead(dst, ramstream.Zero, nil, false, d.places.next)
		d.places.next++
	}
	d.hash.Write(dst[from:])
	d.stats.Pages[Zero] += more + 1
	return dst, nil
}

func (d *Decoder) verbatim(dst []byte) ([]byte, error) {
	n, err := d.arg()
	if err != nil {
		return nil, err
	}
	raw, err := d.take(other, n)
	if err != nil {
		return nil, err
	}
	d.hash.Write(raw)
	d.stats.Pages[Verbatim]++
	return append(dst, raw...), nil
}

// content fills a page in. slot has its last version, if that is kept.
func (d *Decoder) content(data *[pageSize]byte, class Class, slot uint32, kept bool) error {
	switch class {
	case Same, Delta:
		if !kept {
			return fmt.Errorf("%w: a change to a page that is not here", ErrCorrupt)
		}
		*data = *d.mirror.page(slot)
		if class == Same {
			return nil
		}
		return d.delta(data)
	case Dup:
		distance, err := d.arg()
		if err != nil {
			return err
		}
		d.places.dup += uint32(unzigzag(distance))
		if int64(d.places.dup) >= int64(d.mirror.n) {
			return fmt.Errorf("%w: page %d of %d", ErrCorrupt, d.places.dup, d.mirror.n)
		}
		*data = *d.mirror.page(d.places.dup)
		return nil
	case Site, Peer, Image:
		return d.elsewhere(data, class)
	}
	col := literals
	if class == Noise {
		col = noise
	}
	page, err := d.take(col, pageSize)
	if err != nil {
		return err
	}
	copy(data[:], page)
	return nil
}

func (d *Decoder) delta(data *[pageSize]byte) error {
	n, err := d.arg()
	if err != nil {
		return err
	}
	delta, err := d.take(deltas, n)
	if err != nil {
		return err
	}
	if !applyDelta(data, delta) {
		return fmt.Errorf("%w: a delta of %d bytes", ErrCorrupt, n)
	}
	return nil
}
