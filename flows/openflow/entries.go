package openflow

import (
	"context"

	"heliotrope/flows"
)

// Entry is one flow of a switch with its counters, ours or not. Where its match or actions
// are none of our vocabulary, Unreadable says so and Flow has only table, priority and cookie.
type Entry struct {
	Flow       flows.Flow
	Hits       Counter
	Unreadable error
}

// Dump returns every flow of the switch.
func (c *Conn) Dump(ctx context.Context) ([]Entry, error) {
	entries, err := c.dump(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]Entry, len(entries))
	for i, e := range entries {
		all[i] = Entry{Flow: e.flow, Hits: e.hits, Unreadable: e.bad}
	}
	return all, nil
}
