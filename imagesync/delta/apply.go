package delta

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"heliotrope/imagesync/manifest"
)

// Base is an image that a receiver has.
type Base struct {
	Image
	Content io.ReaderAt
}

// Sink takes the chunks that are new, each once and in order, after their page was checked.
// ReadAt reads of what was put: a delta may copy blocks of the image that it makes.
type Sink interface {
	Put(i int, id manifest.ID, chunk []byte) error
	io.ReaderAt
}

// ErrWrong is that of a delta whose result is not what it should be: it was changed on the
// way, or two blocks were taken for the same. Nothing of the page was given to the sink.
var ErrWrong = errors.New("what was rebuilt is not what was sent")

// Apply makes the image with this root and size of a delta. Have returns the base with a root,
// and an error if it is not here.
func Apply(r io.Reader, root manifest.ID, size int64, have func(manifest.ID) (Base, error), sink Sink) (Image, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(window), zstd.WithDecoderMaxMemory(2*window))
	if err != nil {
		return Image{}, fmt.Errorf("open decoder: %w", err)
	}
	defer z.Close()
	d := &decoder{in: bufio.NewReaderSize(z, 64<<10), sink: sink}
	if err := d.head(root, size, have); err != nil {
		return Image{}, err
	}
	for at := 0; ; {
		n, err := binary.ReadUvarint(d.in)
		switch {
		case err != nil:
			return Image{}, fmt.Errorf("read delta: %w", noEOF(err))
		case n == 0:
			d.keep(at, d.target.Manifest.Pages())
			return d.done(root)
		case n-1 < uint64(at) || n-1 >= uint64(d.target.Manifest.Pages()):
			return Image{}, fmt.Errorf("read delta: page %d after %d", n-1, at)
		}
		d.keep(at, int(n-1))
		at = int(n)
		if err := d.page(at - 1); err != nil {
			return Image{}, err
		}
	}
}

// noEOF is for where more must follow.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

type decoder struct {
	in     *bufio.Reader
	sink   Sink
	target Image
	bases  []Base
	starts []int64 // of the bases' addresses, and of the target's
	ops    []op
	buf    []byte // a page
}

func (d *decoder) head(root manifest.ID, size int64, have func(manifest.ID) (Base, error)) error {
	head := make([]byte, len(magic)+8+len(root)+1)
	if _, err := io.ReadFull(d.in, head); err != nil {
		return fmt.Errorf("read delta: %w", noEOF(err))
	}
	if !bytes.HasPrefix(head, []byte(magic)) {
		return errors.New("read delta: it is none, or of a newer version of this program")
	}
	head = head[len(magic):]
	if said := manifest.ID(head[8 : 8+len(root)]); binary.BigEndian.Uint64(head) != uint64(size) || said != root {
		return fmt.Errorf("read delta: it makes %.16s, not %.16s", said, root)
	}
	d.target = Image{Root: root, Manifest: manifest.New(size), Sketch: NewSketch(size)}
	n := int(head[8+len(root)])
	if n > maxBases {
		return fmt.Errorf("read delta: %d bases", n)
	}
	start := int64(0)
	for range n {
		var id manifest.ID
		if _, err := io.ReadFull(d.in, id[:]); err != nil {
			return fmt.Errorf("read delta: %w", noEOF(err))
		}
		b, err := have(id)
		if err != nil {
			return fmt.Errorf("find base %.16s: %w", id, err)
		}
		d.bases, d.starts = append(d.bases, b), append(d.starts, start)
		start += int64(b.Manifest.Pages()) * pageBlocks
	}
	d.starts = append(d.starts, start)
	return nil
}

// keep takes pages that did not change over from the first base.
func (d *decoder) keep(from, to int) {
	for i := from * manifest.PageChunks; i < min(to*manifest.PageChunks, d.target.Manifest.Chunks()); i++ {
		d.same(i)
	}
}

func (d *decoder) same(i int) {
	if len(d.bases) == 0 {
		return
	}
	if id := d.bases[0].Manifest.At(i); !id.IsZero() {
		d.target.Manifest.Set(i, id)
		d.target.Sketch.Copy(i, d.bases[0].Sketch)
	}
}

func (d *decoder) done(root manifest.ID) (Image, error) {
	if got := d.target.Manifest.Root(); got != root {
		return Image{}, fmt.Errorf("%w: image %.16s, not %.16s", ErrWrong, got, root)
	}
	if _, err := d.in.ReadByte(); err != io.EOF {
		return Image{}, fmt.Errorf("read delta: it goes on after its end (%v)", err)
	}
	return d.target, nil
}

