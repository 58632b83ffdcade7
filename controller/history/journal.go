package history

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"

	"heliotrope/scheduler/traffic"
)

// A journal is the bins of a window that is not in a file yet, in a local file: frames of
// length (4 bytes, big endian), CRC-32C of the payload (4), and the payload, a bin's JSON
// deflated. A frame is written at once, so a killed process loses none that Add returned
// for. A frame that is not whole ends the journal.

const (
	frameHeader = 8
	frameMax    = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// deflaters are large: one is used for many bins.
var deflaters = sync.Pool{New: func() any {
	w, err := flate.NewWriter(nil, flate.BestSpeed)
	if err != nil {
		panic(err) // there is no such level
	}
	return w
}}

// frame encodes a bin.
func frame(b *traffic.Bin) ([]byte, error) {
	var buf bytes.Buffer
	buf.Write(make([]byte, frameHeader))
	w := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	w.Reset(&buf)
	if err := json.NewEncoder(w).Encode(b); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	data := buf.Bytes()
	payload := data[frameHeader:]
	if len(payload) > frameMax {
		return nil, fmt.Errorf("a bin of %d bytes is too large", len(payload))
	}
	binary.BigEndian.PutUint32(data, uint32(len(payload)))
	binary.BigEndian.PutUint32(data[4:], crc32.Checksum(payload, castagnoli))
	return data, nil
}

// appendFrame writes a frame whole or not at all: behind half a frame, which a full disk
// takes, no other would be found again.
func appendFrame(f *os.File, data []byte) error {
	n, err := f.Write(data)
	if err == nil || n == 0 {
		return err
	}
	about, aboutErr := f.Stat()
	if aboutErr != nil {
		return errors.Join(err, aboutErr)
	}
	return errors.Join(err, f.Truncate(about.Size()-int64(n)))
}

// errTorn is the end of a journal that was cut within a frame.
var errTorn = errors.New("the journal is cut off")

// unframe takes one bin off data.
func unframe(data []byte) (b traffic.Bin, rest []byte, err error) {
	if len(data) < frameHeader {
		return b, nil, errTorn
	}
	n, sum := binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:])
	data = data[frameHeader:]
	if n > frameMax || int(n) > len(data) || crc32.Checksum(data[:n], castagnoli) != sum {
		return b, nil, errTorn
	}
	r := flate.NewReader(bytes.NewReader(data[:n]))
	if err := json.NewDecoder(io.LimitReader(r, 16*frameMax)).Decode(&b); err != nil {
		return b, nil, errTorn
	}
	return b, data[n:], nil
}

// replay calls do with the bins of a journal, and returns how many bytes of it are whole.
func replay(data []byte, do func(traffic.Bin)) (whole int) {
	for rest := data; len(rest) > 0; {
		b, next, err := unframe(rest)
		if err != nil {
			return len(data) - len(rest)
		}
		do(b)
		rest = next
	}
	return len(data)
}

// reopen replays a journal, cuts off what is not whole, and opens it for appending.
func reopen(name string, do func(traffic.Bin)) (*os.File, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	if n := replay(data, do); n < len(data) {
		if err := os.Truncate(name, int64(n)); err != nil {
			return nil, fmt.Errorf("cut journal: %w", err)
		}
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return f, nil
}
