package probe

import (
	"context"
	"fmt"
	"io"
	"net"

	"golang.org/x/sync/errgroup"
)

// Echo sends back what it is sent, over TCP (RFC 862), until ctx ends.
func Echo(ctx context.Context, address string) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("serve echo: %w", err)
	}
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	var conns errgroup.Group
	defer conns.Wait()
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve echo: %w", err)
		}
		conns.Go(func() error {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			io.Copy(conn, conn) // until the other end has enough
			return nil
		})
	}
}
