package endpoints

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"heliotrope"
)

// Volume is what went one way. Bytes are IP bytes, headers included.
type Volume struct {
	Packets uint64
	Bytes   uint64
	Flows   uint64 // connections begun by the side that sent
}

func one(bytes int) Volume { return Volume{Packets: 1, Bytes: uint64(bytes)} }

func (v Volume) plus(w Volume) Volume {
	return Volume{v.Packets + w.Packets, v.Bytes + w.Bytes, v.Flows + w.Flows}
}

// Counts are what an endpoint sent to a peer and got from it.
type Counts struct{ Sent, Got Volume }

// count adds to the counts of a peer, unless nobody knows who that is.
func (e *endpoint) count(peer heliotrope.VMID, c Counts) {
	if peer == "" {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	was := e.counts[peer]
	e.counts[peer] = Counts{Sent: was.Sent.plus(c.Sent), Got: was.Got.plus(c.Got)}
}

// readDevices adds up the counters of this network namespace's devices.
func readDevices() (DeviceCounters, error) {
	text, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		return DeviceCounters{}, fmt.Errorf("read device counters: %w", err)
	}
	return parseDevices(string(text))
}

// parseDevices reads /proc/net/dev: two lines of headings, then a line for each device with
// eight counters of what came and eight of what went, bytes and packets first (proc(5)).
func parseDevices(text string) (sum DeviceCounters, err error) {
	for line := range strings.Lines(text) {
		name, counters, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(name) == "lo" {
			continue
		}
		var c DeviceCounters
		var skip uint64
		if _, err := fmt.Sscan(counters, &c.RxBytes, &c.RxPackets, &skip, &skip, &skip, &skip, &skip, &skip, &c.TxBytes, &c.TxPackets); err != nil {
			return sum, errors.New("read device counters: a line of /proc/net/dev has not ten numbers")
		}
		sum.RxBytes, sum.RxPackets = sum.RxBytes+c.RxBytes, sum.RxPackets+c.RxPackets
		sum.TxBytes, sum.TxPackets = sum.TxBytes+c.TxBytes, sum.TxPackets+c.TxPackets
	}
	return sum, nil
}

func (d DeviceCounters) since(before DeviceCounters) DeviceCounters {
	return DeviceCounters{TxPackets: d.TxPackets - before.TxPackets, TxBytes: d.TxBytes - before.TxBytes,
		RxPackets: d.RxPackets - before.RxPackets, RxBytes: d.RxBytes - before.RxBytes}
}
