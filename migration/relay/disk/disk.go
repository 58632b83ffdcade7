// Package disk carries a disk's NBD connection over a long way: the source's end of a relay's stream, between a
// hypervisor that mirrors a disk and the NBD server of the destination's.
//
// A hypervisor must not wait for the way. It opens a disk in its main loop, and its guest stands still meanwhile:
// so somebody else has shaken hands with the server before (Open), and the hypervisor is answered by what that was
// told (Answer). And its mirror waits for each write: so writes are answered early (Carry).
package disk

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// How much a disk's writes may be ahead of the destination, in bytes. Until the client's
// first flush the disk is copied as a whole, and the window is what fills a long way; from
// then on it is a part of the pause. maxRequests bounds those that carry no data.
const (
	windowFirst = 16 << 20
	windowEnd   = 2 << 20
	maxRequests = 1024
	writeBatch  = 256 << 10

	bufferSize = 256 << 10 // bytes, of each direction
)

// stream carries an NBD connection over a long way. A mirror writes a cluster, waits a
// round trip for the answer, and never catches up with a guest that writes more often than
// that. So the stream answers a write as soon as it has taken it over, and forwards it: the
// guest's disk is then as far behind as the window allows, however long the way is. A flush
// is answered once every write that came before it is on the destination's disk; so is a
// request with FUA. The first flush alone is answered when that has been sent, or given to what encodes it: a mirror asks for
// it when the disk has been copied, and for another before it ends. What follows the first is
// the copy of memory, which need not wait two round trips for it.
// A write that fails at the destination ends the stream, and with it the mirror; so does the
// first flush. After that writes are sent with FUA: the last flush, which the guest's
// pause waits for, then costs one round trip at most instead of one for the writes and
// another for itself.
//
// A discard is answered and not sent: it is advice, and what a mirror discards it takes for a hole
// of the source's. That may be one because the destination has there what the source has (package
// hostagent/images), which is then to stay. Nor are zeros for a disk that is, which a mirror begins with
// everywhere: what it then copies would wait a round trip for them.
//
// Two requests that overlap are never on their way together, for the server may carry them
// out in any order. A write that waits is replaced by the next one to the same place.
type stream struct {
	remote, local *bufio.Reader
	out           *bufio.Writer // to remote; the sender's alone
	replies       sync.Mutex    // who may write to back
	back          io.Writer     // to local
	count         *Count
	fua           bool // the server knows FUA
	zeros         bool // the destination's disk still is; take's alone

	mu      sync.Mutex
	changed *sync.Cond
	queue   []*nbdRequest          // to be sent, in order
	sent    map[uint64]*nbdRequest // by the cookie that the server knows
	cookie  uint64
	bytes   int // of data, in queue and sent
	window  int
	flushed bool   // the first flush has been answered
	changes uint64 // sent so far, but for those with FUA
	durable uint64 // of them, that flushes which succeeded have covered
	err     error
}

// Conn is a connection whose directions end separately.
type Conn interface {
	io.ReadWriter
	CloseWrite() error
}

// Count counts what goes on.
type Count struct {
	owed    atomic.Int64
	written atomic.Uint64
}

// Owed is the number of requests that were answered and are not done.
func (c *Count) Owed() int { return int(c.owed.Load()) }

// Written is how many bytes of writes were sent, those that were sent again counted again.
func (c *Count) Written() uint64 { return c.written.Load() }

// Carry carries requests from local to the server of an export at remote, and the replies back, until both have
// ended or something has failed; then it calls closeBoth, which closes them. It counts what goes on.
func Carry(remote, local Conn, e Export, closeBoth func(), count *Count) error {
	d := &stream{remote: bufio.NewReaderSize(remote, bufferSize), local: bufio.NewReaderSize(local, bufferSize), back: local,
		out: bufio.NewWriterSize(remote, writeBatch), count: count, sent: make(map[uint64]*nbdRequest), window: windowFirst, fua: e.Flags&nbdSendFUA != 0, zeros: e.Zeros}
	d.changed = sync.NewCond(&d.mu)
	part := func(f func() error) func() error {
		return func() error {
			err := f()
			if err != nil {
				d.fail(err)
				closeBoth()
			}
			return err
		}
	}
	var g errgroup.Group
	g.Go(part(d.take))
	g.Go(part(func() error { return errors.Join(d.send(), remote.CloseWrite()) }))
	g.Go(part(func() error { return errors.Join(d.receive(), local.CloseWrite()) }))
	return g.Wait()
}

