package accept

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// door is a listener to which a test knocks.
type door struct {
	knocks chan any // a net.Conn, or an error
	closed chan struct{}
	once   sync.Once
}

func newDoor() *door { return &door{knocks: make(chan any), closed: make(chan struct{})} }

func (d *door) Accept() (net.Conn, error) {
	select {
	case k := <-d.knocks:
		if err, ok := k.(error); ok {
			return nil, err
		}
		return k.(net.Conn), nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

func (d *door) Close() error   { d.once.Do(func() { close(d.closed) }); return nil }
func (d *door) Addr() net.Addr { return &net.UnixAddr{} }

// knock comes in, and returns the client's end.
func (d *door) knock() net.Conn {
	client, server := net.Pipe()
	d.knocks <- server
	return client
}

// shut says whether the server has closed a connection.
func shut(c net.Conn) bool {
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

var quiet = slog.New(slog.DiscardHandler)

// of is a loop whose connections begin when their client says a byte, and end with its next.
func of(l Loop) (d *door, end func() error) {
	d = newDoor()
	l.Who, l.Log = "guest", quiet
	l.Serve = func(ctx context.Context, conn net.Conn, begun func()) error {
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			return err
		}
		begun()
		_, err := conn.Read(make([]byte, 1))
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx, d) }()
	return d, func() error { cancel(); return <-ended }
}

func TestStrangersAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, end := of(Loop{Most: 2})
		first, second, third := d.knock(), d.knock(), d.knock()
		synctest.Wait()
		if shut(first) || shut(second) || !shut(third) {
			t.Error("the third stranger of two was let in, or another one was not")
		}
		first.Write([]byte{1}) // who has begun is none any more
		synctest.Wait()
		if fourth := d.knock(); shut(fourth) {
			t.Error("there was room for another one")
		}
		if err := end(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if !shut(first) || !shut(second) {
			t.Error("a server that has ended has connections")
		}
	})
}

func TestStrangersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, end := of(Loop{Most: 1, Wait: true})
		first, second := d.knock(), d.knock()
		synctest.Wait()
		if shut(second) {
			t.Error("one that can wait was turned away")
		}
		first.Close()
		synctest.Wait()
		second.Write([]byte{1})
		third, fourth := d.knock(), d.knock()
		end() // with one that waits
		if !shut(third) || !shut(fourth) {
			t.Error("one that waited is still there")
		}
	})
}

func TestErrorsPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, end := of(Loop{})
		began := time.Now()
		for range 20 {
			d.knocks <- syscall.EMFILE
		}
		if took := time.Since(began); took < 10*time.Second || took > 20*time.Second {
			t.Errorf("20 tries took %v", took)
		}
		if c := d.knock(); shut(c) {
			t.Error("one that came then was not let in")
		}
		began = time.Now()
		d.knocks <- syscall.EMFILE
		if c := d.knock(); shut(c) || time.Since(began) > 100*time.Millisecond {
			t.Error("it is as slow as it was")
		}
		end()
	})
}

// A listener that is closed by somebody else ends the server, which says so.
func TestClosedListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, end := of(Loop{})
		c := d.knock()
		d.Close()
		synctest.Wait()
		if err := end(); !errors.Is(err, net.ErrClosed) || !shut(c) {
			t.Error(err)
		}
	})
}
