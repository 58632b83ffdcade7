//go:build lab

package endpoints

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/topologies/lab"
)

// The test's program is also the endpoints.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "lab" {
		root, labs := &cobra.Command{Use: "test", SilenceUsage: true}, lab.Command()
		labs.AddCommand(Command())
		root.AddCommand(labs)
		if root.ExecuteContext(context.Background()) != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// hold makes a network namespace and returns a process in it.
func hold(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("sleep", "300")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd.Process.Pid
}

func inside(t *testing.T, pid int, script string) {
	t.Helper()
	if out, err := exec.Command("nsenter", "-n", "-t", fmt.Sprint(pid), "sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// bridge makes namespaces on one bridge, without offloads, so that devices count what TCP does.
func bridge(t *testing.T, vms []heliotrope.VMID) []Place {
	t.Helper()
	hub := hold(t)
	inside(t, hub, "ip link add lan type bridge mcast_snooping 0; ip link set lan up")
	var places []Place
	for i, vm := range vms {
		p := Place{VM: vm, PID: hold(t), Address: netip.AddrFrom4([4]byte{10, 9, 0, byte(i + 1)})}
		inside(t, hub, fmt.Sprintf("ip link add p%d type veth peer name eth0 netns %d; ip link set p%d master lan up", i, p.PID, i))
		inside(t, p.PID, fmt.Sprintf("sysctl -qw net.ipv6.conf.all.disable_ipv6=1; ethtool -K eth0 tx off tso off gso off >/dev/null; ip addr add %s/24 dev eth0; ip link set lo up; ip link set eth0 up", p.Address))
		places = append(places, p)
	}
	return places
}

func drivePattern(t *testing.T, f *Fleet, p Pattern) (Truth, []heliotrope.VMID) {
	t.Helper()
	plan, members, err := p.Plan()
	if err != nil {
		t.Fatal(err)
	}
	truth, err := f.Drive(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	return truth, members
}

func TestFleet(t *testing.T) {
	vms := names(4)
	places := bridge(t, vms)
	fleet, err := StartAt(t.Context(), places)
	if err != nil {
		t.Fatal(err)
	}
	defer fleet.Close()
	ring := Pattern{Kind: pattern.Ring, VMs: vms, Rate: 4e6, For: 2 * time.Second, Seed: 1}
	t.Run("UDP: both sides count the same", func(t *testing.T) {
		p := ring
		p.UDP = 1
		truth, members := drivePattern(t, fleet, p)
		if len(truth.Sent.Cells) != len(members) {
			t.Errorf("%d pairs talked, want %d", len(truth.Sent.Cells), len(members))
		}
		for i, c := range truth.Sent.Cells {
			if want := 4e6 / 8 * 2 * 1028 / 1000; math.Abs(c.Bytes-want) > 0.1*want || c.Bytes != c.Packets*1028 || c.Flows != 1 {
				t.Errorf("%s to %s: %.0f bytes in %.0f packets, want about %.0f", c.Src, c.Dst, c.Bytes, c.Packets, want)
			}
			if got := truth.Received.Cells[i]; got.Dst != c.Dst || got.Bytes != c.Bytes || got.Packets != c.Packets || got.Flows != c.Flows {
				t.Errorf("sent %+v, got %+v", c, got)
			}
		}
	})
	t.Run("TCP: the devices count the same", func(t *testing.T) {
		truth, _ := drivePattern(t, fleet, ring)
		if len(truth.Sent.Cells) != 2*len(vms) { // data one way, acknowledgements the other
			t.Errorf("%d pairs talked, want %d", len(truth.Sent.Cells), 2*len(vms))
		}
		expectDevices(t, truth)
	})
	t.Run("a star answers", func(t *testing.T) {
		truth, members := drivePattern(t, fleet, Pattern{Kind: pattern.Star, VMs: vms, Rate: 4e6, UDP: 0.5, For: time.Second, Seed: 3})
		out, in := 0.0, 0.0
		for _, c := range truth.Sent.Cells {
			if c.Src == traffic.VM(members[0]) {
				out += c.Bytes
			} else {
				in += c.Bytes
			}
		}
		if out < 2*in {
			t.Errorf("the server sent %.0f bytes and got %.0f", out, in)
		}
	})
	t.Run("a strange plan is refused", func(t *testing.T) {
		if _, err := fleet.Drive(t.Context(), Plan{For: time.Second, Talks: []Talk{{From: vms[0], To: "nobody"}}}); err == nil {
			t.Error("driven")
		}
	})
	t.Run("endpoints end with the fleet", func(t *testing.T) {
		if err := fleet.Close(); err != nil {
			t.Error(err)
		}
		for _, p := range places {
			if out, err := exec.Command("nsenter", "-n", "-t", fmt.Sprint(p.PID), "ss", "-Hlntu").Output(); err != nil || strings.TrimSpace(string(out)) != "" {
				t.Errorf("%s still listens: %v %s", p.VM, err, out)
			}
		}
	})
}

// expectDevices compares what endpoints say that they sent with what their devices did: but
// for ARP, the same to the packet, and to the byte but for options of selective acknowledgements.
func expectDevices(t *testing.T, truth Truth) {
	t.Helper()
	const ethernet, arp, some = 14, 42, 12
	for _, d := range truth.Devices {
		var packets, bytes float64
		for _, c := range truth.Sent.Cells {
			if c.Src == traffic.VM(d.VM) {
				packets, bytes = packets+c.Packets, bytes+c.Bytes+ethernet*c.Packets
			}
		}
		extra := float64(d.TxPackets) - packets
		if extra < 0 || extra > some {
			t.Errorf("%s: its device sent %d packets, its endpoint %.0f", d.VM, d.TxPackets, packets)
		}
		if off := float64(d.TxBytes) - bytes - extra*arp; off < 0 || off > 200 {
			t.Errorf("%s: its device sent %d bytes, its endpoint %.0f and %.0f times ARP", d.VM, d.TxBytes, bytes, extra)
		}
	}
}

func procNet(pid int) string { return fmt.Sprintf("/proc/%d/net/dev", pid) }