func (d *stream) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		d.err = err
	}
	d.changed.Broadcast()
}

// take takes the client's requests over until it disconnects.
func (d *stream) take() error {
	for {
		r, err := readRequest(d.local)
		if err == io.EOF {
			r, err = &nbdRequest{kind: nbdDisconnect}, nil // that it did not say so changes nothing
		}
		if err != nil {
			return err
		}
		d.zeros = d.zeros && r.kind != nbdWrite
		if r.kind == nbdTrim || r.kind == nbdWriteZeroes && d.zeros {
			if err := d.reply(simpleReply(r.cookie), nil, 0); err != nil {
				return err
			}
			continue
		}
		r.answered = r.mayWait()
		kind, cookie, early := r.kind, r.cookie, r.answered // r is the sender's once it is in the queue
		if err := d.enqueue(r); err != nil {
			return err
		}
		if kind == nbdDisconnect {
			return nil
		}
		if early {
			if err := d.reply(simpleReply(cookie), nil, 0); err != nil {
				return err
			}
		}
	}
}

// reply writes to the client: a head, and n bytes of from.
func (d *stream) reply(head []byte, from io.Reader, n int64) error {
	d.replies.Lock()
	defer d.replies.Unlock()
	if _, err := d.back.Write(head); err != nil {
		return fmt.Errorf("answer NBD request: %w", err)
	}
	if n == 0 {
		return nil
	}
	return pass(d.back, from, n)
}

// enqueue waits for room.
func (d *stream) enqueue(r *nbdRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.err == nil && (len(d.queue) >= maxRequests || d.bytes > 0 && d.bytes+len(r.data) > d.window) {
		d.changed.Wait()
	}
	if d.err != nil {
		return d.err
	}
	if d.replaces(r) {
		return nil
	}
	d.queue = append(d.queue, r)
	d.bytes += len(r.data)
	if r.answered {
		d.count.owed.Add(1)
	}
	d.changed.Broadcast()
	return nil
}

// replaces puts r in place of a write to the very same place that still waits, if nothing
// after that one minds.
func (d *stream) replaces(r *nbdRequest) bool {
	if r.kind != nbdWrite || !r.answered {
		return false
	}
	for i := len(d.queue) - 1; i >= 0; i-- {
		q := d.queue[i]
		switch {
		case !q.answered:
			return false
		case q.kind == nbdWrite && q.offset == r.offset && q.length == r.length:
			q.data = r.data
			return true
		case q.overlaps(r):
			return false
		}
	}
	return false
}

// send forwards requests until the client's last.
func (d *stream) send() error {
	for {
		r, cookie, err := d.next()
		if err != nil {
			return err
		}
		if cookie == 0 {
			if err := d.reply(simpleReply(r.cookie), nil, 0); err != nil {
				return err
			}
			continue
		}
		if err := r.write(d.out, cookie); err != nil {
			return fmt.Errorf("forward NBD request: %w", err)
		}
		d.count.written.Add(uint64(len(r.data)))
		if r.kind == nbdDisconnect {
			return d.flush()
		}
	}
}

func (d *stream) flush() error {
	if err := d.out.Flush(); err != nil {
		return fmt.Errorf("forward NBD request: %w", err)
	}
	return nil
}

