package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"strings"
)

// The header's layout and bounds: docs/interop/qcow2.rst of QEMU. The bounds of the tables
// are QEMU's own (block/qcow2.h), so that no image is refused for them that QEMU takes.
const (
	magic = "QFI\xfb"

	headerV2 = 72  // bytes
	headerV3 = 104 // bytes, at least

	minClusterBits = 9
	maxClusterBits = 21
	// Subclusters are a 32nd of a cluster and at least one sector.
	minExtendedBits = 14

	maxL1Bytes       = 32 << 20
	maxRefcountBytes = 8 << 20
	maxBackingName   = 1023

	entryOffset = 0x00fffffffffffe00 // of an entry of L1, L2 or refcount table: where it points to
	entryCopied = 1 << 63            // refcount is one; says nothing about the content
)

// Incompatible features: who does not know one that is set must not read the image.
const (
	featureDirty        = 1 << 0
	featureCorrupt      = 1 << 1
	featureExternalData = 1 << 2
	featureCompression  = 1 << 3
	featureExtendedL2   = 1 << 4
	featuresKnown       = 1<<5 - 1
)

// Header extensions.
const (
	extensionEnd      = 0
	extensionFormat   = 0xe2792aca // the backing file's format
	extensionFeatures = 0x6803f857 // names of feature bits
	extensionBitmaps  = 0x23852875
)

type compression byte

const (
	deflate   compression = 0
	zstandard compression = 1
)

// header is what the image says of itself. Every field has been checked against the file
// once parseHeader has returned.
type header struct {
	version     uint32
	clusterBits uint32
	size        int64 // bytes, of the disk
	l1Entries   int
	l1Offset    int64
	refOffset   int64
	refBytes    int64
	snapshots   uint32
	bitmaps     bool
	compression compression
	extended    bool // L2 entries with subclusters
	backing     string
	format      string // the backing file's
}

func (h *header) cluster() int64 { return 1 << h.clusterBits }

// l2Entries is how many clusters one L2 table covers.
func (h *header) l2Entries() int64 {
	if h.extended {
		return h.cluster() / 16
	}
	return h.cluster() / 8
}

// clusters is how many clusters the disk has.
func (h *header) clusters() int64 { return (h.size + h.cluster() - 1) >> h.clusterBits }

// readHeader reads and checks the header of an image whose file has size bytes.
func readHeader(r io.ReaderAt, size, maxSize int64) (*header, error) {
	if size < headerV2 {
		return nil, corrupt("the file has %d bytes, the header alone has %d", size, headerV2)
	}
	fixed := make([]byte, min(size, headerV3))
	if err := readFull(r, fixed, 0); err != nil {
		return nil, fmt.Errorf("read qcow2 header: %w", err)
	}
	if string(fixed[:4]) != magic {
		return nil, unsupported("it is not qcow2 but %s", Detect(fixed))
	}
	h := &header{version: binary.BigEndian.Uint32(fixed[4:]), clusterBits: binary.BigEndian.Uint32(fixed[20:])}
	if h.version != 2 && h.version != 3 {
		return nil, unsupported("qcow version %d; bring it to version 3 with qemu-img convert -O qcow2", h.version)
	}
	if h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		return nil, corrupt("cluster size of 2^%d bytes; it lies between 2^%d and 2^%d", h.clusterBits, minClusterBits, maxClusterBits)
	}
	first := make([]byte, min(size, h.cluster()))
	if err := readFull(r, first, 0); err != nil {
		return nil, fmt.Errorf("read qcow2 header: %w", err)
	}
	length, err := h.parseFeatures(first)
	if err != nil {
		return nil, err
	}
	if err := h.parseSize(first, maxSize); err != nil {
		return nil, err
	}
	if err := h.parseTables(first, size); err != nil {
		return nil, err
	}
	return h, h.parseExtensions(first, length)
}

// parseFeatures reads what only version 3 has, and returns the header's length in bytes.
func (h *header) parseFeatures(first []byte) (length int, err error) {
	if method := binary.BigEndian.Uint32(first[32:]); method != 0 {
		name := map[uint32]string{1: "AES", 2: "LUKS"}[method]
		if name == "" {
			name = fmt.Sprintf("method %d", method)
		}
		return 0, unsupported("the image is encrypted (%s); decrypt it with qemu-img convert", name)
	}
	if h.version == 2 {
		return headerV2, nil
	}
	if len(first) < headerV3 {
		return 0, corrupt("the file has %d bytes, the header alone has %d", len(first), headerV3)
	}
	length = int(min(binary.BigEndian.Uint32(first[100:]), 1<<30))
	if length < headerV3 || length > len(first) || length%8 != 0 {
		return 0, corrupt("header length of %d bytes; it is a multiple of 8 from %d up to the first cluster's end", length, headerV3)
	}
	if order := binary.BigEndian.Uint32(first[96:]); order > 6 {
		return 0, corrupt("refcounts of 2^%d bits; they have 64 at most", order)
	}
	features := binary.BigEndian.Uint64(first[72:])
	switch {
	case features&featureCorrupt != 0:
		return 0, unsupported("QEMU has marked the image corrupt; repair it with qemu-img check -r all")
	case features&featureDirty != 0:
		return 0, unsupported("the image was not closed (dirty bit); end what uses it, or repair it with qemu-img check -r all")
	case features&featureExternalData != 0:
		return 0, unsupported("its data is in another file (external data file); bring both into one with qemu-img convert -O qcow2")
	case features&^featuresKnown != 0:
		return 0, unsupported("it needs features that this reader does not know: %s", featureNames(first[length:], features&^featuresKnown))
	}
	if length > 104 {
		h.compression = compression(first[104])
	}
	if h.compression > zstandard {
		return 0, unsupported("compression type %d; 0 (deflate) and 1 (zstd) are known", h.compression)
	}
	if (features&featureCompression != 0) != (h.compression != deflate) {
		return 0, corrupt("the compression type is %d, and the feature bit says otherwise", h.compression)
	}
	h.extended = features&featureExtendedL2 != 0
	if h.extended && h.clusterBits < minExtendedBits {
		return 0, corrupt("extended L2 entries with clusters of 2^%d bytes; they need 2^%d", h.clusterBits, minExtendedBits)
	}
	return length, nil
}

