package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"heliotrope/migration/relay/kept"
	"heliotrope/migration/relay/near"
	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"
	"io"
	"net"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	batchBytes = wan.BatchBytes
	// waiting is how many frames a destination takes from the wire before they are rebuilt, and
	// waitingBytes how much those may have, packed and unpacked. Sources keep to windowMost, so
	// that neither stands in anyone's way.
	waiting      = 1024
	waitingBytes = 3*windowMost + 7*int64(maxColumn)
	maxColumn    = 1 << 20
)

// memoryDestination is the other end.
//
//	TLS ─► receive ─► unpack ─► rebuild ─► hypervisor
//
// Receiving and unpacking wait for nothing but the wire: how long a batch lies here is known,
// and other streams can have the pages that it carries (Share), whatever this one waits for.
type memoryDestination struct {
	remote  *tls.Conn
	local   *net.UnixConn
	kind    Kind
	site    *kept.Pages
	share   *share.Getting
	image   ImagePages
	says    says
	room    *semaphore.Weighted // for frames and batches
	frames  chan frame
	batches chan arrived
	spare   chan *wan.Batch
	again   *asking       // what the source was asked for
	near    *near.Fetcher // nil: no other host is asked for pages
	rebuilt chan struct{} // closed when all is
	number  uint64        // of the batch being rebuilt, from 1
	now     *near.Batch   // of that
}

// frame is one that came at a time.
type frame struct {
	head [wan.FrameHead]byte
	body []byte
	at   time.Time
}

// arrived is a batch of a frame that came at a time, and takes so many bytes.
type arrived struct {
	*wan.Batch
	at    time.Time
	bytes int64
	near  *near.Batch // what other hosts have of it; nil: nothing
}

func (f *frame) bytes() int64 { return int64(len(f.body) + wan.Unpacked(&f.head)) }

// decodeMemory carries an encoded stream, of memory or of a disk, from remote to the hypervisor at local, and
// what that answers as it is. It returns as join does.
func decodeMemory(ctx context.Context, remote *tls.Conn, local *net.UnixConn, h Header, e *Encoding, taken Offer, here here) error {
	d := &memoryDestination{
		remote: remote, local: local, kind: h.Kind, site: here.site, share: here.share, image: here.image, says: says{w: remote}, room: semaphore.NewWeighted(waitingBytes),
		frames: make(chan frame, waiting), batches: make(chan arrived, waiting), spare: make(chan *wan.Batch, 8),
		rebuilt: make(chan struct{}),
	}
	d.again = newAsking(d.says.again)
	c := taken.config()
	c.Disk, c.Pages, c.Mirror = h.Kind == Disk, d.site, d.site.Mirror
	if d.image != nil {
		c.ImagePages = d.image
	}
	defer d.askNeighbours(ctx, e, taken)()
	rebuild := func(ctx context.Context) error {
		c.Again = d.askAgain(ctx)
		if d.share != nil {
			c.CarriedPages = elsewhere{d.share.During(ctx), ctx, &d.now}
		}
		dec := wan.NewDecoder(c)
		err := d.rebuild(ctx, dec)
		switch {
		case err == nil && h.Kind == Memory:
			e.Site.Keep(h.VM, dec.Mirror())
		case errors.Is(err, wan.ErrCorrupt):
			e.Site.Spoil(h.VM, d.site)
			if d.image != nil {
				e.Images.Spoil(taken.Image)
			}
		}
		return err
	}
	return carryMemory(ctx, remote, local, []func(context.Context) error{d.receive, d.unpack(wan.NewForesight(c)), rebuild, d.answers})
}

// answers tells what the site has, then passes on what the hypervisor says, while rebuild says
// how far it is.
func (d *memoryDestination) answers(ctx context.Context) error {
	if len(d.site.Digests) > 0 {
		if _, err := d.remote.Write(d.site.Digests); err != nil {
			return fmt.Errorf("tell what is known here: %w", err)
		}
		d.site.Digests = nil
	}
	if d.image != nil {
		if err := tellHere(d.remote, d.image); err != nil {
			return err
		}
	}
	if err := d.says.answers(d.local); err != nil {
		return err
	}
	if _, _, err := receive(ctx, d.rebuilt); err != nil {
		return err
	}
	if err := d.remote.CloseWrite(); err != nil && !d.says.all.Load() {
		return fmt.Errorf("end answers: %w", err)
	}
	return nil
}

