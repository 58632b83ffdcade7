package heliotrope_test

import (
	"net/netip"
	"testing"
	"time"

	"heliotrope"
)

func TestStubs(t *testing.T) {
	top := heliotrope.Topology{
		Hosts: map[heliotrope.HostID]heliotrope.Host{"a-1": {Site: "a"}, "a-2": {Site: "a"}, "b-1": {Site: "b"}},
		Stubs: map[heliotrope.StubID]heliotrope.Stub{
			"scanner": {Host: "a-1", Network: "web", Address: netip.MustParseAddr("10.1.0.9"), Access: heliotrope.AccessLocal},
			"tape":    {Host: "a-1", Network: "web", MAC: heliotrope.MAC{2, 1}, Linger: heliotrope.Duration(time.Hour)},
		},
	}
	for _, c := range []struct {
		end      heliotrope.VMID
		from     heliotrope.HostID
		withheld bool
	}{{"scanner", "a-1", false}, {"scanner", "a-2", false}, {"scanner", "b-1", true}, {"tape", "b-1", false}, {"web", "b-1", false}} {
		if got := top.Withheld(c.end, c.from); got != c.withheld {
			t.Errorf("%s withheld from %s: %v", c.end, c.from, got)
		}
	}
	ends, at := top.Ends(nil)
	if len(ends.VMs) != 2 || top.VMs != nil || at["tape"].Host != "a-1" || ends.VMs["tape"].NICs[0].MAC != (heliotrope.MAC{2, 1}) ||
		ends.VMs["scanner"].NICs[0].MAC != heliotrope.NICMAC("scanner", 0) {
		t.Errorf("%+v at %+v", ends.VMs, at)
	}
	scanner, tape := top.Stubs["scanner"], top.Stubs["tape"]
	if scanner.LingerOf() != 10*time.Minute || tape.LingerOf() != time.Hour || tape.AccessOf() != heliotrope.AccessAuto {
		t.Errorf("%v, %v, %s", scanner.LingerOf(), tape.LingerOf(), tape.AccessOf())
	}
}
