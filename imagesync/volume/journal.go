package volume

import (
	"encoding/binary"
	"fmt"
	"io"

	"heliotrope/imagesync/volume/disk"
	"heliotrope/imagesync/volume/frame"
)

// The journal is a sequence of frames (package frame).
const (
	identityLimit = 256 // bytes
	formatVersion = 1
)

const (
	frameVolume frame.Kind = 1 + iota // the first: what volume it is
	frameRuns                         // blocks and what they are
	frameBegin                        // a commit: from here on dirty means since it began
	frameDone                         // that commit is done: its blocks are clean
	frameMark                         // nothing; for its durable
)

// what a run of blocks is.
type what byte

const (
	dataDirty what = iota
	zeroDirty
	markDirty // stays what it is, and is dirty
	dataClean // as zeroClean only in a journal that was written anew
	zeroClean
	whats
)

// run is blocks from to before to.
type run struct {
	from, to int64
	what     what
}

// batch is frames to be written.
type batch struct {
	kinds    []frame.Kind
	payloads [][]byte
	end      int64 // of the last run, in the last frame
}

func (b *batch) add(kind frame.Kind, payload []byte) {
	b.kinds, b.payloads, b.end = append(b.kinds, kind), append(b.payloads, payload), 0
}

func (b *batch) addID(kind frame.Kind, id uint64) {
	b.add(kind, binary.LittleEndian.AppendUint64(nil, id))
}

// run adds a run. Within a frame runs are coded as the gap to the one before and the length.
func (b *batch) run(r run) {
	last := len(b.kinds) - 1
	if last < 0 || b.kinds[last] != frameRuns || r.from < b.end || len(b.payloads[last])+2*binary.MaxVarintLen64 > frame.Payload {
		b.add(frameRuns, make([]byte, 0, frame.Payload))
		last++
	}
	p := binary.AppendUvarint(b.payloads[last], uint64(r.from-b.end))
	b.payloads[last] = binary.AppendUvarint(p, uint64(r.to-r.from)<<3|uint64(r.what))
	b.end = r.to
}

// geometry is what the journal's first frame says.
type geometry struct {
	size     int64 // bytes
	identity string
}

func (g geometry) blocks() int64 { return (g.size + BlockSize - 1) / BlockSize }

func (g geometry) encode() []byte {
	p := binary.LittleEndian.AppendUint16(nil, formatVersion)
	p = binary.LittleEndian.AppendUint32(p, BlockSize)
	p = binary.LittleEndian.AppendUint64(p, uint64(g.size))
	return append(p, g.identity...)
}

func decodeGeometry(p []byte) (geometry, error) {
	if len(p) < 14 {
		return geometry{}, fmt.Errorf("%w: the first frame is of %d bytes", ErrDamaged, len(p))
	}
	version, block, size := binary.LittleEndian.Uint16(p), binary.LittleEndian.Uint32(p[2:]), binary.LittleEndian.Uint64(p[6:])
	if version != formatVersion || block != BlockSize || size == 0 || size > MaxSize {
		return geometry{}, fmt.Errorf("a volume of format %d, with blocks of %d and a size of %d bytes, was made by another version of this program",
			version, block, size)
	}
	return geometry{int64(size), string(p[14:])}, nil
}

// journal is an open journal. Its user holds a lock.
type journal struct {
	f disk.File
	frame.Position
	base  uint32 // frames when it was last written anew
	slack uint32 // frames that it may grow by before it is written anew, at least
	room  int64  // bytes that the file has space for
}

// journalReserve is the space that the journal takes in advance, in bytes: where the disk is
// full, a guest that trims has to be able to say so.
const journalReserve = 16 << 10

// journalSlack is slack of a journal in use: 1 MiB.
const journalSlack = 1 << 20 / frame.Size

// large says whether it is time to write the journal anew.
func (j *journal) large() bool { return j.Seq > j.base+max(j.slack, 3*j.base) }

// encode puts the frames of a batch behind p.
func (b *batch) encode(p *frame.Position) []byte {
	out := make([]byte, len(b.kinds)*frame.Size)
	for i, kind := range b.kinds {
		p.Put(out[i*frame.Size:], kind, b.payloads[i])
	}
	return out
}

// append writes frames and returns once they are on the disk. After an error they are not
// in the journal, unless it is disk.ErrUnsafe.
func (j *journal) append(b *batch) error {
	if len(b.kinds) == 0 {
		return nil
	}
	p, at := j.Position, int64(j.Seq)*frame.Size
	p.Durable = j.Seq - 1
	if at+journalReserve/2 > j.room {
		j.f.Reserve(at, journalReserve)
		j.room = at + journalReserve // or the disk is full, and there is what is left of the last one
	}
	if _, err := j.f.WriteAt(b.encode(&p), at); err != nil {
		// What was written of them is behind the end, and must not be when more comes.
		j.room = 0 // cutting gives it back
		if cut := j.f.Truncate(at); cut != nil {
			return fmt.Errorf("%w: cut journal: %w, after %w", disk.ErrUnsafe, cut, err)
		}
		return fmt.Errorf("write journal: %w", err)
	}
	if err := j.f.Datasync(); err != nil {
		return err
	}
	j.Position = p
	j.mark()
	return nil
}

