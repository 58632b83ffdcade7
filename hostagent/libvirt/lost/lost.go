// Package lost says which of the frames that a QEMU took from a tap its guest has not got, by
// accounts of both that were kept while it ran. How they are kept is package libvirt's.
package lost

import (
	"bytes"
	"net"
	"slices"
)

// atMost is more than QEMU was ever seen to lose, which is two.
const atMost = 4

// Look is a look at the accounts of a running VM's tap: so many of the card's buffers were
// used (modulo 2^16) at a moment between those at which QEMU had read so many frames. What
// is read and what is given to the guest cannot be asked for in one moment, and under load
// packets come between any two questions.
type Look struct {
	Before uint64
	Used   uint16
	After  uint64
}

// Frames returns which of the frames that QEMU took the guest has not got: the last
// ones but for those that the card has dropped, since a VM that has stopped gets none. taken
// are the newest that QEMU took, read and used the counters of now.
//
// All that was taken since a look has been given, dropped or lost. So a look bounds how many
// were lost: they are no more than what came since its before and the card does not drop,
// less what was given, and no fewer than what came since its after. Looks that agree narrow
// that to one number. certain is false if they do not, and then it is the least that they
// say, or the newest frame alone, which a stopped QEMU always keeps.
func Frames(taken [][]byte, read uint64, used uint16, looks []Look, filter *Filter) (lost [][]byte, certain bool) {
	asked := make([]int, 0, len(taken)) // where in taken those are that the card does not drop
	for i, frame := range taken {
		if i == len(taken)-1 || filter.Passes(frame) { // the last one it keeps, whatever it is
			asked = append(asked, i)
		}
	}
	// since counts those of asked that were taken after so many had been read.
	since := func(reads uint64) int {
		first := len(taken) - int(read-reads)
		i, _ := slices.BinarySearch(asked, first)
		return len(asked) - i
	}
	least, most := 1, atMost
	exact := false
	for _, l := range looks {
		if l.Before > read || read-l.Before > uint64(len(taken)) {
			continue // before the oldest frame that is known
		}
		given := int(used - l.Used)
		least, most, exact = max(least, since(l.After)-given), min(most, since(l.Before)-given), true
	}
	certain = exact && least == most
	if least > min(atMost, len(asked)) { // for a large frame the card fills several buffers
		least, certain = min(1, len(asked)), false
	}
	for _, i := range asked[len(asked)-min(least, len(asked)):] {
		lost = append(lost, taken[i])
	}
	return lost, certain
}

var broadcast = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Filter is which frames a card passes to its guest, as the guest's driver has told
// it (VIRTIO 1.2, 5.1.6.5.1) and QEMU's query-rx-filter says. A nil filter passes all.
type Filter struct {
	Promiscuous       bool     `json:"promiscuous"`
	Unicast           string   `json:"unicast"` // normal, none or all
	Multicast         string   `json:"multicast"`
	BroadcastAllowed  bool     `json:"broadcast-allowed"`
	UnicastOverflow   bool     `json:"unicast-overflow"` // of the table: all pass
	MulticastOverflow bool     `json:"multicast-overflow"`
	MainMAC           string   `json:"main-mac"`
	UnicastTable      []string `json:"unicast-table"`
	MulticastTable    []string `json:"multicast-table"`
}

// Passes is true if the card does not drop the frame for its destination address.
func (f *Filter) Passes(frame []byte) bool {
	if f == nil || f.Promiscuous || len(frame) < 6 {
		return true
	}
	to := frame[:6]
	mode, overflow, table := f.Unicast, f.UnicastOverflow, f.UnicastTable
	switch {
	case bytes.Equal(to, broadcast):
		return f.BroadcastAllowed
	case to[0]&1 != 0:
		mode, overflow, table = f.Multicast, f.MulticastOverflow, f.MulticastTable
	}
	if mode != "normal" || overflow {
		return mode != "none"
	}
	mac := net.HardwareAddr(to).String()
	return to[0]&1 == 0 && mac == f.MainMAC || slices.Contains(table, mac)
}
