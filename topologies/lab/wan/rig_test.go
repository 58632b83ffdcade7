//go:build lab

package wan

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"heliotrope"
)

// TestMain lets the senders and receivers of these tests in before other packages' tests, as
// the WAN's own thread is: what they measure is the WAN, not the machine's load.
func TestMain(m *testing.M) {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		panic(err)
	}
	for _, thread := range threads { // later ones inherit it
		tid, err := strconv.Atoi(thread.Name())
		if err != nil {
			panic(err)
		}
		unix.Setpriority(unix.PRIO_PROCESS, tid, niceness)
	}
	m.Run()
}

// rig is a running WAN with a router in a namespace of its own at each port. A namespace
// has no name: it ends with this process, however that ends.
type rig struct {
	wan   *WAN
	nodes []*node
}

type node struct {
	name      string
	namespace *os.File
	mac       heliotrope.MAC
	addr      netip.Addr
}

func (n *node) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.namespace.Fd()) }

func newRig(t testing.TB, size int) *rig {
	t.Helper()
	r := &rig{wan: New(slog.New(slog.NewTextHandler(t.Output(), nil)))}
	for i := range size {
		n := &node{
			name:      fmt.Sprintf("site%d", i),
			namespace: newNamespace(t),
			mac:       heliotrope.MAC{2, 0, 0, 0, 0, byte(i + 1)},
			addr:      netip.AddrFrom4([4]byte{100, 64, 0, byte(i + 1)}),
		}
		r.nodes = append(r.nodes, n)
		r.plug(t, n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.wan.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

// plug gives n a wan device and an address.
func (r *rig) plug(t testing.TB, n *node) {
	t.Helper()
	tap, err := OpenTap(n.path(), "wan0", n.mac)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.wan.AddPort(n.name, n.mac, tap); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("nsenter", "--net="+n.path(), "ip", "address", "add", n.addr.String()+"/24", "dev", "wan0").CombinedOutput()
	if err != nil {
		t.Fatalf("add address: %v: %s", err, out)
	}
}

func (r *rig) shape(t testing.TB, from, to int, s Shape) {
	t.Helper()
	if err := r.wan.SetShape(r.nodes[from].name, r.nodes[to].name, s); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) meter(from, to int) Meter {
	return r.wan.Meters()[Pair{r.nodes[from].name, r.nodes[to].name}]
}

func newNamespace(t testing.TB) *os.File {
	t.Helper()
	type result struct {
		f   *os.File
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends, the namespace stays open
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{err: err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		made <- result{f, err}
	}()
	got := <-made
	if got.err != nil {
		t.Fatalf("make namespace (this test needs root): %v", got.err)
	}
	t.Cleanup(func() { got.f.Close() })
	return got.f
}

// inside runs do on a thread in the namespace of n; sockets opened there stay there.
func (n *node) inside(t testing.TB, do func() error) {
	t.Helper()
	if err := inNamespace(n.path(), do); err != nil {
		t.Fatal(err)
	}
}

func (n *node) listenUDP(t testing.TB) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	n.inside(t, func() (err error) {
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(n.addr, 7000)))
		return err
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

// bigBuffers lets TCP of n fill long fat pipes.
func (n *node) bigBuffers(t testing.TB) {
	t.Helper()
	n.inside(t, func() error {
		for _, name := range []string{"tcp_rmem", "tcp_wmem"} {
			// thread-self: /proc/sys/net shows the namespace of the thread that opens it.
			if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte("4096 1048576 67108864"), 0); err != nil {
				return err
			}
		}
		return nil
	})
}

// connect returns both ends of a TCP connection from a to b.
func connect(t testing.TB, a, b *node) (from, to net.Conn) {
	t.Helper()
	var listener net.Listener
	b.inside(t, func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(b.addr, 0).String())
		return err
	})
	defer listener.Close()
	a.inside(t, func() (err error) {
		from, err = net.Dial("tcp4", listener.Addr().String())
		return err
	})
	to, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { from.Close(); to.Close() })
	return from, to
}

// processorTime is what this process has used.
func processorTime() int64 {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}
