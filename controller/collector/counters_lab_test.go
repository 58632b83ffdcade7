//go:build lab

package collector

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/arpproxy"
	"heliotrope/flows"
	"heliotrope/flows/openflow"
	"heliotrope/scheduler/traffic"
)

// TestCountersAreTheTruth lets six endpoints in namespaces of their own send known numbers
// of datagrams to each other and outside, through a real Open vSwitch with the compiled
// pipeline. A second after the last one, the bins say exactly what was sent.
func TestCountersAreTheTruth(t *testing.T) {
	view := labView()
	s := newLabSwitch(t, view)
	fs, err := flows.Compile(view, arpproxy.Flows)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.conn.Bundle(t.Context(), fs, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	bins := make(chan traffic.Bin, 600)
	c := counters{meter: meter{host: "here", boot: "b"}, wanted: func() bool { return true }, reader: s.conn, put: func(b traffic.Bin) { bins <- b },
		names: func() names { return namesOf(view.Topology) }, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	defer func() { cancel(); <-done }()
	first := <-bins // the meter has begun

	want := s.send(t)
	ended := time.Now()
	got := map[traffic.Key]traffic.Count{}
	for b := first; ; b = <-bins {
		for _, n := range b.Counts {
			sum := got[n.Key]
			got[n.Key] = traffic.Count{Packets: sum.Packets + n.Packets, Bytes: sum.Bytes + n.Bytes}
		}
		missing, total := 0., 0.
		for k, n := range want {
			missing += max(0, float64(n.Bytes)-float64(got[k].Bytes))
			total += float64(n.Bytes)
		}
		age := b.Start.Add(traffic.BinLength).Sub(ended)
		t.Logf("%v after the last packet: %.3f %% of %.0f bytes missing", age.Round(time.Millisecond), 100*missing/total, total)
		if age >= time.Second {
			break
		}
	}
	for k, n := range want {
		if got[k] != n {
			t.Errorf("%v to %v: counted %+v, sent %+v", k.Src, k.Dst, got[k], n)
		}
	}
	for k, n := range got {
		if _, ok := want[k]; !ok {
			t.Errorf("%v to %v: counted %+v, sent nothing", k.Src, k.Dst, n)
		}
	}
}

const (
	labEndpoints = 6
	labPort      = 7000
)

func endpointID(i int) heliotrope.VMID { return heliotrope.VMID(fmt.Sprint("vm", i)) }

// labView is a host with six VMs on two networks of a group.
func labView() flows.View {
	v := flows.View{Host: "here", Counters: flows.DefaultCounters, Placements: map[heliotrope.VMID]heliotrope.Placement{},
		Ports: flows.Ports{NIC: map[flows.NICKey]uint32{}},
		Topology: heliotrope.Topology{Hosts: map[heliotrope.HostID]heliotrope.Host{"here": {Address: netip.MustParseAddr("192.0.2.1")}},
			Networks: map[heliotrope.NetworkID]heliotrope.Network{}, VMs: map[heliotrope.VMID]heliotrope.VM{}}}
	for i := range 2 {
		v.Topology.Networks[heliotrope.NetworkID(fmt.Sprint("n", i))] = heliotrope.Network{VNI: uint32(100 + i), Group: "g",
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i)}), 24), Gateway: netip.AddrFrom4([4]byte{10, 1, byte(i), 1})}
	}
	for i := range labEndpoints {
		id := endpointID(i)
		v.Topology.VMs[id] = heliotrope.VM{NICs: []heliotrope.NIC{{Network: heliotrope.NetworkID(fmt.Sprint("n", i%2)),
			Address: netip.AddrFrom4([4]byte{10, 1, byte(i % 2), byte(10 + i)})}}}
		v.Placements[id] = heliotrope.Placement{VM: id, Host: "here", Epoch: 1}
		v.Ports.NIC[flows.NICKey{VM: id}] = uint32(i + 1)
	}
	return v
}

// labSwitch is a switch of the userspace datapath in a namespace, with an endpoint in a
// namespace of its own at each port. Nothing has a name outside of this process.
type labSwitch struct {
	dir       string
	netns     *os.File
	conn      *openflow.Conn
	endpoints []endpoint
}

type endpoint struct {
	vm   heliotrope.VMID
	addr netip.Addr
	udp  *net.UDPConn
}

func newLabSwitch(t *testing.T, v flows.View) *labSwitch {
	t.Helper()
	dir, err := os.MkdirTemp("", "ovs") // t.TempDir's paths are too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &labSwitch{dir: dir, netns: newNamespace(t)}
	for _, n := range v.NICs() {
		s.plug(t, n)
	}
	s.run(t, "ovsdb-tool", "create", s.path("conf.db"), "/usr/share/openvswitch/vswitch.ovsschema")
	s.daemon(t, "ovsdb-server", s.path("conf.db"), "--remote=punix:"+s.path("db.sock"), "--unixctl="+s.path("db.ctl"))
	s.until(t, func() error {
		return s.command("ovs-vsctl", "--no-wait", "--timeout=5", "--db=unix:"+s.path("db.sock"), "init").Run()
	})
	s.daemon(t, "ovs-vswitchd", "unix:"+s.path("db.sock"), "--disable-system", "--unixctl="+s.path("vs.ctl"))
	args := []string{"--timeout=20", "--db=unix:" + s.path("db.sock"), "--", "add-br", "br", "--", "set", "Bridge", "br", "datapath_type=netdev", "fail_mode=secure", "protocols=OpenFlow15"}
	for _, n := range v.NICs() {
		args = append(args, "--", "add-port", "br", string(n.VM), "--", "set", "Interface", string(n.VM), fmt.Sprint("ofport_request=", n.Port))
	}
	s.run(t, "ovs-vsctl", args...)
	s.until(t, func() error {
		nc, err := net.Dial("unix", s.path("br.mgmt"))
		if err != nil {
			return err
		}
		s.conn, err = openflow.New(t.Context(), nc, openflow.Options{})
		return err
	})
	t.Cleanup(func() { s.conn.Close() })
	return s
}

