package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"heliotrope/imagesync/volume/disk"
)

// The journal is a sequence of frames of one sector each, which disks write whole or not at
// all. A frame is worth something only behind the one that its maker put it behind (prev),
// in its place (seq), in its file (generation).
//
//	 0  CRC-32C of what follows
//	 4  CRC-32C of the frame before
//	 8  kind, a zero, length of the payload (2 bytes)
//	12  generation: how often the journal has been written anew
//	16  seq: the frame's number in the file
//	20  durable: the number of the last frame that was known to be on the disk
//	24  payload
//
// Where the frames end, a crash may have left anything. What tells a tail that was torn from
// acknowledged frames that were damaged is durable: behind the last acknowledged frame
// stands a mark that says so. It is written but not synced, and overwritten by the next
// frame. If a frame behind the damage says that the damaged one was once safe, the journal
// is refused; else it ends there.
const (
	frameSize    = 512
	frameHeader  = 24
	framePayload = frameSize - frameHeader

	identityLimit = 256 // bytes
	formatVersion = 1
)

type frameKind byte

const (
	frameVolume frameKind = 1 + iota // the first: what volume it is
	frameRuns                        // blocks and what they are
	frameBegin                       // a commit: from here on dirty means since it began
	frameDone                        // that commit is done: its blocks are clean
	frameMark                        // nothing; for its durable
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
	kinds    []frameKind
	payloads [][]byte
	end      int64 // of the last run, in the last frame
}

func (b *batch) add(kind frameKind, payload []byte) {
	b.kinds, b.payloads, b.end = append(b.kinds, kind), append(b.payloads, payload), 0
}

func (b *batch) addID(kind frameKind, id uint64) {
	b.add(kind, binary.LittleEndian.AppendUint64(nil, id))
}

