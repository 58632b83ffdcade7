//go:build lab

package proof

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
)

// portsLimit is how soon a port that somebody changed is right again.
const portsLimit = 2 * time.Second

// Ports of ours that somebody changed by hand are put right.
func TestDamagedPorts(t *testing.T) {
	calm(t)
	tunnel := "vx-" + string(there)
	address := "10.255.2.11"
	for _, d := range []struct {
		name  string
		argv  []string
		wrong func(ctx context.Context) error
	}{
		{"tunnel deleted", []string{"del-port", "br-int", tunnel}, ports(tunnel, "remote_ip", address)},
		{"tunnel turned elsewhere", []string{"set", "Interface", tunnel, "options:remote_ip=10.255.2.99"}, ports(tunnel, "remote_ip", address)},
		{"uplink deleted", []string{"del-port", "br-int", "uplink"}, ports("uplink", "peer", "uplink-phy")},
	} {
		t.Run(d.name, func(t *testing.T) {
			mustIn(t, string(here), append([]string{"ovs-vsctl", "--timeout=5"}, d.argv...)...)
			t.Logf("put right after %v", until(t, portsLimit, d.wrong).Round(time.Millisecond))
			t.Logf("all is well after another %v", until(t, 15*time.Second, well).Round(time.Millisecond))
		})
	}
}

// ports says what is wrong with an interface: it must exist and work with an option.
func ports(name, option, value string) func(context.Context) error {
	return func(ctx context.Context) error {
		out, err := in(ctx, string(here), "ovs-vsctl", "--timeout=1", "--bare", "--columns=ofport,options", "find", "Interface", "name="+name)
		if err != nil {
			return err
		}
		ofport, options, _ := strings.Cut(out, "\n")
		if ofport == "" || strings.HasPrefix(ofport, "-") || !slices.Contains(strings.Fields(options), option+"="+value) {
			return fmt.Errorf("interface %s: %q", name, out)
		}
		return nil
	}
}

// A port and a flow of somebody else are reported and left alone, also when flows of ours
// that somebody deleted or changed are put right at the next resync.
func TestDamagedFlows(t *testing.T) {
	calm(t)
	see := watch(t)
	mustIn(t, string(here), "ovs-vsctl", "--timeout=5", "add-port", "br-int", "intruder", "--", "set", "Interface", "intruder", "type=internal")
	t.Cleanup(func() {
		_, err := in(context.WithoutCancel(t.Context()), string(here), "ovs-vsctl", "--timeout=5", "--if-exists", "del-port", "intruder")
		_, err2 := in(context.WithoutCancel(t.Context()), string(here), "ovs-ofctl", "-OOpenFlow15", "del-flows", "br-int", "cookie=0xbad/-1")
		if err != nil || err2 != nil {
			t.Error(err, err2)
		}
	})
	mustIn(t, string(here), "ovs-ofctl", "-OOpenFlow15", "add-flow", "br-int", "cookie=0xbad,table=0,priority=7,udp,tp_dst=9,actions=drop")
	took := until(t, portsLimit, func(ctx context.Context) error {
		h, err := world.client.Host(ctx, here)
		if err == nil && !slices.ContainsFunc(h.Unmanaged, func(s string) bool { return strings.Contains(s, "port intruder") }) {
			err = fmt.Errorf("the port is not reported: %q", h.Unmanaged)
		}
		return err
	})
	t.Logf("the foreign port is reported after %v", took.Round(time.Millisecond))
	repaired(t)
	d := diff(t)
	if len(d.Foreign) != 1 || d.Foreign[0].Cookie != "0xbad" || len(d.Extra)+len(d.Missing) > 0 {
		t.Errorf("the flows differ by %+v", d)
	}
	if got := mustIn(t, string(here), "ovs-vsctl", "--timeout=5", "--bare", "--columns=name", "find", "Interface", "name=intruder"); got != "intruder" {
		t.Error("the foreign port is gone")
	}
	if r := see(); r.UDP.Lost > 0 {
		t.Errorf("%d probes were lost", r.UDP.Lost)
	}
}

// repaired deletes a flow and changes another, both those of the VM that nobody talks to
// from outside, and waits until they are right again.
func repaired(t *testing.T) {
	t.Helper()
	mustIn(t, string(here), "ovs-ofctl", "-OOpenFlow15", "del-flows", "br-int", "table=7,reg0=0x64,dl_dst="+heliotrope.NICMAC("db", 0).String())
	mustIn(t, string(here), "ovs-ofctl", "-OOpenFlow15", "mod-flows", "br-int", "table=6,ip,reg1=0x64,nw_dst=10.1.0.20,actions=drop")
	if d := diff(t); len(d.Missing) != 2 || len(d.Extra) != 1 {
		t.Fatalf("the damage does not show: %+v", d)
	}
	took := until(t, 15*time.Second, func(context.Context) error {
		if d := diff(t); len(d.Missing)+len(d.Extra) > 0 {
			return fmt.Errorf("flows differ: %+v", d)
		}
		return nil
	})
	t.Logf("flows were right again after %v", took.Round(time.Millisecond))
}

func diff(t *testing.T) api.FlowDiff {
	t.Helper()
	d, err := world.client.FlowDiff(t.Context(), here)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
