// Package manifest says what an image is: its size, and the content of each chunk by name.
//
// An image is cut into chunks of 64 KiB, at fixed places: a running VM changes its disk in
// place, so cutting by content finds nothing more there and costs ten times the processor
// (docs/performance.md). A chunk is named by the BLAKE3 hash of its bytes, and one of zeros
// has no name and is nowhere stored. 1024 chunks are a page, 64 MiB of the image; the hash of
// a page's names is the page's, and the hash of the size and the pages' hashes is the root,
// which is the image's own name. Whoever knows the root can check any part that he is given:
// a page by its hash, a chunk by its name.
//
// What people call an image is a line of versions. A Version says whose it is, its number,
// its root, and the writer's epoch, and is signed.
package manifest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"

	"github.com/zeebo/blake3"
)

const (
	BlockSize  = 4 << 10                // bytes: what a guest's filesystem and memory go by
	ChunkSize  = 64 << 10               // bytes: what is stored and named; QEMU's cluster
	PageChunks = 1 << 10                // chunks of a page
	PageSize   = PageChunks * ChunkSize // bytes of an image that a page covers
	MaxSize    = 64 << 40               // bytes: no image is larger
)

// File is the name of the file in which a host keeps an image's manifest (Encode), beside what has come of the image.
const File = "manifest"

// ID names content by its BLAKE3 hash. The zero ID is that of a chunk of zeros, whose hash
// nobody asks for.
type ID [32]byte

// String is the ID in hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero says whether the ID is that of zeros.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText and UnmarshalText are the ID as JSON has it.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText wrote; its error says what an ID looks like.
func (id *ID) UnmarshalText(text []byte) error {
	parsed, err := ParseID(string(text))
	*id = parsed
	return err
}

// ParseID reads an ID of 64 hexadecimal digits.
func ParseID(s string) (id ID, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return ID{}, fmt.Errorf("%.80q is no name of content: that has 64 hexadecimal digits", s)
	}
	return ID(b), nil
}

var zeros [ChunkSize]byte

// Name is the ID of a chunk, which has ChunkSize bytes.
func Name(chunk []byte) ID {
	if IsZeros(chunk) {
		return ID{}
	}
	return blake3.Sum256(chunk)
}

// IsZeros says whether all of at most ChunkSize bytes are zero.
func IsZeros(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }

// Manifest is what an image consists of. The last chunk is as if zeros followed the image.
type Manifest struct {
	size  int64
	pages []page // nil: zeros
}

type page []ID // PageChunks of them

// New returns the manifest of an image of size bytes, all of them zero.
func New(size int64) *Manifest {
	return &Manifest{size: size, pages: make([]page, (size+PageSize-1)/PageSize)}
}

// Size is that of the image, in bytes.
func (m *Manifest) Size() int64 { return m.size }

// Chunks is how many chunks the image has, those of zeros counted.
func (m *Manifest) Chunks() int { return int((m.size + ChunkSize - 1) / ChunkSize) }

// Pages is how many pages it has.
func (m *Manifest) Pages() int { return len(m.pages) }

// At is the ID of chunk i. There is none beyond the end: those are zeros too.
func (m *Manifest) At(i int) ID {
	if i/PageChunks >= len(m.pages) || m.pages[i/PageChunks] == nil {
		return ID{}
	}
	return m.pages[i/PageChunks][i%PageChunks]
}

// Set says what chunk i is.
func (m *Manifest) Set(i int, id ID) {
	p := &m.pages[i/PageChunks]
	if *p == nil {
		if id.IsZero() {
			return
		}
		*p = make(page, PageChunks)
	}
	(*p)[i%PageChunks] = id
}

// Clone is a manifest of its own with the same content, and size bytes long.
func (m *Manifest) Clone(size int64) *Manifest {
	c := New(size)
	for i, id := range m.Content() {
		if i < c.Chunks() {
			c.Set(i, id)
		}
	}
	return c
}

// Content are the chunks that are not zeros, in order.
func (m *Manifest) Content() iter.Seq2[int, ID] {
	return func(yield func(int, ID) bool) {
		for p, ids := range m.pages {
			for i, id := range ids {
				if !id.IsZero() && !yield(p*PageChunks+i, id) {
					return
				}
			}
		}
	}
}

