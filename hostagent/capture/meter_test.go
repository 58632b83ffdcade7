package capture

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/hostagent/capture/flood"
	"heliotrope/scheduler/traffic"
)

const second = int64(1_800_000_000) // since 1970

func newTestMeter(o traffic.Orders) *meter {
	m := newMeter()
	m.order(o)
	m.begin(second)
	return m
}

var vm1 = &port{traffic.Port{Device: "tap1", VM: "vm1"}, 1}

func segment(src, dst netip.Addr, srcPort, dstPort uint16, flags uint8) *header {
	h := ends(header{protocol: traffic.TCP, srcPort: srcPort, dstPort: dstPort, flags: flags, length: 100}, src, dst)
	return &h
}

// back is the header of an answer.
func (h header) back(flags uint8) *header {
	return segment(h.dst.netip(), h.src.netip(), h.dstPort, h.srcPort, flags)
}

func only(t testing.TB, m *meter) traffic.Count {
	t.Helper()
	_, b := m.end()
	if len(b.Counts) != 1 {
		t.Fatalf("got %+v, want one count", b.Counts)
	}
	return b.Counts[0]
}

// What is sent is counted; what is got is counted where nobody else does.
func TestWhereItIsCounted(t *testing.T) {
	book := []traffic.Address{
		{Address: alice4, VM: "vm1", Counted: true},
		{Address: bob4, VM: "vm2", Counted: true},
		{Address: netip.MustParseAddr("10.0.0.3"), VM: "vm3"},
	}
	for _, c := range []struct {
		src, dst  string
		direction int
		want      string
	}{
		{"10.0.0.1", "10.0.0.2", fromVM, "vm1 vm2"},
		{"10.0.0.2", "10.0.0.1", toVM, ""},
		{"10.0.0.3", "10.0.0.1", toVM, "vm3 vm1"},
		{"192.0.2.9", "10.0.0.1", toVM, "192.0.2.0/24 vm1"},
		{"10.0.0.1", "192.0.2.9", fromVM, "vm1 192.0.2.0/24"},
		{"0.0.0.0", "255.255.255.255", fromVM, "vm1 255.255.255.255/32"},
		{"192.0.2.9", "224.0.0.1", toVM, "192.0.2.0/24 vm1"},
		{"192.0.2.9", "10.0.0.2", toVM, ""}, // flooded
		{"10.0.0.77", "10.0.0.2", fromVM, "vm1 vm2"},
	} {
		m := newTestMeter(traffic.Orders{Book: book, Grain4: 24, Grain6: 64})
		m.packet(vm1, segment(netip.MustParseAddr(c.src), netip.MustParseAddr(c.dst), 1000, 80, ack), c.direction, second*1e9, 1)
		_, b := m.end()
		got := ""
		for _, n := range b.Counts {
			got += n.Src.String() + " " + n.Dst.String()
		}
		if got != c.want {
			t.Errorf("%s to %s: got %q, want %q", c.src, c.dst, got, c.want)
		}
	}
}

// A connection is counted once in each direction, its SYN says who serves, and it may
// begin anew.
func TestFlows(t *testing.T) {
	m := newTestMeter(traffic.Orders{Grain4: 24})
	call := segment(alice4, bob4, 40000, 45000, syn)
	at := second * 1e9
	for range 2 {
		m.packet(vm1, call, fromVM, at, 1)
		m.packet(vm1, call.back(syn|ack), toVM, at+1e6, 1)
		m.packet(vm1, segment(alice4, bob4, 40000, 45000, ack), fromVM, at+2e6, 1)
		m.packet(vm1, segment(alice4, bob4, 40000, 45000, ack|fin), fromVM, at+3e6, 1)
		at += 20e6
	}
	_, b := m.end()
	if len(b.Counts) != 2 {
		t.Fatalf("got %+v", b.Counts)
	}
	service := traffic.Service{Protocol: traffic.TCP, Port: 45000}
	for _, n := range b.Counts {
		if n.Service != service || n.Reply != (n.Dst.VM == "vm1") || n.Flows != 2 {
			t.Errorf("got %+v", n)
		}
	}
	if n := b.Counts[0]; n.Packets != 6 || n.Bytes != 600 || n.RTTs != 2 || n.RTTMin != time.Millisecond || n.Active != 2 || n.Peak != 300 {
		t.Errorf("got %+v", n)
	}
}

