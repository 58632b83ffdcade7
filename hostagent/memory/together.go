package memory

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/migration/relay"
	"heliotrope/migration/relay/near"
	"heliotrope/migration/relay/share"
)

// Neighbours has streams of e share what they send with those of other hosts (package near), and returns what takes
// these hosts' connections.
func Neighbours(e *relay.Encoding, id *agentapi.Identity, log *slog.Logger) relay.Other {
	if e == nil {
		return func(_ context.Context, from heliotrope.HostID, conn net.Conn) error {
			conn.Close()
			return errors.New("memory is sent as it is: there is nothing to tell " + string(from))
		}
	}
	e.Near = &near.Host{
		Name: id.Host(), Share: e.Share, Log: log,
		Dial: func(ctx context.Context, host heliotrope.HostID, addr netip.AddrPort) (net.Conn, error) {
			return relay.Dial(ctx, addr, id.HostClient(host, near.ALPN))
		},
	}
	return e.Near.Serve
}

// Together tells a client what its order says of other moves.
func Together(c *relay.Client, o agentapi.MoveOrder) {
	if o.Together == nil {
		return
	}
	c.Way, c.Sources = share.Way{Host: o.Peer, Site: o.Together.Site, Seed: o.Together.Seed}, nil
	for host, addr := range o.Together.Sources {
		c.Sources = append(c.Sources, near.Peer{Host: host, Relay: addr})
	}
}
