// Package flows is the pipeline of br-int as data, and the compiler that fills it.
//
// A switch's flows are a pure function of a View: the topology, where every VM is, and
// this host's port numbers. Compile computes them; nothing is learned, nothing is flooded
// and nothing is asked of a controller while packets flow. Eval says what a set of flows
// does with a packet, without a switch.
//
// # Tables
//
// Pipeline lists the tables in the order in which packets cross them. Each declares the
// fields that its flows may match and set and the tables that they may go to; Check holds
// every flow against that, so that a table keeps to its job.
//
// # Ownership
//
// The cookie's high half marks a flow as ours and its low half says which table and which
// part of the compiler it belongs to. Flows without the mark are somebody else's.
//
// # Counting
//
// Table Count counts who talks to whom, if the View says so. It has no other effect: all
// its flows go on to the same table.
//
// # A move
//
// Flows follow from heliotrope.Placement alone. The owner's host delivers to the VM's port.
// The host that prepares to receive the VM delivers what comes by tunnel, so that a
// packet from a host that already knows the next owner finds its way. Hosts in Previous
// pass on what still comes to them by tunnel, and take a hop off each packet, so that even
// two hosts that disagree end a loop. docs/pipeline.md has the table of it.
package flows

import (
	"errors"
	"fmt"
	"slices"
)

// TableID is a table's number in the switch.
type TableID uint8

// The tables of br-int.
const (
	Classify TableID = iota // port or VNI to network and side
	Guard                   // a VM sends only as itself
	ARP                     // ARP and ND are answered here
	Policy                  // who may talk to whom
	Count                   // who does talk to whom
	L2                      // within the network, to the gateway, or nowhere
	L3                      // between networks, and to and from public addresses
	Mobility                // where the destination VM is
	Out                     // to a port
	NumTables
)

// Table says what the flows of one table may do.
type Table struct {
	ID     TableID
	Name   string
	Match  FieldSet
	Set    FieldSet
	Next   []TableID
	Output bool // may send packets to ports
}

var (
	addresses = fieldSet(EthType, IPSrc, IPDst, IP6Src, IP6Dst)
	rewrites  = fieldSet(EthSrc, EthDst, TTL, IPSrc, IPDst, IP6Src, IP6Dst)
)

// Pipeline is the list of all tables in order.
var Pipeline = [NumTables]Table{
	{ID: Classify, Name: "classify", Match: fieldSet(InPort, VLAN),
		Set: fieldSet(Net, Domain, Side), Next: []TableID{Guard, L2}},
	{ID: Guard, Name: "guard", Match: addresses | fieldSet(InPort, EthSrc, EthDst, IPProto, ICMP6Type, ARPOp, ARPSPA, ARPTPA, ARPSHA, NDTarget),
		Next: []TableID{ARP, Policy}},
	{ID: ARP, Name: "arp", Match: fieldSet(Net, Side, EthType, IPProto, ICMP6Type, ARPOp, ARPTPA, NDTarget),
		Set:  fieldSet(EthSrc, EthDst, ARPOp, ARPSPA, ARPTPA, ARPSHA, ARPTHA, IP6Src, IP6Dst, ICMP6Type, NDReserved, NDOption, OutPort),
		Next: []TableID{Out}},
	{ID: Policy, Name: "policy", Match: addresses | fieldSet(Net, Domain, Side, EthSrc, EthDst, IPProto),
		Next: []TableID{Count}},
	{ID: Count, Name: "count", Match: addresses | fieldSet(Domain, Side),
		Next: []TableID{L2}},
	{ID: L2, Name: "l2", Match: fieldSet(Side, EthDst),
		Next: []TableID{L3, Mobility}},
	{ID: L3, Name: "l3", Match: addresses | fieldSet(Net, Domain, Side, IPProto, ICMPType),
		Set: rewrites | fieldSet(Net, OutPort, ICMPType), Next: []TableID{Mobility, Out}},
	{ID: Mobility, Name: "mobility", Match: fieldSet(Net, Side, EthDst, EthType),
		Set: fieldSet(TTL, OutPort, TunID, TunDst, TunDst6), Next: []TableID{Out}},
	{ID: Out, Name: "output", Match: fieldSet(InPort, OutPort, EthType, IPProto, ICMP6Type),
		Set: fieldSet(NDTLL), Output: true},
}

