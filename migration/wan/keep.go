package wan

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/xxh3"
)

// Places says where in the guest the first n pages of the mirror are; ReadMirror reads it.
func (m *Mirror) Places(n int) []byte {
	b := binary.AppendUvarint(nil, uint64(len(m.blocks)))
	for _, name := range m.blocks {
		b = append(binary.AppendUvarint(b, uint64(len(name))), name...)
	}
	next := uint64(0)
	for _, w := range m.where[:n] {
		b = binary.AppendUvarint(b, uint64(w.block))
		b = binary.AppendUvarint(b, zigzag(int64(w.page-next)))
		next = w.page + 1
	}
	return b
}

// Sum tells the first n pages of a mirror, and where they are, from any other's.
func (m *Mirror) Sum(n int) [16]byte {
	h := xxh3.New()
	h.Write(m.Places(n))
	for i := range n {
		h.Write(m.Page(i)[:])
	}
	return h.Sum128().Bytes()
}

// ReadMirror makes a mirror of n pages, which read gives in their order.
func ReadMirror(places []byte, n int, read func(dst *[4096]byte) error) (*Mirror, error) {
	m := newMirror(n)
	take := func() (uint64, error) {
		v, k := binary.Uvarint(places)
		if k <= 0 {
			return 0, fmt.Errorf("%w: it says too little of where pages are", ErrCorrupt)
		}
		places = places[k:]
		return v, nil
	}
	blocks, err := take()
	if err == nil && blocks > maxBlocks {
		err = fmt.Errorf("%w: %d blocks", ErrCorrupt, blocks)
	}
	for ; err == nil && blocks > 0; blocks-- {
		var length uint64
		if length, err = take(); err == nil && (length > 255 || length > uint64(len(places))) {
			err = fmt.Errorf("%w: a block's name of %d bytes", ErrCorrupt, length)
		}
		if err == nil {
			m.blocks = append(m.blocks, append([]byte(nil), places[:length]...))
			places = places[length:]
		}
	}
	next := uint64(0)
	for i := 0; err == nil && i < n; i++ {
		next, err = m.read(take, next, read)
	}
	if err == nil && len(places) > 0 {
		err = fmt.Errorf("%w: %d bytes behind where pages are", ErrCorrupt, len(places))
	}
	if err != nil {
		return nil, fmt.Errorf("read kept pages: %w", err)
	}
	return m, nil
}

// read adds a page. next is the one behind it.
func (m *Mirror) read(take func() (uint64, error), page uint64, read func(dst *[4096]byte) error) (next uint64, err error) {
	block, err := take()
	if err != nil {
		return 0, err
	}
	distance, err := take()
	if err != nil {
		return 0, err
	}
	page += uint64(unzigzag(distance))
	if _, twice := m.slot(int(min(block, maxBlocks)), page); twice || block >= uint64(len(m.blocks)) {
		return 0, fmt.Errorf("%w: page %d of block %d", ErrCorrupt, page, block)
	}
	slot, _ := m.place(int(block), page)
	return page + 1, read(m.page(slot))
}
