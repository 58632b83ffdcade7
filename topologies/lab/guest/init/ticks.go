package main

import (
	"sync/atomic"
	"time"
)

const tickInterval = 10 * time.Millisecond

// ticks is a counter in memory that grows by one every 10 ms that the guest runs. After a
// move it goes on where it was; after a restart it begins at nothing under another boot id.
type ticks struct {
	count   atomic.Int64
	longest atomic.Int64 // between two ticks, ns as the guest's clock saw them
}

func (t *ticks) run() error {
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	last := time.Now()
	for now := range ticker.C {
		t.count.Add(1)
		t.longest.Store(max(t.longest.Load(), int64(now.Sub(last))))
		last = now
	}
	return nil
}
