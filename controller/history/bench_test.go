package history

import (
	"fmt"
	"io"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
)

// busy is a second of one host with 1,000 rows.
func busy(seq int) traffic.Bin {
	b := bin(seq, 0)
	b.Start = one.Add(time.Duration(seq) * time.Second)
	for i := range 1000 {
		b.Counts = append(b.Counts, tcp(heliotrope.VMID(fmt.Sprintf("web-%05d", i/20)), heliotrope.VMID(fmt.Sprintf("web-%05d", i*7)), uint64(1000+i)))
	}
	return b
}

func BenchmarkAdd(b *testing.B) {
	h, err := Open(b.Context(), b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	n := 0
	next := busy(0)
	for b.Loop() {
		n++
		next.Seq = uint64(n)
		if err := h.Add(next); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)*1000/b.Elapsed().Seconds(), "rows/s")
}

func BenchmarkEncode(b *testing.B) {
	w := &window{from: one, length: 5 * time.Minute, counts: map[countKey]*count{}}
	for seq := range 100 {
		next := busy(seq)
		next.Host = heliotrope.HostID(fmt.Sprint("host-", seq))
		w.add(&next)
	}
	for b.Loop() {
		if err := encode(io.Discard, w.records(), "main"); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(w.counts))*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}
