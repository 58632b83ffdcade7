package openflow_test

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/flows"
	"heliotrope/flows/openflow"
)

// manyCounters returns n flows of table Count.
func manyCounters(n int) []flows.Flow {
	all := make([]flows.Flow, n)
	for i := range all {
		dst := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		all[i] = flows.Flow{Table: flows.Count, Priority: 300, Cookie: flows.Cookie(flows.Count, flows.Counting),
			Match: flows.When(flows.Is(flows.Domain, flows.Uint(100)), flows.Is(flows.Side, flows.Uint(flows.SideVM)), flows.Is(flows.EthType, flows.Uint(flows.EthIPv4)),
				flows.Is(flows.IPSrc, flows.Uint(0x0a010000)), flows.Is(flows.IPDst, flows.AddrValue(dst))),
			Actions: []flows.Action{flows.Goto(flows.L2)}}
	}
	return all
}

// TestReadCounters sends frames of every direction and holds what the switch counted
// against the frames; only what is counted is read.
func TestReadCounters(t *testing.T) {
	v := testView()
	o := newSwitch(t, portNames...)
	c := o.dial(t)
	fs := compile(t, v)
	if err := c.Bundle(t.Context(), fs, nil); err != nil {
		t.Fatal(err)
	}
	a, b, client := nic(v, "a"), nic(v, "b"), netip.MustParseAddr("172.16.0.1")
	nobody := netip.MustParsePrefix("0.0.0.0/0")
	whole := func(x netip.Addr) netip.Prefix { return netip.PrefixFrom(x, 32) }
	want := map[flows.Counter]openflow.Counter{}
	send := func(port string, to, from heliotrope.MAC, src, dst netip.Addr, payload, times int, counter flows.Counter) {
		frame := ipv4(to, from, src, dst, 17, make([]byte, payload), 6)
		for range times {
			o.appctl(t, "netdev-dummy/receive", port, hex.EncodeToString(frame))
		}
		sum := want[counter]
		want[counter] = openflow.Counter{Packets: sum.Packets + uint64(times), Bytes: sum.Bytes + uint64(times*(14+20+payload))}
	}
	far := nic(v, "far")
	send("a", heliotrope.GatewayMAC, a.MAC, a.Address, b.Address, 100, 3, flows.Counter{Domain: a.Domain, Src: whole(a.Address), Dst: whole(b.Address)})
	send("b", heliotrope.GatewayMAC, b.MAC, b.Address, a.Address, 60, 2, flows.Counter{Domain: a.Domain, Src: whole(b.Address), Dst: whole(a.Address)})
	send("a", far.MAC, a.MAC, a.Address, far.Address, 80, 1, flows.Counter{Domain: a.Domain, Src: whole(a.Address), Dst: whole(far.Address)})
	send("a", heliotrope.GatewayMAC, a.MAC, a.Address, client, 90, 2, flows.Counter{Domain: a.Domain, Src: whole(a.Address), Dst: nobody})
	send("up", heliotrope.PublicMAC("h1"), v.GatewayMAC, client, a.Public, 200, 4, flows.Counter{Src: nobody, Dst: whole(a.Public)})

	counters := 0
	for _, f := range fs {
		if _, ok := flows.CounterOf(f); ok {
			counters++
		}
	}
	o.until(t, "all is counted", func() error {
		all, err := c.ReadCounters(t.Context())
		if err != nil {
			return err
		}
		if len(all) != counters {
			t.Fatalf("read %d counters, want %d", len(all), counters)
		}
		for _, r := range all {
			if got := (openflow.Counter{Packets: r.Packets, Bytes: r.Bytes}); got != want[r.Counter] {
				return fmt.Errorf("%+v has %+v, want %+v", r.Counter, got, want[r.Counter])
			}
			if r.Age <= 0 || r.Age > time.Minute {
				t.Fatalf("%+v is %v old", r.Counter, r.Age)
			}
		}
		return nil
	})
}

// TestCounterMadeAnewIsYoung: that is how a reader sees that its counts began again.
func TestCounterMadeAnewIsYoung(t *testing.T) {
	o := newSwitch(t)
	c := o.dial(t)
	one := manyCounters(1)
	age := func() time.Duration {
		all, err := c.ReadCounters(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("read %v, %v", all, err)
		}
		return all[0].Age
	}
	if err := c.Bundle(t.Context(), one, nil); err != nil {
		t.Fatal(err)
	}
	o.until(t, "the counter is old", func() error {
		if a := age(); a < 100*time.Millisecond {
			return fmt.Errorf("it is %v", a)
		}
		return nil
	})
	old := age()
	if err := c.Bundle(t.Context(), nil, one); err != nil {
		t.Fatal(err)
	}
	if err := c.Bundle(t.Context(), one, nil); err != nil {
		t.Fatal(err)
	}
	if young := age(); young >= old {
		t.Errorf("made anew, it is %v old, was %v", young, old)
	}
}

// TestOnlyCountersAreSent: a reading of few counters is short however many flows there are.
func TestOnlyCountersAreSent(t *testing.T) {
	o := newSwitch(t)
	if err := o.dial(t).Bundle(t.Context(), append(manyFlows(2000), manyCounters(10)...), nil); err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("unix", o.path("br.mgmt"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := openflow.New(t.Context(), nc, openflow.Options{MaxReply: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if all, err := c.ReadCounters(t.Context()); err != nil || len(all) != 10 {
		t.Errorf("read %d counters, want 10 (%v)", len(all), err)
	}
}
