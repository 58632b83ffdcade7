//go:build lab

package wan

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
)

// exchange sends count datagrams from a to b, one every interval, and returns how long each
// that arrived took, in order of arrival, and the sequence numbers.
func exchange(t testing.TB, a, b *node, count int, interval time.Duration) (took []time.Duration, order []uint64) {
	t.Helper()
	from, to := a.listenUDP(t), b.listenUDP(t)
	defer from.Close()
	defer to.Close()
	from.WriteToUDPAddrPort(make([]byte, 1), netip.AddrPortFrom(b.addr, 7000)) // ARP
	to.SetReadDeadline(time.Now().Add(time.Second))
	to.Read(make([]byte, 1))

	base := time.Now()
	var group errgroup.Group
	group.Go(func() error {
		message := make([]byte, 16)
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for i := range count {
			binary.BigEndian.PutUint64(message, uint64(i))
			binary.BigEndian.PutUint64(message[8:], uint64(time.Since(base)))
			if _, err := from.WriteToUDPAddrPort(message, netip.AddrPortFrom(b.addr, 7000)); err != nil {
				return err
			}
			<-tick.C
		}
		return nil
	})
	message := make([]byte, 16)
	for len(took) < count {
		to.SetReadDeadline(time.Now().Add(500*time.Millisecond + interval))
		n, err := to.Read(message)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil || n != len(message) {
			continue
		}
		took = append(took, time.Since(base)-time.Duration(binary.BigEndian.Uint64(message[8:])))
		order = append(order, binary.BigEndian.Uint64(message))
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return took, order
}

func TestForwardsAndMeters(t *testing.T) {
	r := newRig(t, 3)
	for _, to := range []int{1, 2} {
		if got, _ := exchange(t, r.nodes[0], r.nodes[to], 50, time.Millisecond); len(got) != 50 {
			t.Fatalf("%d of 50 datagrams reached node %d", len(got), to)
		}
	}
	m := r.meter(0, 1)
	if m.Packets < 51 || m.Bytes < 50*(14+20+8+16) || m.LossDrop+m.QueueDrop+m.DownDrop != 0 || m.InFlight != 0 {
		t.Fatalf("meter 0>1 after 50 datagrams: %+v", m)
	}
	if len(r.wan.Meters()) != 6 {
		t.Fatalf("%d meters for 3 ports, want 6", len(r.wan.Meters()))
	}
}

func TestDownIsOneWayAndAtOnce(t *testing.T) {
	r := newRig(t, 2)
	exchange(t, r.nodes[0], r.nodes[1], 1, time.Millisecond)
	r.shape(t, 0, 1, Shape{Down: true})
	if got, _ := exchange(t, r.nodes[0], r.nodes[1], 20, time.Millisecond); len(got) != 0 {
		t.Fatalf("%d datagrams passed a line that is down", len(got))
	}
	if m := r.meter(0, 1); m.DownDrop < 20 {
		t.Fatalf("meter of the line that is down: %+v", m)
	}
	if m := r.meter(1, 0); m.DownDrop != 0 {
		t.Fatalf("meter of the other direction: %+v", m)
	}
	r.shape(t, 0, 1, Shape{})
	if got, _ := exchange(t, r.nodes[0], r.nodes[1], 20, time.Millisecond); len(got) != 20 {
		t.Fatalf("%d of 20 datagrams passed after the line came up", len(got))
	}
}

// TestDelayIsExact allows what the test's own wake-ups cost on a busy machine.
func TestDelayIsExact(t *testing.T) {
	r := newRig(t, 2)
	quick, _ := exchange(t, r.nodes[0], r.nodes[1], 200, 2*time.Millisecond)
	const delay = 20 * time.Millisecond
	r.shape(t, 0, 1, Shape{Delay: delay})
	slow, order := exchange(t, r.nodes[0], r.nodes[1], 500, 2*time.Millisecond)
	if len(slow) != 500 || !slices.IsSorted(order) {
		t.Fatalf("%d of 500 arrived, in order: %v", len(slow), slices.IsSorted(order))
	}
	slices.Sort(quick)
	slices.Sort(slow)
	late := func(p float64) time.Duration { return slow[int(p*float64(len(slow)-1))] - delay }
	t.Logf("without delay: median %v; with %v: later by min %v median %v p99 %v max %v",
		quick[len(quick)/2], delay, late(0), late(0.5), late(0.99), late(1))
	if late(0) < 0 {
		t.Errorf("a datagram was early by %v", -late(0))
	}
	if late(0.5) > 300*time.Microsecond {
		t.Errorf("the median is %v late, want at most 300µs", late(0.5))
	}
}

func TestJitterKeepsOrder(t *testing.T) {
	r := newRig(t, 2)
	s := Shape{Delay: 20 * time.Millisecond, Jitter: 15 * time.Millisecond}
	r.shape(t, 0, 1, s)
	got, order := exchange(t, r.nodes[0], r.nodes[1], 300, time.Millisecond)
	if len(got) != 300 || !slices.IsSorted(order) {
		t.Fatalf("%d of 300 arrived, in order: %v", len(got), slices.IsSorted(order))
	}
	s.Reorder = true
	r.shape(t, 0, 1, s)
	got, order = exchange(t, r.nodes[0], r.nodes[1], 300, time.Millisecond)
	if len(got) != 300 || slices.IsSorted(order) {
		t.Fatalf("%d of 300 arrived, in order although reordering is allowed: %v", len(got), slices.IsSorted(order))
	}
}

func TestUnknownAndBrokenFrames(t *testing.T) {
	w := New(nil)
	a, b := &port{name: "a", fd: -1}, &port{name: "b", fd: -1, index: 1}
	w.connect(a)
	w.connect(b)
	w.byMAC[heliotrope.MAC{2}] = b
	for _, frame := range [][]byte{{}, make([]byte, 13), append([]byte{2, 9}, make([]byte, 60)...), make([]byte, cellSize)} {
		c := w.pool.get()
		copy(c[:], frame)
		w.forward(a, c, len(frame))
	}
	if m := w.Meters()[Pair{"a", "b"}]; m != (Meter{}) {
		t.Fatalf("a broken frame was counted: %+v", m)
	}
	if len(w.pool.free) != w.pool.made {
		t.Fatalf("%d of %d cells came back", len(w.pool.free), w.pool.made)
	}
}

func TestRefusals(t *testing.T) {
	r := newRig(t, 2)
	for name, err := range map[string]error{
		"an unknown port": r.wan.SetShape("site0", "nowhere", Shape{}),
		"itself":          r.wan.SetShape("site0", "site0", Shape{}),
		"a bad shape":     r.wan.SetShape("site0", "site1", Shape{Loss: 2}),
		"a taken address": r.wan.AddPort("site9", r.nodes[0].mac, mustTap(t, r.nodes[0], "wan9")),
		"no address":      r.wan.AddPort("site9", heliotrope.MAC{}, mustTap(t, r.nodes[0], "wan9")),
	} {
		if err == nil {
			t.Errorf("%s was accepted", name)
		} else {
			t.Log(err)
		}
	}
	if _, err := OpenTap("/proc/self/nothing", "wan0", r.nodes[0].mac); err == nil {
		t.Error("a namespace that is not there was entered")
	}
}

func mustTap(t *testing.T, n *node, name string) *os.File {
	t.Helper()
	f, err := OpenTap(n.path(), name, heliotrope.MAC{2, 0, 0, 0, 1, 1})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestRouterRestarts gives a port a new namespace, as a router that was killed gets.
func TestRouterRestarts(t *testing.T) {
	r := newRig(t, 2)
	r.shape(t, 0, 1, Shape{Delay: time.Millisecond})
	exchange(t, r.nodes[0], r.nodes[1], 5, time.Millisecond)
	before := r.meter(0, 1).Packets
	r.nodes[1].namespace.Close() // the kernel removes the device
	exchangeFails(t, r)
	r.nodes[1].namespace = newNamespace(t)
	r.plug(t, r.nodes[1])
	if got, _ := exchange(t, r.nodes[0], r.nodes[1], 20, time.Millisecond); len(got) != 20 {
		t.Fatalf("%d of 20 datagrams reached the restarted router", len(got))
	}
	if after := r.meter(0, 1).Packets; after < before+20 {
		t.Fatalf("meter went from %d to %d", before, after)
	}
	if s, err := r.wan.Shape("site0", "site1"); err != nil || s.Delay != time.Millisecond {
		t.Fatalf("shape after the restart: %+v, %v", s, err)
	}
}

// exchangeFails sends to a dead router until the WAN notices.
func exchangeFails(t *testing.T, r *rig) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn := r.nodes[0].listenUDP(t)
	defer conn.Close()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for r.meter(0, 1).DownDrop == 0 {
		conn.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(r.nodes[1].addr, 7000))
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("the WAN never noticed that the router's device is gone")
		}
	}
}

