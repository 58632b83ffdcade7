package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"heliotrope/internal/reconcile"
)

// netconf keeps a node's addresses, routes and neighbours as the plan has them. It is a
// loop and no script, because br-phy and all that hangs on it vanish whenever
// ovs-vswitchd is restarted.
type netconf struct{ plan Plan }

// wanted is one thing to be configured: add makes it, and is safe to repeat.
type wanted struct{ add func() error }

// run keeps the node configured until ctx ends; configured is called after each round.
func (n netconf) run(ctx context.Context, configured func(error)) error {
	loop := reconcile.New(n, n.want, func(_, _ wanted) bool { return true }, reconcile.Options{
		RetryMax: restartPause,
		Resync:   5 * time.Second, // no link tells when ovs-vswitchd opens a socket
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
		w[r.key()] = wanted{r.add}
		if r.Device != "" {
			up(r.Device)
		}
	}
	for _, r := range n.plan.Rules {
		for _, rule := range r.rules() {
			w[ruleKey(rule)] = wanted{func() error { return r.add(rule) }}
		}
	}
	if slices.ContainsFunc(n.plan.Addresses, func(a Address) bool { return a.Device == uplinkBridge }) {
		w[queueKey] = wanted{setUplinkQueue}
		w[packetsKey] = wanted{growPacketSockets}
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
		if l.Attrs().Name == uplinkBridge && l.Attrs().TxQLen == uplinkQueue {
			have[queueKey] = wanted{}
		}
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
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
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: unix.RTPROT_STATIC, Table: unix.RT_TABLE_UNSPEC},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		have[routeKey(r.Dst, r.Table)] = wanted{}
	}
	rules, err := netlink.RuleList(netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	for _, r := range rules {
		have[ruleKey(r)] = wanted{}
	}
	if grown, err := packetSocketsGrown(); err != nil {
		return nil, err
	} else if grown {
		have[packetsKey] = wanted{}
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

func (a Address) add() error {
	return onLink(a.Device, func(l netlink.Link) error {
		addr := &netlink.Addr{IPNet: ipNet(a.Prefix)}
		if a.Prefix.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // nobody else can have it
		}
		return netlink.AddrReplace(l, addr)
	})
}

func (r Route) add() error {
	route := &netlink.Route{Dst: ipNet(r.To), Gw: r.Via.AsSlice(), Protocol: unix.RTPROT_STATIC, Table: r.Table}
	if r.Source.IsValid() {
		route.Src = r.Source.AsSlice()
	}
	if r.Device != "" {
		link, err := netlink.LinkByName(r.Device)
		if err != nil {
			return fmt.Errorf("add route to %s: find %s: %w", r.To, r.Device, err)
		}
		route.LinkIndex = link.Attrs().Index
		route.SetFlag(netlink.FLAG_ONLINK) // the device has no address of its own
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("add route to %s: %w", r.To, err)
	}
	return nil
}

func (r Route) key() string { return routeKey(ipNet(r.To), r.Table) }

func routeKey(to *net.IPNet, table int) string {
	all := "0.0.0.0/0"
	if to != nil {
		all = to.String()
	}
	return fmt.Sprintf("4 route %s in %d", all, cmp.Or(table, unix.RT_TABLE_MAIN))
}

// rules are r's two: for the end that dials and for the one that listens.
func (r Rule) rules() []netlink.Rule {
	var both [2]netlink.Rule
	for i := range both {
		both[i] = *netlink.NewRule()
		both[i].Family, both[i].IPProto, both[i].Table = netlink.FAMILY_V4, unix.IPPROTO_TCP, r.Table
	}
	both[0].Dport, both[1].Sport = netlink.NewRulePortRange(r.Port, r.Port), netlink.NewRulePortRange(r.Port, r.Port)
	return both[:]
}

func (r Rule) add(rule netlink.Rule) error {
	if err := netlink.RuleAdd(&rule); err != nil {
		return fmt.Errorf("add rule for port %d: %w", r.Port, err)
	}
	return nil
}

func ruleKey(r netlink.Rule) string {
	return fmt.Sprintf("5 rule %v to %v in %d", r.Sport, r.Dport, r.Table)
}

func (nb Neighbor) add() error {
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