func (h *header) parseSize(first []byte, maxSize int64) error {
	size := binary.BigEndian.Uint64(first[24:])
	if size > uint64(maxSize) {
		return unsupported("a disk of %d bytes; the limit is %d", size, maxSize)
	}
	h.size = int64(size)
	h.snapshots = binary.BigEndian.Uint32(first[60:])
	return nil
}

// parseTables reads where L1 and refcount table are.
func (h *header) parseTables(first []byte, fileSize int64) error {
	entries := binary.BigEndian.Uint32(first[36:])
	span := h.cluster() * h.l2Entries()
	need := (h.size + span - 1) / span
	switch {
	case int64(entries)*8 > maxL1Bytes:
		return corrupt("an L1 table of %d entries; %d is the limit", entries, maxL1Bytes/8)
	case int64(entries) < need:
		return corrupt("an L1 table of %d entries; a disk of %d bytes needs %d", entries, h.size, need)
	}
	h.l1Entries = int(entries)
	var err error
	if entries > 0 {
		h.l1Offset, err = h.place("L1 table", binary.BigEndian.Uint64(first[40:]), int64(entries)*8, fileSize)
		if err != nil {
			return err
		}
	}
	clusters := binary.BigEndian.Uint32(first[56:])
	h.refBytes = int64(clusters) << h.clusterBits
	if clusters == 0 || h.refBytes > max(maxRefcountBytes, h.cluster()) {
		return corrupt("a refcount table of %d clusters; it has between 1 and %d", clusters, max(1, maxRefcountBytes>>h.clusterBits))
	}
	h.refOffset, err = h.place("refcount table", binary.BigEndian.Uint64(first[48:]), h.refBytes, fileSize)
	return err
}

// place checks where a table of n bytes is said to be.
func (h *header) place(what string, offset uint64, n, fileSize int64) (int64, error) {
	switch {
	case offset == 0 || offset&uint64(h.cluster()-1) != 0:
		return 0, corrupt("the %s is at %d, which is no cluster's beginning", what, offset)
	case offset > uint64(fileSize) || n > fileSize-int64(offset):
		return 0, corrupt("the %s, %d bytes at %d, lies beyond the file's end at %d", what, n, offset, fileSize)
	}
	return int64(offset), nil
}

// parseExtensions reads the header extensions, which begin at length, and the backing
// file's name behind them.
func (h *header) parseExtensions(first []byte, length int) error {
	end := len(first)
	nameAt, nameLen := binary.BigEndian.Uint64(first[8:]), binary.BigEndian.Uint32(first[16:])
	if nameAt != 0 && nameLen != 0 {
		if nameLen > maxBackingName {
			return corrupt("a backing file name of %d bytes; %d is the limit", nameLen, maxBackingName)
		}
		if nameAt < uint64(length) || nameAt > uint64(end) || int(nameLen) > end-int(nameAt) {
			return corrupt("the backing file's name, %d bytes at %d, lies outside the header's cluster", nameLen, nameAt)
		}
		h.backing = string(first[nameAt:][:nameLen])
		end = int(nameAt)
	}
	for rest := first[length:end]; len(rest) >= 8; {
		kind, n := binary.BigEndian.Uint32(rest), binary.BigEndian.Uint32(rest[4:])
		if kind == extensionEnd {
			return nil
		}
		rest = rest[8:]
		if uint64(n) > uint64(len(rest)) {
			return corrupt("header extension %#x of %d bytes reaches out of the header", kind, n)
		}
		switch kind {
		case extensionFormat:
			h.format = string(rest[:n])
		case extensionBitmaps:
			h.bitmaps = true
		}
		rest = rest[min(len(rest), int(n+7)&^7):]
	}
	return nil
}

// featureNames names the incompatible features of bits, as well as the image itself can.
func featureNames(extensions []byte, unknown uint64) string {
	known := make(map[int]string)
	for rest := extensions; len(rest) >= 8; {
		kind, n := binary.BigEndian.Uint32(rest), int64(binary.BigEndian.Uint32(rest[4:]))
		rest = rest[8:]
		if kind == extensionEnd || n > int64(len(rest)) {
			break
		}
		if kind == extensionFeatures {
			for t := rest[:n]; len(t) >= 48; t = t[48:] { // type, bit, 46 bytes of name
				if t[0] == 0 {
					known[int(t[1])] = strings.TrimRight(string(t[2:48]), "\x00")
				}
			}
		}
		rest = rest[min(int64(len(rest)), (n+7)&^7):]
	}
	var names []string
	for ; unknown != 0; unknown &= unknown - 1 {
		bit := bits.TrailingZeros64(unknown)
		name := fmt.Sprintf("bit %d", bit)
		if known[bit] != "" {
			name = fmt.Sprintf("bit %d (%q)", bit, known[bit])
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}