// pump sends over a TCP connection and returns the rate of the best of several windows after
// settle, bit/s: it stops at the first that reaches goal, since other tests may take the
// processors away for a while.
func pump(t testing.TB, a, b *node, settle, window time.Duration, goal float64) (best float64) {
	t.Helper()
	const windows = 5
	from, to := connect(t, a, b)
	var group errgroup.Group
	group.Go(func() error {
		from.SetWriteDeadline(time.Now().Add(settle + windows*window + time.Second))
		chunk := make([]byte, 256<<10)
		for {
			if _, err := from.Write(chunk); err != nil {
				return nil // the reader has seen enough
			}
		}
	})
	chunk := make([]byte, 1<<20)
	count := func(d time.Duration) (n int, took time.Duration) {
		start := time.Now()
		for took < d {
			got, err := to.Read(chunk)
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				t.Fatal(err)
			}
			n += got
			took = time.Since(start)
		}
		return n, took
	}
	count(settle)
	for range windows {
		n, took := count(window)
		if best = max(best, float64(n)*8/took.Seconds()); best >= goal {
			break
		}
	}
	from.Close()
	to.Close()
	group.Wait()
	return best
}

// TestLongFatPipe is one TCP connection between continents.
func TestLongFatPipe(t *testing.T) {
	r := newRig(t, 2)
	const rate = 465e6
	for i := range 2 {
		r.nodes[i].bigBuffers(t)
		r.shape(t, i, 1-i, Shape{Delay: 40 * time.Millisecond, Rate: rate})
	}
	cpu := processorTime()
	got := pump(t, r.nodes[0], r.nodes[1], 3*time.Second, 3*time.Second, 0.85*rate)
	t.Logf("%.0f Mbit/s of %.0f (%.0f %%), processor time %v, %+v", got/1e6, rate/1e6, 100*got/rate,
		time.Duration(processorTime()-cpu), r.meter(0, 1))
	if got < 0.85*rate {
		t.Errorf("%.0f Mbit/s, want at least 85 %% of %.0f", got/1e6, rate/1e6)
	}
}

// TestThroughput has a floor that a busy machine reaches too; BenchmarkTCP tells the number.
func TestThroughput(t *testing.T) {
	r := newRig(t, 2)
	const floor = 0.4e9
	got := pump(t, r.nodes[0], r.nodes[1], time.Second, 2*time.Second, floor)
	t.Logf("%.2f Gbit/s", got/1e9)
	if got < floor {
		t.Errorf("%.2f Gbit/s without any shape", got/1e9)
	}
}

// BenchmarkTCP is one TCP connection between two namespaces over a WAN without a shape, its
// sender and receiver in this process.
func BenchmarkTCP(b *testing.B) {
	r := newRig(b, 2)
	for b.Loop() {
		b.ReportMetric(pump(b, r.nodes[0], r.nodes[1], time.Second, 4*time.Second, 0)/1e9, "Gbit/s")
	}
}
