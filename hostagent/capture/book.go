package capture

import (
	"net/netip"

	"heliotrope/scheduler/traffic"
)

// book says whose an address is.
type book struct {
	owners         map[entry]owner
	grain4, grain6 int
}

type entry struct {
	domain string // "": public
	addr   address
}

type owner struct {
	end     traffic.End
	counted bool // at its own port
	off     bool // nothing to or from it is counted
}

// Groups and broadcasts are told whole: a prefix each would be a key for each group.
var (
	multicast4 = netip.MustParsePrefix("224.0.0.0/4")
	multicast6 = netip.MustParsePrefix("ff00::/8")
	broadcast4 = netip.MustParsePrefix("255.255.255.255/32")
)

func newBook(o traffic.Orders) *book {
	b := &book{owners: make(map[entry]owner, len(o.Book)), grain4: min(max(o.Grain4, 0), 32), grain6: min(max(o.Grain6, 0), 128)}
	for _, a := range o.Book {
		if a.Address.IsValid() {
			b.owners[entry{a.Domain, a.Address.As16()}] = owner{traffic.VM(a.VM), a.Counted, a.Off}
		}
	}
	return b
}

// who is at an address, as a VM in domain sees it: the domain's own, then the public ones,
// else a prefix that is not ours.
func (b *book) who(domain string, a address) owner {
	if o, ok := b.owners[entry{domain, a}]; ok {
		return o
	}
	if o, ok := b.owners[entry{"", a}]; ok {
		return o
	}
	ip := a.netip()
	switch {
	case multicast4.Contains(ip):
		return owner{end: traffic.Outside(multicast4)}
	case multicast6.Contains(ip):
		return owner{end: traffic.Outside(multicast6)}
	case broadcast4.Contains(ip):
		return owner{end: traffic.Outside(broadcast4)}
	case ip.Is4():
		return owner{end: traffic.Outside(netip.PrefixFrom(ip, b.grain4))}
	}
	return owner{end: traffic.Outside(netip.PrefixFrom(ip, b.grain6))}
}
