package spread

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// The protocol. A connection is dialled by the successor and begins with its hello: a magic, the
// ID of the content, the number of its pieces and a Priority. From then on both sides send
// frames, each a kind and fixed fields, numbers big-endian:
//
//	from the successor
//	  want    first, count     pieces that it misses; may come at any time, count 0 says that it lives
//	from the feeder
//	  data    piece, offset, n, then n bytes. A piece comes from its beginning to its end, and no
//	          other between
//	  void    piece            what came of this piece is to be forgotten; it comes again
//	  status  how the feeder stands
//	  refuse  why              the last word
const (
	helloMagic = "hspread1"
	helloBytes = len(helloMagic) + len(ID{}) + 4 + 1

	kindWant   = 'w'
	kindData   = 'd'
	kindVoid   = 'v'
	kindStatus = 's'
	kindRefuse = 'r'

	wantBytes   = 8
	dataBytes   = 12
	voidBytes   = 4
	statusBytes = 1 + 8 + 2 + 8 + 2 + 4
	refuseBytes = 1

	flagLive = 1 // of a status
	flagHeld = 2
	flagLame = 4

	// fragment is the most bytes of a data frame.
	fragment = 128 << 10
)

// Priority is whose bytes go first over a link.
type Priority uint8

const (
	Demand     Priority = iota // somebody waits for the content
	Background                 // it is wanted there some time
	priorities
)

// hello is how a successor begins.
type hello struct {
	id       ID
	pieces   int
	priority Priority
}

func (h hello) append(b []byte) []byte {
	b = append(b, helloMagic...)
	b = append(b, h.id[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(h.pieces))
	return append(b, byte(h.priority))
}

func readHello(r io.Reader) (h hello, err error) {
	var b [helloBytes]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return h, fmt.Errorf("read hello: %w", err)
	}
	if string(b[:len(helloMagic)]) != helloMagic {
		return h, errors.New("read hello: the peer speaks something else")
	}
	rest := b[len(helloMagic):]
	copy(h.id[:], rest)
	pieces := binary.BigEndian.Uint32(rest[len(h.id):])
	h.priority = Priority(rest[len(h.id)+4])
	if pieces > MaxPieces || h.priority >= priorities {
		return h, fmt.Errorf("read hello: %d pieces, priority %d", pieces, h.priority)
	}
	h.pieces = int(pieces)
	return h, nil
}

func appendWant(b []byte, w run) []byte {
	b = append(b, kindWant)
	b = binary.BigEndian.AppendUint32(b, uint32(w.from))
	return binary.BigEndian.AppendUint32(b, uint32(w.n))
}

// readWant reads a successor's frame, which must be about the pieces that there are. An io.EOF
// is between frames.
func readWant(r io.Reader, pieces int) (run, error) {
	var b [1 + wantBytes]byte
	if _, err := io.ReadFull(r, b[:1]); err == io.EOF {
		return run{}, err
	} else if err != nil {
		return run{}, fmt.Errorf("read want: %w", err)
	}
	if b[0] != kindWant {
		return run{}, fmt.Errorf("read want: a frame of kind %q", b[0])
	}
	if _, err := io.ReadFull(r, b[1:]); err != nil {
		return run{}, fmt.Errorf("read want: %w", noEOF(err))
	}
	from, n := uint64(binary.BigEndian.Uint32(b[1:])), uint64(binary.BigEndian.Uint32(b[5:]))
	if from+n > uint64(pieces) {
		return run{}, fmt.Errorf("read want: %d pieces from %d on, of %d", n, from, pieces)
	}
	return run{int(from), int(n)}, nil
}

// reason is a feeder's last word.
type reason uint8

const (
	reasonUnknown   reason = iota // the content is not known here, or not any more
	reasonDifferent               // the ID is known, with another number of pieces
	reasonFault                   // a piece could not be read
	reasons
)

func (r reason) String() string {
	return [...]string{"it does not have this content", "it knows this content otherwise", "it cannot read its pieces"}[r]
}

// status is how a feeder stands.
type status struct {
	live    bool   // it has all, or a feeder of its own
	lame    bool   // it cannot take in faster, whoever feeds it
	held    bool   // its limit lets nothing through at the moment
	have    uint64 // bytes that it has stored
	feeds   uint16 // how many hosts
	upHave  uint64 // what its feeder has, 0 where it has no feeder
	upFeeds uint16 // how many hosts its feeder feeds
	session uint32 // changes when it changes its feeder
}

