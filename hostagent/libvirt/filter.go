package libvirt

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
)

// receiveFilter is which frames a card passes to its guest, as the guest's driver has told
// it (VIRTIO 1.2, 5.1.6.5.1) and QEMU's query-rx-filter says. A nil filter passes all.
type receiveFilter struct {
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

// passes is true if the card does not drop the frame for its destination address.
func (f *receiveFilter) passes(frame []byte) bool {
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

// filter asks QEMU what a card passes to its guest.
func (c *Catch) filter(ctx context.Context, nic int) (*receiveFilter, error) {
	var answer []receiveFilter
	if err := c.ask(ctx, fmt.Sprintf(`{"execute":"query-rx-filter","arguments":{"name":"net%d"}}`, nic), &answer); err != nil {
		return nil, err
	}
	if len(answer) != 1 {
		return nil, fmt.Errorf("read receive filter of card %d: QEMU tells %d", nic, len(answer))
	}
	return &answer[0], nil
}
