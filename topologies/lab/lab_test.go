//go:build lab

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/topologies"
)

// bring brings a lab without control up for a test.
func bring(t *testing.T, name string) Target {
	t.Helper()
	top, err := topologies.LoadFile("../two-sites.yaml", topologies.Options{})
	if err != nil {
		t.Fatal(err)
	}
	target := Target{Name: name, Dir: filepath.Join(t.TempDir(), name)}
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, target)
		}
		if err := Down(context.Background(), target); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(imageDir(target), "cmdline"), []byte("quiet"), 0o644); err != nil {
		t.Fatal(err)
	}
	upAgain(t, target, top)
	return target
}

// imageDir is outside the lab's directory, which Up empties.
func imageDir(target Target) string { return filepath.Dir(target.Dir) }

func upAgain(t *testing.T, target Target, top heliotrope.Topology) {
	t.Helper()
	began := time.Now()
	err := Up(t.Context(), Options{
		Topology: top, Name: target.Name, Dir: target.Dir, WithoutControl: true,
		Images:   map[string]string{"guest": imageDir(target)},
		Progress: func(what string) { t.Logf("%s: %v: %s", target.Name, time.Since(began).Round(time.Millisecond), what) },
	})
	if err != nil {
		t.Fatal(err)
	}
}

func showLogs(t *testing.T, target Target) {
	logs, _ := filepath.Glob(target.Dir + "/nodes/*/log/*.log")
	for _, path := range append(logs, target.Dir+"/supervisor.log") {
		text, _ := os.ReadFile(path)
		t.Logf("%s:\n%s", path, text[max(0, len(text)-2000):])
	}
}

