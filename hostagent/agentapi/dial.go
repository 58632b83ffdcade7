package agentapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// Pauses between attempts. A controller that was just restarted must have its hosts back
// within a second; one that is away for long must not be hammered by all of them.
const (
	pauseFirst = 100 * time.Millisecond
	pauseSoon  = 800 * time.Millisecond // the longest within outageLong
	pauseLong  = 5 * time.Second
	outageLong = 30 * time.Second
	connStable = 2 * time.Second // a connection that lasted so long was a good one
)

// Dialer keeps an agent's three connections to the controller up.
type Dialer struct {
	Controller string // host:port
	Identity   *Identity
	Handler    http.Handler // for RPC
	// OVSDB and OpenFlow connect to the host's switch. They are called anew for each
	// connection to the controller, and before it.
	OVSDB    func(ctx context.Context) (net.Conn, error)
	OpenFlow func(ctx context.Context) (net.Conn, error)
	Log      *slog.Logger
}

// Run runs until ctx ends.
func (d *Dialer) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return d.keep(ctx, "rpc", func(ctx context.Context, up func()) error {
			conn, err := dialTLS(ctx, d.Controller, d.Identity.ControllerClient(alpnRPC))
			if err != nil {
				return fmt.Errorf("dial controller: %w", err)
			}
			defer conn.Close()
			up()
			serveHTTP2(ctx, conn, d.Handler, d.Log)
			return errEnded
		})
	})
	g.Go(func() error {
		return d.keep(ctx, "ovsdb", func(ctx context.Context, up func()) error {
			return d.splice(ctx, alpnOVSDB, d.OVSDB, up)
		})
	})
	g.Go(func() error {
		return d.keep(ctx, "openflow", func(ctx context.Context, up func()) error {
			return d.splice(ctx, alpnOpenFlow, d.OpenFlow, up)
		})
	})
	return g.Wait()
}

var errEnded = errors.New("connection ended")

func (d *Dialer) splice(ctx context.Context, alpn string, dialLocal func(context.Context) (net.Conn, error), up func()) error {
	local, err := dialLocal(ctx)
	if err != nil {
		return fmt.Errorf("dial switch: %w", err)
	}
	defer local.Close()
	conn, err := dialTLS(ctx, d.Controller, d.Identity.ControllerClient(alpn))
	if err != nil {
		return fmt.Errorf("dial controller: %w", err)
	}
	up()
	splice(ctx, conn, local)
	return errEnded
}

// keep runs once over and over. It logs when a connection comes and goes, not each attempt.
func (d *Dialer) keep(ctx context.Context, what string, once func(ctx context.Context, up func()) error) error {
	wait, down := pauseFirst, time.Now()
	told := ""
	for {
		var since time.Time
		err := once(ctx, func() {
			since = time.Now()
			d.Log.Info("connected to controller", "for", what)
		})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !since.IsZero() && time.Since(since) > connStable {
			wait, down, told = pauseFirst, time.Now(), ""
		}
		if told != err.Error() {
			told = err.Error()
			d.Log.Warn("not connected to controller", "for", what, "error", err)
		}
		pause(ctx, wait/2+rand.N(wait/2))
		longest := pauseSoon
		if time.Since(down) > outageLong {
			longest = pauseLong
		}
		wait = min(2*wait, longest)
	}
}
