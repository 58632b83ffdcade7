package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// unpacker holds what decompression needs, and the cluster that it decompressed last:
// readers come with less than a cluster.
type unpacker struct {
	host    int64  // of the cluster in content; 0 for none
	content []byte // one cluster
	input   []byte
	inflate io.Reader // and flate.Resetter
	zstd    *zstd.Decoder
}

// unpack returns the content of a compressed cluster: exactly one cluster, until the next
// call.
func (im *Image) unpack(s piece) ([]byte, error) {
	u := &im.unpacked
	if u.host == s.host {
		return u.content, nil
	}
	u.host = 0
	if u.content == nil {
		u.content = make([]byte, im.cluster())
	}
	if int64(cap(u.input)) < s.packed {
		u.input = make([]byte, s.packed) // at most two clusters and a sector
	}
	u.input = u.input[:s.packed]
	if err := readFull(im.r, u.input, s.host); err != nil {
		return nil, err
	}
	unpack := u.unpackDeflate
	if im.compression == zstandard {
		unpack = u.unpackZstd
	}
	if err := unpack(); err != nil {
		return nil, corrupt("compressed data at %d: %v", s.host, err)
	}
	u.host = s.host
	return u.content, nil
}

// errTooMuch is the answer to a decompression bomb.
var errTooMuch = errors.New("it decompresses to more than a cluster")

func (u *unpacker) unpackDeflate() error {
	in := bytes.NewReader(u.input)
	if u.inflate == nil {
		u.inflate = flate.NewReader(in)
	} else if err := u.inflate.(flate.Resetter).Reset(in, nil); err != nil {
		return err
	}
	if n, err := io.ReadFull(u.inflate, u.content); err != nil {
		return fmt.Errorf("inflate, after %d bytes: %w", n, err)
	}
	var more [1]byte
	if n, _ := io.ReadFull(u.inflate, more[:]); n > 0 {
		return errTooMuch
	}
	return nil
}

// maxWindow is the largest window of a zstd frame; zstd's own limit without --long. The
// window costs no memory here, since the whole cluster is at hand.
const maxWindow = 8 << 20

func (u *unpacker) unpackZstd() error {
	if u.zstd == nil {
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return err
		}
		u.zstd = dec
	}
	// The sector's rest belongs to the next cluster, and may be a frame as well.
	frame, err := firstFrame(u.input)
	if err != nil {
		return err
	}
	out, err := u.zstd.DecodeAll(frame, u.content[:0:len(u.content)])
	switch {
	case errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return errTooMuch
	case err != nil:
		return fmt.Errorf("zstd: %w", err)
	case len(out) != len(u.content):
		return fmt.Errorf("zstd: it decompresses to %d bytes of a cluster of %d", len(out), len(u.content))
	}
	if &out[0] != &u.content[0] {
		copy(u.content, out)
	}
	return nil
}

// firstFrame cuts the zstd frame out that data begins with (RFC 8878 §3.1.1): a header,
// blocks that say their length, and a checksum if the header says so.
func firstFrame(data []byte) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(data); err != nil {
		return nil, fmt.Errorf("zstd frame: %w", err)
	}
	if h.Skippable || h.DictionaryID != 0 {
		return nil, errors.New("zstd frame: skippable, or with a dictionary")
	}
	at := h.HeaderSize
	for last := false; !last; {
		if at+3 > len(data) {
			return nil, fmt.Errorf("zstd frame: %w", io.ErrUnexpectedEOF)
		}
		block := int(data[at]) | int(data[at+1])<<8 | int(data[at+2])<<16
		last = block&1 != 0
		size := block >> 3
		if block>>1&3 == 1 { // RLE: one byte, however often
			size = 1
		}
		at += 3 + size
	}
	if h.HasCheckSum {
		at += 4
	}
	if at > len(data) {
		return nil, fmt.Errorf("zstd frame: %w", io.ErrUnexpectedEOF)
	}
	return data[:at], nil
}