func (d *decoder) page(p int) error {
	var hash manifest.ID
	if _, err := io.ReadFull(d.in, hash[:]); err != nil {
		return fmt.Errorf("read delta: %w", noEOF(err))
	}
	first := p * manifest.PageChunks
	chunks := min(manifest.PageChunks, d.target.Manifest.Chunks()-first)
	if err := d.operations(int64(p)*pageBlocks, chunks*chunkBlocks); err != nil {
		return fmt.Errorf("read page %d of delta: %w", p, noEOF(err))
	}
	if d.buf == nil {
		d.buf = make([]byte, manifest.PageSize)
	}
	changed, err := d.rebuild(int64(p) * pageBlocks)
	if err != nil {
		return fmt.Errorf("rebuild page %d: %w", p, noEOF(err))
	}
	for c := range chunks {
		content := d.buf[c*manifest.ChunkSize:][:manifest.ChunkSize]
		if !changed[c] {
			d.same(first + c)
		} else if id := manifest.Name(content); !id.IsZero() {
			d.target.Manifest.Set(first+c, id)
			d.target.Sketch.Set(first+c, DigestsOf(content))
		}
	}
	if got := d.target.Manifest.PageHash(p); got != hash {
		return fmt.Errorf("%w: page %d", ErrWrong, p)
	}
	for c := range chunks {
		if id := d.target.Manifest.At(first + c); changed[c] && !id.IsZero() {
			if err := d.sink.Put(first+c, id, d.buf[c*manifest.ChunkSize:][:manifest.ChunkSize]); err != nil {
				return fmt.Errorf("keep chunk %d: %w", first+c, err)
			}
		}
	}
	return nil
}

var errOperation = errors.New("an operation that cannot be")

// operations reads those of the page whose first block this is; together they make so many blocks.
func (d *decoder) operations(block int64, blocks int) error {
	n, err := binary.ReadUvarint(d.in)
	if err != nil {
		return err
	}
	if n > uint64(blocks) {
		return errOperation
	}
	own := d.starts[len(d.bases)]
	d.ops = d.ops[:0]
	left, end := blocks, int64(0)
	for range n {
		v, err := binary.ReadUvarint(d.in)
		if err != nil {
			return err
		}
		o := op{kind: int(v & (1<<opBits - 1))}
		if v >>= opBits; v == 0 || v > uint64(left) || o.kind == opSame && len(d.bases) == 0 {
			return errOperation
		}
		o.blocks = int(v)
		if o.kind == opCopy {
			step, err := binary.ReadVarint(d.in)
			if err != nil {
				return err
			}
			o.from = end + step
			end = o.from + int64(o.blocks)
			// A copy of what is being made must lie before it, its last block too, and not cross
			// from one image into the next.
			at := own + block + int64(blocks-left)
			if o.from < 0 || o.from >= at || end < o.from || d.space(o.from) != d.space(end-1) {
				return errOperation
			}
		}
		left -= o.blocks
		d.ops = append(d.ops, o)
	}
	if left != 0 {
		return errOperation
	}
	return nil
}

// space is which image an address is in; len(d.bases) is the one that is being made.
func (d *decoder) space(address int64) int {
	for i := len(d.starts) - 1; i > 0; i-- {
		if address >= d.starts[i] {
			return i
		}
	}
	return 0
}

// rebuild makes the page's content in d.buf, where it is new; changed says of which chunks.
func (d *decoder) rebuild(block int64) (changed []bool, err error) {
	changed = make([]bool, manifest.PageChunks)
	at := 0
	for _, o := range d.ops {
		for b := at; o.kind != opSame && b < at+o.blocks; b++ {
			changed[b/chunkBlocks] = true
		}
		at += o.blocks
	}
	at = 0
	for _, o := range d.ops {
		if err := d.do(o, block, at, changed); err != nil {
			return nil, err
		}
		at += o.blocks
	}
	return changed, nil
}

func (d *decoder) do(o op, block int64, at int, changed []bool) error {
	to := d.buf[at*manifest.BlockSize:][:o.blocks*manifest.BlockSize]
	switch o.kind {
	case opZero:
		clear(to)
	case opData:
		_, err := io.ReadFull(d.in, to)
		return err
	case opSame:
		// A chunk that did not change needs no content, unless this page copies it.
		for b := at; b < at+o.blocks; {
			n := min(chunkBlocks-b%chunkBlocks, at+o.blocks-b)
			if changed[b/chunkBlocks] {
				if err := readFull(d.bases[0].Content, d.buf[b*manifest.BlockSize:][:n*manifest.BlockSize], (block+int64(b))*manifest.BlockSize); err != nil {
					return err
				}
			}
			b += n
		}
	case opCopy:
		return d.copy(to, o.from, block, changed)
	}
	return nil
}

// copy reads blocks from an address on.
func (d *decoder) copy(to []byte, from, block int64, changed []bool) error {
	i := d.space(from)
	from -= d.starts[i]
	if i < len(d.bases) {
		return readFull(d.bases[i].Content, to, from*manifest.BlockSize)
	}
	for ; len(to) > 0; to, from = to[manifest.BlockSize:], from+1 { // a run may repeat what it has just made itself
		if err := d.own(to[:manifest.BlockSize], from, block, changed); err != nil {
			return err
		}
	}
	return nil
}

// own reads a block of the image that is being made.
func (d *decoder) own(to []byte, from, block int64, changed []bool) error {
	if in := from - block; in >= 0 && changed[in/chunkBlocks] {
		copy(to, d.buf[in*manifest.BlockSize:])
		return nil
	}
	chunk := int(from / chunkBlocks)
	if len(d.bases) > 0 && (from >= block || d.target.Manifest.At(chunk) == d.bases[0].Manifest.At(chunk)) {
		return readFull(d.bases[0].Content, to, from*manifest.BlockSize)
	}
	return readFull(d.sink, to, from*manifest.BlockSize)
}
