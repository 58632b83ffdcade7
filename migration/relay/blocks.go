package relay

import (
	"context"
	"heliotrope"
	"heliotrope/migration/relay/disk"
	"heliotrope/migration/relay/kept"
	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"
	"io"
	"math/rand/v2"
	"net"

	"golang.org/x/sync/errgroup"
)

// A disk's stream over a long way is encoded as memory is, between package disk and the wire:
//
//	hypervisor ─► disk.Carry ─► pipe ─► memorySource ─► TLS ─► memoryDestination ─► NBD server
//
// It has no mirror, which would take the disk's size of memory at both ends. A block's like is found among
// what it and the other streams to the destination carry (package share): so blocks that are twice on a disk,
// or on the disks of two VMs, cross once, and so does what a guest's page cache has of its disk. What the
// destination keeps for that is a part of --move-memory; the source keeps the hashes. Nothing is held back for
// that: a batch goes as soon as the wire carries no other.
//
// Agents that know of no blocks know of packed streams (disk.Pack), which is all that those are for.

// packedVersion is the version of those who know no other of disks' streams. An offer of it has a seed if
// the source can encode blocks as well: agents of that version look at nothing else of it. The answer then is
// Packed or has the seed.
const packedVersion = 3

// diskShare is which part of what is left of the room a disk's stream takes for others to use: half of what
// one of memory does, since it may take that for as long as the disk is copied.
const diskShare = 2 * memoryShare

// offerDisk is what a source offers for a disk's stream. Within a site the wire is faster than
// the compressor.
func (e *Encoding) offerDisk(way share.Way) Offer {
	if e == nil || e.Least == wan.Plain {
		return Offer{}
	}
	o := Offer{Version: packedVersion, Packed: true, Seed: rand.Uint64(), PageSeed: e.Share.Seed(way)}
	if e.Share != nil {
		o.Share = e.MirrorPages
	}
	return o
}

// takeDisk is take for a disk's stream.
func (e *Encoding) takeDisk(h Header, from heliotrope.HostID) (o Offer, has here, done func()) {
	has.site = &kept.Pages{}
	switch {
	case e == nil || h.Codec.Version != packedVersion || !h.Codec.Packed:
		return Offer{}, has, func() {}
	case h.Codec.Seed == 0 || h.Disk == 0:
		return Offer{Version: packedVersion, Packed: true}, has, func() {}
	}
	o = Offer{Version: packedVersion, Seed: h.Codec.Seed, PageSeed: h.Codec.PageSeed}
	if e.Share != nil {
		o.Share = e.Room.takePart(min(h.Codec.Share, e.MirrorPages), diskShare)
	}
	return e.tell(h, from, o)
}

// offered is what of the header's offer an answer is to be compared with.
func (h *Header) offered(answer Offer) Offer {
	o := h.Codec
	switch {
	case h.Kind != Disk || o.Seed == 0:
	case answer.Packed:
		o = Offer{Version: o.Version, Packed: true}
	default:
		o.Packed = false
	}
	return o
}

// joinDisk carries the requests of the hypervisor at local to the server of a stream.
func (f *Forwarder) joinDisk(ctx context.Context, s *stream, local *net.UnixConn) error {
	near, far := pipe()
	closeBoth := func() { s.conn.NetConn().Close(); local.Close(); near.Close(); far.Close() }
	defer closeBoth()
	stop := context.AfterFunc(ctx, closeBoth)
	defer stop()
	var g errgroup.Group
	way := s.way
	if s.encoded() {
		way = near
		g.Go(func() error { return encodeDisk(ctx, s, far, f.client) })
	}
	g.Go(func() error { return disk.Carry(way, local, s.export, closeBoth, &f.disk) })
	err := g.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// encodeDisk carries the requests that come from local to the stream's destination, encoded, and the replies
// back. It returns as join does.
func encodeDisk(ctx context.Context, s *stream, local duplex, client *Client) error {
	c := s.taken.config()
	c.Disk = true
	if s.sending != nil {
		c.Carrying = s.sending.Disk()
	}
	source := newMemorySource(s.conn, local, Disk, client, s.taken, c, s.sending)
	source.window.limit = windowMost
	return source.carry(ctx)
}

// pipeEnd is one end of a connection within the process.
type pipeEnd struct {
	*io.PipeReader
	w *io.PipeWriter
}

func pipe() (one, other pipeEnd) {
	one.PipeReader, other.w = io.Pipe()
	other.PipeReader, one.w = io.Pipe()
	return one, other
}

// Write implements io.Writer.
func (p pipeEnd) Write(b []byte) (int, error) { return p.w.Write(b) }

// CloseWrite ends what is written: the other end reads io.EOF.
func (p pipeEnd) CloseWrite() error { return p.w.Close() }

// Close ends both directions, and neither as if it had come to its end.
func (p pipeEnd) Close() error {
	p.w.CloseWithError(net.ErrClosed)
	return p.CloseWithError(net.ErrClosed)
}