// in runs a command in a node and returns what it printed.
func in(t *testing.T, target Target, node string, argv ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	code, err := Exec(t.Context(), target, node, argv, Stdio{Out: &out, Err: &out})
	if err == nil && code != 0 {
		err = fmt.Errorf("%s exited with %d: %s", argv[0], code, out.String())
	}
	return strings.TrimSpace(out.String()), err
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func rtt(t *testing.T, target Target, from, to string) (time.Duration, error) {
	t.Helper()
	out, err := in(t, target, from, self(t), "ping", to)
	if err != nil {
		return 0, err
	}
	return time.ParseDuration(out)
}

// eventually waits until do succeeds.
func eventually(t *testing.T, do func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var last error
	if poll(ctx, 20*time.Millisecond, func(time.Duration) bool { last = do(); return last == nil }) != nil {
		t.Fatal(last)
	}
}

func TestLab(t *testing.T) {
	lab := bring(t, "lab-test")
	t.Run("the WAN delays as the topology says", func(t *testing.T) { testDelay(t, lab) })
	t.Run("TCP passes both datapaths", func(t *testing.T) { testTCP(t, lab) })
	t.Run("a link changes while it carries", func(t *testing.T) { testLink(t, lab) })
	t.Run("BIRD knows the other site", func(t *testing.T) { testBIRD(t, lab) })
	t.Run("each host has its own libvirt", func(t *testing.T) { testLibvirt(t, lab) })
	t.Run("a command runs in the node", func(t *testing.T) { testExec(t, lab) })
	t.Run("what is killed comes back", func(t *testing.T) { testRestart(t, lab) })
	t.Run("frames that the machine is too slow for are told", func(t *testing.T) { testDrops(t, lab) })
	t.Run("logs are kept", func(t *testing.T) {
		var log strings.Builder
		err := Logs(t.Context(), lab, "left-1", "ovs-vswitchd", false, &log)
		if err != nil || !strings.Contains(log.String(), "added interface eth0") || !strings.Contains(log.String(), "killed by SIGKILL") {
			t.Errorf("log of ovs-vswitchd: %v\n%s", err, log.String())
		}
	})
	t.Run("a lab that runs is not started again", func(t *testing.T) {
		err := Up(t.Context(), Options{Name: lab.Name, Dir: lab.Dir, WithoutControl: true})
		if err == nil || !strings.Contains(err.Error(), "runs already") {
			t.Fatalf("second up: %v", err)
		}
	})
}

func testDelay(t *testing.T, lab Target) {
	for _, c := range []struct {
		from, to string
		want     time.Duration
	}{
		{"left-1", "10.255.2.11", 40 * time.Millisecond}, // 20 ms each way
		{"visitor", "10.255.2.11", 40 * time.Millisecond},
		{"visitor", "10.255.1.11", 0}, // same site
	} {
		got, err := rtt(t, lab, c.from, c.to)
		if err != nil {
			t.Fatalf("%s to %s: %v", c.from, c.to, err)
		}
		t.Logf("%s to %s: %v", c.from, c.to, got)
		if got < c.want || got > c.want+25*time.Millisecond {
			t.Errorf("%s to %s: round trip %v, want %v", c.from, c.to, got, c.want)
		}
	}
}

func testTCP(t *testing.T, lab Target) {
	group, ctx := errgroup.WithContext(t.Context())
	group.Go(func() error {
		code, err := Exec(ctx, lab, "right-1", []string{self(t), "serve", "10.255.2.11:9"}, Stdio{})
		return errors.Join(err, exitError(code))
	})
	group.Go(func() error {
		var out bytes.Buffer
		code, err := Exec(ctx, lab, "visitor", []string{self(t), "send", "10.255.2.11:9"}, Stdio{Out: &out, Err: &out})
		t.Logf("visitor to right-1: %s", strings.TrimSpace(out.String()))
		return errors.Join(err, exitError(code))
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

func exitError(code int) error {
	if code != 0 {
		return ExitError{code}
	}
	return nil
}

func testLink(t *testing.T, lab Target) {
	delay := heliotrope.Duration(50 * time.Millisecond)
	if _, err := Change(t.Context(), lab, LinkChange{Link: "left-right", From: "left", Delay: &delay}); err != nil {
		t.Fatal(err)
	}
	got, err := rtt(t, lab, "left-1", "10.255.2.11")
	if err != nil || got < 70*time.Millisecond || got > 95*time.Millisecond {
		t.Errorf("50 ms there, 20 ms back: round trip %v, %v", got, err)
	}
	yes, no := true, false
	if _, err := Change(t.Context(), lab, LinkChange{Link: "left-right", Down: &yes}); err != nil {
		t.Fatal(err)
	}
	if got, err := rtt(t, lab, "left-1", "10.255.2.11"); err == nil {
		t.Errorf("answered in %v over a link that is down", got)
	}
	back := heliotrope.Duration(20 * time.Millisecond)
	s, err := Change(t.Context(), lab, LinkChange{Link: "left-right", Down: &no, Delay: &back})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range s.Links {
		if l.Shape.Down || l.Shape.Delay != 20*time.Millisecond || l.Meter.Bytes == 0 {
			t.Errorf("link after the changes: %+v", l)
		}
	}
	var table strings.Builder
	if err := s.WriteTable(&table, time.Now()); err != nil || !strings.Contains(strings.Join(strings.Fields(table.String()), " "), "left-right right left 20ms") {
		t.Errorf("table: %v\n%s", err, table.String())
	}
	if strings.Contains(table.String(), "no room") {
		t.Errorf("an idle lab has dropped frames:\n%s", table.String())
	}
	if _, err := Change(t.Context(), lab, LinkChange{Link: "nowhere"}); err == nil {
		t.Error("a link that is not there was changed")
	}
}

// A WAN that gets no core loses frames, and the lab owns up to it.
func testDrops(t *testing.T, lab Target) {
	s, err := Read(t.Context(), lab)
	if err != nil {
		t.Fatal(err)
	}
	router, _ := s.Node("router-left")
	if err := unix.Kill(s.Supervisor, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	err = inNetns(router.PID, func() error {
		conn, err := net.Dial("udp", "10.255.2.11:9")
		if err != nil {
			return err
		}
		defer conn.Close()
		for range 40_000 {
			conn.Write([]byte("nobody reads this")) // an ICMP error for an earlier one is none of ours
		}
		return nil
	})
	if err := errors.Join(err, unix.Kill(s.Supervisor, unix.SIGCONT)); err != nil {
		t.Fatal(err)
	}
	if s, err = Read(t.Context(), lab); err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	if err := s.WriteTable(&table, time.Now()); err != nil || !strings.Contains(table.String(), "router-left dropped ") {
		t.Errorf("table: %v\n%s", err, table.String())
	}
}

func testBIRD(t *testing.T, lab Target) {
	eventually(t, func() error { // it scans the kernel's routes a second after its start
		out, err := in(t, lab, "router-left", "birdc", "show", "route", "10.255.2.0/24")
		if err == nil && !strings.Contains(out, "via 100.64.0.2 on wan0") {
			err = errors.New(out)
		}
		return err
	})
	out, err := in(t, lab, "router-left", "birdc", "show", "protocols", "controller")
	if err != nil || !strings.Contains(out, "BGP") {
		t.Errorf("no BGP to the controller: %v %s", err, out)
	}
}

func testLibvirt(t *testing.T, lab Target) {
	seen := map[string]bool{}
	for _, host := range []string{"left-1", "right-1"} {
		name, err := in(t, lab, host, "virsh", "-c", "qemu:///system", "hostname")
		if err != nil || name != host {
			t.Errorf("libvirt of %s says it is on %q: %v", host, name, err)
		}
		caps, err := in(t, lab, host, "virsh", "-c", "qemu:///system", "capabilities")
		_, after, _ := strings.Cut(caps, "<uuid>")
		uuid, _, found := strings.Cut(after, "</uuid>")
		if err != nil || !found || seen[uuid] {
			t.Errorf("libvirt of %s has the UUID %q: %v", host, uuid, err)
		}
		seen[uuid] = true
	}
}

func testExec(t *testing.T, lab Target) {
	var out bytes.Buffer
	code, err := Exec(t.Context(), lab, "left-1", []string{"sh", "-c", "hostname; cat; echo >/etc/left-a-trace; exit 7"}, Stdio{In: strings.NewReader("in"), Out: &out})
	if err != nil || code != 7 || out.String() != "left-1\nin" {
		t.Errorf("exec: code %d, output %q, error %v", code, out.String(), err)
	}
	if text, err := in(t, lab, "right-1", "cat", "/var/lib/heliotrope/images/guest/cmdline"); err != nil || text != "quiet" {
		t.Errorf("image in the node: %q, %v", text, err)
	}
	if _, err := in(t, lab, "right-1", "touch", "/var/lib/heliotrope/images/guest/cmdline"); err == nil {
		t.Error("a node may write to its images")
	}
	if _, err := os.Stat("/etc/left-a-trace"); err == nil {
		t.Error("a node wrote to the machine's /etc")
	}
	if code, err := Exec(t.Context(), lab, "left-1", []string{"sh", "-c", "kill -9 $$"}, Stdio{}); err != nil || code != 128+9 {
		t.Errorf("killed command: code %d, error %v", code, err)
	}
	if _, err := Exec(t.Context(), lab, "nobody", []string{"true"}, Stdio{}); err == nil {
		t.Error("a command ran in a node that is not there")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Exec(ctx, lab, "left-1", []string{"cat"}, Stdio{In: neverEnds{ctx}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command that does not end: %v", err)
	}
}

// neverEnds is input that does not come until its context ends.
type neverEnds struct{ ctx context.Context }

func (n neverEnds) Read([]byte) (int, error) { <-n.ctx.Done(); return 0, context.Cause(n.ctx) }

func testRestart(t *testing.T, lab Target) {
	for node, names := range map[string][]string{"left-1": {"ovs-vswitchd", "ovsdb-server", "libvirtd", "virtlogd"}, "router-left": {"bird"}} {
		for _, name := range names {
			if err := Kill(t.Context(), lab, KillOrder{node, name, unix.SIGKILL}); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range names {
			eventually(t, func() error {
				s, err := Read(t.Context(), lab)
				if err != nil {
					return err
				}
				n, _ := s.Node(node)
				d, _ := n.Daemon(name)
				if d.Restarts == 0 || !d.Ready {
					return fmt.Errorf("%s on %s did not come back: %+v", name, node, d)
				}
				return nil
			})
		}
	}
	eventually(t, func() error {
		_, err := rtt(t, lab, "left-1", "10.255.2.11")
		return err
	})
}

// population are the processes in a lab's namespaces. They keep the namespaces alive, and
// these the mounts and devices.
func population(t *testing.T, lab Target) []process {
	t.Helper()
	s, err := Read(t.Context(), lab)
	if err != nil {
		t.Fatal(err)
	}
	namespaces := map[string]bool{}
	for _, n := range s.Nodes {
		for _, kind := range []string{"net", "mnt", "pid", "uts", "ipc"} {
			id, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", n.PID, kind))
			if err != nil {
				t.Fatal(err)
			}
			namespaces[id] = true
		}
	}
	links, err := filepath.Glob("/proc/[0-9]*/ns/*")
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]process{}
	for _, link := range links {
		if id, err := os.Readlink(link); err != nil || !namespaces[id] {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err != nil {
			continue // the thread's own
		}
		if start, err := startTime(pid); err == nil {
			found[pid] = process{pid, start}
		}
	}
	if len(found) < 15 {
		t.Errorf("a lab of 5 nodes has only %d processes", len(found))
	}
	return slices.Collect(maps.Values(found))
}

// expectNothing checks that nothing of a lab is left but its directory.
func expectNothing(t *testing.T, lab Target, had []process) {
	t.Helper()
	eventually(t, func() error {
		if i := slices.IndexFunc(had, process.alive); i >= 0 {
			return fmt.Errorf("process %d is left", had[i].pid)
		}
		return nil
	})
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(lab.Dir)) {
		t.Errorf("a mount is left (%v):\n%s", err, mounts)
	}
	devices, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		for _, name := range []string{"br-phy", "lan", "wan0", "left-1", "right-1", "visitor", "ovs-netdev"} {
			if d.Name == name {
				t.Errorf("device %s is left", name)
			}
		}
	}
}

func TestKilledSupervisorLeavesNothing(t *testing.T) {
	lab := bring(t, "kill-test")
	p := population(t, lab)
	s, err := Read(t.Context(), lab)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(s.Supervisor, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s.Since.IsZero() || s.Topology != "two-sites" {
		t.Errorf("status: %+v", s)
	}
	top, err := topologies.LoadFile("../two-sites.yaml", topologies.Options{})
	if err != nil {
		t.Fatal(err)
	}
	upAgain(t, lab, top) // at once
	expectNothing(t, lab, p)
	if _, err := rtt(t, lab, "left-1", "10.255.2.11"); err != nil {
		t.Errorf("second up: %v", err)
	}

	p = population(t, lab)
	if s, err = Read(t.Context(), lab); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(s.Supervisor, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	expectNothing(t, lab, p)
	for range 2 { // the second finds nothing
		if err := Down(t.Context(), lab); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(lab.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
	if _, err := Read(t.Context(), lab); !errors.Is(err, ErrNotRunning) {
		t.Errorf("status of nothing: %v", err)
	}
}

func TestTwoLabsSideBySide(t *testing.T) {
	one := bring(t, "one")
	two := bring(t, "two")
	for _, lab := range []Target{one, two} {
		if _, err := rtt(t, lab, "left-1", "10.255.2.11"); err != nil {
			t.Errorf("%s: %v", lab.Name, err)
		}
	}
	p := population(t, one)
	if err := Down(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	expectNothing(t, one, p)
	if _, err := rtt(t, two, "left-1", "10.255.2.11"); err != nil {
		t.Errorf("the other lab after down: %v", err)
	}
}

func TestUpThatFails(t *testing.T) {
	top, err := topologies.LoadFile("../two-sites.yaml", topologies.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "broken")
	err = Up(t.Context(), Options{Topology: top, Dir: dir, Name: "broken", WithoutControl: true, Images: map[string]string{"guest": "/nowhere"}})
	if err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("up without an image: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "processes"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		pid, start, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.Atoi(pid)
		if err != nil || (process{n, start}).alive() {
			t.Errorf("process %q is left: %v", line, err)
		}
	}
	if err := Down(t.Context(), Target{Dir: dir}); err != nil {
		t.Error(err)
	}
}