func TestRoundTrips(t *testing.T) {
	data := func(flags uint8, val, ecr uint32) *header {
		h := segment(alice4, bob4, 40000, 80, flags)
		h.stamped, h.carries, h.tsVal, h.tsEcr = true, true, val, ecr
		return h
	}
	reply := func(flags uint8, val, ecr uint32) *header {
		h := data(0, 0, 0).back(flags)
		h.stamped, h.tsVal, h.tsEcr = true, val, ecr
		return h
	}
	type step struct {
		h         *header
		direction int
		at        time.Duration
	}
	pure := data(ack, 5, 0)
	pure.carries = false
	for _, c := range []struct {
		name  string
		steps []step
		want  time.Duration
	}{
		{"SYN and SYN-ACK", []step{{data(syn, 0, 0), fromVM, 0}, {reply(syn|ack, 0, 1), toVM, 7e6}}, 7e6},
		{"SYN-ACK and ACK", []step{{reply(syn, 0, 0).back(syn | ack), fromVM, 0}, {reply(ack, 0, 1), toVM, 3e6}}, 3e6},
		{"SYN sent again", []step{{segment(alice4, bob4, 40000, 80, syn), fromVM, 0}, {segment(alice4, bob4, 40000, 80, syn), fromVM, 5e6}, {reply(syn|ack, 0, 0), toVM, 7e6}}, 0},
		{"a timestamp", []step{{data(ack, 5, 0), fromVM, 0}, {data(ack, 5, 0), fromVM, 1e6}, {reply(ack, 9, 5), toVM, 4e6}}, 4e6},
		{"a later timestamp", []step{{data(ack, 5, 0), fromVM, 0}, {reply(ack, 9, 6), toVM, 4e6}}, 0},
		{"an earlier one first", []step{{data(ack, 5, 0), fromVM, 0}, {reply(ack, 9, 4), toVM, 4e6}, {reply(ack, 9, 5), toVM, 6e6}}, 6e6},
		{"a timestamp that wraps", []step{{data(ack, 0xffffffff, 0), fromVM, 0}, {reply(ack, 9, 0xfffffffe), toVM, 1e6}, {reply(ack, 9, 0xffffffff), toVM, 2e6}}, 2e6},
		{"an acknowledgement carries nothing", []step{{pure, fromVM, 0}, {reply(ack, 9, 5), toVM, 4e6}}, 0},
	} {
		m := newTestMeter(traffic.Orders{Grain4: 24, Book: []traffic.Address{{Address: bob4, VM: "vm2", Counted: true}}})
		for _, s := range c.steps {
			m.packet(vm1, s.h, s.direction, second*1e9+int64(s.at), 1)
		}
		n := only(t, m)
		if n.RTTSum != c.want || n.RTTMin != c.want || (n.RTTs == 1) != (c.want > 0) || n.Src.VM != "vm1" {
			t.Errorf("%s: got %+v, want %s", c.name, n, c.want)
		}
	}
}