// plug makes a veth pair: the VM's own name at the switch, eth0 at the endpoint.
func (s *labSwitch) plug(t *testing.T, n flows.NIC) {
	t.Helper()
	netns := newNamespace(t)
	gateway, prefix := netip.AddrFrom4([4]byte{10, 1, n.Address.As4()[2], 1}), netip.PrefixFrom(n.Address, 24)
	s.run(t, "ip", "link", "add", string(n.VM), "type", "veth", "peer", "name", "eth0", "netns", nsPath(netns))
	s.run(t, "ip", "link", "set", string(n.VM), "up")
	for _, args := range [][]string{{"link", "set", "eth0", "address", n.MAC.String(), "up"}, {"address", "add", prefix.String(), "dev", "eth0"},
		{"route", "add", "default", "via", gateway.String()}} {
		in(t, netns, "ip", args...)
	}
	s.endpoints = append(s.endpoints, endpoint{n.VM, n.Address, listen(t, netns, n.Address)})
}

// send lets every endpoint send to every other one and outside, each pair another number
// of datagrams of another size, and returns what they sent.
func (s *labSwitch) send(t *testing.T) map[traffic.Key]traffic.Count {
	outside := endpoint{addr: netip.MustParseAddr("198.51.100.7")}
	sent := map[traffic.Key]traffic.Count{}
	var group sync.WaitGroup
	for i, from := range s.endpoints {
		for j, to := range append(s.endpoints[:labEndpoints:labEndpoints], outside) {
			if i == j {
				continue
			}
			packets, payload := uint64(1)<<((3*i+5*j)%11), 10+200*((i+2*j)%7)
			key := traffic.Key{Src: traffic.VM(from.vm), Dst: traffic.VM(to.vm)}
			if to.vm == "" {
				key.Dst = traffic.Outside(netip.MustParsePrefix("0.0.0.0/0"))
			}
			sent[key] = traffic.Count{Packets: packets, Bytes: packets * uint64(28+payload)}
			group.Go(func() {
				pace := time.NewTicker(2 * time.Millisecond)
				defer pace.Stop()
				for range packets {
					<-pace.C
					if _, err := from.udp.WriteToUDPAddrPort(make([]byte, payload), netip.AddrPortFrom(to.addr, labPort)); err != nil {
						t.Errorf("send from %s: %v", from.vm, err)
					}
				}
			})
		}
	}
	group.Wait()
	return sent
}

func newNamespace(t *testing.T) *os.File {
	t.Helper()
	var f *os.File
	onThread(t, func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	})
	t.Cleanup(func() { f.Close() })
	return f
}

// listen opens a socket in a namespace and throws away what it gets.
func listen(t *testing.T, netns *os.File, a netip.Addr) *net.UDPConn {
	t.Helper()
	var udp *net.UDPConn
	onThread(t, func() (err error) {
		if err = unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err == nil {
			udp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, labPort)))
		}
		return err
	})
	var group sync.WaitGroup
	group.Go(func() { io.Copy(io.Discard, udp) })
	t.Cleanup(func() { udp.Close(); group.Wait() })
	return udp
}

// onThread runs do on a thread that ends with it, as the namespace that do puts it in must
// not become anybody else's.
func onThread(t *testing.T, do func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		done <- do()
	}()
	if err := <-done; err != nil {
		t.Fatalf("enter namespace (this test needs root): %v", err)
	}
}

func nsPath(netns *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), netns.Fd()) }

func in(t *testing.T, netns *os.File, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command("nsenter", append([]string{"--net=" + nsPath(netns), name}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("run %s %v: %v: %s", name, args, err, bytes.TrimSpace(out))
	}
}

func (s *labSwitch) path(name string) string { return filepath.Join(s.dir, name) }

// command is a program in the switch's namespace.
func (s *labSwitch) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--net=" + nsPath(s.netns), name}, args...)...)
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+s.dir, "OVS_LOGDIR="+s.dir, "OVS_DBDIR="+s.dir)
	return cmd
}

func (s *labSwitch) run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := s.command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("run %s %v: %v: %s", name, args, err, bytes.TrimSpace(out))
	}
}

// daemon starts a program and stops it when the test ends; nsenter becomes the program.
func (s *labSwitch) daemon(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := s.command(name, append(args, "--no-chdir", "--log-file="+s.path(name+".log"), "-vconsole:off")...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if log, err := os.ReadFile(s.path(name + ".log")); err == nil && t.Failed() {
			t.Logf("%s:\n%s", name, log[max(0, len(log)-4000):])
		}
	})
}

// until polls f until it succeeds.
func (s *labSwitch) until(t *testing.T, f func() error) {
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
			t.Fatal(err)
		case <-tick.C:
		}
	}
}
