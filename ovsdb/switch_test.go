package ovsdb

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"heliotrope"
)

func mesh(peers int) Want {
	w := Want{Host: "us-1", DatapathType: "dummy", LocalIP: netip.MustParseAddr("10.1.0.11"), Tunnels: map[heliotrope.HostID]Tunnel{}}
	for i := range peers {
		w.Tunnels[heliotrope.HostID(fmt.Sprintf("eu-%d", i+1))] = Tunnel{RemoteIP: netip.AddrFrom4([4]byte{10, 2, byte(i / 250), byte(i%250 + 1)})}
	}
	return w
}

func TestConvergesFromNothing(t *testing.T) {
	o := startOVS(t)
	s := o.connect(Options{Term: 1})
	converge(t, s, mesh(3))
	for ask, want := range map[string]string{
		"get bridge br-int fail_mode":                     "secure",
		"get bridge br-int protocols":                     "[OpenFlow15]",
		"get bridge br-int other_config:disable-in-band":  `"true"`,
		"get interface vx-eu-2 options":                   `{key=flow, local_ip="10.1.0.11", remote_ip="10.2.0.2"}`,
		"get interface vx-eu-2 bfd":                       `{enable="true", min_rx="300", min_tx="300"}`,
		"get interface uplink options:peer":               "uplink-phy",
		"iface-to-br uplink-phy":                          "br-phy",
		"get open_vswitch . external_ids:heliotrope-term": `"1"`,
	} {
		if got := o.vsctl(strings.Fields(ask)...); got != want {
			t.Errorf("%s: got %s, want %s", ask, got, want)
		}
	}
	ports, err := s.Ports(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]Port{}
	for _, p := range ports {
		byName[p.Name] = p
	}
	p := byName["vx-eu-2"]
	if p.Ofport <= 0 || !p.Ours || p.Foreign || p.Peer != "eu-2" || p.BFD == nil || p.BFD.State != "down" {
		t.Errorf("port of tunnel: got %+v", p)
	}
	if p := byName["br-int"]; !p.Ours || p.Foreign {
		t.Errorf("local port of br-int: got %+v", p)
	}

	w := mesh(3)
	delete(w.Tunnels, "eu-2")
	converge(t, s, w)
	if got := o.vsctl("list-ports", "br-int"); strings.Contains(got, "vx-eu-2") {
		t.Errorf("port of a host that left is still there: %s", got)
	}
}

func TestHandMadeDamageIsRepaired(t *testing.T) {
	o := startOVS(t)
	keep(t, o, Options{Term: 1}, mesh(3))
	healthy := func() error {
		for ask, want := range map[string]string{
			"--if-exists get interface vx-eu-1 options:remote_ip":   `"10.2.0.1"`,
			"--if-exists get interface vx-eu-1 options":             `{key=flow, local_ip="10.1.0.11", remote_ip="10.2.0.1"}`,
			"--if-exists get interface vx-eu-1 bfd:enable":          `"true"`,
			"--if-exists get interface uplink-phy options:peer":     "uplink",
			"--if-exists get interface uplink type":                 "patch",
			"--if-exists get bridge br-int fail_mode":               "secure",
			"--if-exists get interface vx-eu-2 external_ids":        `{heliotrope=us-1, heliotrope-peer=eu-2}`,
			"--if-exists get bridge br-int external_ids:heliotrope": "us-1",
		} {
			if err := expect(o.vsctl(strings.Fields(ask)...), want); err != nil {
				return fmt.Errorf("%s: %w", ask, err)
			}
		}
		return expect(o.vsctl("list-ports", "br-int"), "uplink\nvx-eu-1\nvx-eu-2\nvx-eu-3")
	}
	t.Logf("from nothing: %v", eventually(t, "converge", healthy))
	for _, damage := range []string{
		"del-port vx-eu-1",
		"del-port uplink",
		"set interface vx-eu-1 options:remote_ip=10.9.9.9",
		"set interface vx-eu-1 options:tos=inherit",
		"set interface vx-eu-1 options:remote_ip=no-address",
		"clear interface vx-eu-1 bfd",
		"clear interface vx-eu-2 external_ids",
		"set bridge br-int fail_mode=standalone",
		"remove bridge br-int external_ids heliotrope",
		"del-br br-int",
	} {
		o.vsctl(append([]string{"--no-wait"}, strings.Fields(damage)...)...)
		took := eventually(t, damage, healthy)
		t.Logf("%s: right again after %v", damage, took.Round(time.Millisecond))
		if took > 2*time.Second {
			t.Errorf("%s: took %v, more than 2 s", damage, took)
		}
	}
}

