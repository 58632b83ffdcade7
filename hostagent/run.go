package hostagent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/capture"
	"heliotrope/hostagent/durable"
	"heliotrope/hostagent/images"
	"heliotrope/hostagent/libvirt"
	"heliotrope/hostagent/memory"
	"heliotrope/hostagent/paths"
	"heliotrope/migration/relay"
	"heliotrope/migration/relay/near"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
)

// Run is the agent, until ctx ends. It needs nothing to be there but what Join left:
// libvirt, the switch and the controller may come later, and come and go.
func Run(ctx context.Context, c Config) error {
	id, err := c.identity()
	if err != nil {
		return err
	}
	if c.ServeDisks {
		return images.Serve(ctx, c.images(id.Host()))
	}
	if c.Controller == "" {
		return errors.New("run agent: which controller? give its address as host:port")
	}
	if err := mkdirs(c); err != nil {
		return err
	}
	if c.dial == nil {
		c.dial = func(ctx context.Context) (hypervisor, error) {
			hv, err := libvirt.Dial(ctx, c.Libvirt, c.Log)
			if err != nil {
				return nil, err
			}
			return local{hv}, nil
		}
	}
	ledger, err := durable.OpenLedger(c.StateDir)
	if err != nil {
		return err
	}
	hub := newHub()
	// In RunDir files are memory: pages of guests have no business on a disk.
	encoding, err := memory.Encoding(int64(c.MoveMemory), int64(c.PageCache), filepath.Join(c.RunDir, "pages"), c.images(id.Host()).Caches(), c.Log)
	if err != nil {
		return err
	}
	server := relay.NewServer(id.HostServer(relay.ALPN, images.ALPN, near.ALPN), agentapi.PeerHost, c.Log)
	server.Encoding = encoding
	port, err := relay.Listen(ctx, c.Relay)
	if err != nil {
		return err
	}
	if c.disks == nil {
		c.disks = c.diskServer
	}
	disks := images.New(c.images(id.Host()), c.disks)
	server.Others = map[string]relay.Other{images.ALPN: disks.Pass, near.ALPN: memory.Neighbours(encoding, id, c.Log)}
	conn := newConnection(func(ctx context.Context) (hypervisor, error) {
		hv, err := c.dial(ctx)
		if err != nil || !disks.Used() {
			return hv, err
		}
		return imaged{images.Over{Hypervisor: hv, Disks: disks}, inner{hv}}, nil
	}, c.Log)
	up, ways, gone := &uplink{hub: hub}, paths.New(c.Log), &revoked{hub: hub, log: c.Log}
	mv := &moves{
		dir: filepath.Join(c.StateDir, "moves"), runDir: c.RunDir, diskDir: c.diskDir(), user: c.QEMUUser,
		log: c.Log, conn: conn, ledger: ledger, hub: hub, relay: server,
		to: func(peer heliotrope.HostID, tenant heliotrope.TenantID, addr string) (*relay.Client, error) {
			a, err := netip.ParseAddrPort(addr)
			if err != nil {
				return nil, fmt.Errorf("find relay of %s: %w", peer, err)
			}
			return &relay.Client{Addr: a, TLS: id.HostClient(peer, relay.ALPN), Encoding: memory.Towards(peer, ways.Measured(), encoding).For(tenant)}, nil
		},
	}
	if err := mv.load(); err != nil {
		return errors.Join(err, port.Close())
	}
	vm := &vms{
		Orders: &images.Orders{Fence: ledger.Fence, Disks: disks}, config: c, host: id.Host(), boot: rand.Text(), log: c.Log,
		conn: conn, ledger: ledger, moves: mv, uplink: up, paths: ways, revoked: gone,
		known: make(chan libvirt.Host, 1),
	}
	flows, counts := newFlows(c), capture.New(id.Host(), c.Log)
	measured, err := newBencher(c, mv)
	if err != nil {
		return errors.Join(err, port.Close())
	}
	dialer := &agentapi.Dialer{
		Controller: c.Controller, Identity: id, Log: c.Log,
		Handler:  agentapi.Handler(vm, moveService{mv}, counter{counts, ledger}, measured),
		OpenFlow: flows.dial,
		OVSDB: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", c.ovsdbSock())
		},
	}
	c.Log.Info("agent runs", "host", id.Host(), "controller", c.Controller, "relay", port.Addr(), "version", Version)

	g, ctx := errgroup.WithContext(ctx)
	if c.Libvirt != NoLibvirt {
		g.Go(func() error { return conn.keep(ctx, hub.domain) }) // libvirt, and its events
		g.Go(func() error { return vm.learn(ctx) })              // what can the host do?
		if disks.Used() {
			g.Go(func() error { return disks.Run(ctx) }) // VMs' disks over images of a store
		}
	}
	if c.Revocation != "" {
		g.Go(func() error { return gone.run(ctx, c.Revocation) })
	}
	if encoding != nil && encoding.Site != nil {
		g.Go(func() error { return encoding.Site.Run(ctx) }) // what is kept of VMs that moved
	}
	g.Go(func() error { return mv.run(ctx) })             // steps of moves
	g.Go(func() error { return server.Serve(ctx, port) }) // streams from other hosts
	g.Go(func() error { return flows.run(ctx) })          // a copy of the switch's flows
	g.Go(func() error { return counts.Run(ctx) })         // who talks to whom
	g.Go(func() error { return up.run(ctx) })             // the site's router
	g.Go(func() error { return ways.Run(ctx, up.size) })  // the other hosts
	g.Go(func() error { return measured.Run(ctx) })       // how fast the host is
	g.Go(func() error { return dialer.Run(ctx) })         // the controller
	g.Go(func() error { return renew(ctx, c, id) })       // the certificate
	return g.Wait()
}

// imaged is a hypervisor some of whose VMs have disks over images of a store.
type (
	imaged struct {
		images.Over
		inner // what disks have nothing to do with
	}
	inner struct{ hypervisor }
)

// renew keeps the host's certificate young.
func renew(ctx context.Context, c Config, id *agentapi.Identity) error {
	const again = time.Minute
	for {
		pause(ctx, time.Until(id.RenewAt()))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		fresh, err := agentapi.Renew(ctx, c.Controller, id, Version)
		if err == nil {
			err = durable.WriteFile(c.hostFile(), fresh, 0o600)
		}
		if err == nil {
			err = id.Replace(fresh)
		}
		if err == nil {
			c.Log.Info("certificate renewed", "until", id.NotAfter())
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c.Log.Warn("certificate not renewed", "until", id.NotAfter(), "error", err)
		if time.Now().After(id.NotAfter()) {
			c.Log.Error("the host's certificate has expired: make a token and join again")
		}
		// A short-lived certificate cannot wait long.
		pause(ctx, min(again, max(time.Until(id.NotAfter())/10, time.Second)))
	}
}
