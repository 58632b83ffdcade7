package collector

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"heliotrope"
	"heliotrope/flows"
	"heliotrope/flows/openflow"
	"heliotrope/scheduler/traffic"

	"pgregory.net/rapid"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// shop is two VMs of a group and one with the same address outside of it.
func shop() heliotrope.Topology {
	network := func(vni uint32, subnet, group string) heliotrope.Network {
		p := netip.MustParsePrefix(subnet)
		return heliotrope.Network{VNI: vni, Subnet: p, Gateway: p.Addr().Next(), Group: group}
	}
	vm := func(n heliotrope.NIC) heliotrope.VM { return heliotrope.VM{NICs: []heliotrope.NIC{n}} }
	addr := netip.MustParseAddr
	return heliotrope.Topology{
		Networks: map[heliotrope.NetworkID]heliotrope.Network{"web": network(200, "10.1.0.0/24", "shop"),
			"db": network(100, "fd00:1::/64", "shop"), "lone": network(300, "10.1.0.0/24", "")},
		VMs: map[heliotrope.VMID]heliotrope.VM{"web": vm(heliotrope.NIC{Network: "web", Address: addr("10.1.0.9"), Public: addr("203.0.113.9")}),
			"db": vm(heliotrope.NIC{Network: "db", Address: addr("fd00:1::9")}), "lone": vm(heliotrope.NIC{Network: "lone", Address: addr("10.1.0.9")})},
	}
}

func counter(domain uint32, src, dst string) flows.Counter {
	return flows.Counter{Domain: domain, Src: netip.MustParsePrefix(src), Dst: netip.MustParsePrefix(dst)}
}

func reading(c flows.Counter, packets, bytes uint64, age time.Duration) openflow.Reading {
	return openflow.Reading{Counter: c, Packets: packets, Bytes: bytes, Age: age}
}

func TestCountersAreOfVMs(t *testing.T) {
	who := namesOf(shop())
	outside := func(s string) traffic.End { return traffic.Outside(netip.MustParsePrefix(s)) }
	for c, want := range map[flows.Counter]traffic.Key{
		counter(100, "10.1.0.9/32", "fd00:1::9/128"):   {Src: traffic.VM("web"), Dst: traffic.VM("db")},
		counter(300, "10.1.0.9/32", "10.1.0.8/32"):     {Src: traffic.VM("lone"), Dst: outside("10.1.0.8/32")},
		counter(100, "fd00:1::9/128", "::/0"):          {Src: traffic.VM("db"), Dst: outside("::/0")},
		counter(100, "10.1.0.9/32", "10.1.0.0/24"):     {Src: traffic.VM("web"), Dst: outside("10.1.0.0/24")},
		counter(0, "0.0.0.0/0", "203.0.113.9/32"):      {Src: outside("0.0.0.0/0"), Dst: traffic.VM("web")},
		counter(300, "203.0.113.9/32", "10.1.0.9/32"):  {Src: outside("203.0.113.9/32"), Dst: traffic.VM("lone")},
		counter(7, "10.1.0.9/32", "203.0.113.9/32"):    {Src: outside("10.1.0.9/32"), Dst: outside("203.0.113.9/32")},
		counter(100, "10.1.0.9/32", "10.1.0.9/32"):     {Src: traffic.VM("web"), Dst: traffic.VM("web")},
		counter(100, "fd00:1::8/128", "fd00:1::9/128"): {Src: outside("fd00:1::8/128"), Dst: traffic.VM("db")},
	} {
		if got := who.key(c); got != want {
			t.Errorf("%v is counted as %v, want %v", c, got, want)
		}
	}
}

