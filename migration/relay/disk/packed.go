package disk

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// What is sent to agents that do not know package wan's form of a disk's stream is packed. A packed stream is pieces of up to maxPiece bytes, each of two lengths and then its bytes: how
// many there are, and how many follow; as many as there are, if zstd does not make them fewer.
// Each piece stands for itself.

const (
	pieceHead = 8
	maxPiece  = 256 << 10
)

// packedWriter packs what is written to it. What was written is on its way after a Flush, or
// when it fills a piece.
type packedWriter struct {
	w     io.Writer
	zstd  *zstd.Encoder
	piece []byte
	out   []byte
}

func newPackedWriter(w io.Writer) (*packedWriter, error) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(maxPiece), zstd.WithSingleSegment(true))
	if err != nil {
		return nil, fmt.Errorf("make zstd encoder: %w", err)
	}
	return &packedWriter{w: w, zstd: e, piece: make([]byte, 0, maxPiece)}, nil
}

// Write implements io.Writer.
func (p *packedWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		k := min(len(b), maxPiece-len(p.piece))
		p.piece, b, n = append(p.piece, b[:k]...), b[k:], n+k
		if len(p.piece) == maxPiece {
			if err := p.Flush(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// Flush sends what there is.
func (p *packedWriter) Flush() error {
	if len(p.piece) == 0 {
		return nil
	}
	p.out = p.zstd.EncodeAll(p.piece, append(p.out[:0], make([]byte, pieceHead)...))
	if len(p.out)-pieceHead >= len(p.piece) {
		p.out = append(p.out[:pieceHead], p.piece...)
	}
	binary.BigEndian.PutUint32(p.out, uint32(len(p.piece)))
	binary.BigEndian.PutUint32(p.out[4:], uint32(len(p.out)-pieceHead))
	p.piece = p.piece[:0]
	_, err := p.w.Write(p.out)
	return err
}

// packedConn packs what is written to a connection, each time as far as it goes.
type packedConn struct {
	Conn
	packed *packedWriter
}

// Pack packs what is written to a connection.
func Pack(c Conn) (Conn, error) {
	w, err := newPackedWriter(c)
	return packedConn{c, w}, err
}

// Write implements io.Writer.
func (c packedConn) Write(b []byte) (int, error) {
	n, err := c.packed.Write(b)
	if err == nil {
		err = c.packed.Flush()
	}
	return n, err
}

// packedReader is the other end.
type packedReader struct {
	r     *bufio.Reader
	zstd  *zstd.Decoder
	in    []byte
	piece []byte // all of the last one
	rest  []byte // of it
}

// Unpack is the other end of Pack.
func Unpack(r io.Reader) (io.Reader, error) { return newPackedReader(r) }

func newPackedReader(r io.Reader) (*packedReader, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPiece), zstd.WithDecodeAllCapLimit(true), zstd.IgnoreChecksum(true))
	if err != nil {
		return nil, fmt.Errorf("make zstd decoder: %w", err)
	}
	return &packedReader{r: bufio.NewReaderSize(r, bufferSize), zstd: d, in: make([]byte, maxPiece), piece: make([]byte, 0, maxPiece)}, nil
}

// Read implements io.Reader.
func (p *packedReader) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		if err := p.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// next reads a piece.
func (p *packedReader) next() error {
	var head [pieceHead]byte
	if _, err := io.ReadFull(p.r, head[:]); err != nil {
		return err // an end between pieces is one of the stream
	}
	size, packed := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:])
	if size == 0 || size > maxPiece || packed > size {
		return fmt.Errorf("unpack stream: a piece of %d bytes in %d", size, packed)
	}
	in := p.in[:packed]
	if _, err := io.ReadFull(p.r, in); err != nil {
		return noEOF(err)
	}
	if packed == size {
		p.rest = in
		return nil
	}
	piece, err := p.zstd.DecodeAll(in, p.piece[:0])
	if err != nil {
		return fmt.Errorf("unpack stream: %w", err)
	}
	if len(piece) != int(size) {
		return fmt.Errorf("unpack stream: a piece of %d bytes, not %d", len(piece), size)
	}
	p.rest = piece
	return nil
}
