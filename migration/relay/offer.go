package relay

import (
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"heliotrope"
	"heliotrope/migration/relay/disk"
	"heliotrope/migration/relay/kept"
	"heliotrope/migration/relay/near"
	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"
	"math/rand/v2"
	"slices"
	"sync"
)

// Encoding says how a host's relay encodes memory streams, or decodes them.
type Encoding struct {
	// MirrorPages is how many pages of 4 KiB it keeps the last version of while a VM moves:
	// what it spends of its own memory. A VM's pages beyond are sent without deltas.
	MirrorPages int
	// Room is what the mirrors of all streams may have together; nil: each as much as MirrorPages
	// says. A stream for which there is none left goes without deltas.
	Room *Room
	// Share is where streams to the same destination, and from the same source, have pages in
	// common; nil: each goes by itself.
	Share *share.Share
	// Near is this host as others of its site know it; nil: streams of other hosts have nothing to do with its own.
	Near *near.Host
	// How hard a source compresses is left to what the wire and its cores do, but it is between
	// these two. Over a wire whose bytes cost money, Least is wan.Fast; 0 leaves a wire that is
	// faster than the codec alone. Most is wan.Fast if it is 0.
	Least, Most wan.Level
	// Site is where pages of other moves are found, and where those of this one are kept; nil:
	// neither.
	Site *kept.Site
	// Images is what the host has of the images that VMs' disks stand on; nil: nothing.
	Images Images
}

// For is the encoding of a tenant's VMs: pages that were kept of another's, and streams of another's VMs that go
// the same way, are as if they were not there. What is told of a page says something of who else has it.
func (e *Encoding) For(tenant heliotrope.TenantID) *Encoding {
	if e == nil || tenant == "" {
		return e
	}
	own := *e
	own.Share, own.Site = e.Share.For(tenant), e.Site.For(tenant)
	return &own
}

// Offer is how a source would encode memory, and what of that the destination takes.
type Offer struct {
	Version     int    `json:"version"` // of the code; 0: none
	MirrorPages int    `json:"mirrorPages"`
	Seed        uint64 `json:"seed"`
	PageSeed    uint64 `json:"pageSeed"` // of all streams that share pages
	// Kept is the sum of what the source has kept of the VM; taken, both begin with that.
	Kept string `json:"kept,omitempty"`
	// Share is how many pages of what the stream carries the destination keeps for other streams.
	Share int `json:"share,omitempty"`
	// Near, of an answer, is that the destination has pages from other hosts of its site, and gives them to those.
	Near bool `json:"near,omitempty"`
	// Packed is of a disk's stream: the source's direction is compressed, or encoded, where that is offered
	// too and not Packed is what is taken (takeDisk).
	Packed bool `json:"packed,omitempty"`
	// Export, of an answer for a disk, is what its server has told: what follows are requests.
	Export disk.Export `json:"export,omitzero"`
	// The destination has Site pages of its own, whose digests with the key Key, in hexadecimal,
	// come before anything that the hypervisor answers.
	Site int    `json:"site,omitempty"`
	Key  string `json:"key,omitempty"`
	// Image is the one that the VM's disk stands on, by the name of its content; taken, what the destination has of it
	// comes behind those digests. Only those who speak the protocol's fourth version know it.
	Image string `json:"image,omitempty"`
}

// The second version's destination says how far it is, so that a source does not run ahead. The third's pages
// are hashed with a seed, and packed with digits by themselves.
const codecVersion = 3

// offer is what a source offers for the stream of a VM with so many pages that goes that way, until done is called.
func (e *Encoding) offer(vm heliotrope.VMID, guest int, way share.Way) (o Offer, done func()) {
	if e == nil {
		return Offer{}, func() {}
	}
	pages := e.Room.take(min(e.MirrorPages, guest+devicePages))
	o = Offer{Version: codecVersion, MirrorPages: pages, Seed: rand.Uint64(), PageSeed: e.Share.Seed(way), Kept: e.Site.Sum(vm, pages)}
	if e.Share != nil {
		o.Share = pages
	}
	return o, func() { e.Room.give(pages) }
}

// devicePages are what devices have of memory, beside the guest's.
const devicePages = 1 << 14

// Room is a number of pages that streams share.
type Room struct {
	mu   sync.Mutex
	left int
}