// However many keys there are, a bin has no more than it may, and every packet and byte.
func TestCrowding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(16, 200).Draw(t, "most")
		keys := rapid.IntRange(1, 1000).Draw(t, "keys")
		m := newTestMeter(traffic.Orders{MaxKeys: most, Grain4: 32})
		for i := range keys {
			p := &port{traffic.Port{VM: heliotrope.VMID(fmt.Sprint("vm", i%300))}, uint32(1 + i%300)}
			h := segment(alice4, netip.AddrFrom4([4]byte{byte(i % 7), 1, byte(i >> 8), byte(i)}), 40000, uint16(1+i%50), ack)
			m.packet(p, h, fromVM, second*1e9, 1)
			m.packet(p, h, fromVM, second*1e9, 1)
		}
		_, b := m.end()
		var packets, bytes uint64
		for _, c := range b.Counts {
			packets += c.Packets
			bytes += c.Bytes
		}
		if len(b.Counts) > most || packets != uint64(2*keys) || bytes != uint64(200*keys) {
			t.Errorf("%d counts, %d packets, %d bytes", len(b.Counts), packets, bytes)
		}
		if (b.Crowded > 0) != (keys > most-most/4) {
			t.Errorf("%d of %d keys: %d crowded", keys, most, b.Crowded)
		}
	})
}

// Keys lose their service first and their ends last.
func TestCoarsen(t *testing.T) {
	k := traffic.Key{Src: traffic.VM("vm1"), Dst: traffic.Outside(netip.MustParsePrefix("192.0.2.0/24")), Service: traffic.Service{Protocol: 6, Port: 80}, Reply: true}
	for level, want := range []string{
		"vm1 192.0.2.0/24 tcp/80 true", "vm1 192.0.2.0/24 tcp false", "vm1 192.0.0.0/8 tcp false", "vm1 0.0.0.0/0 0 false", "0.0.0.0/0 0.0.0.0/0 0 false",
	} {
		got := coarsen(k, level)
		if s := fmt.Sprint(got.Src, " ", got.Dst, " ", got.Service, " ", got.Reply); s != want {
			t.Errorf("level %d: got %s, want %s", level, s, want)
		}
	}
}

// Where the sampling changes within a bin, each packet has its own weight, and Sampling
// and Squares give the variance of the sum.
func TestTwoSamplings(t *testing.T) {
	m := newTestMeter(traffic.Orders{Grain4: 24})
	h := segment(alice4, bob4, 40000, 80, ack)
	for _, weight := range []uint32{1, 1, 4, 8, 8} {
		m.packet(vm1, h, fromVM, second*1e9, weight)
	}
	_, b := m.end()
	n := b.Counts[0]
	if b.Sampling != 8 || n.Packets != 22 || n.Bytes != 2200 || n.Samples != 5 {
		t.Errorf("sampling %d, %+v", b.Sampling, n)
	}
	if variance, want := 8*7*n.Squares, uint64((4*3+2*8*7)*100*100); variance < want-56 || variance > want+56 {
		t.Errorf("variance: got %d, want %d", variance, want)
	}
	if n.Peak != 0 || n.Active != 0 {
		t.Errorf("slots are told of a sample: %+v", n)
	}
}