func (t TableID) String() string {
	if t >= NumTables {
		return fmt.Sprintf("table %d", uint8(t))
	}
	return Pipeline[t].Name
}

// The cookie's owner mark: "HELI".
const (
	Owner     uint64 = 0x48454c49 << 32
	OwnerMask uint64 = 0xffffffff << 32
)

// Category says which part of the compiler a flow comes from.
type Category uint8

// The categories of flows, for statistics and for a reader of ovs-ofctl.
const (
	Fixed    Category = iota + 1 // the same in every switch
	Local                        // a VM's port here
	Peer                         // a tunnel to another host
	Uplink                       // the way outside
	Answer                       // ARP, ND and echo replies
	Route                        // between networks
	Public                       // public addresses
	Forward                      // to a VM elsewhere
	Counting                     // counts, and changes nothing
)

// Cookie is the cookie of our flows of table t and category c.
func Cookie(t TableID, c Category) uint64 { return Owner | uint64(t)<<16 | uint64(c) }

// Owned says whether a flow with this cookie is ours.
func Owned(cookie uint64) bool { return cookie&OwnerMask == Owner }

// Check holds f against its table's declaration and against the prerequisites of every
// field that it names.
func Check(f Flow) error {
	if f.Table >= NumTables {
		return fmt.Errorf("check flow %v: no such table", f)
	}
	t := Pipeline[f.Table]
	if err := errors.Join(t.checkMatch(f.Match), t.checkActions(f)); err != nil {
		return fmt.Errorf("check flow %v of table %s: %w", f, t.Name, err)
	}
	if !Owned(f.Cookie) {
		return fmt.Errorf("check flow %v of table %s: cookie is not ours", f, t.Name)
	}
	return nil
}

func (t Table) checkMatch(m Match) error {
	for i, c := range m {
		switch {
		case c.Field >= NumFields:
			return fmt.Errorf("match unknown %v", c.Field)
		case i > 0 && m[i-1].Field >= c.Field:
			return fmt.Errorf("match %v out of order or twice", c.Field)
		case !t.Match.Has(c.Field):
			return fmt.Errorf("match %v: the table matches only %s", c.Field, t.Match.Names())
		case c.Value.And(c.Mask) != c.Value || c.Mask.And(c.Field.Ones()) != c.Mask || c.Mask == (Value{}):
			return fmt.Errorf("match %v: value and mask do not fit", c.Field)
		}
		if err := m.provides(c.Field); err != nil {
			return fmt.Errorf("match %v: %w", c.Field, err)
		}
	}
	return nil
}

// provides says whether every packet of m has the field f.
func (m Match) provides(f Field) error {
	for _, n := range fieldInfos[f].needs {
		v, ok := m.Get(n.field)
		if !ok || !slices.Contains(n.values, v.Lo) {
			return fmt.Errorf("needs %v to be one of %v", n.field, n.values)
		}
	}
	return nil
}

func (t Table) checkActions(f Flow) error {
	for i, a := range f.Actions {
		if i < len(f.Actions)-1 && a.Kind == GotoKind {
			return errors.New("goto is not the last action")
		}
		if err := t.checkAction(f.Match, a); err != nil {
			return fmt.Errorf("action %v: %w", a, err)
		}
	}
	return nil
}

func (t Table) checkAction(m Match, a Action) error {
	switch a.Kind {
	case SetKind:
		if a.Dst < NumFields && a.Value.And(a.Dst.Ones()) != a.Value {
			return errors.New("value is wider than the field")
		}
		return t.checkSet(m, a.Dst)
	case MoveKind:
		if a.Src >= NumFields {
			return errors.New("unknown field")
		}
		return errors.Join(m.provides(a.Src), t.checkSet(m, a.Dst))
	case DecTTLKind:
		return t.checkSet(m, TTL)
	case OutputKind:
		if !t.Output || a.Port == 0 {
			return errors.New("the table may not output there")
		}
	case ReflectKind:
		if !t.Output {
			return errors.New("the table may not output")
		}
	case GotoKind:
		if !slices.Contains(t.Next, a.Table) {
			return fmt.Errorf("the table may not go to %v", a.Table)
		}
	default:
		return errors.New("unknown kind")
	}
	return nil
}

func (t Table) checkSet(m Match, f Field) error {
	if f >= NumFields || !t.Set.Has(f) {
		return fmt.Errorf("the table may set only %s", t.Set.Names())
	}
	return m.provides(f)
}
