package node

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope"
)

// Plan is all that a PID 1 must know to become a node.
type Plan struct {
	Node      string
	Dir       string            // the node's directory, seen from outside
	Trees     map[string]string // target inside the node -> directory outside
	Images    map[string]string // image -> directory outside, bound read-only
	Sysctls   map[string]string // below /proc/sys
	Addresses []Address
	Routes    []Route
	Rules     []Rule
	Neighbors []Neighbor
	Daemons   []Daemon
}

// Address is one address of a device.
type Address struct {
	Device string
	Prefix netip.Prefix
}

// Route is a static route.
type Route struct {
	To     netip.Prefix
	Via    netip.Addr
	Device string     // needed only where Via is on more than one
	Source netip.Addr // of what is sent this way, where that is not plain
	Table  int        // zero: the main one
}

// Rule has TCP from or to a port look a routing table up first.
type Rule struct {
	Port  uint16
	Table int
}

// Neighbor is a permanent neighbour entry.
type Neighbor struct {
	Device  string
	Address netip.Addr
	MAC     heliotrope.MAC
}

// Daemon is a process that is started again whenever it ends.
type Daemon struct {
	Name   string
	Argv   []string
	Before [][]string // run one after the other before each start; must succeed
	Ready  []string   // tried after each start until it succeeds; nil: ready at once
}

// DaemonStatus is one daemon of a node.
type DaemonStatus struct {
	Name     string    `json:"name"`
	PID      int       `json:"pid,omitempty"` // in the node; 0 while it does not run
	Ready    bool      `json:"ready"`         // it runs and has answered
	Started  time.Time `json:"started,omitzero"`
	Restarts int       `json:"restarts"`
	LastExit string    `json:"last_exit,omitempty"` // why it ended the last time
}

// FD is a PID 1's end of the socket pair over which it and the supervisor talk JSON.
// The supervisor's end closes with the supervisor, however that dies, and the node with it.
const FD = 3

// Order is what the supervisor tells a node. The first carries the plan.
type Order struct {
	Plan   *Plan   `json:",omitempty"`
	Wired  bool    `json:",omitempty"` // the node's devices are there: configure them, start the daemons
	Start  *Daemon `json:",omitempty"` // one more daemon
	Signal *Signal `json:",omitempty"`
	Stop   bool    `json:",omitempty"` // end in order
}

// Signal is one for a daemon.
type Signal struct {
	Daemon string
	Signal unix.Signal
}

// Report is what a node says of itself; each replaces the one before.
type Report struct {
	Isolated   bool           // the namespaces are the node's own
	Configured bool           // addresses and routes have been set
	Daemons    []DaemonStatus // in the order they were started
	Error      string         // why the node gives up
}
