package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	numberSize     = 8
	numberInterval = 10 * time.Millisecond
)

// talkTCP sets up the connection once and talks on it until it breaks or ctx ends.
// A connection that breaks is no error but a result.
func (p *Probe) talkTCP(ctx context.Context) error {
	conn, err := p.dial(ctx)
	if err == nil {
		p.mu.Lock()
		p.conn.local, p.conn.since = conn.LocalAddr().String(), now()
		p.mu.Unlock()
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		var group errgroup.Group
		group.Go(func() error { return p.writeNumbers(ctx, conn) })
		group.Go(func() error { return p.readNumbers(conn) })
		err = group.Wait()
	}
	if ctx.Err() != nil {
		return nil
	}
	p.mu.Lock()
	p.conn.err, p.conn.brokenAt = err, now()
	p.mu.Unlock()
	p.config.Log.Warn("TCP connection of the probe ended", "target", p.config.Target, "error", err)
	return nil
}

// dial tries for a while, for the guest may still boot.
func (p *Probe) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.config.Patience)
	defer cancel()
	var last error
	for {
		dialer := net.Dialer{Timeout: 2 * time.Second}
		conn, err := dialer.DialContext(ctx, "tcp", p.config.Target.String())
		if err == nil {
			return conn, nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no connection in %v: %w", p.config.Patience, last)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (p *Probe) writeNumbers(ctx context.Context, conn net.Conn) error {
	ticker := time.NewTicker(numberInterval)
	defer ticker.Stop()
	message := make([]byte, numberSize)
	last := int64(0) // when a number was sent
	for {
		if perSecond := p.numbers.Load(); perSecond > 0 && now()-last > int64(time.Second)/perSecond-int64(numberInterval)/2 {
			last = now()
			p.mu.Lock()
			number := p.tcp.send(last, 0)
			p.mu.Unlock()
			binary.BigEndian.PutUint64(message, number)
			if _, err := conn.Write(message); err != nil {
				return errors.Join(err, conn.Close())
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// readNumbers wants every number back, in order.
func (p *Probe) readNumbers(conn net.Conn) error {
	defer conn.Close() // ends writeNumbers
	message := make([]byte, numberSize)
	for next := uint64(0); ; next++ {
		if _, err := io.ReadFull(conn, message); err != nil {
			return fmt.Errorf("read echo: %w", err)
		}
		number := binary.BigEndian.Uint64(message)
		if number != next {
			return fmt.Errorf("read echo: got number %d, want %d", number, next)
		}
		p.mu.Lock()
		p.tcp.receive(number, now())
		p.mu.Unlock()
	}
}
