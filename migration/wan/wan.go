// Package wan encodes QEMU's migration stream for a long way: to a fraction of its bytes, and
// back to every one of them.
//
// Both ends keep the last version of each page that went by (the mirror), in the order in
// which pages first came, so that one can tell the other in a few bytes what it has already.
// Of every page the Encoder says one of these:
//
//	zero     it is one of a run of zeros
//	same     it is what it was when it was last sent
//	dup      it is what another page was when that was last sent
//	site     it is what the destination has from elsewhere: another VM, an earlier stay
//	image    it is a page of the image that the VM's disk stands on, which both ends have
//	peer     it is what another stream to the same destination carries at about the same time
//	delta    it differs in these places from what it was
//	literal  it is this
//	noise    it is this, and no compressor will make it shorter
//
// Everything else in the stream goes verbatim. Batches of up to half a MiB of the stream are
// columns (what pages are, where they are, deltas, other bytes, literals), each compressed by
// itself and on its own: batches can be compressed beside each other, at a level that each
// carries with it.
//
//	QEMU ─► Encoder ─► Batch ─► Packer ─► frame ══► Unpacker ─► Batch ─► Decoder ─► QEMU
//	        mirror             one a core                                mirror
//
// A frame tells the hash of the whole stream up to its end. The Decoder compares before it
// gives out a byte of the batch: a fault in either end, a mirror that is not the other's, a
// bit that fell over in memory or two pages of one digest end the migration, and QEMU's source
// goes on; they never become a wrong page in the guest. The hash is XXH3 of 128 bits: what it
// meets are faults, since the way is inside TLS, and at ten times BLAKE3's speed it costs the
// source a fiftieth of its time instead of a quarter. Whoever knows how a page is
// hashed could make two of one XXH3: so a dup is compared byte by byte before it is called one, pages that
// other streams carry are found by it with a seed that no guest knows, and hashed once more with another, and the digests by which pages of
// other VMs are found are BLAKE3 keyed with a secret of the trust domain. Pages of an image are found by whatever
// hash its index goes by, with a seed of the index's own: PageSeed knows nothing of it.
//
// A disk's stream is encoded in the same way (Config.Disk): what a write fills of the disk's 4 KiB are its
// pages. There is usually no mirror of it: its likes are found among what streams carry.
//
// Package lzh packs them. The package does no I/O, starts nothing and locks nothing: package relay does.
package wan

import (
	"errors"
	"heliotrope/migration/wan/lzh"
)

const (
	pageBits = 12
	pageSize = 1 << pageBits

	// BatchBytes is how much of the stream a batch holds before it is full; one token more
	// at most. Four of them under way are what the pause waits for.
	BatchBytes = 512 << 10

	maxBatch  = lzh.MaxColumn // bytes of the stream, and of each column, that a decoder accepts
	maxBlocks = 256           // RAM blocks; the pages of further ones go verbatim
)

// ErrCorrupt is what a Decoder says of a frame that no Encoder has made for it.
var ErrCorrupt = errors.New("the encoded stream is not whole")

// Digest is a page's keyed hash. 64 bits: among millions of pages at each end two are taken for
// one in one move of millions, and the batch's hash ends that move; and who does not know the
// key cannot make two. They are as short as that because the destination sends one of every
// page that it has.
type Digest [8]byte

// Known is what the destination has of its own.
type Known interface {
	// Lookup returns the reference by which the destination finds the page.
	Lookup(Digest) (ref uint64, ok bool)
}

// ImageIndex finds pages of the image that the VM's disk stands on. Both ends number them the same way.
type ImageIndex interface {
	// Find returns the number of a page of that content which the destination has.
	Find(page *[4096]byte) (number uint64, ok bool)
}

// Pages gives a destination's own pages out.
type Pages interface {
	// Page writes the page that ref stands for into dst. A page that is no more is an error, and
	// is asked for; one that has changed is found by the batch's hash.
	Page(ref uint64, dst *[4096]byte) error
}

// Config must say the same at both ends, but for what is said to be of one of them.
type Config struct {
	MirrorPages int    // pages of 4 KiB whose last version is kept; those that come later have no delta
	Disk        bool   // the stream is a disk's (package nbdstream), not a guest's memory (ramstream)
	Seed        uint64 // of the stream's hash: any number
	PageSeed    uint64 // of pages' hashes, which no guest knows; streams that share pages (Carrying) have the same
	Pages       Pages  // Decoder: may be nil if the Encoder is told of nothing that is Known
	ImagePages  Pages  // Decoder: the same of Encoder.KnowImage
	// Mirror is what both ends have kept of the VM's last stream, by its Sum; nil: nothing. It
	// then belongs to the Encoder or the Decoder.
	Mirror *Mirror

	Carrying     Carrying     // Encoder: what other streams carry; may be nil
	CarriedPages CarriedPages // Decoder: the same; nil: it has none
	// Again, of the Decoder, asks the source for all that the batch being decoded refers to (Again).
	// nil: a page that is not here is an error.
	Again func() (*Batch, error)
}

// Class is what a part of the stream is, for those who count.
type Class uint8

const (
	Zero Class = iota
	Same
	Dup
	Site
	Peer
	Delta
	Literal
	Noise
	Verbatim // no page
	Image    // behind the others, whose numbers older peers know
	Classes
)

var classNames = [Classes]string{"zero", "same", "dup", "site", "peer", "delta", "literal", "noise", "verbatim", "image"}

func (c Class) String() string {
	if c < Classes {
		return classNames[c]
	}
	return "unknown"
}

// Stats says what a stream consisted of.
type Stats struct {
	Pages [Classes]uint64 // Verbatim: tokens
	In    [Classes]uint64 // bytes of the stream
	// Out is in bytes of frames. What is told of pages beside their content, and of the frame
	// itself, is counted as Heads.
	Out   [Classes]uint64
	Heads uint64
}

// Add adds another stream's.
func (s *Stats) Add(o *Stats) {
	for c := range Classes {
		s.Pages[c] += o.Pages[c]
		s.In[c] += o.In[c]
		s.Out[c] += o.Out[c]
	}
	s.Heads += o.Heads
}

// Total is the bytes of the stream, and of frames.
func (s *Stats) Total() (in, out uint64) {
	for c := range Classes {
		in += s.In[c]
		out += s.Out[c]
	}
	return in, out + s.Heads
}
