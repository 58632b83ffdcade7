// Package traffic is what is known of who talks to whom: the counts that hosts send, the
// matrix that they add up to, and what that matrix says.
//
// # From packets to a matrix
//
// A host's agent counts the packets of its VMs' ports (package hostagent/capture) and makes
// one Bin a second of them. A packet is counted once, where its sender is: at the port of
// the VM that sends it, or, where the sender is no VM of ours or its host does not count,
// at the port of the VM that gets it. The name of an end is the VM's, so it survives a move.
//
// A Ledger takes bins in, in any order and from any number of hosts, and answers for
// windows from a second to a day with a Matrix. Every cell says how sure it is: where only
// one of N packets was looked at, the true number of bytes is within [Low, High] with 95 %
// confidence.
//
// What a matrix means (communities, patterns, tiers, phases) is package pattern's.
package traffic

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"heliotrope"
)

// BinLength is the time that one Bin covers.
const BinLength = time.Second

// SlotLength is the grain in which bursts are seen; a bin has 100 slots.
const SlotLength = 10 * time.Millisecond

// End is one end of a conversation: a VM or, where VM is empty, a prefix that is not ours.
type End struct {
	VM     heliotrope.VMID
	Prefix netip.Prefix
}

// VM is the end that is a VM.
func VM(id heliotrope.VMID) End { return End{VM: id} }

// Outside is the end that is a prefix.
func Outside(p netip.Prefix) End { return End{Prefix: p.Masked()} }

// IsVM says whether e is one of our VMs.
func (e End) IsVM() bool { return e.VM != "" }

func (e End) String() string {
	if e.IsVM() {
		return string(e.VM)
	}
	return e.Prefix.String()
}

// MarshalText writes the VM's name or the prefix.
func (e End) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText reads what MarshalText wrote. No VM's name has a slash.
func (e *End) UnmarshalText(text []byte) error {
	s := string(text)
	if !strings.Contains(s, "/") {
		*e = VM(heliotrope.VMID(s))
		return nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return fmt.Errorf("%q is neither a VM nor a prefix", s)
	}
	*e = Outside(p)
	return nil
}

// Compare orders VMs by name, before prefixes.
func (e End) Compare(f End) int {
	if e.IsVM() != f.IsVM() {
		return map[bool]int{true: -1, false: 1}[e.IsVM()]
	}
	if c := strings.Compare(string(e.VM), string(f.VM)); c != 0 {
		return c
	}
	return strings.Compare(e.String(), f.String())
}

// Service is the class of a conversation: its protocol (IANA's number) and the port of
// the side that answers, 0 where the protocol has no ports or neither port tells.
type Service struct {
	Protocol uint8
	Port     uint16
}

// IANA protocol numbers that have a name here.
const (
	ICMP   = 1
	TCP    = 6
	UDP    = 17
	ICMPv6 = 58
	SCTP   = 132
)

var protocols = map[uint8]string{ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPv6: "icmp6", SCTP: "sctp"}

func (s Service) String() string {
	name, ok := protocols[s.Protocol]
	if !ok {
		name = strconv.Itoa(int(s.Protocol))
	}
	if s.Port == 0 {
		return name
	}
	return name + "/" + strconv.Itoa(int(s.Port))
}

// MarshalText writes protocol and port: tcp/5432.
func (s Service) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *Service) UnmarshalText(text []byte) error {
	name, port, _ := strings.Cut(string(text), "/")
	*s = Service{}
	for number, n := range protocols {
		if n == name {
			s.Protocol = number
		}
	}
	if s.Protocol == 0 {
		n, err := strconv.ParseUint(name, 10, 8)
		if err != nil {
			return fmt.Errorf("%q is no service: write it like tcp/5432", text)
		}
		s.Protocol = uint8(n)
	}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return fmt.Errorf("%q is no service: write it like tcp/5432", text)
		}
		s.Port = uint16(n)
	}
	return nil
}

// Key is what packets are counted by.
type Key struct {
	Src     End     `json:"src"`
	Dst     End     `json:"dst"`
	Service Service `json:"service"`
	Reply   bool    `json:"reply,omitempty"` // Src is the side that answers: it has the service's port
}

// Count is what went from Src to Dst in one bin. Packets and Bytes are estimates of the
// truth: what was looked at, times the bin's sampling. Bytes are IP bytes, the IP header
// included, as RFC 7011's octetDeltaCount counts them.
type Count struct {
	Key
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	Flows   uint32 `json:"flows,omitempty"`   // connections (5-tuples) of which the first packet was in this bin
	Samples uint32 `json:"samples,omitempty"` // packets that were looked at; 0 where the source counts all
	Squares uint64 `json:"squares,omitempty"` // sum of the squares of the samples' bytes
	Peak    uint64 `json:"peak,omitempty"`    // bytes in the fullest slot; 0 where the source does not tell
	Active  uint8  `json:"active,omitempty"`  // slots with at least one packet, 1 to 100; 0 where the source does not tell

	// Round trips from the counting host to Dst and back, from TCP timestamps and handshakes.
	RTTs   uint32        `json:"rtts,omitempty"`
	RTTSum time.Duration `json:"rtt_sum,omitempty"`
	RTTMin time.Duration `json:"rtt_min,omitempty"`
}

// Source says how packets were counted.
type Source string

// The sources, from the one that tells most to the cheapest.
const (
	SourcePackets  Source = "packets"  // headers, read from a ring shared with the kernel
	SourceEBPF     Source = "ebpf"     // counted in the kernel
	SourceCounters Source = "counters" // counted by the switch's flows
)

// Bin is what one host counted in one second.
type Bin struct {
	Host     heliotrope.HostID `json:"host"`
	Boot     string            `json:"boot"` // changes when the agent restarts, and Seq begins anew
	Seq      uint64            `json:"seq"`  // from 1 on, without a gap
	Start    time.Time         `json:"start"`
	Source   Source            `json:"source"`
	Sampling uint32            `json:"sampling"` // 1 of so many packets was looked at; 1: all
	Counts   []Count           `json:"counts,omitempty"`

	Shed       uint64        `json:"shed,omitempty"`       // packets that were to be looked at and were not: the ring or the budget was full
	Crowded    uint64        `json:"crowded,omitempty"`    // packets counted under a coarser key: too many keys
	CPU        time.Duration `json:"cpu,omitempty"`        // what counting took
	Ports      int           `json:"ports"`                // VMs' ports that were counted at
	Unreadable uint64        `json:"unreadable,omitempty"` // packets whose headers could not be read
}