// NewRoom is room for so many pages of 4 KiB.
func NewRoom(pages int) *Room { return &Room{left: pages} }

// take takes n pages, or what there is.
func (r *Room) take(n int) int {
	if r == nil {
		return n
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n = min(n, r.left)
	r.left -= n
	return n
}

// memoryShare is which part of what is left of the room a stream of memory takes for others to use: most is for
// the mirrors of streams to come.
const memoryShare = 3

// takePart takes n pages for others to use, or this part of what there is.
func (r *Room) takePart(n, part int) int {
	if r == nil {
		return n
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n = min(n, r.left/part)
	r.left -= n
	return n
}

func (r *Room) give(n int) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left += n
}

// here is what a destination has for a stream.
type here struct {
	site  *kept.Pages
	share *share.Getting
	image ImagePages // nil: nothing
}

// take is what a destination takes of a header's offer, and what it has for it. It holds until
// done is called.
func (e *Encoding) take(h Header, from heliotrope.HostID) (o Offer, has here, done func()) {
	if h.Kind == Disk {
		return e.takeDisk(h, from)
	}
	if e == nil || h.Kind != Memory || h.Codec.Version != codecVersion {
		return o, here{site: &kept.Pages{}}, func() {}
	}
	pages := e.Room.take(min(h.Codec.MirrorPages, e.MirrorPages))
	o = Offer{Version: codecVersion, MirrorPages: pages, Seed: h.Codec.Seed, PageSeed: h.Codec.PageSeed}
	if e.Share != nil {
		o.Share = e.Room.takePart(min(h.Codec.Share, pages), memoryShare)
		o.Near = e.Near != nil && o.Share > 0
	}
	return e.tell(h, from, o)
}

// tell adds to what is taken of a header's offer what the destination has for it.
func (e *Encoding) tell(h Header, from heliotrope.HostID, o Offer) (taken Offer, has here, done func()) {
	has = here{e.Site.Open(h.VM, h.Codec.Kept, o.MirrorPages), e.Share.Get(from, o.Seed, o.PageSeed, o.Share), e.takeImage(h.Codec.Image)}
	if has.image != nil {
		o.Image = h.Codec.Image
	}
	if o.Site = has.site.Len(); has.site.Mirror != nil {
		o.Kept = h.Codec.Kept
	}
	if o.Site > 0 {
		o.Key = hex.EncodeToString(has.site.Key[:])
	}
	return o, has, func() {
		e.Room.give(o.MirrorPages + e.Share.GotAll(from, has.share))
		has.site.Close()
		if has.image != nil {
			has.image.Close()
		}
	}
}

// fits says whether a source can do what was taken of its header's offer.
func (o Offer) fits(h Header) error {
	export := o.Export
	if o.Export = (disk.Export{}); o == (Offer{}) && (export == o.Export || h.Disk > 0) {
		return nil
	}
	offer := h.offered(o)
	_, err := o.key()
	if err != nil || export != (disk.Export{}) && h.Disk == 0 || o.Version != offer.Version || o.Packed != offer.Packed || o.Seed != offer.Seed || o.PageSeed != offer.PageSeed || o.MirrorPages < 0 || o.MirrorPages > offer.MirrorPages ||
		o.Share < 0 || o.Near && o.Share == 0 || o.Share > offer.Share || o.Site < 0 || o.Site > kept.MaxPages || o.Kept != "" && o.Kept != offer.Kept || o.Image != "" && o.Image != offer.Image {
		return fmt.Errorf("read relay answer: %+v is no part of the offer", o)
	}
	return nil
}

func (o Offer) key() (key [32]byte, err error) {
	if o.Site == 0 {
		return key, nil
	}
	b, err := hex.DecodeString(o.Key)
	if err == nil && copy(key[:], b) != len(b) || len(b) != len(key) {
		err = fmt.Errorf("it has %d bytes", len(b))
	}
	if err != nil {
		return key, fmt.Errorf("read key of digests: %w", err)
	}
	return key, nil
}

func (o Offer) config() wan.Config {
	return wan.Config{MirrorPages: o.MirrorPages, Seed: o.Seed, PageSeed: o.PageSeed}
}

// withVersions offers the protocol's later versions before the others.
func withVersions(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.NextProtos = append([]string{alpnV4, alpnV3, alpnV2}, slices.Clip(c.NextProtos)...)
	return c
}
