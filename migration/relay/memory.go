package relay

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"heliotrope"
	"heliotrope/migration/relay/kept"
	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// parcels is how many batches are under way in a source: one is being filled, the others
	// are packed and sent. The last of them is what a pause waits for, so they are few: 2 MiB.
	parcels    = 4
	chunkBytes = 128 << 10 // read at once from the hypervisor
	// silence is how long the hypervisor says nothing before what looks like half of a page
	// is sent as it is.
	silence = 20 * time.Millisecond
)

// parcel is a batch on its way to the wire.
type parcel struct {
	batch  wan.Batch
	frame  []byte
	took   time.Duration // to pack
	packed chan struct{} // one token, when frame is ready
}

// duplex is a connection whose directions end separately, or both at once.
type duplex interface {
	halfConn
	io.Closer
}

// memorySource is the source's end of an encoded stream, of memory or of a disk: each stage is a goroutine, packing
// several, and hands over to the next by a channel.
//
//	hypervisor ─► read ─► encode ─┬─► pack ─┬─► send ─► TLS
//	                              └─► pack ─┘   in order
type memorySource struct {
	remote *tls.Conn
	local  duplex
	kind   Kind
	config wan.Config
	taken  Offer
	client *Client
	keep   func(*wan.Mirror)
	mirror *wan.Mirror // when the stream has come to its end
	last   *wan.Batch  // that says so

	window        *window
	share         *share.Sending
	first         firstPass
	known         chan kept.Known
	image         ImageIndex  // nil: none
	there         chan []byte // what the destination has of the image
	chunks, spare chan []byte
	free          chan *parcel
	toPack        chan *parcel
	toSend        chan *parcel
	idle          chan struct{} // one token, when nothing is under way any more
	current       *parcel

	level       atomic.Uint32 // a wan.Level, for batches yet to come
	least, most wan.Level
	packers     int
}

// encodeMemory carries the hypervisor's stream of vm from local to remote, encoded, and what
// comes back as it is. It returns as join does.
func encodeMemory(ctx context.Context, remote *tls.Conn, local *net.UnixConn, vm heliotrope.VMID, client *Client, taken Offer, sending *share.Sending) error {
	c, e := taken.config(), client.Encoding
	if sending != nil {
		c.Carrying = sending
	}
	if taken.Kept != "" {
		var err error
		if c.Mirror, err = e.Site.Mirror(vm, taken.Kept); err != nil {
			return err
		}
	}
	s := newMemorySource(remote, local, Memory, client, taken, c, sending)
	s.keep = func(m *wan.Mirror) { e.Site.Keep(vm, m) }
	return s.carry(ctx)
}

func newMemorySource(remote *tls.Conn, local duplex, kind Kind, client *Client, taken Offer, c wan.Config, sending *share.Sending) *memorySource {
	e := client.Encoding
	s := &memorySource{
		remote: remote, local: local, kind: kind, config: c, taken: taken, client: client, keep: func(*wan.Mirror) {}, known: make(chan kept.Known, 1), image: e.index(taken), there: make(chan []byte, 1), window: newWindow(), share: sending,
		chunks: make(chan []byte, 2), spare: make(chan []byte, 2),
		free: make(chan *parcel, parcels), toPack: make(chan *parcel, parcels), toSend: make(chan *parcel, parcels),
		idle: make(chan struct{}, 1), current: &parcel{packed: make(chan struct{}, 1)},
		least: e.Least, most: cmp.Or(e.Most, wan.Fast), packers: packers(runtime.GOMAXPROCS(0)),
	}
	s.level.Store(uint32(new(wan.Pace).Level(s.packers, s.least, s.most)))
	for range parcels - 1 {
		s.free <- &parcel{packed: make(chan struct{}, 1)}
	}
	for range cap(s.spare) {
		s.spare <- make([]byte, chunkBytes)
	}
	return s
}

// packers is how many a source has that may use so many processors: who encodes has one too. With as many as
// processors, they took each other's caches.
func packers(processors int) int { return min(max(processors-1, 1), parcels-1) }

func (s *memorySource) carry(ctx context.Context) error {
	stages := []func(context.Context) error{s.read, s.encode, s.send, s.answers}
	for range s.packers {
		stages = append(stages, s.pack)
	}
	return carryMemory(ctx, s.remote, s.local, stages)
}

