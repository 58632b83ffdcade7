// Package delta sends an image to where others are already, by what is missing there.
//
// Two levels meet here. Chunks of 64 KiB, named by BLAKE3, say what has changed at all and
// whether what arrived is right. Blocks of 4 KiB, told apart by a digest of 64 bits (Sketch),
// say where a changed chunk's content already is: at the same place in an older version, at
// another place of any image that the receiver has, or earlier in this very image. A filesystem
// that is made anew puts its files elsewhere, yet on blocks: chunks find nothing again
// there, blocks nearly everything. Both ends have the sketches of what both have, so that
// nothing is asked: the sender needs the names of the bases alone.
//
// A delta is one zstd stream, so that each page profits from those before. In it:
//
//	magic, size u64, root, number of bases u8, their roots
//	for each page with a change: its number + 1, its hash, the number of its operations, the
//	operations, the blocks that are new
//	0
//
// with numbers as uvarints where nothing is said. An operation makes so many blocks: Same as the
// first base has at this place, Zero, Data, or a Copy from an address; addresses go through the
// bases one after the other and then through the image itself, and are told as the distance
// from where the last copy ended. No chunk's name is sent: the receiver makes the names of
// what he rebuilt, and they must have the page's hash, and the pages' hashes the root. The root is
// what somebody signed.
package delta

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"heliotrope/imagesync/manifest"
)

const (
	magic    = "heliotrope image delta 1\n"
	maxBases = 16
	window   = 8 << 20 // bytes that zstd looks back, at each end
)

// What an operation makes its blocks of.
const (
	opSame = iota // what the first base has at this place
	opZero
	opData
	opCopy
	opBits = 2
)

type op struct {
	kind   int
	blocks int
	from   int64 // opCopy: the address of its first block
}

// Image is what a sender has to know of an image.
type Image struct {
	Root     manifest.ID
	Manifest *manifest.Manifest
	Sketch   *Sketch
}

// Stats is what was sent, in blocks of 4 KiB but for Bytes and Raw.
type Stats struct {
	Same, Zero, Copied, Data int64
	Pages                    int   // that had a change
	Operations               int64 // of all of them
	Bytes                    int64 // compressed, all that crosses the wire
}

// Encode writes to w what takes whoever has bases to the target. The first base is what the
// target most likely grew from; content is the target's. Level is the encoder's.
func Encode(w io.Writer, target Image, content io.ReaderAt, bases []Image, level zstd.EncoderLevel) (Stats, error) {
	if len(bases) > maxBases {
		bases = bases[:maxBases]
	}
	counted := &counter{w: w}
	z, err := zstd.NewWriter(counted, zstd.WithEncoderLevel(level), zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return Stats{}, fmt.Errorf("open encoder: %w", err)
	}
	e := &encoder{out: bufio.NewWriterSize(z, 1<<20), target: target, content: content, index: newIndex(bases, target)}
	if len(bases) > 0 {
		e.base = &bases[0]
	}
	if err := e.encode(bases); err != nil {
		z.Close()
		return Stats{}, err
	}
	if err := z.Close(); err != nil {
		return Stats{}, fmt.Errorf("write delta: %w", err)
	}
	e.stats.Bytes = counted.n
	return e.stats, nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

type encoder struct {
	out     *bufio.Writer
	target  Image
	content io.ReaderAt
	base    *Image // the first, nil if there is none
	index   *index
	ops     []op
	buf     []byte
	stats   Stats
}

func (e *encoder) encode(bases []Image) error {
	m := e.target.Manifest
	head := binary.BigEndian.AppendUint64([]byte(magic), uint64(m.Size()))
	head = append(append(head, e.target.Root[:]...), byte(len(bases)))
	for _, b := range bases {
		head = append(head, b.Root[:]...)
	}
	if _, err := e.out.Write(head); err != nil {
		return fmt.Errorf("write delta: %w", err)
	}
	for p := range m.Pages() {
		if e.unchanged(p) {
			e.stats.Same += pageBlocks
			continue
		}
		if err := e.page(p); err != nil {
			return err
		}
	}
	e.uvarint(0)
	if err := e.out.Flush(); err != nil {
		return fmt.Errorf("write delta: %w", err)
	}
	return nil
}

// unchanged says whether the page is what the first base has there; without one, zeros.
func (e *encoder) unchanged(p int) bool {
	var was manifest.ID
	if e.base != nil && p < e.base.Manifest.Pages() {
		was = e.base.Manifest.PageHash(p)
	}
	return e.target.Manifest.PageHash(p) == was
}

func (e *encoder) uvarint(n uint64) {
	var b [binary.MaxVarintLen64]byte
	e.out.Write(b[:binary.PutUvarint(b[:], n)]) // its error is Flush's as well
}

func (e *encoder) page(p int) error {
	e.ops = e.ops[:0]
	first := p * manifest.PageChunks
	for i := first; i < min(first+manifest.PageChunks, e.target.Manifest.Chunks()); i++ {
		e.chunk(i)
	}
	hash := e.target.Manifest.PageHash(p)
	e.uvarint(uint64(p) + 1)
	e.out.Write(hash[:])
	e.uvarint(uint64(len(e.ops)))
	end := int64(0)
	for _, o := range e.ops {
		e.uvarint(uint64(o.blocks)<<opBits | uint64(o.kind))
		if o.kind == opCopy {
			var b [binary.MaxVarintLen64]byte
			e.out.Write(b[:binary.PutVarint(b[:], o.from-end)])
			end = o.from + int64(o.blocks)
		}
	}
	e.stats.Pages++
	e.stats.Operations += int64(len(e.ops))
	return e.data(int64(p) * pageBlocks)
}

// data writes the blocks that are new, in the order of the page's operations.
func (e *encoder) data(block int64) error {
	for _, o := range e.ops {
		for left := o.blocks; o.kind == opData && left > 0; {
			n := min(left, 256)
			if cap(e.buf) == 0 {
				e.buf = make([]byte, 256*manifest.BlockSize)
			}
			buf := e.buf[:n*manifest.BlockSize]
			if err := readFull(e.content, buf, (block+int64(o.blocks-left))*manifest.BlockSize); err != nil {
				return fmt.Errorf("read image: %w", err)
			}
			if _, err := e.out.Write(buf); err != nil {
				return fmt.Errorf("write delta: %w", err)
			}
			left -= n
		}
		block += int64(o.blocks)
	}
	return nil
}

// readFull reads all of p; beyond the end there are zeros.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n < len(p) && err == io.EOF {
		clear(p[n:])
		err = nil
	}
	if n == len(p) {
		err = nil
	}
	return err
}