func TestMeter(t *testing.T) {
	const second = time.Second
	pair, network, rest := counter(100, "10.1.0.9/32", "fd00:1::9/128"), counter(100, "10.1.0.9/32", "10.1.0.0/24"), counter(100, "10.1.0.9/32", "0.0.0.0/0")
	type count struct{ packets, bytes, crowded uint64 }
	for name, c := range map[string]struct {
		before, after openflow.Reading
		gap           time.Duration
		want          []count // a bin each
	}{
		"IP bytes":             {reading(pair, 5, 570, 9*second), reading(pair, 8, 999, 10*second), second, []count{{3, 429 - 3*14, 0}}},
		"nothing new":          {reading(pair, 5, 500, 9*second), reading(pair, 5, 500, 10*second), second, []count{{}}},
		"to a whole network":   {reading(network, 0, 0, 9*second), reading(network, 2, 200, 10*second), second, []count{{2, 200 - 28, 2}}},
		"to the rest":          {reading(rest, 0, 0, 9*second), reading(rest, 2, 200, 10*second), second, []count{{2, 200 - 28, 0}}},
		"made anew":            {reading(pair, 5, 570, 9*second), reading(pair, 8, 999, second/2), second, []count{{8, 999 - 8*14, 0}}},
		"made anew while read": {reading(pair, 5, 570, 9*second), reading(pair, 8, 999, second), second, []count{{8, 999 - 8*14, 0}}},
		"made anew at once":    {reading(pair, 5, 570, second/10), reading(pair, 8, 999, second*9/10), second, []count{{8, 999 - 8*14, 0}}},
		"shrunk":               {reading(pair, 5, 570, 9*second), reading(pair, 2, 128, 10*second), second, []count{{2, 100, 0}}},
		"appeared":             {reading(rest, 0, 0, 9*second), reading(pair, 2, 128, second/2), second, []count{{2, 100, 0}}},
		"late":                 {reading(pair, 0, 0, 9*second), reading(pair, 4, 4*14+10, 12*second), 3 * second, []count{{1, 3, 0}, {1, 3, 0}, {2, 4, 0}}},
		"a little late":        {reading(pair, 0, 0, 9*second), reading(pair, 4, 400, 10*second), second + second/3, []count{{4, 344, 0}}},
		"much too late":        {reading(pair, 0, 0, 9*second), reading(pair, 4, 400, 99*second), longestGap + second, nil},
		"same second":          {reading(pair, 0, 0, 9*second), reading(pair, 4, 400, 9*second), second / 3, nil},
		"clock set back":       {reading(pair, 0, 0, 9*second), reading(pair, 4, 400, 9*second), -time.Hour, nil},
		"impossibly small":     {reading(pair, 0, 0, 9*second), reading(pair, 4, 5, 10*second), second, []count{{4, 0, 0}}},
	} {
		m := meter{host: "h", boot: "b"}
		if bins := m.read(noon, noon, []openflow.Reading{c.before}, namesOf(shop())); len(bins) != 0 {
			t.Errorf("%s: the first reading makes bins: %v", name, bins)
		}
		bins := m.read(noon.Add(c.gap), noon.Add(c.gap), []openflow.Reading{c.after}, namesOf(shop()))
		var got []count
		for i, b := range bins {
			if b.Seq != uint64(i+1) || !b.Start.Equal(noon.Add(time.Duration(i)*time.Second)) || b.Source != traffic.SourceCounters || b.Sampling != 1 || b.Host != "h" || b.Boot != "b" {
				t.Errorf("%s: bin is %+v", name, b)
			}
			n := count{crowded: b.Crowded}
			for _, c := range b.Counts {
				n.packets += c.Packets
				n.bytes += c.Bytes
			}
			got = append(got, n)
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: bins have %v, want %v", name, got, c.want)
		}
	}
}

// TestMeterTellsAllOnce: whatever happens to a switch and whenever it is read, bins follow
// each other without a gap, and their sum is what was counted since the first reading.
// What a flow counted after its last reading is nowhere to be read.
func TestMeterTellsAllOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := []flows.Counter{counter(100, "10.1.0.9/32", "fd00:1::9/128"), counter(100, "fd00:1::9/128", "10.1.0.9/32"), counter(100, "10.1.0.9/32", "0.0.0.0/0")}
		now, m, who := noon, meter{}, namesOf(shop())
		truth, told := map[traffic.Key]uint64{}, map[traffic.Key]uint64{}
		made, read, has := map[flows.Counter]time.Time{}, map[flows.Counter]uint64{}, map[flows.Counter]uint64{}
		begun, next := false, time.Time{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(1, 40).Draw(t, "tenths of a second")) * 100 * time.Millisecond)
			c := rapid.SampledFrom(all).Draw(t, "counter")
			switch rapid.SampledFrom([]string{"send", "send", "read", "read", "make anew", "remove"}).Draw(t, "what") {
			case "send":
				if _, ok := made[c]; ok {
					has[c] += rapid.Uint64Range(1, 1e6).Draw(t, "packets")
				}
			case "make anew":
				made[c] = now
				has[c], read[c] = 0, 0
			case "remove":
				delete(made, c)
				has[c], read[c] = 0, 0
			case "read":
				var readings []openflow.Reading
				for c, since := range made {
					readings = append(readings, reading(c, has[c], 100*has[c], now.Sub(since)))
				}
				at := now.Round(time.Second)
				bins := m.read(now, now, readings, who)
				if begun && !at.After(next) {
					break // of the same second as the last
				}
				fresh := !begun || at.Sub(next) > longestGap
				for c := range made {
					if !fresh {
						truth[who.key(c)] += has[c] - read[c]
					}
					read[c] = has[c]
				}
				for _, b := range bins {
					if !b.Start.Equal(next) {
						t.Fatalf("bin starts at %v, want %v", b.Start, next)
					}
					next = next.Add(time.Second)
					for _, n := range b.Counts {
						told[n.Key] += n.Packets
					}
				}
				if !fresh && !next.Equal(at) {
					t.Fatalf("bins until %v, want %v", next, at)
				}
				begun, next = true, at
			}
		}
		for _, c := range all {
			if k := who.key(c); told[k] != truth[k] {
				t.Fatalf("%v: told %d packets, counted %d", k, told[k], truth[k])
			}
		}
	})
}

