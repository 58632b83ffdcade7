package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"heliotrope/internal/reconcile"
)

// netconf keeps a node's addresses, routes and neighbours as the plan has them. It is a
// loop and no script, because br-phy and all that hangs on it vanish whenever
// ovs-vswitchd is restarted.
type netconf struct{ plan plan }

// wanted is one thing to be configured: add makes it, and is safe to repeat.
type wanted struct{ add func() error }

// run keeps the node configured until ctx ends; configured is called after each round.
func (n netconf) run(ctx context.Context, configured func(error)) error {
	loop := reconcile.New(n, n.want, func(_, _ wanted) bool { return true }, reconcile.Options{
		RetryMax: restartPause,
		Done:     func(r reconcile.Round) { configured(r.Err) },
	})
	changes := make(chan netlink.LinkUpdate, 64)
	stop := make(chan struct{})
	if err := netlink.LinkSubscribe(changes, stop); err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range changes {
			loop.Kick()
		}
	}()
	err := loop.Run(ctx)
	close(stop)
	<-done
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// want is keyed so that a link precedes its addresses, and they the routes through them.
func (n netconf) want(context.Context) (map[string]wanted, error) {
	w := map[string]wanted{}
	up := func(device string) {
		w["1 up "+device] = wanted{func() error { return onLink(device, netlink.LinkSetUp) }}
	}
	up("lo")
	for _, a := range n.plan.Addresses {
		up(a.Device)
		w["2 address "+a.Device+" "+a.Prefix.String()] = wanted{a.add}
	}
	for _, nb := range n.plan.Neighbors {
		w["3 neighbor "+nb.Device+" "+nb.Address.String()] = wanted{nb.add}
	}
	for _, r := range n.plan.Routes {
		w["4 route "+r.To.String()] = wanted{r.add}
	}
	return w, nil
}

// Observe returns those of the wanted that are there, and nothing else.
func (n netconf) Observe(context.Context) (map[string]wanted, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	have, names := map[string]wanted{}, map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		if l.Attrs().Flags&net.FlagUp != 0 {
			have["1 up "+l.Attrs().Name] = wanted{}
		}
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		have["2 address "+names[a.LinkIndex]+" "+a.IPNet.String()] = wanted{}
	}
	neighs, err := netlink.NeighList(0, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	for _, nb := range neighs {
		if nb.State&netlink.NUD_PERMANENT != 0 {
			have["3 neighbor "+names[nb.LinkIndex]+" "+nb.IP.String()] = wanted{}
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		to := "0.0.0.0/0"
		if r.Dst != nil {
			to = r.Dst.String()
		}
		if r.Protocol == unix.RTPROT_STATIC {
			have["4 route "+to] = wanted{}
		}
	}
	return n.onlyWanted(have)
}

func (n netconf) onlyWanted(have map[string]wanted) (map[string]wanted, error) {
	w, err := n.want(context.Background())
	for k := range have {
		if _, ok := w[k]; !ok {
			delete(have, k)
		}
	}
	return have, err
}

// Apply adds what is missing. Nothing is ever deleted: Observe sees only what is wanted.
func (n netconf) Apply(_ context.Context, changes []reconcile.Change[string, wanted]) error {
	for _, c := range changes {
		if err := c.Want.add(); err != nil {
			return err
		}
	}
	return nil
}

func (a address) add() error {
	return onLink(a.Device, func(l netlink.Link) error {
		return netlink.AddrReplace(l, &netlink.Addr{IPNet: ipNet(a.Prefix)})
	})
}

func (r route) add() error {
	err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(r.To), Gw: r.Via.AsSlice(), Protocol: unix.RTPROT_STATIC})
	if err != nil {
		return fmt.Errorf("add route to %s: %w", r.To, err)
	}
	return nil
}

func (nb neighbor) add() error {
	return onLink(nb.Device, func(l netlink.Link) error {
		return netlink.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, Family: netlink.FAMILY_V4,
			IP: nb.Address.AsSlice(), HardwareAddr: nb.MAC[:],
		})
	})
}

// errNoLink says that a device is not there yet, or not any more.
var errNoLink = errors.New("no such device")

func onLink(name string, do func(netlink.Link) error) error {
	l, err := netlink.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return fmt.Errorf("configure %s: %w", name, errNoLink)
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := do(l); err != nil {
		return fmt.Errorf("configure %s: %w", name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
