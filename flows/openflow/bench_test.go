package openflow_test

import (
	"testing"
	"time"

	"heliotrope/flows"
)

// BenchmarkBundle puts 20,000 flows into an empty switch, by us and by ovs-ofctl from a
// file, whose program start and parsing count as it cannot do without. Emptying the switch
// does not count.
func BenchmarkBundle(b *testing.B) {
	const n = 20_000
	all := manyFlows(n)
	o := newSwitch(b, portNames...)
	c := o.dial(b)
	run := func(name string, put func()) {
		b.Run(name, func(b *testing.B) {
			var took time.Duration
			for range b.N {
				o.ofctl(b, "del-flows")
				start := time.Now()
				put()
				took += time.Since(start)
			}
			b.ReportMetric(float64(n)*float64(b.N)/took.Seconds(), "flows/s")
			b.ReportMetric(0, "ns/op")
		})
	}
	run("ours", func() {
		if err := c.Bundle(b.Context(), all, nil); err != nil {
			b.Fatal(err)
		}
	})
	o.addFlows(b, all) // writes the file
	run("ofctl", func() { o.ofctl(b, "add-flows", o.path("flows"), "--bundle") })
	run("dump", func() {
		if err := c.Bundle(b.Context(), all, nil); err != nil {
			b.Fatal(err)
		}
		if _, _, err := c.DumpFlows(b.Context()); err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkReadCounters reads 8,192 counters among 20,000 other flows.
func BenchmarkReadCounters(b *testing.B) {
	const n = flows.DefaultCounters
	o := newSwitch(b, portNames...)
	c := o.dial(b)
	if err := c.Bundle(b.Context(), append(manyFlows(20_000), manyCounters(n)...), nil); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if got, err := c.ReadCounters(b.Context()); err != nil || len(got) != n {
			b.Fatalf("read %d counters (%v), want %d", len(got), err, n)
		}
	}
}