// Changed are the chunks that are not what they are in old, in order. Pages that are alike
// are passed over.
func (m *Manifest) Changed(old *Manifest) iter.Seq2[int, ID] {
	return func(yield func(int, ID) bool) {
		for p := range m.pages {
			var before page
			if p < len(old.pages) {
				before = old.pages[p]
			}
			if before == nil && m.pages[p] == nil {
				continue
			}
			for i := p * PageChunks; i < min((p+1)*PageChunks, m.Chunks()); i++ {
				if id := m.At(i); id != old.At(i) && !yield(i, id) {
					return
				}
			}
		}
	}
}

// What is hashed says what it is, so that no page is ever taken for a root.
var (
	pageDomain = []byte("heliotrope image page 1\n")
	rootDomain = []byte("heliotrope image root 1\n")
)

// PageHash is the hash of page p, zero if it is all zeros.
func (m *Manifest) PageHash(p int) ID {
	ids, any := m.pages[p], false
	h := blake3.New()
	h.Write(pageDomain)
	for i := range ids {
		any = any || !ids[i].IsZero()
		h.Write(ids[i][:])
	}
	if !any {
		return ID{}
	}
	return sum(h)
}

// Root is the image's name: the hash of its size and its pages' hashes.
func (m *Manifest) Root() ID {
	hashes := make([]ID, len(m.pages))
	for p := range m.pages {
		hashes[p] = m.PageHash(p)
	}
	return RootOf(m.size, hashes)
}

// RootOf is the name of an image of size bytes whose pages have these hashes.
func RootOf(size int64, pages []ID) ID {
	h := blake3.New()
	h.Write(rootDomain)
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(size)))
	for i := range pages {
		h.Write(pages[i][:])
	}
	return sum(h)
}

func sum(h *blake3.Hasher) (id ID) {
	h.Sum(id[:0])
	return id
}

// A manifest as bytes: the magic, the size, then for each page a byte, 0 for one of zeros; else
// 1, a bit for each chunk that is not zeros, and their IDs.
const magic = "heliotrope image manifest 1\n"

// Encode is the manifest as bytes.
func (m *Manifest) Encode() []byte {
	b := binary.BigEndian.AppendUint64([]byte(magic), uint64(m.size))
	for p := range m.pages {
		b = m.AppendPage(b, p)
	}
	return b
}

// AppendPage appends page p as Encode has it.
func (m *Manifest) AppendPage(b []byte, p int) []byte {
	var bits [PageChunks / 8]byte
	var ids []byte
	for i, id := range m.pages[p] {
		if !id.IsZero() {
			bits[i/8] |= 1 << (i % 8)
			ids = append(ids, id[:]...)
		}
	}
	if len(ids) == 0 {
		return append(b, 0)
	}
	return append(append(append(b, 1), bits[:]...), ids...)
}

var errShort = errors.New("read manifest: it ends too early")

// Decode reads what Encode wrote. It allocates by what is there, not by what is said; whether
// it is the one that was wanted, its Root tells.
func Decode(b []byte) (*Manifest, error) {
	rest, ok := bytes.CutPrefix(b, []byte(magic))
	if !ok || len(rest) < 8 {
		return nil, errors.New("read manifest: it is none, or of a newer version of this program")
	}
	size := binary.BigEndian.Uint64(rest)
	rest = rest[8:]
	if size > MaxSize {
		return nil, fmt.Errorf("read manifest: an image of %d bytes; the largest has %d", size, int64(MaxSize))
	}
	if pages := (size + PageSize - 1) / PageSize; uint64(len(rest)) < pages {
		return nil, errShort
	}
	m := New(int64(size))
	for p := range m.pages {
		var err error
		if rest, err = m.decodePage(rest, p); err != nil {
			return nil, err
		}
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("read manifest: %d bytes too many", len(rest))
	}
	return m, nil
}

func (m *Manifest) decodePage(b []byte, p int) (rest []byte, err error) {
	if len(b) == 0 {
		return nil, errShort
	}
	kind, b := b[0], b[1:]
	if kind == 0 {
		return b, nil
	}
	if kind != 1 {
		return nil, fmt.Errorf("read manifest: page %d of kind %d", p, kind)
	}
	if len(b) < PageChunks/8 {
		return nil, errShort
	}
	bits, b := b[:PageChunks/8], b[PageChunks/8:]
	last := m.Chunks() - p*PageChunks
	for i := range PageChunks {
		if bits[i/8]&(1<<(i%8)) == 0 {
			continue
		}
		if len(b) < len(ID{}) {
			return nil, errShort
		}
		id := ID(b[:len(ID{})])
		if i >= last || id.IsZero() {
			return nil, fmt.Errorf("read manifest: page %d has a chunk that cannot be", p)
		}
		m.Set(p*PageChunks+i, id)
		b = b[len(ID{}):]
	}
	return b, nil
}
