package nbd

import (
	"encoding/binary"
	"errors"
	"net"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	gather   = 64 << 10 // bytes of small replies that are copied together, so that they go out as one
	gathered = 4 << 10  // the largest of them
)

// reply is a part of what goes to the client: a simple reply, a chunk, or many of them. Parts
// are written whole.
type reply struct {
	head   [32]byte // its first bytes, those that count
	length int
	body   []byte
	pipe   *pipe   // what follows; nil: nothing
	buffer *buffer // that body is in; freed when it is written
	cost   int     // bytes of the budget that are then given back
}

// replies are what is ready for the client.
type replies struct {
	conn   net.Conn
	budget *budget
	pipes  *pipes // nil: there are none

	// What is being written.
	vector  net.Buffers
	scratch []byte
	tail    bool // the vector ends with the scratch's end

	mu    sync.Mutex
	queue []reply
	spare []reply // what queue was before
	busy  bool    // somebody writes, or is about to
	err   error
}

func newReplies(conn net.Conn, b *budget, p *pipes) *replies {
	return &replies{conn: conn, budget: b, pipes: p}
}

// put adds replies. They go out with the next send.
func (o *replies) put(rs ...reply) {
	o.mu.Lock()
	o.queue = append(o.queue, rs...)
	o.mu.Unlock()
}

// send writes all that is ready, unless somebody is at it, who will then write that too. When
// others may add something soon, they get the processor first.
func (o *replies) send(soon bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.busy || len(o.queue) == 0 {
		return
	}
	o.busy = true
	if soon {
		o.mu.Unlock()
		runtime.Gosched()
		o.mu.Lock()
	}
	for len(o.queue) > 0 {
		batch, err := o.queue, o.err
		o.queue = o.spare[:0]
		o.mu.Unlock()
		if err == nil {
			if err = o.write(batch); err != nil {
				o.conn.Close() // so that the loop ends as well
			}
		}
		for i := range batch {
			if batch[i].buffer != nil {
				batch[i].buffer.free()
			}
			if batch[i].pipe != nil {
				o.pipes.put(batch[i].pipe)
			}
			o.budget.give(batch[i].cost)
		}
		clear(batch)
		o.mu.Lock()
		o.spare, o.err = batch[:0], err
	}
	o.busy = false
}

// failure is why nothing can be written any more; nil: it can.
func (o *replies) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// write writes replies by as few system calls as there can be.
func (o *replies) write(batch []reply) error {
	for i := range batch {
		o.gather(batch[i].head[:batch[i].length])
		o.gather(batch[i].body)
		if batch[i].pipe == nil {
			continue
		}
		if err := o.writeGathered(); err != nil {
			return err
		}
		p := batch[i].pipe
		batch[i].pipe = nil
		err := p.empty(o.pipes.socket)
		if o.pipes.put(p); err != nil {
			return err
		}
	}
	return o.writeGathered()
}

// gather adds to what is written next. What is small is copied together.
func (o *replies) gather(p []byte) {
	switch n := len(o.scratch); {
	case len(p) == 0:
	case len(p) > gathered || n+len(p) > gather:
		o.vector, o.tail = append(o.vector, p), false
	default:
		if o.scratch == nil {
			o.scratch = make([]byte, 0, gather)
		}
		o.scratch = append(o.scratch, p...)
		if o.tail {
			last := &o.vector[len(o.vector)-1]
			*last = o.scratch[n-len(*last):]
		} else {
			o.vector, o.tail = append(o.vector, o.scratch[n:]), true
		}
	}
}

func (o *replies) writeGathered() error {
	var err error
	if len(o.vector) == 1 {
		_, err = o.conn.Write(o.vector[0])
	} else if len(o.vector) > 1 {
		left := o.vector
		_, err = left.WriteTo(o.conn)
	}
	clear(o.vector)
	o.vector, o.scratch, o.tail = o.vector[:0], o.scratch[:0], false
	return err
}

// simple is a simple reply; the data of a read follows it.
func simple(cookie uint64, code uint32) (r reply) {
	putSimple(r.head[:], cookie, code)
	r.length = simpleSize
	return r
}

func putSimple(p []byte, cookie uint64, code uint32) {
	binary.BigEndian.PutUint32(p, magicSimple)
	binary.BigEndian.PutUint32(p[4:], code)
	binary.BigEndian.PutUint64(p[8:], cookie)
}

func putChunk(p []byte, kind uint16, cookie uint64, payload int, done bool) {
	binary.BigEndian.PutUint32(p, magicChunk)
	flags := uint16(0)
	if done {
		flags = chunkDone
	}
	binary.BigEndian.PutUint16(p[4:], flags)
	binary.BigEndian.PutUint16(p[6:], kind)
	binary.BigEndian.PutUint64(p[8:], cookie)
	binary.BigEndian.PutUint32(p[16:], uint32(payload))
}

// dataHead is how many bytes putData needs.
const dataHead = chunkSize + offsetSize

// putData puts the beginning of a chunk of n bytes of data.
func putData(p []byte, cookie uint64, off int64, n int, done bool) {
	putChunk(p, chunkOffsetData, cookie, offsetSize+n, done)
	binary.BigEndian.PutUint64(p[chunkSize:], uint64(off))
}

// putHole puts a chunk that says that n bytes are zeros.
func putHole(p []byte, cookie uint64, off int64, n int, done bool) {
	putChunk(p, chunkOffsetHole, cookie, holeSize, done)
	binary.BigEndian.PutUint64(p[chunkSize:], uint64(off))
	binary.BigEndian.PutUint32(p[chunkSize+offsetSize:], uint32(n))
}

// failed is the chunk that ends a reply with an error.
func failed(cookie uint64, code uint32) (r reply) {
	text := syscall.Errno(code).Error()
	putChunk(r.head[:], chunkError, cookie, 6+len(text), true)
	binary.BigEndian.PutUint32(r.head[chunkSize:], code)
	binary.BigEndian.PutUint16(r.head[chunkSize+4:], uint16(len(text)))
	r.length, r.body = chunkSize+6, []byte(text)
	return r
}

// Errors that the protocol has; their numbers are Linux'.
const (
	codePermission  = uint32(unix.EPERM)
	codeIO          = uint32(unix.EIO)
	codeMemory      = uint32(unix.ENOMEM)
	codeInvalid     = uint32(unix.EINVAL)
	codeSpace       = uint32(unix.ENOSPC)
	codeOverflow    = uint32(unix.EOVERFLOW)
	codeUnsupported = uint32(unix.ENOTSUP)
	codeShutdown    = uint32(unix.ESHUTDOWN)
)

// code is what a device's error is to the client.
func code(err error, ended bool) uint32 {
	var e syscall.Errno
	switch {
	case ended:
		return codeShutdown
	case errors.Is(err, ErrNotFast):
		return codeUnsupported
	case !errors.As(err, &e):
		return codeIO
	}
	switch e {
	case unix.EPERM, unix.EACCES, unix.EROFS:
		return codePermission
	case unix.ENOSPC, unix.EDQUOT, unix.EFBIG:
		return codeSpace
	case unix.ENOMEM:
		return codeMemory
	case unix.EINVAL:
		return codeInvalid
	case unix.EOVERFLOW:
		return codeOverflow
	case unix.ENOTSUP:
		return codeUnsupported
	case unix.ESHUTDOWN:
		return codeShutdown
	}
	return codeIO
}
