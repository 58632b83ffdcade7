package ovsdb

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"heliotrope"
)

// Port is one interface of a bridge, as Open vSwitch reports it.
type Port struct {
	Name    string
	Bridge  string
	Type    string // "" for a system interface such as a tap
	Ofport  int    // OpenFlow port number; 0 while it has none
	Error   string // Open vSwitch's words for why it has none
	Ifindex int    // 0 where unknown
	LinkUp  bool
	MAC     string // of the guest's card, where libvirt plugged it in (external_ids:attached-mac)
	IfaceID string // libvirt's name of the card (external_ids:iface-id)
	VMID    string // the domain's UUID (external_ids:vm-id)

	Ours    bool              // made by us
	Foreign bool              // not ours, not a VM's, not its bridge's own: left alone
	Peer    heliotrope.HostID // of a tunnel: the host at its other end
	BFD     *BFD              // nil where BFD does not run

	Statistics map[string]int // Open vSwitch's counters, rx_packets and so on
}

// BFD is the state of one BFD session.
type BFD struct {
	State       string // up, down, init or admin_down
	Forwarding  bool
	Diagnostic  string // why the state last changed, in Open vSwitch's words
	RemoteState string
	FlapCount   uint64 // changes of Forwarding
}

// Ports returns every interface of every bridge, ordered by bridge and name.
func (s *Switch) Ports(ctx context.Context) ([]Port, error) {
	rows, err := s.read(ctx, true)
	if err != nil {
		return nil, err
	}
	var ports []Port
	for _, p := range rows.places() {
		ports = append(ports, portOf(p))
	}
	slices.SortFunc(ports, func(a, b Port) int {
		if c := strings.Compare(a.Bridge, b.Bridge); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return ports, nil
}

func portOf(p place) Port {
	ids := p.iface.ExternalIDs
	out := Port{
		Name: p.iface.Name, Bridge: p.bridge.Name, Type: p.iface.Type,
		MAC: ids["attached-mac"], IfaceID: ids["iface-id"], VMID: ids["vm-id"],
		LinkUp: p.iface.LinkState != nil && *p.iface.LinkState == "up",
		Peer:   heliotrope.HostID(ids[peerKey]), Statistics: p.iface.Statistics,
	}
	if n := p.iface.Ofport; n != nil && *n > 0 {
		out.Ofport = *n
	}
	if e := p.iface.Error; e != nil {
		out.Error = *e
	}
	if n := p.iface.Ifindex; n != nil {
		out.Ifindex = *n
	}
	if bfd, ok := parseBFD(p.iface.BFDStatus); ok {
		out.BFD = &bfd
	}
	_, out.Ours = ids[ownerKey]
	out.Ours = out.Ours || p.port.Name == p.bridge.Name && p.bridge.Name == IntBridge
	out.Foreign = !out.Ours && out.IfaceID == "" && p.port.Name != p.bridge.Name
	return out
}

// parseBFD reads column bfd_status; false where BFD does not run. Unknown values come out
// as Open vSwitch wrote them, a count that is none as zero.
func parseBFD(status map[string]string) (BFD, bool) {
	if status["state"] == "" {
		return BFD{}, false
	}
	flaps, err := strconv.ParseUint(status["flap_count"], 10, 64)
	if err != nil {
		flaps = 0
	}
	return BFD{
		State:       status["state"],
		Forwarding:  status["forwarding"] == "true",
		Diagnostic:  status["diagnostic"],
		RemoteState: status["remote_state"],
		FlapCount:   flaps,
	}, true
}
