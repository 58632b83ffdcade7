// Package accept is the loop of every server of ours that speaks a protocol of its own: it takes
// connections in and hands each to a function, until it is told to end, and ends when all of them have.
//
// Who has not shown yet who he is may be a stranger: of such connections there are at most so many.
// An error that does not end the listener, as when there are too many open files, ends no server: it
// tries again, less and less often.
package accept

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
	firstPause = 5 * time.Millisecond
	lastPause  = time.Second
)

// Loop is that of a server.
type Loop struct {
	Who  string // comes, in the words of errors and the log: "NBD client"
	Most int    // connections at once that have not begun; 0: any number
	Wait bool   // for room among them; else one too many is closed
	Log  *slog.Logger
	// Serve serves a connection, and calls begun, if it does, when that is no stranger's any more. ctx
	// ends with the server's. The connection is closed when it returns.
	Serve func(ctx context.Context, conn net.Conn, begun func()) error
}

// Run takes connections in until ctx ends, closes l, and waits for all of them.
func (s Loop) Run(ctx context.Context, l net.Listener) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	strangers := make(chan struct{}, max(s.Most, 1))
	for pause := firstPause; ; {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return context.Cause(ctx)
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept %s: %w", s.Who, err)
		case err != nil:
			s.Log.Warn("cannot accept "+s.Who, "error", err)
			wait(ctx, pause)
			pause = min(2*pause, lastPause)
			continue
		}
		pause = firstPause
		if !s.enter(ctx, strangers) {
			conn.Close()
			continue
		}
		conns.Go(func() {
			s.one(ctx, conn, sync.OnceFunc(func() {
				if s.Most > 0 {
					<-strangers
				}
			}))
		})
	}
}

// one serves a connection.
func (s Loop) one(ctx context.Context, conn net.Conn, begun func()) {
	defer begun()
	defer conn.Close()
	if err := s.Serve(ctx, conn, begun); err != nil && ctx.Err() == nil {
		s.Log.Warn("connection ended", "of", s.Who, "from", conn.RemoteAddr(), "error", err)
	}
}

// enter says whether there is room for a stranger.
func (s Loop) enter(ctx context.Context, strangers chan<- struct{}) bool {
	switch {
	case s.Most == 0:
		return true
	case s.Wait:
		select {
		case strangers <- struct{}{}:
			return true
		case <-ctx.Done():
			return false
		}
	}
	select {
	case strangers <- struct{}{}:
		return true
	default:
		return false
	}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