// mark says behind the last frame that it is on the disk. That it fails does not matter:
// then damage is found a little less often.
func (j *journal) mark() {
	p, mark := j.Position, make([]byte, frame.Size)
	p.Durable = p.Seq - 1
	p.Put(mark, frameMark, nil)
	_, _ = j.f.WriteAt(mark, int64(j.Seq)*frame.Size)
}

// writeJournal makes a journal with the given content in place of the one that was there.
func writeJournal(d disk.Directory, generation uint32, g geometry, content *batch) (*journal, error) {
	first := new(batch)
	first.add(frameVolume, g.encode())
	first.kinds, first.payloads = append(first.kinds, content.kinds...), append(first.payloads, content.payloads...)
	p := frame.Position{Generation: generation}
	f, err := disk.Replace(d, journalFile, func(f disk.File) error {
		_, err := f.WriteAt(first.encode(&p), 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("write journal anew: %w", err)
	}
	j := &journal{f: f, Position: p, base: p.Seq, slack: journalSlack}
	j.f.Reserve(0, journalReserve)
	j.room = journalReserve
	j.mark()
	return j, nil
}

// openJournal reads a journal, tells apply every frame in order but the first, and cuts off
// what follows the last.
func openJournal(f disk.File, apply func(g geometry, kind frame.Kind, payload []byte) error) (*journal, geometry, error) {
	size, err := f.Size()
	if err != nil {
		return nil, geometry{}, err
	}
	j := &journal{f: f, slack: journalSlack}
	g, err := readFrames(f, size, &j.Position, apply)
	if err != nil {
		return nil, g, fmt.Errorf("read journal: %w", err)
	}
	if j.Durable == j.Seq-1 && size == int64(j.Seq+1)*frame.Size {
		return j, g, nil // it ends with the mark that says so
	}
	// Behind the end may stand frames that were never acknowledged.
	if err := f.Truncate(int64(j.Seq) * frame.Size); err != nil {
		return nil, g, fmt.Errorf("cut journal: %w", err)
	}
	if err := f.Datasync(); err != nil {
		return nil, g, err
	}
	j.mark()
	return j, g, nil
}

// readFrames reads frames up to the end; p is where the next one goes.
func readFrames(r io.ReaderAt, size int64, p *frame.Position, apply func(g geometry, kind frame.Kind, payload []byte) error) (g geometry, err error) {
	in := io.NewSectionReader(r, 0, size/frame.Size*frame.Size)
	one := make([]byte, frame.Size)
	for {
		if _, err := io.ReadFull(in, one); err == io.EOF {
			break
		} else if err != nil {
			return g, err
		}
		kind, payload, ok := p.Next(one)
		if !ok {
			break
		}
		switch {
		case (p.Seq == 1) != (kind == frameVolume):
			return g, fmt.Errorf("%w: frame %d is of kind %d", ErrDamaged, p.Seq-1, kind)
		case kind == frameVolume:
			g, err = decodeGeometry(payload)
		case kind == frameMark:
			p.Seq-- // the next frame overwrites it
			p.Prev = binary.LittleEndian.Uint32(one[4:])
			return g, frame.CheckTail(in, *p)
		default:
			err = apply(g, kind, payload)
		}
		if err != nil {
			return g, err
		}
	}
	if p.Seq == 0 {
		return g, fmt.Errorf("%w: its first frame is not whole", ErrDamaged)
	}
	return g, frame.CheckTail(in, *p)
}

// decodeRuns calls f for each run of a frame, all of them within a volume of that many blocks.
func decodeRuns(p []byte, blocks int64, f func(run)) error {
	at := int64(0)
	for len(p) > 0 {
		gap, n := binary.Uvarint(p)
		if n <= 0 || gap > uint64(blocks) {
			return fmt.Errorf("%w: a run that begins nowhere", ErrDamaged)
		}
		p = p[n:]
		length, n := binary.Uvarint(p)
		if n <= 0 {
			return fmt.Errorf("%w: a run without end", ErrDamaged)
		}
		p = p[n:]
		r := run{from: at + int64(gap), what: what(length & 7)}
		if length >>= 3; length == 0 || r.from >= blocks || length > uint64(blocks-r.from) || r.what >= whats {
			return fmt.Errorf("%w: a run of %d blocks at %d that are %d, of %d", ErrDamaged, length, r.from, r.what, blocks)
		}
		r.to = r.from + int64(length)
		at = r.to
		f(r)
	}
	return nil
}