// run adds a run. Within a frame runs are coded as the gap to the one before and the length.
func (b *batch) run(r run) {
	last := len(b.kinds) - 1
	if last < 0 || b.kinds[last] != frameRuns || r.from < b.end || len(b.payloads[last])+2*binary.MaxVarintLen64 > framePayload {
		b.add(frameRuns, make([]byte, 0, framePayload))
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

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// position is where in a journal a frame stands.
type position struct{ generation, seq, durable, prev uint32 }

// put writes a frame to dst and moves on behind it.
func (p *position) put(dst []byte, kind frameKind, payload []byte) {
	clear(dst[:frameSize])
	binary.LittleEndian.PutUint32(dst[4:], p.prev)
	dst[8] = byte(kind)
	binary.LittleEndian.PutUint16(dst[10:], uint16(len(payload)))
	binary.LittleEndian.PutUint32(dst[12:], p.generation)
	binary.LittleEndian.PutUint32(dst[16:], p.seq)
	binary.LittleEndian.PutUint32(dst[20:], p.durable)
	copy(dst[frameHeader:], payload)
	p.prev = crc32.Checksum(dst[4:frameSize], castagnoli)
	binary.LittleEndian.PutUint32(dst, p.prev)
	p.seq++
}

// whole says whether a frame is as it was written, wherever that was.
func whole(frame []byte) bool {
	return binary.LittleEndian.Uint32(frame) == crc32.Checksum(frame[4:frameSize], castagnoli) &&
		int(binary.LittleEndian.Uint16(frame[10:])) <= framePayload
}

// next returns a frame's kind and payload if it is the one that stands at p, and moves on.
func (p *position) next(frame []byte) (kind frameKind, payload []byte, ok bool) {
	if !whole(frame) || p.seq != binary.LittleEndian.Uint32(frame[16:]) || p.prev != binary.LittleEndian.Uint32(frame[4:]) {
		return 0, nil, false
	}
	if generation := binary.LittleEndian.Uint32(frame[12:]); p.seq == 0 {
		p.generation = generation
	} else if generation != p.generation {
		return 0, nil, false
	}
	p.prev = binary.LittleEndian.Uint32(frame)
	p.durable = binary.LittleEndian.Uint32(frame[20:])
	p.seq++
	return frameKind(frame[8]), frame[frameHeader:][:binary.LittleEndian.Uint16(frame[10:])], true
}

// journal is an open journal. Its user holds a lock.
type journal struct {
	f disk.File
	position
	base  uint32 // frames when it was last written anew
	slack uint32 // frames that it may grow by before it is written anew, at least
	room  int64  // bytes that the file has space for
}

// journalReserve is the space that the journal takes in advance, in bytes: where the disk is
// full, a guest that trims has to be able to say so.
const journalReserve = 16 << 10

// journalSlack is slack of a journal in use: 1 MiB.
const journalSlack = 1 << 20 / frameSize

// large says whether it is time to write the journal anew.
func (j *journal) large() bool { return j.seq > j.base+max(j.slack, 3*j.base) }

func (p *position) encode(b *batch) []byte {
	out := make([]byte, len(b.kinds)*frameSize)
	for i, kind := range b.kinds {
		p.put(out[i*frameSize:], kind, b.payloads[i])
	}
	return out
}

// append writes frames and returns once they are on the disk. After an error they are not
// in the journal, unless it is disk.ErrUnsafe.
func (j *journal) append(b *batch) error {
	if len(b.kinds) == 0 {
		return nil
	}
	p, at := j.position, int64(j.seq)*frameSize
	p.durable = j.seq - 1
	if at+journalReserve/2 > j.room {
		j.f.Reserve(at, journalReserve)
		j.room = at + journalReserve // or the disk is full, and there is what is left of the last one
	}
	if _, err := j.f.WriteAt(p.encode(b), at); err != nil {
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
	j.position = p
	j.mark()
	return nil
}

// mark says behind the last frame that it is on the disk. That it fails does not matter:
// then damage is found a little less often.
func (j *journal) mark() {
	p, frame := j.position, make([]byte, frameSize)
	p.durable = p.seq - 1
	p.put(frame, frameMark, nil)
	_, _ = j.f.WriteAt(frame, int64(j.seq)*frameSize)
}

// writeJournal makes a journal with the given content in place of the one that was there.
func writeJournal(d disk.Directory, generation uint32, g geometry, content *batch) (*journal, error) {
	first := new(batch)
	first.add(frameVolume, g.encode())
	first.kinds, first.payloads = append(first.kinds, content.kinds...), append(first.payloads, content.payloads...)
	p := position{generation: generation}
	f, err := disk.Replace(d, journalFile, func(f disk.File) error {
		_, err := f.WriteAt(p.encode(first), 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("write journal anew: %w", err)
	}
	j := &journal{f: f, position: p, base: p.seq, slack: journalSlack}
	j.f.Reserve(0, journalReserve)
	j.room = journalReserve
	j.mark()
	return j, nil
}

// openJournal reads a journal, tells apply every frame in order but the first, and cuts off
// what follows the last.
func openJournal(f disk.File, apply func(g geometry, kind frameKind, payload []byte) error) (*journal, geometry, error) {
	size, err := f.Size()
	if err != nil {
		return nil, geometry{}, err
	}
	j := &journal{f: f, slack: journalSlack}
	g, err := readFrames(f, size, &j.position, apply)
	if err != nil {
		return nil, g, fmt.Errorf("read journal: %w", err)
	}
	if j.durable == j.seq-1 && size == int64(j.seq+1)*frameSize {
		return j, g, nil // it ends with the mark that says so
	}
	// Behind the end may stand frames that were never acknowledged.
	if err := f.Truncate(int64(j.seq) * frameSize); err != nil {
		return nil, g, fmt.Errorf("cut journal: %w", err)
	}
	if err := f.Datasync(); err != nil {
		return nil, g, err
	}
	j.mark()
	return j, g, nil
}

// readFrames reads frames up to the end; p is where the next one goes.
func readFrames(r io.ReaderAt, size int64, p *position, apply func(g geometry, kind frameKind, payload []byte) error) (g geometry, err error) {
	in := io.NewSectionReader(r, 0, size/frameSize*frameSize)
	frame := make([]byte, frameSize)
	for {
		if _, err := io.ReadFull(in, frame); err == io.EOF {
			break
		} else if err != nil {
			return g, err
		}
		kind, payload, ok := p.next(frame)
		if !ok {
			break
		}
		switch {
		case (p.seq == 1) != (kind == frameVolume):
			return g, fmt.Errorf("%w: frame %d is of kind %d", ErrDamaged, p.seq-1, kind)
		case kind == frameVolume:
			g, err = decodeGeometry(payload)
		case kind == frameMark:
			p.seq-- // the next frame overwrites it
			p.prev = binary.LittleEndian.Uint32(frame[4:])
			return g, checkTail(in, *p)
		default:
			err = apply(g, kind, payload)
		}
		if err != nil {
			return g, err
		}
	}
	if p.seq == 0 {
		return g, fmt.Errorf("%w: its first frame is not whole", ErrDamaged)
	}
	return g, checkTail(in, *p)
}

// checkTail reads what stands behind the end at p, and fails if a frame there says that there
// was one at p once.
func checkTail(in io.Reader, p position) error {
	frame := make([]byte, frameSize)
	for {
		_, err := io.ReadFull(in, frame)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
		generation, at, durable := binary.LittleEndian.Uint32(frame[12:]), binary.LittleEndian.Uint32(frame[16:]), binary.LittleEndian.Uint32(frame[20:])
		if whole(frame) && generation == p.generation && at > p.seq && durable >= p.seq {
			return fmt.Errorf("%w: frame %d is not as it was written, and frame %d knows that it was on the disk", ErrDamaged, p.seq, at)
		}
	}
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
