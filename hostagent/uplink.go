package hostagent

import (
	"context"
	"errors"
	"fmt"
	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"net"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	gatewayAsk   = 500 * time.Millisecond // while its address is not known
	gatewayCheck = 5 * time.Second
	resolveLimit = time.Second // for the host's own name
)

var errNoGateway = errors.New("the host has no default route")

// uplink knows how the host reaches its site's router.
type uplink struct {
	hub *hub

	mu   sync.Mutex
	mac  heliotrope.MAC
	mtu  int
	warn []string
}

func (u *uplink) gateway() (heliotrope.MAC, int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.mac, u.mtu
}

// size is the MTU of the underlay as this host has it.
func (u *uplink) size() int {
	_, mtu := u.gateway()
	return mtu
}

func (u *uplink) warnings() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]string(nil), u.warn...)
}

// run looks at the uplink until ctx ends.
func (u *uplink) run(ctx context.Context) error {
	for ctx.Err() == nil {
		mac, mtu, err := lookAtGateway(ctx)
		var warn []string
		if err != nil {
			warn = append(warn, err.Error())
		}
		if w := checkHostname(ctx); w != "" {
			warn = append(warn, w)
		}
		if u.note(mac, mtu, warn) {
			u.hub.tell(agentapi.Event{Kind: "host", At: time.Now(), What: "gateway " + mac.String()})
		}
		if mac.IsZero() {
			pause(ctx, gatewayAsk)
		} else {
			pause(ctx, gatewayCheck)
		}
	}
	return context.Cause(ctx)
}

// note keeps what was seen and says whether that is new. A gateway whose address the kernel
// has just forgotten is most likely still the same: flows to it stay.
func (u *uplink) note(mac heliotrope.MAC, mtu int, warn []string) (changed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if mac.IsZero() {
		mac = u.mac
	}
	changed = u.mac != mac || u.mtu != mtu
	u.mac, u.mtu, u.warn = mac, mtu, warn
	return changed
}

// lookAtGateway returns the default gateway's Ethernet address from the kernel's table of
// neighbours, zero if it is not there, and the MTU towards it. It makes the kernel ask
// for what is missing.
func lookAtGateway(ctx context.Context) (heliotrope.MAC, int, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	if err != nil {
		return heliotrope.MAC{}, 0, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Gw == nil {
			continue
		}
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			return heliotrope.MAC{}, 0, fmt.Errorf("find uplink: %w", err)
		}
		mtu := link.Attrs().MTU
		neighbours, err := netlink.NeighList(r.LinkIndex, netlink.FAMILY_V4)
		if err != nil {
			return heliotrope.MAC{}, mtu, fmt.Errorf("list neighbours: %w", err)
		}
		const bad = netlink.NUD_FAILED | netlink.NUD_INCOMPLETE
		for _, n := range neighbours {
			if n.IP.Equal(r.Gw) && len(n.HardwareAddr) == 6 && n.State&bad == 0 {
				return heliotrope.MAC(n.HardwareAddr), mtu, nil
			}
		}
		return heliotrope.MAC{}, mtu, provoke(ctx, r.Gw)
	}
	return heliotrope.MAC{}, 0, errNoGateway
}

// provoke makes the kernel resolve ip, by a datagram that nobody reads.
func provoke(ctx context.Context, ip net.IP) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", net.JoinHostPort(ip.String(), "9"))
	if err != nil {
		return fmt.Errorf("ask for gateway: %w", err)
	}
	defer conn.Close()
	// An answer, even a refusal, comes only after the kernel has what we want.
	_, _ = conn.Write([]byte{0})
	return nil
}

// checkHostname warns of what makes each of libvirt's steps wait for a resolver.
func checkHostname(ctx context.Context) string {
	name, err := os.Hostname()
	if err != nil {
		return fmt.Sprintf("the host has no name: %v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, resolveLimit)
	defer cancel()
	if _, err := net.DefaultResolver.LookupHost(ctx, name); err != nil && context.Cause(ctx) != context.Canceled {
		return fmt.Sprintf("the host's own name %q does not resolve: put it into /etc/hosts, or starts and moves take seconds longer", name)
	}
	return ""
}
