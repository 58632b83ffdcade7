package hostagent

import (
	"context"
	"encoding/binary"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// ovs is a real Open vSwitch with a datapath that moves no packets.
type ovs struct {
	t       *testing.T
	dir     string
	switchd *exec.Cmd
}

func startOVS(t *testing.T) *ovs {
	t.Helper()
	o := &ovs{t: t, dir: t.TempDir()}
	o.run("ovsdb-tool", "create", o.dir+"/conf.db", "/usr/share/openvswitch/vswitch.ovsschema")
	o.daemon("ovsdb-server", o.dir+"/conf.db", "--remote=punix:"+o.dir+"/db.sock", "--unixctl="+o.dir+"/ovsdb.ctl")
	o.until("ovsdb", func() bool { _, err := os.Stat(o.dir + "/db.sock"); return err == nil })
	o.run("ovs-vsctl", "--db=unix:"+o.dir+"/db.sock", "--no-wait", "init")
	o.startSwitchd()
	o.vsctl("add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=dummy", "fail_mode=secure", "protocols=OpenFlow15")
	return o
}

func (o *ovs) startSwitchd() {
	o.t.Helper()
	o.switchd = o.daemon("ovs-vswitchd", "unix:"+o.dir+"/db.sock", "--enable-dummy=override", "--disable-system", "--unixctl="+o.dir+"/switchd.ctl")
}

func (o *ovs) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+o.dir, "OVS_LOGDIR="+o.dir)
	return cmd
}

func (o *ovs) daemon(name string, args ...string) *exec.Cmd {
	o.t.Helper()
	cmd := o.command(name, args...)
	if err := cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); cmd.Wait() }()
	o.t.Cleanup(func() { cmd.Process.Kill(); <-done })
	return cmd
}

func (o *ovs) run(name string, args ...string) string {
	o.t.Helper()
	out, err := o.command(name, args...).CombinedOutput()
	if err != nil {
		o.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

func (o *ovs) vsctl(args ...string) string {
	o.t.Helper()
	return o.run("ovs-vsctl", append([]string{"--db=unix:" + o.dir + "/db.sock", "--timeout=10"}, args...)...)
}

// installed is what the bridge has, without what changes by itself.
func (o *ovs) installed() string {
	flows, err := o.command("ovs-ofctl", "-O", "OpenFlow15", "--no-stats", "dump-flows", "unix:"+o.dir+"/br-int.mgmt").Output()
	groups, err2 := o.command("ovs-ofctl", "-O", "OpenFlow15", "dump-groups", "unix:"+o.dir+"/br-int.mgmt").Output()
	if err != nil || err2 != nil {
		return ""
	}
	return bundleLines("flow", string(flows)) + bundleLines("group", string(groups))
}

func (o *ovs) until(what string, ok func() bool) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), 15*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			o.t.Fatalf("%s: not within 15 s", what)
		}
	}
}

func (o *ovs) keep(t *testing.T) (f *flows, stop func()) {
	c := Config{Bridge: "br-int", OVSDir: o.dir, StateDir: o.dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	f = newFlows(c)
	ctx, cancel := context.WithCancel(t.Context())
	var g sync.WaitGroup
	g.Go(func() { f.run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); g.Wait() })
	t.Cleanup(stop)
	return f, stop
}

// addFlow is a controller's flow modification: all packets to a port, in OpenFlow 1.5.
func addFlow(cookie uint64, table byte) []byte {
	b := []byte{ofVersion, ofFlowMod, 0, 0, 0, 0, 0, 9}
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = append(b, make([]byte, 8)...)                             // cookie mask
	b = append(b, table, 0, 0, 0, 0, 0, 0, 100)                   // add, no timeouts, priority
	b = append(b, 0xff, 0xff, 0xff, 0xff)                         // no buffer
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) // any port and group
	b = append(b, 0, 0, 0, 0)                                     // flags, importance
	b = append(b, 0, 1, 0, 4, 0, 0, 0, 0)                         // matches everything
	b = append(b, 0, 1, 0, 8, table+1, 0, 0, 0)                   // and goes to the next table
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

