package relay

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	maxFrames     = 32 << 10 // in a batch; a tap's queue holds 10,000
	maxBatchBytes = 64 << 20
	maxFrame      = 1<<16 - 1
)

// writeFrames writes each frame as its length, two bytes, and its bytes.
func writeFrames(w io.Writer, frames [][]byte) error {
	b := bufio.NewWriterSize(w, bufferSize)
	for _, f := range frames {
		if len(f) > maxFrame {
			return fmt.Errorf("write frame: %d bytes", len(f))
		}
		// The writer keeps its first error for Flush.
		b.Write(binary.BigEndian.AppendUint16(nil, uint16(len(f))))
		b.Write(f)
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write frames: %w", err)
	}
	return nil
}

// readFrames reads frames up to the end of the stream.
func readFrames(r io.Reader) ([][]byte, error) {
	b := bufio.NewReaderSize(r, bufferSize)
	var frames [][]byte
	total := 0
	for {
		var size [2]byte
		_, err := io.ReadFull(b, size[:])
		if err == io.EOF {
			return frames, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read frame: %w", err)
		}
		n := int(binary.BigEndian.Uint16(size[:]))
		if total += n; len(frames) == maxFrames || total > maxBatchBytes {
			return nil, errors.New("read frames: too many")
		}
		f := make([]byte, n)
		if _, err := io.ReadFull(b, f); err != nil {
			return nil, fmt.Errorf("read frame: %w", noEOF(err))
		}
		frames = append(frames, f)
	}
}

// noEOF is err where an end is no good end.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
