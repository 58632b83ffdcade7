package openflow_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"heliotrope/flows/openflow"
)

// ovs is a real Open vSwitch with dummy ports, in a directory of its own. It needs no
// rights and touches nothing else.
type ovs struct{ dir string }

// newSwitch starts a switch with the bridge br and the given ports, numbered in order
// from 1. A name that begins with "vx" becomes a VXLAN port.
func newSwitch(t testing.TB, ports ...string) *ovs {
	t.Helper()
	dir, err := os.MkdirTemp("", "ovs") // t.TempDir's paths are too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	o := &ovs{dir}
	o.run(t, "ovsdb-tool", "create", o.path("conf.db"), "/usr/share/openvswitch/vswitch.ovsschema")
	o.daemon(t, "ovsdb-server", o.path("conf.db"), "--remote=punix:"+o.path("db.sock"), "--unixctl="+o.path("db.ctl"))
	o.until(t, "ovsdb-server answers", func() error {
		_, err := o.try("ovs-vsctl", "--no-wait", "--timeout=5", "--db=unix:"+o.path("db.sock"), "init")
		return err
	})
	o.daemon(t, "ovs-vswitchd", "unix:"+o.path("db.sock"), "--enable-dummy=override", "--disable-system", "--unixctl="+o.path("vs.ctl"))
	args := []string{"--", "add-br", "br", "--", "set", "Bridge", "br", "datapath_type=dummy", "fail_mode=secure", "protocols=OpenFlow15"}
	for i, p := range ports {
		args = append(args, "--", "add-port", "br", p, "--", "set", "Interface", p, fmt.Sprint("ofport_request=", i+1))
		if strings.HasPrefix(p, "vx") {
			args = append(args, "type=vxlan", "options:key=flow", fmt.Sprintf("options:remote_ip=192.0.2.%d", i+1))
		}
	}
	o.vsctl(t, args...)
	return o
}

func (o *ovs) path(name string) string { return filepath.Join(o.dir, name) }

func (o *ovs) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+o.dir, "OVS_LOGDIR="+o.dir, "OVS_DBDIR="+o.dir)
	return cmd
}

// daemon starts a program and stops it when the test ends.
func (o *ovs) daemon(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := o.command(name, append(args, "--no-chdir", "--log-file="+o.path(name+".log"), "-vconsole:off")...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if log, err := os.ReadFile(o.path(name + ".log")); err == nil && t.Failed() {
			t.Logf("%s:\n%s", name, log[max(0, len(log)-4000):])
		}
	})
}

func (o *ovs) try(name string, args ...string) (string, error) {
	cmd := o.command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}

func (o *ovs) run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := o.try(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (o *ovs) vsctl(t testing.TB, args ...string) {
	t.Helper()
	o.run(t, "ovs-vsctl", append([]string{"--timeout=20", "--db=unix:" + o.path("db.sock")}, args...)...)
}

// ofctl runs ovs-ofctl on the bridge.
func (o *ovs) ofctl(t testing.TB, command string, args ...string) string {
	t.Helper()
	return o.run(t, "ovs-ofctl", append([]string{"-O", "OpenFlow15", command, "unix:" + o.path("br.mgmt")}, args...)...)
}

// appctl runs ovs-appctl on ovs-vswitchd.
func (o *ovs) appctl(t testing.TB, args ...string) string {
	t.Helper()
	return o.run(t, "ovs-appctl", append([]string{"--timeout=20", "--target=" + o.path("vs.ctl")}, args...)...)
}

// until polls what until it succeeds.
func (o *ovs) until(t testing.TB, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("wait until %s: %v", what, err)
		case <-tick.C:
		}
	}
}

// dial connects to the bridge as its controller.
func (o *ovs) dial(t testing.TB) *openflow.Conn {
	t.Helper()
	var c *openflow.Conn
	o.until(t, "the bridge answers", func() error {
		nc, err := net.Dial("unix", o.path("br.mgmt"))
		if err != nil {
			return err
		}
		c, err = openflow.New(t.Context(), nc, openflow.Options{})
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}