// A packet is of the second of its stamp, read late or not.
func TestSeconds(t *testing.T) {
	m := newTestMeter(traffic.Orders{Grain4: 24})
	h := segment(alice4, bob4, 40000, 80, ack)
	for _, at := range []int64{second*1e9 - 1, second*1e9 + 1, second*1e9 + 1e9, second*1e9 + 5e9, second*1e9 + 1e9 - 1, second*1e9 + 100e9} {
		m.packet(vm1, h, fromVM, at, 1)
	}
	var got []uint64
	for range openTallies {
		_, b := m.end()
		if want := time.Unix(second+int64(len(got)), 0); !b.Start.Equal(want) {
			t.Errorf("start: got %s, want %s", b.Start, want)
		}
		n := uint64(0)
		for _, c := range b.Counts {
			n += c.Packets
		}
		got = append(got, n)
	}
	if want := []uint64{3, 1, 0, 0, 0, 1, 0, 1}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// The table of connections keeps its size, whoever fills it.
func TestConnectionsAreBounded(t *testing.T) {
	m := newTestMeter(traffic.Orders{Grain4: 0})
	for i := range 3 * connectionSets * connectionWays {
		m.packet(vm1, segment(alice4, netip.AddrFrom4([4]byte{1, byte(i >> 16), byte(i >> 8), byte(i)}), 40000, 80, syn), fromVM, second*1e9, 1)
	}
	if n := only(t, m); n.Flows != 3*connectionSets*connectionWays {
		t.Errorf("got %+v", n)
	}
}

func TestGovernor(t *testing.T) {
	const light, fair, heavy = 10 * time.Millisecond, 30 * time.Millisecond, 80 * time.Millisecond
	bins := func(n int, cpu time.Duration, passed uint64) func(*governor) {
		return func(g *governor) {
			for range n {
				looked := passed / uint64(g.sampling)
				g.ended(cpu, passed, looked)
			}
		}
	}
	for _, c := range []struct {
		name   string
		orders traffic.Orders
		kernel bool
		then   []func(*governor)
		want   mode
	}{
		{"begins with packets", traffic.Orders{}, true, nil, mode{traffic.SourcePackets, 1}},
		{"over budget: the kernel", traffic.Orders{}, true, []func(*governor){bins(1, heavy, 35_000)}, mode{traffic.SourceEBPF, 1}},
		{"stays while packets would take as much", traffic.Orders{}, true, []func(*governor){bins(1, heavy, 35_000), bins(100, light, 35_000)}, mode{traffic.SourceEBPF, 1}},
		{"goes back when they would not", traffic.Orders{}, true, []func(*governor){bins(1, heavy, 35_000), bins(calmBins, light, 7_000)}, mode{traffic.SourcePackets, 1}},
		{"over budget in the kernel: one of 2", traffic.Orders{}, true, []func(*governor){bins(2, heavy, 35_000)}, mode{traffic.SourceEBPF, 2}},
		{"and of 4", traffic.Orders{}, true, []func(*governor){bins(3, heavy, 35_000)}, mode{traffic.SourceEBPF, 4}},
		{"too many for the kernel: one of 32 at once", traffic.Orders{}, true, []func(*governor){bins(1, heavy, 90_000)}, mode{traffic.SourceEBPF, 32}},
		{"far too many: dice alone take more", traffic.Orders{}, true, []func(*governor){bins(9, heavy, 1_000_000)}, mode{traffic.SourceEBPF, 64}},
		{"fewer, and half of that", traffic.Orders{}, true, []func(*governor){bins(3, heavy, 35_000), bins(calmBins, light, 18_000)}, mode{traffic.SourceEBPF, 2}},
		{"and at last packets", traffic.Orders{}, true, []func(*governor){bins(3, heavy, 35_000), bins(3*calmBins, light, 9)}, mode{traffic.SourcePackets, 1}},
		{"sampling is ordered, and takes too much", traffic.Orders{Sampling: 10}, true, []func(*governor){bins(9, heavy, 200_000)}, mode{traffic.SourceEBPF, 10}},
		{"no kernel: sampling", traffic.Orders{}, false, []func(*governor){bins(3, heavy, 200_000)}, mode{traffic.SourcePackets, 8}},
		{"sampling has an end", traffic.Orders{}, false, []func(*governor){bins(30, heavy, 200_000)}, mode{traffic.SourcePackets, mostSampling}},
		{"between third and whole nothing changes", traffic.Orders{}, false, []func(*governor){bins(3, heavy, 200_000), bins(100, fair, 200_000)}, mode{traffic.SourcePackets, 8}},
		{"29 calm bins are not enough", traffic.Orders{}, false, []func(*governor){bins(3, heavy, 200_000), bins(29, light, 9), bins(1, fair, 9), bins(29, light, 9)}, mode{traffic.SourcePackets, 8}},
		{"half after 30", traffic.Orders{}, false, []func(*governor){bins(3, heavy, 200_000), bins(31, light, 9)}, mode{traffic.SourcePackets, 4}},
		{"sampling is ordered", traffic.Orders{Sampling: 10}, false, []func(*governor){bins(9, heavy, 200_000)}, mode{traffic.SourcePackets, 10}},
		{"all is ordered", traffic.Orders{Sampling: 1, Source: traffic.SourcePackets}, true, []func(*governor){bins(9, heavy, 200_000)}, mode{traffic.SourcePackets, 1}},
		{"packets are ordered", traffic.Orders{Source: traffic.SourcePackets}, true, []func(*governor){bins(1, heavy, 200_000)}, mode{traffic.SourcePackets, 2}},
		{"the kernel is ordered", traffic.Orders{Source: traffic.SourceEBPF}, true, []func(*governor){bins(100, light, 9)}, mode{traffic.SourceEBPF, 1}},
		{"and cannot", traffic.Orders{Source: traffic.SourceEBPF}, true, []func(*governor){(*governor).refuse, bins(1, heavy, 200_000)}, mode{traffic.SourcePackets, 2}},
		{"within a bin", traffic.Orders{}, false, []func(*governor){func(g *governor) { g.overrun(2*heavy, time.Second/2) }}, mode{traffic.SourcePackets, 8}},
		{"within its allowance", traffic.Orders{}, false, []func(*governor){func(g *governor) { g.overrun(heavy, time.Second/2) }}, mode{traffic.SourcePackets, 1}},
		{"more than is ordered", traffic.Orders{Source: traffic.SourceEBPF}, true, []func(*governor){bins(2, heavy, 200_000)}, mode{traffic.SourceEBPF, 4}},
		{"all in the kernel is ordered", traffic.Orders{Source: traffic.SourceEBPF, Sampling: 1}, true, []func(*governor){bins(2, heavy, 200_000)}, mode{traffic.SourceEBPF, 1}},
		{"the same orders again", traffic.Orders{}, false, []func(*governor){bins(2, heavy, 9), func(g *governor) { g.order(traffic.Orders{MaxKeys: 9}) }}, mode{traffic.SourcePackets, 4}},
	} {
		g := governor{kernel: c.kernel, dice: 100 * time.Nanosecond}
		g.order(c.orders)
		for _, f := range c.then {
			f(&g)
		}
		if got := (mode{g.source, g.sampling}); got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestBins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New("h1", slog.New(slog.NewTextHandler(t.Output(), nil)))
		got := make(chan []traffic.Bin)
		go func() {
			bins, err := c.Bins(t.Context(), c.boot, 0)
			if err != nil {
				t.Error(err)
			}
			got <- bins
		}()
		synctest.Wait() // it waits
		for range keptBins + 7 {
			c.publish(traffic.Bin{})
		}
		if bins := <-got; bins[0].Boot != c.boot || bins[0].Host != "h1" {
			t.Errorf("got %+v", bins[0])
		}
		for _, q := range []struct {
			boot  string
			after uint64
			first uint64
			n     int
		}{{c.boot, 0, 8, keptBins}, {c.boot, 120, 121, 7}, {"another", 120, 8, keptBins}, {"", 1000, 8, keptBins}} {
			bins, err := c.Bins(t.Context(), q.boot, q.after)
			if err != nil || len(bins) != q.n || bins[0].Seq != q.first || bins[len(bins)-1].Seq != keptBins+7 {
				t.Errorf("%q after %d: got %d from %d, %v", q.boot, q.after, len(bins), bins[0].Seq, err)
			}
		}
		large := traffic.Bin{Counts: make([]traffic.Count, keptBytes/200/4)}
		for range 20 {
			c.publish(large)
		}
		if len(c.bins) > 5 || c.size > keptBytes {
			t.Errorf("%d bins, %d bytes are kept", len(c.bins), c.size)
		}
	})
}

func BenchmarkPacket(b *testing.B) {
	m := newTestMeter(traffic.Orders{Grain4: 24})
	frames := flood.Outwards.All()
	var h header
	b.ReportAllocs()
	for i := range b.N {
		f := frames[i%len(frames)]
		h.decode(f[:snapLength], len(f))
		m.packet(vm1, &h, fromVM, second*1e9+int64(i%100)*1e7, 1)
	}
}