func TestForeignPortIsReportedAndLeft(t *testing.T) {
	o := startOVS(t)
	s := o.connect(Options{Term: 1})
	converge(t, s, mesh(1))
	o.vsctl("add-port", "br-int", "mine", "--", "set", "interface", "mine", "type=dummy", "external_ids:who=me")
	o.vsctl("add-port", "br-int", "vnet0", "--", "set", "interface", "vnet0", "type=dummy",
		"external_ids:iface-id=c0ffee", "external_ids:vm-id=4b1d", `external_ids:attached-mac="02:00:00:00:00:01"`)
	before := o.vsctl("list", "interface", "mine")
	w := mesh(2)
	converge(t, s, w)
	delete(w.Tunnels, "eu-1")
	converge(t, s, w)
	ports, err := s.Ports(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var foreign []string
	for _, p := range ports {
		if p.Foreign {
			foreign = append(foreign, p.Name)
		}
		if p.Name == "vnet0" && (p.IfaceID != "c0ffee" || p.VMID != "4b1d" || p.MAC != "02:00:00:00:00:01" || p.Ofport == 0) {
			t.Errorf("tap of a VM: got %+v", p)
		}
	}
	if len(foreign) != 1 || foreign[0] != "mine" {
		t.Errorf("foreign ports: got %v, want [mine]", foreign)
	}
	if after := o.vsctl("list", "interface", "mine"); dropStatistics(after) != dropStatistics(before) {
		t.Errorf("foreign port changed:\n%s\nbefore:\n%s", after, before)
	}
}

func dropStatistics(list string) string {
	var kept []string
	for line := range strings.Lines(list) {
		if !strings.HasPrefix(line, "statistics") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

func TestErrorsAreInOpenvSwitchsWords(t *testing.T) {
	o := startOVS(t)
	s := o.connect(Options{Term: 1})
	w := mesh(2)
	w.Tunnels["eu-2"] = w.Tunnels["eu-1"] // Open vSwitch refuses two tunnels to one place
	for try := range 2 {                  // an object that failed is tried again, and the error told again
		_, err := round(t, s, w)
		if err == nil || !strings.Contains(err.Error(), "vx-eu-") || !strings.Contains(err.Error(), "File exists") {
			t.Fatalf("round %d: got %v, want an error that names the port and says File exists", try+1, err)
		}
		t.Log(err)
	}
	eventually(t, "mend it", func() error { // Open vSwitch may take the new place of one before the other has left it
		n, err := round(t, s, mesh(2))
		if err == nil && n > 0 {
			err = fmt.Errorf("%d changes", n)
		}
		return err
	})
	o.vsctl("--no-wait", "del-port", "vx-eu-2", "--", "add-port", "br-phy", "vx-eu-2")
	if _, err := round(t, s, mesh(2)); err == nil || !strings.Contains(err.Error(), "br-phy has a port of that name, which is not ours") {
		t.Errorf("name taken in another bridge: got %v", err)
	}
}

func TestHundredTunnels(t *testing.T) {
	o := startOVS(t)
	s := o.connect(Options{Term: 1})
	start := time.Now()
	if _, err := round(t, s, mesh(100)); err != nil {
		t.Fatal(err)
	}
	t.Logf("100 tunnels from nothing, all with ofport: %v", time.Since(start).Round(time.Millisecond))
	start = time.Now()
	if n, err := round(t, s, mesh(100)); n != 0 || err != nil {
		t.Fatalf("second round: %d changes, %v", n, err)
	}
	t.Logf("a round with nothing to do: %v", time.Since(start).Round(100*time.Microsecond))
	converge(t, s, mesh(200))
	if got := o.vsctl("list-ports", "br-int"); got != "uplink\nvx-mesh" {
		t.Errorf("ports of a mesh of 200: got %s, want uplink and vx-mesh", got)
	}
	if got := o.vsctl("get", "interface", "vx-mesh", "options:remote_ip"); got != "flow" {
		t.Errorf("remote_ip of vx-mesh: got %s, want flow", got)
	}
}

func TestServerKilledAndRestarted(t *testing.T) {
	o := startOVS(t)
	s := o.connect(Options{Term: 1})
	converge(t, s, mesh(2))
	kill(o.server)
	select {
	case <-s.Done():
		t.Logf("told: %v", s.Err())
	case <-time.After(2 * time.Second):
		t.Fatal("Done is still open 2 s after ovsdb-server died")
	}
	if _, err := s.Target().Observe(t.Context()); err == nil {
		t.Error("observe over a dead connection succeeded")
	}
	o.startServer()
	o.vsctl("--no-wait", "del-port", "vx-eu-1")
	start := time.Now()
	s = o.connect(Options{Term: 1})
	converge(t, s, mesh(2))
	t.Logf("new connection, converged: %v", time.Since(start).Round(time.Millisecond))
	if got := o.vsctl("list-ports", "br-int"); got != "uplink\nvx-eu-1\nvx-eu-2" {
		t.Errorf("ports: got %s", got)
	}
}

func TestStaleTermIsRefused(t *testing.T) {
	o := startOVS(t)
	old := o.connect(Options{Term: 4})
	converge(t, old, mesh(1))
	rows, err := old.read(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	young := o.connect(Options{Term: 5})
	converge(t, young, mesh(2))
	if _, err := round(t, old, mesh(3)); !errors.Is(err, ErrStaleTerm) {
		t.Errorf("old leader: got %v, want %v", err, ErrStaleTerm)
	}
	// The same, had the newer leader come between reading and writing.
	if _, err := old.transact(t.Context(), old.fenced(rows, nil)...); err == nil || !strings.Contains(err.Error(), "timed out") {
		t.Errorf("write of an old reading: got %v, want timed out", err)
	}
	if got := o.vsctl("list-ports", "br-int"); got != "uplink\nvx-eu-1\nvx-eu-2" {
		t.Errorf("ports: got %s", got)
	}
	converge(t, young, mesh(3))
}

func TestWithoutVswitchdApplyFailsInTime(t *testing.T) {
	o := startOVS(t)
	s := o.connect(Options{Term: 1, Timeout: 300 * time.Millisecond})
	o.run("ovs-appctl", "-t", o.path("vswitchd.ctl"), "exit")
	_, err := round(t, s, mesh(1))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "ovs-vswitchd") {
		t.Errorf("got %v, want a deadline that blames ovs-vswitchd", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Ports(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	s.Close()
	if !errors.Is(s.Err(), ErrClosed) {
		t.Errorf("after Close: got %v, want %v", s.Err(), ErrClosed)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	o := startOVS(t)
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	before := runtime.NumGoroutine()
	for range 20 {
		s := o.connect(Options{Term: 1})
		converge(t, s, mesh(1))
		s.Close()
	}
	eventually(t, "goroutines end", func() error {
		if n := runtime.NumGoroutine(); n > before {
			return fmt.Errorf("%d goroutines, %d before", n, before)
		}
		return nil
	})
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left in the temporary directory: %v, %v", left, err)
	}
}

func TestFrozenServerIsNoticed(t *testing.T) {
	o := startOVS(t)
	s := o.connect(Options{Term: 1, Echo: 200 * time.Millisecond})
	converge(t, s, mesh(1))
	if err := o.server.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := s.Ports(t.Context()); err == nil {
		t.Error("a frozen server answered")
	}
	<-s.Done()
	if took := time.Since(start); took > 2*time.Second || !strings.Contains(s.Err().Error(), "silent") {
		t.Errorf("noticed after %v: %v", took, s.Err())
	} else {
		t.Logf("noticed after %v: %v", took, s.Err())
	}
}

// A device that is not there is told by name and tried again; what is no longer wanted is
// unplugged, and everything else stands.
func TestDevices(t *testing.T) {
	o := startOVS(t)
	s := o.connect(Options{Term: 1})
	w := mesh(1)
	w.Devices = map[string]string{"scan0": "c0ffee"}
	if _, err := round(t, s, w); err == nil || !strings.Contains(err.Error(), "make port scan0: ") {
		t.Fatalf("a device that is not there: %v", err)
	}
	if got := o.vsctl("get", "interface", "scan0", "external_ids:iface-id"); got != "c0ffee" {
		t.Errorf("its interface ID is %s", got)
	}
	have, err := s.Target().Observe(t.Context())
	if err != nil || have["scan0"].Settings["error"] == "" || have["vx-eu-1"].Settings["error"] != "" {
		t.Errorf("%v, %v", have, err)
	}
	converge(t, s, mesh(1))
	if got := o.vsctl("list-ports", "br-int"); strings.Contains(got, "scan0") {
		t.Errorf("br-int still has %s", got)
	}
}
