package openflow

import (
	"context"
	"fmt"
	"time"

	"antrea.io/libOpenflow/openflow15"

	"heliotrope/flows"
)

// Reading is what one flow of table Count has counted since it was made.
//
// Bytes are of Ethernet frames as they came into the switch: the IP packet and 14 bytes of
// header. Open vSwitch adds what its datapath has counted to its flows at intervals
// (other_config:max-revalidator, 500 ms unless set), so a reading tells of everything that
// is older than that, and of part of what is younger.
type Reading struct {
	flows.Counter
	Packets, Bytes uint64
	Age            time.Duration // of the flow: its counts begin at zero again when it is made anew
}

// ReadCounters reads the counters of table Count, in no order. The switch sends no other flows.
func (c *Conn) ReadCounters(ctx context.Context) ([]Reading, error) {
	request := openflow15.NewFlowStatsRequest()
	request.TableId = uint8(flows.Count)
	request.Cookie, request.CookieMask = flows.Cookie(flows.Count, flows.Counting), ^uint64(0)
	var all []Reading
	err := c.flows(ctx, request, func(e entry) {
		if counter, ok := flows.CounterOf(e.flow); ok && e.bad == nil {
			all = append(all, Reading{counter, e.hits.Packets, e.hits.Bytes, e.age})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	return all, nil
}
