package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// What a destination says while it rebuilds memory: a byte that says of what kind it is, the
// length of what follows in four, and that.
const (
	saysAnswer  = 'a' // some of what the hypervisor answers
	saysEnd     = 'e' // it will answer nothing more
	saysRebuilt = 'r' // how many batches are rebuilt, in all, and microseconds that the last lay here; varints
	saysAgain   = 'g' // it asks for what a batch refers to, by its number; a varint
	saysWithout = 'w' // another stream's pages are not to be had; a varint. To who was told of Offer.Near only

	maxSays = 64 << 10 // bytes that follow
)

// says writes what a destination says. Several may at once.
type says struct {
	all atomic.Bool // of the stream is here: the source may be gone, and need not be told
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

func (s *says) write(kind byte, body []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf = binary.BigEndian.AppendUint32(append(s.buf[:0], kind), uint32(len(body)))
	s.buf = append(s.buf, body...)
	if _, err := s.w.Write(s.buf); err != nil && !s.all.Load() {
		return fmt.Errorf("answer the source: %w", err)
	}
	return nil
}

func (s *says) rebuilt(batches uint64, lag time.Duration) error {
	var body [2 * binary.MaxVarintLen64]byte
	return s.write(saysRebuilt, binary.AppendUvarint(binary.AppendUvarint(body[:0], batches), uint64(max(lag.Microseconds(), 0))))
}

func (s *says) without(stream uint64) error {
	return s.write(saysWithout, binary.AppendUvarint(nil, stream))
}

func (s *says) again(batch uint64) error { return s.write(saysAgain, binary.AppendUvarint(nil, batch)) }

// answers passes on what the hypervisor answers.
func (s *says) answers(hypervisor io.Reader) error {
	buf := make([]byte, maxSays)
	for {
		n, err := hypervisor.Read(buf)
		if n > 0 {
			if err := s.write(saysAnswer, buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return s.write(saysEnd, nil)
		}
		if err != nil {
			return fmt.Errorf("read answers of hypervisor: %w", err)
		}
	}
}

// listener is the source's end.
type listener struct {
	hypervisor halfConn
	rebuilt    func(batches uint64, lag time.Duration) error
	again      func(batch uint64) error
	without    func(stream uint64)
	ended      bool
}

// listen takes what a destination says, to its end.
func (l *listener) listen(r io.Reader) error {
	var head [5]byte
	buf := make([]byte, maxSays)
	for {
		_, err := io.ReadFull(r, head[:])
		if err == io.EOF && l.ended {
			return nil
		}
		n := binary.BigEndian.Uint32(head[1:])
		if err == nil && n > maxSays {
			err = fmt.Errorf("%d bytes of kind %q", n, head[0])
		}
		if err == nil {
			_, err = io.ReadFull(r, buf[:n])
		}
		if err == nil {
			err = l.take(head[0], buf[:n])
		}
		if err != nil {
			return fmt.Errorf("listen to the destination: %w", noEOF(err))
		}
	}
}

func (l *listener) take(kind byte, body []byte) error {
	switch {
	case kind == saysAnswer && !l.ended:
		_, err := l.hypervisor.Write(body)
		return err
	case kind == saysEnd && !l.ended && len(body) == 0:
		l.ended = true
		return l.hypervisor.CloseWrite()
	case kind == saysAgain:
		batch, n := binary.Uvarint(body)
		if n <= 0 || n != len(body) {
			return errors.New("what it asks for is no number")
		}
		return l.again(batch)
	case kind == saysWithout:
		stream, n := binary.Uvarint(body)
		if n <= 0 || n != len(body) {
			return errors.New("what is not to be had is no number")
		}
		l.without(stream)
		return nil
	case kind == saysRebuilt:
		batches, n := binary.Uvarint(body)
		lag, k := binary.Uvarint(body[max(n, 0):])
		if n <= 0 || k <= 0 || n+k != len(body) || lag > uint64(time.Hour.Microseconds()) {
			return errors.New("what is rebuilt is no pair of numbers")
		}
		return l.rebuilt(batches, time.Duration(lag)*time.Microsecond)
	}
	return fmt.Errorf("%d bytes of kind %q", len(body), kind)
}