// chunk appends the operations that make chunk i.
func (e *encoder) chunk(i int) {
	block := int64(i) * chunkBlocks
	id := e.target.Manifest.At(i)
	switch {
	case e.base != nil && id == e.base.Manifest.At(i) && (!id.IsZero() || i < e.base.Manifest.Chunks()):
		e.add(op{kind: opSame, blocks: chunkBlocks})
		return
	case id.IsZero():
		e.add(op{kind: opZero, blocks: chunkBlocks})
		return
	}
	for b := block; b < block+chunkBlocks; b++ {
		e.add(e.block(b))
	}
}

func (e *encoder) block(b int64) op {
	d := e.target.Sketch.At(b)
	if d == 0 {
		return op{kind: opZero, blocks: 1}
	}
	if e.base != nil && e.base.Sketch.At(b) == d {
		return op{kind: opSame, blocks: 1}
	}
	// What goes on where the last copy ended needs no address.
	if n := len(e.ops); n > 0 && e.ops[n-1].kind == opCopy {
		if next := e.ops[n-1].from + int64(e.ops[n-1].blocks); next < e.index.own+b && e.index.space(next) == e.index.space(next-1) && e.index.digest(next) == d {
			return op{kind: opCopy, blocks: 1, from: next}
		}
	}
	if from, ok := e.index.find(d); ok {
		return op{kind: opCopy, blocks: 1, from: from}
	}
	e.index.add(d, b)
	return op{kind: opData, blocks: 1}
}

// add appends an operation, to the one before if it goes on with it.
func (e *encoder) add(o op) {
	switch o.kind {
	case opSame:
		e.stats.Same += int64(o.blocks)
	case opZero:
		e.stats.Zero += int64(o.blocks)
	case opData:
		e.stats.Data += int64(o.blocks)
	case opCopy:
		e.stats.Copied += int64(o.blocks)
	}
	if n := len(e.ops); n > 0 {
		last := &e.ops[n-1]
		if last.kind == o.kind && (o.kind != opCopy || last.from+int64(last.blocks) == o.from && e.index.space(o.from) == e.index.space(o.from-1)) {
			last.blocks += o.blocks
			return
		}
	}
	e.ops = append(e.ops, o)
}