// receive takes frames from the wire as they come.
func (d *memoryDestination) receive(ctx context.Context) error {
	for {
		f, err := d.next(ctx)
		switch {
		case err != nil && d.says.all.Load():
			// The source has sent all, and goes when it likes.
			d.again.end()
			return nil
		case err != nil:
			return fmt.Errorf("receive %s: %w", d.kind, noEOF(err))
		case d.says.all.Load() && len(f.body) == 0 || d.says.all.Load() && wan.StreamSize(&f.head) > 0:
			return fmt.Errorf("receive %s: more of it, behind its end", d.kind)
		}
		last := wan.StreamSize(&f.head) == 0 && len(f.body) == 0
		if wan.StreamSize(&f.head) == 0 && !last {
			if err := d.again.answer(f); err != nil {
				return err
			}
			continue
		}
		d.says.all.CompareAndSwap(false, last)
		select {
		case d.frames <- f:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if last {
			close(d.frames)
		}
	}
}

func (d *memoryDestination) next(ctx context.Context) (f frame, err error) {
	if _, err := io.ReadFull(d.remote, f.head[:]); err != nil {
		return f, err
	}
	n, err := wan.BodySize(&f.head)
	if err != nil {
		return f, err
	}
	if err := d.room.Acquire(ctx, int64(n+wan.Unpacked(&f.head))); err != nil {
		return f, err
	}
	f.body = make([]byte, n)
	_, err = io.ReadFull(d.remote, f.body)
	f.at = time.Now()
	return f, noEOF(err)
}

func (d *memoryDestination) unpack(foresight *wan.Foresight) func(ctx context.Context) error {
	var unpacker wan.Unpacker
	number := uint64(0)
	return func(ctx context.Context) error {
		for {
			f, open, err := receive(ctx, d.frames)
			if err != nil {
				return err
			}
			if !open {
				close(d.batches)
				return nil
			}
			var b *wan.Batch
			select {
			case b = <-d.spare:
			default:
				b = new(wan.Batch)
			}
			if err := unpacker.Unpack(b, &f.head, f.body); err != nil {
				return err
			}
			d.share.Keep(b)
			if b.Size() > 0 {
				number++
			}
			a := arrived{b, f.at, f.bytes(), nil}
			if err := d.lookAhead(ctx, foresight, &a, number); err != nil {
				return err
			}
			select {
			case d.batches <- a:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// askAgain asks the source for all that the batch refers to which is being rebuilt.
func (d *memoryDestination) askAgain(ctx context.Context) func() (*wan.Batch, error) {
	var unpacker wan.Unpacker
	return func() (*wan.Batch, error) {
		f, err := d.again.get(ctx, d.number)
		if err != nil {
			return nil, err
		}
		defer d.room.Release(f.bytes())
		b := new(wan.Batch)
		return b, unpacker.Unpack(b, &f.head, f.body)
	}
}

func (d *memoryDestination) rebuild(ctx context.Context, dec *wan.Decoder) error {
	var out []byte
	for {
		b, open, err := receive(ctx, d.batches)
		if err != nil {
			return err
		}
		if !open {
			break
		}
		if b.Size() == 0 {
			if err := dec.End(b.Batch); err != nil {
				return err
			}
			continue
		}
		d.number++
		d.now = b.near
		if out, err = dec.Decode(out[:0], b.Batch); err != nil {
			return err
		}
		d.again.rebuilt(d.number)
		if _, err := d.local.Write(out); err != nil {
			return fmt.Errorf("give %s to hypervisor: %w", d.kind, err)
		}
		if err := d.says.rebuilt(d.number, time.Since(b.at)); err != nil {
			return err
		}
		d.room.Release(b.bytes)
		select {
		case d.spare <- b.Batch:
		default:
		}
	}
	close(d.rebuilt)
	if err := d.local.CloseWrite(); err != nil {
		return fmt.Errorf("end %s: %w", d.kind, err)
	}
	return nil
}
