package traffic

import (
	"net/netip"

	"heliotrope"
)

// Orders say what a host is to count, and who is who.
type Orders struct {
	Source   Source    `json:"source"`             // empty: as much as the budget allows, packets first
	Budget   float64   `json:"budget"`             // share of one core that counting may take
	Sampling uint32    `json:"sampling,omitempty"` // look at one of so many packets; 0: as the load allows, 1: at all
	MaxKeys  int       `json:"max_keys"`           // that a bin may have; what comes beyond is counted under coarser keys
	Grain4   int       `json:"grain4"`             // bits of the prefixes that are told of what is outside, IPv4
	Grain6   int       `json:"grain6"`             // and IPv6
	Ports    []Port    `json:"ports,omitempty"`    // to count at; none: count nothing
	Book     []Address `json:"book,omitempty"`     // every address of every VM
}

// Port is a VM's port of this host.
type Port struct {
	Device string          `json:"device"` // the network device, such as a tap
	VM     heliotrope.VMID `json:"vm"`
	Domain string          `json:"domain"` // the address space that the VM's own address is in
}

// Address is an address of a VM.
type Address struct {
	Domain  string          `json:"domain,omitempty"` // empty for a public address, which is the same everywhere
	Address netip.Addr      `json:"address"`
	VM      heliotrope.VMID `json:"vm"`
	Counted bool            `json:"counted,omitempty"` // what the VM sends is counted at its own port
	Off     bool            `json:"off,omitempty"`     // nothing to or from it is counted: its network wants that
}

// InjectMark is the socket mark of frames that the agent puts into a tap a second time, in
// a move. They were counted when they came the first time.
const InjectMark = 0x48454c49
