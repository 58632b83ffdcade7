package wan

import (
	"encoding/binary"
	"fmt"
	"heliotrope/migration/wan/ramstream"

	"github.com/zeebo/blake3"
	"github.com/zeebo/xxh3"
)

// Encoder makes batches of a stream. It is not for use by several at once.
type Encoder struct {
	sink   func(*Batch) (*Batch, error)
	parser parser
	batch  *Batch
	level  Level
	seed   uint64 // of pages
	hash   streamHash
	known  Known
	keyed  *blake3.Hasher // of known
	image  ImageIndex
	err    error

	carrying Carrying
	streams  map[uint64]uint64 // that were named, and how they are told

	mirror *Mirror
	index  *index
	places places
	zeros  uint64 // pages of the run that the last op is, beside its first
	bytes  uint64 // of the last op, if that is Verbatim
	open   Class  // of the run that the last op is; Classes if it is none
}

// places is where the last page was. Both ends follow it.
type places struct {
	block   int    // the last page's
	next    uint64 // page behind the last one
	dup     uint32
	site    uint64
	image   uint64
	peer    uint64
	spelled bool // a page came before
}

// NewEncoder returns an Encoder that fills batch. When that is full, or by Flush, it gives
// it to sink and fills the one that sink returns, which is empty and may be the same.
func NewEncoder(c Config, batch *Batch, sink func(*Batch) (*Batch, error)) *Encoder {
	e := &Encoder{sink: sink, batch: batch, level: Fast, parser: c.parser(), places: c.places(), open: Classes, seed: c.PageSeed,
		hash: newStreamHash(c.Seed), mirror: c.mirror(), index: newIndex(c.MirrorPages), carrying: c.Carrying, streams: map[uint64]uint64{}}
	for i := range e.mirror.Len() {
		e.index.add(xxh3.Hash128Seed(e.mirror.Page(i)[:], c.PageSeed).Lo, uint32(i))
	}
	return e
}

// Know tells what the destination has of its own, by digests with this key.
func (e *Encoder) Know(key [32]byte, k Known) error {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		return fmt.Errorf("key page digests: %w", err)
	}
	e.known, e.keyed = k, h
	return nil
}

// KnowImage tells what the destination has of the image that the VM's disk stands on.
func (e *Encoder) KnowImage(x ImageIndex) { e.image = x }

// Mirror is what was last sent of each page. It is the Encoder's until nothing more is written.
func (e *Encoder) Mirror() *Mirror { return e.mirror }

// SetLevel says how what is yet to come is compressed.
func (e *Encoder) SetLevel(l Level) { e.level = l }

// Buffered is how many bytes of the stream wait in the open batch.
func (e *Encoder) Buffered() int { return e.batch.size }

// Whole says whether all that was written so far is a stream that was understood, to its end.
func (e *Encoder) Whole() bool { return e.parser.Whole() }

// Ended says whether the stream has said that nothing more comes. Not all do.
func (e *Encoder) Ended() bool { return e.parser.Ended() }

// Lost is how often the stream was not understood.
func (e *Encoder) Lost() int { return e.parser.Lost() }

// Write encodes more of the stream. What there is of a token that is not complete is held back.
func (e *Encoder) Write(p []byte) (n int, err error) {
	rest := p
	for e.err == nil {
		t, r, ok := e.parser.Next(rest)
		if !ok {
			return len(p), nil
		}
		rest = r
		e.token(&t)
	}
	return 0, e.err
}

// Flush gives the open batch to the sink, unless it is empty: when the stream falls silent,
// its reader may be waiting for just these bytes.
func (e *Encoder) Flush() error {
	if e.err == nil && e.batch.size > 0 {
		e.emit()
	}
	return e.err
}

// Drain is a Flush that holds nothing back: at the stream's end, and when it has been silent
// for so long that what is held back is perhaps no part of a page.
func (e *Encoder) Drain() error {
	if t, ok := e.parser.Drain(); ok && e.err == nil {
		e.token(&t)
	}
	return e.Flush()
}

func (e *Encoder) token(t *ramstream.Token) {
	page := len(t.Data) == pageSize || t.Kind == ramstream.Zero
	if !page || t.Offset%pageSize != 0 || e.level == Plain {
		e.verbatim(t.Raw)
		return
	}
	block, ok := e.find(t)
	switch {
	case !ok:
		e.verbatim(t.Raw)
	case t.Kind == ramstream.Zero:
		e.zero(t, block)
	default:
		e.page(t, block)
	}
}

// find returns the number of a page's block; the next one to come, if its name is new.
// It is not ok if the other end could not tell which block it is.
func (e *Encoder) find(t *ramstream.Token) (block int, ok bool) {
	p, names := &e.places, e.mirror.blocks
	if p.spelled && string(names[p.block]) == string(t.Block) {
		return p.block, true
	}
	for i, name := range names {
		if t.Spelled && string(name) == string(t.Block) {
			return i, true
		}
	}
	return len(names), t.Spelled && len(names) < maxBlocks
}

// count adds a token, or a part of one, to the batch's, and ends the batch if it is full.
func (e *Encoder) count(c Class, raw []byte) {
	b := e.batch
	b.size += len(raw)
	b.stats.Pages[c]++
	b.stats.In[c] += uint64(len(raw))
	if b.size >= BatchBytes {
		e.emit()
	}
}

