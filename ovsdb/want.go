package ovsdb

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"heliotrope"
)

// Names that are ours on every host.
const (
	IntBridge    = "br-int"     // the bridge with the pipeline
	PhyBridge    = "br-phy"     // the learning switch with the host's underlay card
	Uplink       = "uplink"     // IntBridge's end of the patch to PhyBridge
	UplinkPhy    = "uplink-phy" // PhyBridge's end
	MeshPort     = "vx-mesh"    // the one tunnel port of a mesh beyond MaxTunnels
	MaxTunnels   = 128          // explicit tunnel ports; beyond, one port whose flows name the peer
	maxPortName  = 15           // IFNAMSIZ less the final zero
	tunnelPrefix = "vx-"
)

// Keys of external_ids.
const (
	ownerKey = "heliotrope"      // on a bridge or interface: it is ours; the value is the host's name
	cardKey  = "iface-id"        // on a device: heliotrope.InterfaceID of what is behind it
	peerKey  = "heliotrope-peer" // on a tunnel: the host at its other end
	termKey  = "heliotrope-term" // on Open_vSwitch: the newest leader that wrote here
)

// Want is what one host's Open vSwitch has to hold.
type Want struct {
	Host         heliotrope.HostID
	DatapathType string                       // of br-int: netdev (the default) or system
	LocalIP      netip.Addr                   // the host's end of all its tunnels
	Tunnels      map[heliotrope.HostID]Tunnel // one for each other host
	Devices      map[string]string            // of the host, to be ports of br-int: name to interface ID
}

// Tunnel is the way to one other host. A zero BFD takes 300 ms.
type Tunnel struct {
	RemoteIP netip.Addr
	BFD      time.Duration // min_rx and min_tx
}

// Kind says what an Object is.
type Kind string

const (
	KindBridge Kind = "bridge"
	KindPatch  Kind = "patch"
	KindVXLAN  Kind = "vxlan"
	KindDevice Kind = "system" // a network device of the host
)

// Object is a bridge or port that is ours. Settings are the columns we hold, flat:
// "fail_mode" or, in a column that is a map, "options:remote_ip". An observed Object has
// "error" among them where ovs-vswitchd could not carry it out, so that it differs from
// any wanted one and is tried again.
type Object struct {
	Kind     Kind
	Bridge   string // where the port is; empty for a bridge
	Settings map[string]string
}

// Equal says whether have needs no change to become want.
func Equal(want, have Object) bool {
	return want.Kind == have.Kind && want.Bridge == have.Bridge && maps.Equal(want.Settings, have.Settings)
}

func (o Object) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", o.Kind)
	if o.Bridge != "" {
		fmt.Fprintf(&b, " in %s", o.Bridge)
	}
	for _, k := range slices.Sorted(maps.Keys(o.Settings)) {
		fmt.Fprintf(&b, " %s=%s", k, o.Settings[k])
	}
	return b.String()
}

// TunnelName is the name of the port to host h: "vx-" and the host's name where that fits
// an interface name, else its beginning and six digits of its hash.
func TunnelName(h heliotrope.HostID) string {
	clean := strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, string(h))
	name := tunnelPrefix + clean
	if clean == string(h) && len(name) <= maxPortName && name != MeshPort {
		return name
	}
	sum := sha256.Sum256([]byte(h))
	tail := "-" + hex.EncodeToString(sum[:3])
	return name[:min(len(name), maxPortName-len(tail))] + tail
}

// Objects returns what w comes to, by the name of the bridge or port. uplink says whether
// the host has a br-phy to patch br-int to. It fails when two hosts would share a port name.
func (w Want) Objects(uplink bool) (map[string]Object, error) {
	owner := string(w.Host)
	datapath := w.DatapathType
	if datapath == "" {
		datapath = "netdev"
	}
	objects := map[string]Object{IntBridge: {Kind: KindBridge, Settings: map[string]string{
		"datapath_type":                datapath,
		"fail_mode":                    "secure", // a dead controller changes no packet's fate
		"protocols":                    "OpenFlow15",
		"other_config:disable-in-band": "true", // no hidden flows for a controller that is not there
		"external_ids:" + ownerKey:     owner,
	}}}
	if uplink {
		objects[Uplink] = patch(IntBridge, UplinkPhy, owner)
		objects[UplinkPhy] = patch(PhyBridge, Uplink, owner)
	}
	for name, id := range w.Devices {
		objects[name] = Object{Kind: KindDevice, Bridge: IntBridge, Settings: map[string]string{
			"external_ids:" + ownerKey: owner, "external_ids:" + cardKey: id,
		}}
	}
	if len(w.Tunnels) > MaxTunnels {
		objects[MeshPort] = vxlan(owner, w.LocalIP.String(), "flow", "")
		return objects, nil
	}
	for _, h := range slices.Sorted(maps.Keys(w.Tunnels)) {
		t, name := w.Tunnels[h], TunnelName(h)
		if other, taken := objects[name]; taken {
			return nil, fmt.Errorf("name tunnel to %s: %s is taken by %v", h, name, other)
		}
		o := vxlan(owner, w.LocalIP.String(), t.RemoteIP.String(), string(h))
		interval := t.BFD
		if interval <= 0 {
			interval = 300 * time.Millisecond
		}
		ms := strconv.FormatInt(max(1, interval.Milliseconds()), 10)
		o.Settings["bfd:enable"], o.Settings["bfd:min_rx"], o.Settings["bfd:min_tx"] = "true", ms, ms
		objects[name] = o
	}
	return objects, nil
}

func patch(bridge, peer, owner string) Object {
	return Object{Kind: KindPatch, Bridge: bridge, Settings: map[string]string{
		"options:peer": peer, "external_ids:" + ownerKey: owner,
	}}
}

func vxlan(owner, local, remote, peer string) Object {
	s := map[string]string{
		"options:key": "flow", "options:local_ip": local, "options:remote_ip": remote,
		"external_ids:" + ownerKey: owner,
	}
	if peer != "" {
		s["external_ids:"+peerKey] = peer
	}
	return Object{Kind: KindVXLAN, Bridge: IntBridge, Settings: s}
}