// carryMemory runs the stages of one end until all have come to their end, one has failed, or
// ctx ends. It closes both connections: at once where something failed, so that neither
// hypervisor waits for what will not come.
func carryMemory(ctx context.Context, remote *tls.Conn, local io.Closer, stages []func(context.Context) error) error {
	closeBoth := func() { remote.NetConn().Close(); local.Close() }
	defer closeBoth()
	g, inner := errgroup.WithContext(ctx)
	stop := context.AfterFunc(inner, closeBoth)
	defer stop()
	for _, stage := range stages {
		g.Go(func() error { return stage(inner) })
	}
	err := g.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// receive is a channel's next, or an error if ctx ends first.
func receive[T any](ctx context.Context, from <-chan T) (v T, open bool, err error) {
	select {
	case v, open = <-from:
		return v, open, nil
	case <-ctx.Done():
		return v, false, context.Cause(ctx)
	}
}

// A stage closes its channel only where the stream has come to its end: what follows tells the
// other end that this is all.

func (s *memorySource) read(ctx context.Context) error {
	for {
		buf, _, err := receive(ctx, s.spare)
		if err != nil {
			return err
		}
		n, err := s.local.Read(buf[:chunkBytes])
		if n > 0 {
			s.chunks <- buf[:n] // has room for all there are
		}
		if err == io.EOF {
			close(s.chunks)
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s from hypervisor: %w", s.kind, err)
		}
	}
}

// answers reads what the destination knows, and then what it says of its hypervisor and of
// what it has rebuilt.
func (s *memorySource) answers(context.Context) error {
	remote := bufio.NewReader(s.remote)
	if s.taken.Site > 0 {
		k, err := kept.ReadKnown(remote, s.taken.Site)
		if err != nil {
			return err
		}
		s.known <- k
	}
	if s.taken.Image != "" {
		told, err := readHere(remote)
		if err != nil {
			return err
		}
		s.there <- told
	}
	l := listener{hypervisor: s.local, rebuilt: s.rebuilt, again: s.again(), without: s.share.Without}
	if err := l.listen(remote); err != nil {
		return err
	}
	if err := s.remote.CloseWrite(); err != nil {
		return fmt.Errorf("end %s: %w", s.kind, err)
	}
	return nil
}

// rebuilt takes note of how far the destination is. What a disk's stream may be ahead is what package disk
// lets it be: until its first flush, how long that lies there is no matter.
func (s *memorySource) rebuilt(batches uint64, lag time.Duration) error {
	if s.kind == Disk {
		lag = 0
	}
	return s.window.leave(batches, lag, time.Now())
}

// again sends what a batch refers to, where the destination has not got it.
func (s *memorySource) again() func(batch uint64) error {
	var packer wan.Packer
	return func(batch uint64) error {
		referred, err := s.window.referred(batch)
		if err != nil {
			return err
		}
		b := wan.Again(referred)
		frame := packer.Pack(nil, b)
		s.client.count(s.kind, b.Stats())
		_, err = s.remote.Write(frame)
		return err
	}
}

func (s *memorySource) encode(ctx context.Context) error {
	enc := wan.NewEncoder(s.config, &s.current.batch, func(*wan.Batch) (*wan.Batch, error) { return s.handOver(ctx) })
	if s.taken.Site > 0 {
		// It is there in a fraction of what it saves.
		k, _, err := receive(ctx, s.known)
		if err != nil {
			return err
		}
		key, err := s.taken.key()
		if err == nil {
			err = enc.Know(key, k)
		}
		if err != nil {
			return err
		}
	}
	if s.image != nil {
		told, _, err := receive(ctx, s.there)
		if err == nil {
			err = s.image.Only(told)
		}
		if err != nil {
			return err
		}
		enc.KnowImage(s.image)
	}
	quiet := time.NewTimer(silence)
	defer quiet.Stop()
	for {
		chunk, open, err := s.next(ctx, enc, quiet)
		if err != nil {
			return err
		}
		if open {
			s.share.Wait(ctx)
			enc.SetLevel(wan.Level(s.level.Load()))
			spend(&s.client.codec, func() { _, err = enc.Write(chunk) })
			if err != nil {
				return err
			}
			s.spare <- chunk
		}
		// A hypervisor that has said all closes its end when it likes, which may be after the move
		// has been given up as done.
		if enc.Ended() || !open {
			if err := enc.Drain(); err != nil {
				return err
			}
			s.mirror, s.last = enc.Mirror(), enc.End()
			close(s.toPack)
			close(s.toSend)
			return s.nothingMore(ctx, open)
		}
	}
}

// nothingMore waits for the hypervisor to close its end, of a stream that is whole.
func (s *memorySource) nothingMore(ctx context.Context, open bool) error {
	if !open {
		return nil
	}
	chunk, open, err := receive(ctx, s.chunks)
	if err == nil && open {
		err = fmt.Errorf("read %s from hypervisor: %d bytes behind its end", s.kind, len(chunk))
	}
	return err
}

// next waits for more of the stream. Meanwhile nothing is kept back that the wire could
// carry: while it carries something else, the open batch may as well grow.
func (s *memorySource) next(ctx context.Context, enc *wan.Encoder, quiet *time.Timer) (chunk []byte, open bool, err error) {
	select {
	case chunk, open = <-s.chunks:
		return chunk, open, nil
	default:
	}
	quiet.Reset(silence)
	for {
		if len(s.free) == parcels-1 {
			if err := enc.Flush(); err != nil {
				return nil, false, err
			}
		}
		select {
		case chunk, open = <-s.chunks:
			return chunk, open, nil
		case <-s.idle:
		case <-quiet.C:
			if s.kind == Disk {
				continue // package disk writes all of a request, however long that takes
			}
			if err := enc.Drain(); err != nil {
				return nil, false, err
			}
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		}
	}
}

// handOver sends the current parcel on its way and waits for an empty one.
func (s *memorySource) handOver(ctx context.Context) (*wan.Batch, error) {
	if stats := s.current.batch.Stats(); s.first.ended(&stats, s.client.GuestPages) {
		s.share.Late() // the VM may stop at any time
	}
	s.toPack <- s.current
	s.toSend <- s.current // both have room for all there are
	p, _, err := receive(ctx, s.free)
	if err != nil {
		return nil, err
	}
	s.current = p
	return &p.batch, nil
}

func (s *memorySource) pack(ctx context.Context) error {
	var packer wan.Packer
	for {
		p, open, err := receive(ctx, s.toPack)
		if err != nil || !open {
			return err
		}
		begun := time.Now()
		spend(&s.client.codec, func() { p.frame = packer.Pack(p.frame[:0], &p.batch) })
		p.took = time.Since(begun)
		p.packed <- struct{}{}
	}
}

func (s *memorySource) send(ctx context.Context) error {
	var pace wan.Pace
	for {
		p, open, err := receive(ctx, s.toSend)
		if err != nil {
			return err
		}
		if !open {
			// Not later: once the VM has moved, nobody waits for this stream. If the other end
			// has not got all of it, it keeps something else, and that is found out.
			s.keep(s.mirror)
			return s.end()
		}
		asked := time.Now()
		if _, _, err := receive(ctx, p.packed); err != nil {
			return err
		}
		waited := time.Since(asked)
		if err := s.window.enter(ctx, &p.batch); err != nil {
			return err
		}
		stats := p.batch.Stats()
		s.share.Sent(&stats)
		begun := time.Now()
		if _, err := s.remote.Write(p.frame); err != nil {
			return fmt.Errorf("send %s: %w", s.kind, err)
		}
		pace.Saw(&p.batch, p.took, waited, time.Since(begun))
		s.level.Store(uint32(pace.Level(s.packers, s.least, s.most)))
		s.client.count(s.kind, stats)
		p.batch.Reset()
		s.free <- p
		select {
		case s.idle <- struct{}{}:
		default:
		}
	}
}

// end says that this is all. The connection stays, for what the destination may yet ask for.
func (s *memorySource) end() error {
	if _, err := s.remote.Write(new(wan.Packer).Pack(nil, s.last)); err != nil {
		return fmt.Errorf("end %s: %w", s.kind, err)
	}
	return nil
}
