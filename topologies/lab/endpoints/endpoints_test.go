package endpoints

import (
	"bytes"
	"context"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/synth"
)

func names(n int) []heliotrope.VMID {
	var all []heliotrope.VMID
	for i := range n {
		all = append(all, heliotrope.VMID([]byte{'a' + byte(i/26), 'a' + byte(i%26)}))
	}
	return all
}

func TestPlansOfAllPatterns(t *testing.T) {
	vms := names(40)
	var places []Place
	for _, vm := range vms {
		places = append(places, Place{VM: vm})
	}
	for _, kind := range append([]pattern.Kind{pattern.Pair}, synth.Kinds...) {
		size := 12
		if kind == pattern.Pair {
			size = 2
		}
		p := Pattern{Kind: kind, VMs: vms, Size: size, Rate: 1e6, Noise: 0.1, UDP: 0.5, For: time.Second, Seed: 7}
		plan, members, err := p.Plan()
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if err := plan.check(places); err != nil || len(members) < 2 {
			t.Errorf("%s: %d members, %v", kind, len(members), err)
		}
		var wanted, noise float64
		edges := 0
		for _, talk := range plan.Talks {
			if talk.Size != 0 {
				noise += float64(talk.Rate)
				continue
			}
			wanted += float64(talk.Rate + talk.Back)
			if edges++; talk.Back > 0 {
				edges++
			}
		}
		if mean := wanted / float64(edges); math.Abs(mean-1e6) > 1e3 {
			t.Errorf("%s: a mean rate of %.0f bit/s, want 1000000", kind, mean)
		}
		if share := noise / wanted; share > 0.101 || share < 0.02 {
			t.Errorf("%s: noise is %.3f of the pattern", kind, share)
		}
	}
	if _, _, err := (Pattern{Kind: pattern.Butterfly, VMs: vms[:4], Rate: 1}).Plan(); err == nil {
		t.Error("a butterfly of 16 fits 4 VMs")
	}
}

func TestPlansAreBounded(t *testing.T) {
	places := []Place{{VM: "a"}, {VM: "b"}}
	tcp := traffic.Service{Protocol: traffic.TCP, Port: 80}
	good := Talk{From: "a", To: "b", Service: tcp, Rate: 1e6}
	if err := (Plan{For: time.Second, Talks: []Talk{good}}).check(places); err != nil {
		t.Error(err)
	}
	for what, p := range map[string]Plan{
		"no end":       {Talks: []Talk{good}},
		"too long":     {For: time.Hour, Talks: []Talk{good}},
		"nothing":      {For: time.Second},
		"too quick":    {For: time.Second, Talks: []Talk{{From: "a", To: "b", Service: tcp, Rate: maxRate + 1}}},
		"to itself":    {For: time.Second, Talks: []Talk{{From: "a", To: "a", Service: tcp}}},
		"to a strange": {For: time.Second, Talks: []Talk{{From: "a", To: "c", Service: tcp}}},
		"ICMP":         {For: time.Second, Talks: []Talk{{From: "a", To: "b", Service: traffic.Service{Protocol: traffic.ICMP}}}},
		"too large":    {For: time.Second, Talks: []Talk{{From: "a", To: "b", Service: tcp, Size: 9000}}},
	} {
		if p.check(places) == nil {
			t.Errorf("%s: allowed", what)
		}
	}
}

func TestPaceKeepsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		sent := 0
		if err := pace(ctx, 100_000, func(due int) (int, error) { sent += due; return due, nil }); err != nil {
			t.Fatal(err)
		}
		if sent < 990_000 || sent > 1_000_000 {
			t.Errorf("sent %d bytes in 10 s at 100,000 bytes a second", sent)
		}
	})
}

func TestUDPSizesKeepTheRatio(t *testing.T) {
	for _, c := range []struct {
		talk        talk
		there, back int
	}{
		{talk{Rate: 1e6}, 1000, 0},
		{talk{Rate: 1e6, Back: 5e5}, 1000, 500},
		{talk{Rate: 1e5, Back: 1e6}, 137, 1370},
		{talk{Rate: 1, Back: 1e9}, datagramHeader, maxSize},
		{talk{Rate: 1e6, Size: 100}, 100, 0},
	} {
		if there, back := c.talk.sizes(); there != c.there || back != c.back {
			t.Errorf("%+v: %d there and %d back, want %d and %d", c.talk, there, back, c.there, c.back)
		}
	}
}

func TestParseDevices(t *testing.T) {
	const text = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0
  eth0: 100 2 0 0 0 0 0 0 300 4 0 0 0 0 0 0
  eth1:1000 20 0 0 0 0 0 0 3000 40 0 0 0 0 0 0
`
	got, err := parseDevices(text)
	if want := (DeviceCounters{RxBytes: 1100, RxPackets: 22, TxBytes: 3300, TxPackets: 44}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if _, err := parseDevices("eth0: 1 2 3\n"); err == nil {
		t.Error("a short line was read")
	}
}

func FuzzHello(f *testing.F) {
	f.Add(appendHello(nil, 1e6, time.Second))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: nobody\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		back, left, err := readHello(bytes.NewReader(b))
		if err != nil {
			return
		}
		if back < 0 || back > float64(maxRate) || left < 0 || left > maxFor {
			t.Errorf("took %v bytes a second for %v", back, left)
		}
	})
}

func TestEndpointEndsWithItsDriver(t *testing.T) {
	var out bytes.Buffer
	if err := runEndpoint(t.Context(), bytes.NewReader(nil), &out); err != nil {
		t.Error(err)
	}
	if err := runEndpoint(t.Context(), bytes.NewReader([]byte("nonsense")), &out); err == nil {
		t.Error("nonsense was taken for an order")
	}
}
