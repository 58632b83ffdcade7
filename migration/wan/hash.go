package wan

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// PageHash is a page's, with Config.PageSeed.
type PageHash = xxh3.Uint128

// streamHash is the hash of a stream: of all that is no page, and of the hashes of pages, by which
// their likes are found. So a page is hashed once.
type streamHash struct {
	*xxh3.Hasher
	seed uint64
	part [9 + 255 + 16]byte
}

func newStreamHash(seed uint64) streamHash { return streamHash{Hasher: xxh3.NewSeed(seed), seed: seed} }

// page takes in a page of that hash, and what stands before it.
func (h *streamHash) page(head []byte, hash PageHash) {
	b := append(h.part[:0], head...)
	b = binary.LittleEndian.AppendUint64(b, hash.Lo)
	h.Write(binary.LittleEndian.AppendUint64(b, hash.Hi))
}

// peer takes in a page that was found by its hash alone: by another seed, so that two pages of one hash are
// found out.
func (h *streamHash) peer(data *[pageSize]byte) { h.page(nil, xxh3.Hash128Seed(data[:], h.seed)) }
