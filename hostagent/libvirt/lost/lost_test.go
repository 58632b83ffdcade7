package lost

import (
	"bytes"
	"net"
	"slices"
	"testing"
)

func TestFrames(t *testing.T) {
	main := "02:00:00:00:00:01"
	filter := &Filter{Unicast: "normal", Multicast: "normal", BroadcastAllowed: true, MainMAC: main, MulticastTable: []string{"33:33:00:00:00:01"}}
	to := func(mac string) []byte {
		hw, err := net.ParseMAC(mac)
		if err != nil {
			t.Fatal(err)
		}
		return append(hw, "frame"...)
	}
	us, other := to(main), to("02:00:00:00:00:09")
	heard, dropped, all := to("33:33:00:00:00:01"), to("33:33:00:00:00:02"), to("ff:ff:ff:ff:ff:ff")
	// In each case QEMU had read 100 frames in the end, and used 50 buffers.
	for _, c := range []struct {
		name    string
		taken   [][]byte
		looks   []Look
		lost    int // the last so many
		certain bool
	}{
		{"one kept", [][]byte{us, us, us}, []Look{{97, 48, 97}}, 1, true},
		{"one thrown away besides", [][]byte{us, us, us}, []Look{{97, 49, 97}}, 2, true},
		{"packets came between, and two looks agree", [][]byte{us, us, us, us, us}, []Look{{95, 49, 97}, {97, 49, 98}}, 2, true},
		{"one look is not enough", [][]byte{us, us, us, us, us}, []Look{{95, 48, 97}}, 1, false},
		{"the card drops multicast", [][]byte{dropped, us, other, us, us}, []Look{{95, 48, 95}}, 1, true},
		{"also between the looks", [][]byte{us, dropped, us, dropped, us, us}, []Look{{94, 47, 95}, {96, 48, 96}}, 1, true},
		{"and gives what its guest asked for", [][]byte{heard, all, us}, []Look{{97, 48, 97}}, 1, true},
		{"what it would drop is kept", [][]byte{us, dropped}, []Look{{98, 49, 98}}, 1, true},
		{"several buffers for a frame", [][]byte{us, us}, []Look{{98, 45, 98}}, 1, false},
		{"more than ever seen", slices.Repeat([][]byte{us}, 9), []Look{{91, 49, 91}}, 1, false},
		{"a look that is older than the records", [][]byte{us, us}, []Look{{10, 3, 10}}, 1, false},
		{"nobody looked", [][]byte{us, us}, nil, 1, false},
		{"nothing recorded", nil, []Look{{100, 50, 100}}, 0, false},
	} {
		lost, certain := Frames(c.taken, 100, 50, c.looks, filter)
		if want := c.taken[len(c.taken)-c.lost:]; !slices.EqualFunc(lost, want, bytes.Equal) || certain != c.certain {
			t.Errorf("%s: %q, %v, want %q, %v", c.name, lost, certain, want, c.certain)
		}
	}
	if lost, certain := Frames([][]byte{us, us, us}, 100, 1, []Look{{97, 65535, 97}}, filter); len(lost) != 1 || !certain {
		t.Errorf("round the circle: %q, %v", lost, certain)
	}
	for _, mode := range []*Filter{nil, {Promiscuous: true}, {Unicast: "all", Multicast: "all"}, {Unicast: "normal", UnicastOverflow: true, Multicast: "normal", MulticastOverflow: true}} {
		if !mode.Passes(other) || !mode.Passes(dropped) {
			t.Errorf("%+v does not pass all", mode)
		}
	}
	if none := (&Filter{Unicast: "none", Multicast: "none"}); none.Passes(us) || none.Passes(heard) || none.Passes(all) {
		t.Error("a closed filter passes something")
	}
}