func (s status) append(b []byte) []byte {
	flags := byte(0)
	if s.live {
		flags |= flagLive
	}
	if s.held {
		flags |= flagHeld
	}
	if s.lame {
		flags |= flagLame
	}
	b = append(b, kindStatus, flags)
	b = binary.BigEndian.AppendUint64(b, s.have)
	b = binary.BigEndian.AppendUint16(b, s.feeds)
	b = binary.BigEndian.AppendUint64(b, s.upHave)
	b = binary.BigEndian.AppendUint16(b, s.upFeeds)
	return binary.BigEndian.AppendUint32(b, s.session)
}

// frame is what a feeder sends; of data, the bytes follow.
type frame struct {
	kind   byte
	piece  int // data, void
	offset int // data
	length int // data
	status status
	reason reason
}

func (f frame) append(b []byte) []byte {
	switch f.kind {
	case kindStatus:
		return f.status.append(b)
	case kindRefuse:
		return append(b, kindRefuse, byte(f.reason))
	}
	b = binary.BigEndian.AppendUint32(append(b, f.kind), uint32(f.piece))
	if f.kind == kindData {
		b = binary.BigEndian.AppendUint32(b, uint32(f.offset))
		b = binary.BigEndian.AppendUint32(b, uint32(f.length))
	}
	return b
}

// readFrame reads a frame of a feeder up to a data frame's bytes. The numbers are within the
// protocol's bounds; whether they fit the Outline is for the caller to say.
func readFrame(r io.Reader) (f frame, err error) {
	var b [1 + statusBytes]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return f, fmt.Errorf("read frame: %w", noEOF(err))
	}
	f.kind = b[0]
	size := map[byte]int{kindData: dataBytes, kindVoid: voidBytes, kindStatus: statusBytes, kindRefuse: refuseBytes}[f.kind]
	if size == 0 {
		return f, fmt.Errorf("read frame: unknown kind %q", f.kind)
	}
	p := b[1 : 1+size]
	if _, err := io.ReadFull(r, p); err != nil {
		return f, fmt.Errorf("read frame: %w", noEOF(err))
	}
	number := func(at int) int { return int(binary.BigEndian.Uint32(p[at:])) }
	switch f.kind {
	case kindData:
		f.piece, f.offset, f.length = number(0), number(4), number(8)
		if f.piece >= MaxPieces || f.length == 0 || f.length > fragment || f.offset > MaxPiece-f.length {
			return f, fmt.Errorf("read frame: %d bytes at %d of piece %d", f.length, f.offset, f.piece)
		}
	case kindVoid:
		if f.piece = number(0); f.piece >= MaxPieces {
			return f, fmt.Errorf("read frame: no piece %d", f.piece)
		}
	case kindStatus:
		if p[0]&^(flagLive|flagHeld|flagLame) != 0 {
			return f, errors.New("read frame: no status")
		}
		f.status = status{live: p[0]&flagLive != 0, held: p[0]&flagHeld != 0, lame: p[0]&flagLame != 0,
			have: binary.BigEndian.Uint64(p[1:]), feeds: binary.BigEndian.Uint16(p[9:]),
			upHave: binary.BigEndian.Uint64(p[11:]), upFeeds: binary.BigEndian.Uint16(p[19:]), session: binary.BigEndian.Uint32(p[21:])}
	case kindRefuse:
		if f.reason = reason(p[0]); f.reason >= reasons {
			return f, fmt.Errorf("read frame: no reason %d", p[0])
		}
	}
	return f, nil
}

// noEOF is err where an end is no good end.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// impatient reads from a connection, and fails when nothing comes for a while. Any byte counts,
// so that a slow line is no dead one. It looks a second time before it fails: to a host that was itself
// asleep all others seem silent, until it has looked at what they sent meanwhile.
type impatient struct {
	conn  net.Conn
	limit time.Duration
}

func (r impatient) Read(p []byte) (int, error) {
	last := r.limit / 8
	n, err := r.read(p, r.limit-last)
	if n == 0 && isTimeout(err) {
		return r.read(p, last)
	}
	return n, err
}

func (r impatient) read(p []byte, limit time.Duration) (int, error) {
	if err := r.conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return 0, err
	}
	return r.conn.Read(p)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