// BenchmarkMeter turns the reading of a host whose 8,192 counters all grew into a bin.
func BenchmarkMeter(b *testing.B) {
	readings := make([]openflow.Reading, flows.DefaultCounters)
	for i := range readings {
		a := netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})
		readings[i].Counter = flows.Counter{Domain: 100, Src: netip.MustParsePrefix("10.1.0.9/32"), Dst: netip.PrefixFrom(a, 32)}
	}
	m, at := meter{}, noon
	who := func(_ uint32, a netip.Addr) (heliotrope.VMID, bool) { return heliotrope.VMID(a.String()), true }
	for b.Loop() {
		at = at.Add(time.Second)
		for i := range readings {
			r := &readings[i]
			r.Packets, r.Bytes, r.Age = r.Packets+1, r.Bytes+100, at.Sub(noon)
		}
		if bins := m.read(at, at, readings, who); len(bins) > 0 && len(bins[0].Counts) != len(readings) {
			b.Fatalf("bin has %d counts", len(bins[0].Counts))
		}
	}
}

func TestSharesAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		total, n := rapid.Uint64().Draw(t, "total"), rapid.Uint64Range(1, 60).Draw(t, "shares")
		var sum uint64
		for i := range n {
			share := nths(total, i+1, n) - nths(total, i, n)
			if share-total/n > 1 {
				t.Fatalf("share %d of %d is %d", i, total, share)
			}
			sum += share
		}
		if sum != total {
			t.Fatalf("shares of %d are %d", total, sum)
		}
	})
}

// readerFunc is a switch that answers as told.
type readerFunc func() ([]openflow.Reading, error)

func (f readerFunc) ReadCounters(context.Context) ([]openflow.Reading, error) { return f() }

// TestRunReadsEverySecond, goes on after errors, and ends with its context.
func TestRunReadsEverySecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		pair, asked, warned := counter(100, "10.1.0.9/32", "fd00:1::9/128"), uint64(0), 0
		start := time.Now()
		var bins []traffic.Bin
		c := counters{meter: meter{host: "h", boot: "b"}, wanted: func() bool { return true }, names: func() names { return namesOf(shop()) },
			put: func(b traffic.Bin) { bins = append(bins, b) },
			log: slog.New(slog.NewTextHandler(writerFunc(func() { warned++ }), nil)),
			reader: readerFunc(func() ([]openflow.Reading, error) {
				asked++
				if asked == 4 || asked == 5 {
					return nil, errors.New("the switch is away")
				}
				return []openflow.Reading{reading(pair, 10*asked, 1140*asked, time.Since(start))}, nil
			})}
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		time.Sleep(10*time.Second + time.Millisecond) // virtual
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
		if asked != 10 || len(bins) != 9 || warned != 1 {
			t.Fatalf("%d readings, %d bins, %d warnings; want 10, 9, 1", asked, len(bins), warned)
		}
		for i, b := range bins {
			if b.Seq != uint64(i+1) || !b.Start.Equal(start.Add(time.Duration(i+1)*time.Second)) || len(b.Counts) != 1 || b.Counts[0].Packets != 10 || b.Counts[0].Bytes != 1000 {
				t.Errorf("bin %d is %+v", i, b)
			}
		}
	})
}

// growing is a world in which a VM appears.
type growing struct{ changed chan struct{} }

func (g growing) Fabric() Fabric {
	f := Fabric{}
	if len(g.changed) == 0 {
		f.Topology = shop()
	}
	f.Topology.Capture.Source = string(traffic.SourceCounters)
	return f
}
func (g growing) Leads() bool                                 { return true }
func (g growing) Devices(heliotrope.HostID) map[string]string { return nil }
func (g growing) Tell(kind, subject, message string)          {}
func (g growing) Follow(ctx context.Context, _ heliotrope.HostID, f func()) error {
	f()
	time.Sleep(2500 * time.Millisecond) // virtual
	<-g.changed
	f()
	<-ctx.Done()
	return context.Cause(ctx)
}

// TestServeSwitch takes bins in, and names VMs by the topology of now.
func TestServeSwitch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 4500*time.Millisecond)
		defer cancel()
		g := growing{make(chan struct{}, 1)}
		g.changed <- struct{}{}
		c, err := Open(ctx, Config{World: g, Log: slog.New(slog.DiscardHandler), History: Off})
		if err != nil {
			t.Fatal(err)
		}
		asked := uint64(0)
		err = c.ServeSwitch(ctx, "h", readerFunc(func() ([]openflow.Reading, error) {
			asked++
			return []openflow.Reading{reading(counter(100, "10.1.0.9/32", "fd00:1::9/128"), asked, 100*asked, time.Duration(asked)*time.Second)}, nil
		}))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ended with %v", err)
		}
		cells := c.ledger.Matrix(time.Now().Add(time.Second), 10*time.Second).Cells
		if len(cells) != 2 || cells[0].Src != traffic.VM("web") || cells[0].Dst != traffic.VM("db") || cells[0].Packets != 2 || cells[1].Src.IsVM() || cells[1].Packets != 1 {
			t.Errorf("cells are %+v", cells)
		}
	})
}

type writerFunc func()

func (f writerFunc) Write(b []byte) (int, error) { f(); return len(b), nil }