func TestFlowsComeBack(t *testing.T) {
	o := startOVS(t)
	o.vsctl("add-port", "br-int", "p1", "--", "add-port", "br-int", "p2", "--", "add-port", "br-int", "p3")
	f, stop := o.keep(t)
	copied := func() bool {
		data, err := os.ReadFile(filepath.Join(o.dir, "flows"))
		return err == nil && strings.Count(string(data), "\nflow add ") == 51
	}

	// The controller's words pass through the agent.
	o.run("ovs-ofctl", "-O", "OpenFlow15", "add-group", "unix:"+o.dir+"/br-int.mgmt", "group_id=7,type=all,bucket=actions=output:1,bucket=actions=output:2")
	o.run("ovs-ofctl", "-O", "OpenFlow15", "add-flow", "unix:"+o.dir+"/br-int.mgmt",
		"cookie=0x5,table=3,priority=7,ip,nw_dst=10.0.0.1,actions=set_field:02:00:00:00:00:01->eth_dst,group:7")
	conn, err := f.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	hello := []byte{ofVersion, ofHello, 0, 8, 0, 0, 0, 1}
	if _, err := conn.Write(hello); err != nil {
		t.Fatal(err)
	}
	for table := range byte(50) {
		if _, err := conn.Write(addFlow(uint64(table)+1, table)); err != nil {
			t.Fatal(err)
		}
	}
	o.until("51 flows", func() bool { return strings.Count(o.installed(), "flow ") == 51 })
	o.until("copy of the flows", copied)
	before := o.installed()

	// The agent is not even there when the switch dies.
	conn.Close()
	stop()
	o.switchd.Process.Kill()
	o.keep(t)
	o.startSwitchd()
	start := time.Now()
	o.until("flows after a restart", func() bool { return o.installed() == before })
	took := time.Since(start)
	t.Logf("%d flows and a group were back %s after the switch had started", 51, took.Round(time.Millisecond))
	if took > 2*time.Second {
		t.Errorf("restored after %s, want within 1 s or so", took)
	}

	// Somebody deletes all flows by hand; the groups stay.
	o.run("ovs-ofctl", "-O", "OpenFlow15", "del-flows", "unix:"+o.dir+"/br-int.mgmt")
	o.until("flows after their deletion", func() bool { return o.installed() == before })
}

func TestFlowsOfOtherPortsStayAway(t *testing.T) {
	for _, c := range []struct {
		were, are string
		same      bool
	}{
		{"LOCAL=LOCAL,p1=1,p2=2", "LOCAL=LOCAL,p1=1,p2=2", true},
		{"p1=1,p2=2", "p1=1", true}, // nothing goes out of a port that is not there
		{"p1=1", "p1=1,p2=2", true},
		{"p1=1,p2=2", "p1=2,p2=1", false},
		{"", "p1=1", true},
	} {
		if got := samePorts(c.were, c.are); got != c.same {
			t.Errorf("samePorts(%q, %q): got %t, want %t", c.were, c.are, got, c.same)
		}
	}
}

func FuzzFlowCount(f *testing.F) {
	f.Add([]byte{0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0x80, 2, 6, 4, 0, 0, 0, 9})
	f.Fuzz(func(t *testing.T, data []byte) {
		flowCount(data)
	})
}

func FuzzFollow(f *testing.F) {
	f.Add(addFlow(1, 2), uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, cut uint8) {
		// However the bytes are cut, the same messages are seen.
		var whole, parts writes
		want := whole.follow(data)
		got := false
		for c := range slices.Chunk(data, int(cut)+1) {
			got = parts.follow(c) || got
		}
		if got != want {
			t.Errorf("cut every %d: got %t, want %t", int(cut)+1, got, want)
		}
	})
}
