package flows

import (
	"cmp"
	"net/netip"
	"slices"
)

// DefaultCounters is a View.Counters that a switch bears with ease.
const DefaultCounters = 8192

// Counter says whose packets a flow of table Count counts: those from Src to Dst that no
// counter with a longer Dst takes. One address is a VM's own; a Dst that is a network's
// subnet stands for all its VMs, told apart no further; a prefix of no bits is anybody else.
type Counter struct {
	Domain   uint32 // of the VMs' own addresses; 0 for packets from outside, whose Dst is a public address
	Src, Dst netip.Prefix
}

// CounterOf tells the Counter of a flow of table Count. Other flows have none.
func CounterOf(f Flow) (Counter, bool) {
	if f.Cookie != Cookie(Count, Counting) {
		return Counter{}, false
	}
	domain, _ := f.Match.Get(Domain)
	et, _ := f.Match.Get(EthType)
	c := Counter{Domain: uint32(domain.Lo)}
	if et.Lo == EthIPv4 {
		c.Src, c.Dst = f.Match.prefix(IPSrc), f.Match.prefix(IPDst)
	} else {
		c.Src, c.Dst = f.Match.prefix(IP6Src), f.Match.prefix(IP6Dst)
	}
	return c, true
}

// counting is what one host counts.
//
// It follows from the topology and the ports, and not from placements: a VM's counters come
// and go with its port. So they are there before the VM first runs here, remain until it
// has left for good, and a move touches no other VM's.
type counting struct {
	nics  []NIC     // with a port here
	peers []network // that they may talk to, those with the fewest VMs first
	left  int       // how many more flows there may be
}

// network is a segment with all its NICs.
type network struct {
	Segment
	nics []NIC
}

// count are the flows of table Count. All go on to L2, whatever they count.
//
// Each VM here has a counter for what it sends to anybody, and one for what its public
// address gets from outside. Then networks have their turn, those with the fewest VMs
// first: where the limit allows it, there is a counter for each of the network's VMs, and
// else one for the network. Totals are the same either way.
//
// What comes by tunnel was counted where it was sent.
func (c *compiler) count() {
	if c.Counters <= 0 {
		return
	}
	k := c.counting()
	for _, s := range c.segments {
		if s.Uncounted { // nor is what is sent to its VMs from other networks
			et, dst := family(s.Subnet.Addr(), IPDst, IP6Dst)
			c.add(Count, 200, Fixed, When(Is(Domain, Uint(s.Domain)), side(SideVM), et, Within(dst, s.Subnet)), Goto(L2))
		}
	}
	for _, n := range k.nics {
		c.countAnybody(n)
	}
	for _, p := range k.peers {
		from := k.routed(p)
		whole, each := len(from), pairs(from, p)
		k.left += whole // its share of what was set aside
		if each > k.left {
			c.countNetwork(from, p)
			k.left -= whole
			continue
		}
		c.countPairs(from, p)
		k.left -= each
	}
}

// counting finds who is counted, and sets one flow for each network aside.
func (c *compiler) counting() counting {
	members := map[uint32][]NIC{}
	for _, n := range c.nics {
		members[n.VNI] = append(members[n.VNI], n)
	}
	k := counting{left: c.Counters}
	for _, s := range c.segments {
		if s.Uncounted {
			continue
		}
		k.peers = append(k.peers, network{s, members[s.VNI]})
		for _, n := range members[s.VNI] {
			if n.Port != 0 {
				k.nics = append(k.nics, n)
				k.left--
				if n.Public.IsValid() {
					k.left--
				}
			}
		}
	}
	slices.SortStableFunc(k.peers, func(a, b network) int { return cmp.Compare(len(a.nics), len(b.nics)) })
	for _, p := range k.peers {
		k.left -= len(k.routed(p))
	}
	return k
}

// routed are the NICs that can send to p.
func (k *counting) routed(p network) []NIC {
	var from []NIC
	for _, n := range k.nics {
		if n.Domain == p.Domain && n.Address.Is4() == p.Subnet.Addr().Is4() {
			from = append(from, n)
		}
	}
	return from
}

// pairs is how many flows countPairs makes.
func pairs(from []NIC, to network) int {
	n := len(from) * len(to.nics)
	for _, a := range from {
		if a.VNI == to.VNI {
			n-- // itself
		}
	}
	return n
}

func (c *compiler) countPairs(from []NIC, to network) {
	for _, a := range from {
		for _, b := range to.nics {
			if a.NICKey != b.NICKey {
				c.countFrom(a, 300, whole(b.Address))
			}
		}
	}
}

func (c *compiler) countNetwork(from []NIC, to network) {
	for _, a := range from {
		c.countFrom(a, 200, to.Subnet)
	}
}

// countFrom counts what a sends to p.
func (c *compiler) countFrom(a NIC, priority uint16, p netip.Prefix) {
	et, src := family(a.Address, IPSrc, IP6Src)
	_, dst := family(a.Address, IPDst, IP6Dst)
	terms := []Term{Is(Domain, Uint(a.Domain)), side(SideVM), et, Is(src, AddrValue(a.Address))}
	if p.Bits() > 0 {
		terms = append(terms, Within(dst, p))
	}
	c.add(Count, priority, Counting, When(terms...), Goto(L2))
}

// countAnybody counts what n sends and nothing finer counts, and what it gets from outside.
// What comes from outside for a VM elsewhere is not counted here.
func (c *compiler) countAnybody(n NIC) {
	c.countFrom(n, 100, anybody(n.Address))
	if n.Public.IsValid() {
		et, dst := family(n.Public, IPDst, IP6Dst)
		c.add(Count, 100, Counting, When(side(SideUplink), et, Is(dst, AddrValue(n.Public))), Goto(L2))
	}
}

func whole(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// anybody is the prefix of all addresses of a's family.
func anybody(a netip.Addr) netip.Prefix {
	p, _ := a.Prefix(0) // 0 bits are never too many
	return p
}

// prefix is the prefix that m asks of the address field f, all addresses if it asks nothing.
func (m Match) prefix(f Field) netip.Prefix {
	var v, mask Value
	for _, t := range m {
		if t.Field == f {
			v, mask = t.Value, t.Mask
		}
	}
	address := v.addr6()
	if f.Bits() == 32 {
		address = v.addr4()
	}
	return netip.PrefixFrom(address, mask.ones())
}