// next waits for a request that may be sent now. What was written is flushed before it waits.
// The cookie is 0 for a flush that is done already.
func (d *stream) next() (*nbdRequest, uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.err == nil {
		first := d.firstFlush()
		if first == nil && d.ready() {
			break
		}
		if first == nil && d.out.Buffered() == 0 {
			d.changed.Wait()
			continue
		}
		d.mu.Unlock()
		err := d.flush()
		if err == nil && first != nil {
			err = d.reply(simpleReply(first.cookie), nil, 0)
		}
		d.mu.Lock()
		if err != nil {
			return nil, 0, err
		}
	}
	if d.err != nil {
		return nil, 0, d.err
	}
	r := d.queue[0]
	d.queue = d.queue[1:]
	if r.answered && r.changes() && d.fua && d.flushed {
		r.flags |= nbdFlagFUA
	}
	switch {
	case r.kind == nbdFlush && !r.answered && d.durable == d.changes:
		return r, 0, nil
	case r.kind == nbdFlush:
		r.covers = d.changes
	case r.changes() && r.flags&nbdFlagFUA == 0:
		d.changes++
	}
	d.cookie++
	if r.kind != nbdDisconnect { // which has no answer
		d.sent[d.cookie] = r
	}
	return r, d.cookie, nil
}

// firstFlush is the client's first one, when all that came before has been sent: it counts as answered then.
func (d *stream) firstFlush() *nbdRequest {
	if d.flushed || len(d.queue) == 0 || d.queue[0].kind != nbdFlush {
		return nil
	}
	d.flushed, d.queue[0].answered = true, true
	d.count.owed.Add(1)
	return d.queue[0]
}

// ready says whether the queue's first request may be on its way beside those that are.
func (d *stream) ready() bool {
	if len(d.queue) == 0 || len(d.sent) >= maxRequests {
		return false
	}
	r := d.queue[0]
	for _, s := range d.sent {
		if s.answered && (!r.answered || r.kind == nbdFlush || s.overlaps(r)) || r.changes() && s.changes() && s.overlaps(r) {
			return false
		}
	}
	return true
}

// receive takes the server's replies until it hangs up.
func (d *stream) receive() error {
	for {
		reply, err := readReply(d.remote)
		if err == io.EOF {
			return d.settled()
		}
		if err != nil {
			return err
		}
		d.mu.Lock()
		r := d.sent[reply.cookie()]
		d.mu.Unlock()
		switch {
		case r == nil:
			return errors.New("read NBD reply: to no request")
		case r.answered && reply.failed:
			return fmt.Errorf("the destination could not write %d bytes at %d to its disk, or flush it", r.length, r.offset)
		}
		r.failed = r.failed || reply.failed // the last chunk may only say that it is the last
		if reply.done {
			d.done(reply.cookie(), r) // before the client hears of it: its next request may come at once
		}
		if r.answered {
			_, err = io.CopyN(io.Discard, d.remote, int64(reply.payload))
		} else {
			err = d.passReply(reply, r)
		}
		if err != nil {
			return fmt.Errorf("read NBD reply: %w", noEOF(err))
		}
	}
}

func (d *stream) passReply(reply *nbdReply, r *nbdRequest) error {
	n := int64(reply.payload)
	if r.kind == nbdRead && !reply.failed && len(reply.head) == 16 {
		n = int64(r.length)
	}
	own := reply.cookie()
	reply.address(r.cookie)
	defer reply.address(own)
	return d.reply(reply.head, d.remote, n)
}

// settled is an error if the server hung up with requests unanswered.
func (d *stream) settled() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.queue) + len(d.sent); n > 0 {
		return fmt.Errorf("the destination's disk hung up before it answered %d requests", n)
	}
	return nil
}

func (d *stream) done(cookie uint64, r *nbdRequest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sent, cookie)
	d.bytes -= len(r.data)
	if r.answered {
		d.count.owed.Add(-1)
	}
	if r.kind == nbdFlush {
		d.window = windowEnd
		if !r.failed {
			d.durable = max(d.durable, r.covers)
		}
	}
	d.changed.Broadcast()
}
