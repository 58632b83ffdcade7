package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Large reads of what stands in a file go to a unix socket without being copied: a pipe takes
// the pages from the page cache, which is where a read may wait and may fail, and gives them
// to the socket when it is the reply's turn. The client copies them, and nobody else.
//
// A client so gets what stands in the file when it reads from its socket. That may be newer
// than the reply, as a write under way at the same time may be; it is never older.
const (
	spliceLeast = 32 << 10  // bytes of a read; to copy less costs less
	splicePiece = 512 << 10 // bytes that go into one pipe, with spare pages for short reads
	pipeSize    = 1 << 20   // bytes; more needs a privilege (pipe(7), pipe-max-size)
	maxPipes    = 32        // of a connection; further reads wait
)

// pipe takes one piece of a read from a file to a socket.
type pipe struct {
	r, w int // descriptors
	n    int // bytes inside
}

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	p := &pipe{r: fds[0], w: fds[1]}
	if _, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		p.close()
		return nil, fmt.Errorf("widen pipe: %w", err)
	}
	return p, nil
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

var errShort = errors.New("the pipe took less than was asked")

// fill takes n bytes of a file, at most splicePiece. After an error the pipe is of no use.
func (p *pipe) fill(f *os.File, off int64, n int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	// Each try may leave a page that is not full: there is room for no more of them.
	const tries = (pipeSize-splicePiece)/4096 - 1
	var inner error
	err = raw.Control(func(fd uintptr) {
		for range tries {
			var got int64
			got, inner = unix.Splice(int(fd), &off, p.w, nil, n-p.n, 0)
			if errors.Is(inner, unix.EINTR) {
				continue
			}
			if inner == nil && got == 0 {
				inner = io.ErrUnexpectedEOF
			}
			if inner != nil {
				return
			}
			if p.n += int(got); p.n == n {
				return
			}
		}
		inner = errShort
	})
	return errors.Join(err, inner)
}

// empty gives all to a socket.
func (p *pipe) empty(to syscall.RawConn) error {
	var inner error
	err := to.Write(func(fd uintptr) bool {
		for p.n > 0 {
			n, err := unix.Splice(p.r, nil, int(fd), nil, p.n, unix.SPLICE_F_NONBLOCK)
			switch {
			case errors.Is(err, unix.EAGAIN):
				return false
			case errors.Is(err, unix.EINTR):
			case err == nil && n == 0:
				inner = io.ErrUnexpectedEOF
				return true
			case err != nil:
				inner = fmt.Errorf("splice: %w", err)
				return true
			default:
				p.n -= int(n)
			}
		}
		return true
	})
	return errors.Join(err, inner)
}

// pipes are those of a connection.
type pipes struct {
	socket syscall.RawConn
	idle   chan *pipe
	made   chan struct{} // of size maxPipes: one for each pipe that there is
}

// newPipes returns nil where a connection cannot take pages.
func newPipes(conn net.Conn) *pipes {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return nil
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil
	}
	return &pipes{socket: raw, idle: make(chan *pipe, maxPipes), made: make(chan struct{}, maxPipes)}
}

// get returns an empty pipe. It waits for one if there are as many as there may be: they come
// back as the client takes what is in them. It returns nil where none can be made.
func (ps *pipes) get() *pipe {
	select {
	case p := <-ps.idle:
		return p
	default:
	}
	select {
	case p := <-ps.idle:
		return p
	case ps.made <- struct{}{}:
	}
	p, err := newPipe()
	if err != nil {
		<-ps.made
		return nil
	}
	return p
}

// put takes a pipe back. One that is not empty is given up.
func (ps *pipes) put(p *pipe) {
	if p.n == 0 {
		ps.idle <- p
		return
	}
	p.close()
	<-ps.made
}

// close closes all pipes; none is in use.
func (ps *pipes) close() {
	for {
		select {
		case p := <-ps.idle:
			p.close()
		default:
			return
		}
	}
}

// splice answers a read from the device's file. It returns false if the read, or what is then
// left of it, has to be copied: it does not stand in one file, or has holes, of which a client
// is told.
func (s *session) splice(ctx context.Context, r *request) bool {
	if s.pipes == nil || r.n < spliceLeast || r.n > splicePiece && (!s.structured || r.flags&cmdFlagDF != 0) {
		return false
	}
	f, at := s.device.(Backed).Backing(int64(r.off), int64(r.n))
	if f == nil || s.structured && !s.isData(ctx, r) {
		return false
	}
	for r.n > 0 {
		p := s.pipes.get()
		if p == nil {
			return false
		}
		n := min(r.n, splicePiece)
		if err := p.fill(f, at, int(n)); err != nil {
			p.n = max(p.n, 1) // for put
			s.pipes.put(p)
			return false // whoever copies meets the error again, and tells it
		}
		part := simple(r.cookie, 0)
		if s.structured {
			putData(part.head[:], r.cookie, int64(r.off), int(n), n == r.n)
			part.length = dataHead
		}
		if part.pipe = p; n == r.n {
			part.cost = r.held
		}
		s.out.put(part)
		s.out.send(false) // pipes that wait here would keep others waiting
		r.off, r.n, at = r.off+uint64(n), r.n-n, at+int64(n)
	}
	return true
}

// isData says that a range has no holes.
func (s *session) isData(ctx context.Context, r *request) bool {
	data := true
	err := s.device.Extents(ctx, int64(r.off), int64(r.n), func(e Extent) bool {
		data = data && !e.Zero
		return data
	})
	return data && err == nil
}