func (e *Encoder) emit() {
	e.close()
	b := e.batch
	b.sum = e.hash.Sum128().Bytes()
	b.Level = e.level
	if e.batch, e.err = e.sink(b); e.err != nil {
		e.batch = b
	}
}

// close ends a run.
func (e *Encoder) close() {
	switch e.open {
	case Zero:
		e.arg(e.zeros)
	case Verbatim:
		e.arg(e.bytes)
	}
	e.open = Classes
}

func (e *Encoder) arg(v uint64) {
	e.batch.columns[args] = binary.AppendUvarint(e.batch.columns[args], v)
}

// verbatim passes bytes on as they are.
func (e *Encoder) verbatim(raw []byte) {
	for len(raw) > 0 && e.err == nil {
		if e.open != Verbatim {
			e.close()
			e.open, e.bytes = Verbatim, 0
			e.batch.columns[ops] = append(e.batch.columns[ops], byte(Verbatim))
		}
		n := min(len(raw), BatchBytes-e.batch.size)
		e.batch.columns[other] = append(e.batch.columns[other], raw[:n]...)
		e.bytes += uint64(n)
		e.hash.Write(raw[:n])
		e.count(Verbatim, raw[:n])
		raw = raw[n:]
	}
}

func (e *Encoder) zero(t *ramstream.Token, block int) {
	page := t.Offset / pageSize
	if e.open == Zero && !t.Spelled && page == e.places.next {
		e.zeros++
		e.places.next++
	} else {
		e.op(Zero, t, block, page)
		e.open, e.zeros = Zero, 0
	}
	e.hash.Write(t.Raw)
	e.count(Zero, t.Raw)
}

// op begins an op of a page.
func (e *Encoder) op(c Class, t *ramstream.Token, block int, page uint64) {
	e.close()
	p := &e.places
	op := byte(c)
	if t.Spelled {
		op |= opBlock
		e.arg(uint64(block))
		if block == len(e.mirror.blocks) {
			e.mirror.blocks = append(e.mirror.blocks, append([]byte(nil), t.Block...))
			e.arg(uint64(len(t.Block)))
			e.batch.columns[other] = append(e.batch.columns[other], t.Block...)
		}
		p.block, p.spelled = block, true
	}
	if page == p.next {
		op |= opNext
	} else {
		e.arg(zigzag(int64(page - p.next)))
	}
	p.next = page + 1
	e.batch.columns[ops] = append(e.batch.columns[ops], op)
}

func (e *Encoder) page(t *ramstream.Token, block int) {
	number := t.Offset / pageSize
	data := (*[pageSize]byte)(t.Data)
	hash := xxh3.Hash128Seed(data[:], e.seed)
	e.hash.page(t.Raw[:len(t.Raw)-pageSize], hash)
	slot, kept := e.mirror.slot(block, number)
	if kept {
		last := e.mirror.page(slot)
		before := len(e.batch.columns[deltas])
		delta, ok := appendDelta(e.batch.columns[deltas], last, data)
		e.batch.columns[deltas] = delta
		switch n := len(delta) - before; {
		case ok && n == 0:
			e.op(Same, t, block, number)
			e.count(Same, t.Raw)
			return
		case ok:
			e.op(Delta, t, block, number)
			e.arg(uint64(n))
			*last = *data
			e.count(Delta, t.Raw)
			return
		}
	}
	class := e.refer(t, block, number, data, hash)
	if class == Peer {
		e.hash.peer(data)
	}
	if !kept {
		slot, kept = e.mirror.place(block, number)
	}
	if kept {
		*e.mirror.page(slot) = *data
		if class != Dup {
			e.index.add(hash.Lo, slot)
		}
	}
	e.count(class, t.Raw)
}

// refer says of a page where the other end has it, or what it is.
func (e *Encoder) refer(t *ramstream.Token, block int, number uint64, data *[pageSize]byte, hash PageHash) Class {
	if slot, ok := e.index.find(hash.Lo); ok && *e.mirror.page(slot) == *data {
		e.op(Dup, t, block, number)
		e.arg(zigzag(int64(slot) - int64(e.places.dup)))
		e.places.dup = slot
		return Dup
	}
	if class, ok := e.elsewhere(t, block, number, data, hash); ok {
		return class
	}
	class, col := Literal, literals
	if random(data) {
		class, col = Noise, noise
	}
	e.op(class, t, block, number)
	*e.batch.page(col) = *data
	if e.carrying != nil {
		e.carrying.Carries(hash, class == Noise)
	}
	return class
}

func digest(keyed *blake3.Hasher, data *[pageSize]byte) (d Digest) {
	keyed.Reset()
	keyed.Write(data[:])
	var full [32]byte
	copy(d[:], keyed.Sum(full[:0]))
	return d
}

// Digester makes digests of pages with one key.
type Digester struct{ keyed *blake3.Hasher }

// NewDigester returns one.
func NewDigester(key [32]byte) (*Digester, error) {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		return nil, fmt.Errorf("key page digests: %w", err)
	}
	return &Digester{h}, nil
}

// Page is a page's digest.
func (d *Digester) Page(page *[4096]byte) Digest { return digest(d.keyed, page) }
