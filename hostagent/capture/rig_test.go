//go:build lab

package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/scheduler/traffic"
)

// site is a host: a namespace with a bridge that guests are plugged in.
type site struct {
	namespace
	name   string
	guests []*guest
}

// guest is a namespace that stands for a VM. Its device at the host is a veth's end, of
// which a packet that the guest sends comes in, as it does at a tap.
type guest struct {
	namespace
	port   traffic.Port
	v4, v6 netip.Addr
}

func newSite(t testing.TB, name string) *site {
	t.Helper()
	s := &site{namespace: makeNamespace(t), name: name}
	s.run(t, "ip link add br0 type bridge mcast_snooping 0; ip link set br0 up; ip link set lo up")
	return s
}

func makeNamespace(t testing.TB) namespace {
	t.Helper()
	n, err := newNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.close)
	return n
}

func (n namespace) run(t testing.TB, script string) {
	t.Helper()
	if err := n.shell(script); err != nil {
		t.Fatal(err)
	}
}

// plug gives s a guest with the addresses 10.0.0.id and fd00::id.
func (s *site) plug(t testing.TB, id int) *guest {
	t.Helper()
	g := &guest{
		namespace: makeNamespace(t),
		port:      traffic.Port{Device: fmt.Sprintf("tap%d", id), VM: heliotrope.VMID(fmt.Sprintf("vm%d", id)), Domain: "blue"},
		v4:        netip.AddrFrom4([4]byte{10, 0, 0, byte(id)}),
		v6:        netip.MustParseAddr(fmt.Sprintf("fd00::%x", id)),
	}
	s.run(t, fmt.Sprintf(`ip link add %[1]s type veth peer name eth0 netns %[2]s
		ip link set %[1]s master br0 up`, g.port.Device, g.path()))
	g.run(t, fmt.Sprintf(`ip link set lo up; ip link set eth0 address 02:00:00:00:00:0%[3]d
		sysctl -qw net.ipv6.conf.eth0.accept_dad=0 net.ipv6.conf.eth0.router_solicitations=0
		ip link set eth0 up
		ip address add %[1]s/24 dev eth0; ip address add %[2]s/64 dev eth0 nodad
		ip route add default dev eth0
		for i in 1 2 3 4; do
			ip neighbour add 10.0.0.$i lladdr 02:00:00:00:00:0$i dev eth0 nud permanent
			ip neighbour add fd00::$i lladdr 02:00:00:00:00:0$i dev eth0 nud permanent
		done`, g.v4, g.v6, id))
	s.guests = append(s.guests, g)
	return g
}

// addresses are the book's of guests.
func addresses(counted bool, guests ...*guest) (book []traffic.Address) {
	for _, g := range guests {
		for _, a := range []netip.Addr{g.v4, g.v6} {
			book = append(book, traffic.Address{Domain: g.port.Domain, Address: a, VM: g.port.VM, Counted: counted})
		}
	}
	return book
}

func orders(source traffic.Source, sampling uint32, guests ...*guest) traffic.Orders {
	o := traffic.Orders{Source: source, Sampling: sampling, Budget: 1, Grain4: 24, Grain6: 64, Book: addresses(true, guests...)}
	for _, g := range guests {
		o.Ports = append(o.Ports, g.port)
	}
	return o
}

// watch runs a capture at the site.
func (s *site) watch(t testing.TB, o traffic.Orders) *Capture {
	t.Helper()
	c := s.start(t, t.Output(), o, func() error { return nil })
	first := c.next(t, 1) // it counts
	if o.Source != "" && first[0].Source != o.Source {
		t.Fatalf("source: got %s, want %s", first[0].Source, o.Source)
	}
	return c
}

// start runs a capture on a thread of the site that is prepared first.
func (s *site) start(t testing.TB, log io.Writer, o traffic.Orders, prepare func() error) *Capture {
	t.Helper()
	c := New(heliotrope.HostID(s.name), slog.New(slog.NewTextHandler(log, nil)))
	c.Set(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- s.inside(func() error {
			if err := prepare(); err != nil {
				return err
			}
			return c.Run(ctx)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return c
}

// now is the number of the latest bin, when one has just begun.
func (c *Capture) now(t testing.TB) uint64 {
	t.Helper()
	bins := c.next(t, 1)
	return bins[0].Seq
}

// next returns n bins that are to come.
func (c *Capture) next(t testing.TB, n int) []traffic.Bin {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n+10)*time.Second)
	defer cancel()
	after := c.last()
	var bins []traffic.Bin
	for len(bins) < n {
		more, err := c.Bins(ctx, c.boot, after)
		if err != nil {
			t.Fatal(err)
		}
		bins = append(bins, more...)
		after = bins[len(bins)-1].Seq
	}
	return bins
}

// sum adds up the bins after seq, up to those of now; a second is read to its end.
func (c *Capture) sum(t testing.TB, seq uint64) *summed {
	t.Helper()
	end := time.Now()
	s := &summed{counts: map[traffic.Key]traffic.Count{}}
	for s.to.Before(end) {
		bins, err := c.Bins(t.Context(), c.boot, seq)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range bins {
			s.add(b)
			seq = b.Seq
		}
	}
	return s
}

type summed struct {
	counts     map[traffic.Key]traffic.Count
	shed       uint64
	unreadable uint64
	variance   float64 // of all bytes
	to         time.Time
}

func (s *summed) add(b traffic.Bin) {
	for _, c := range b.Counts {
		was := s.counts[c.Key]
		was.Packets += c.Packets
		was.Bytes += c.Bytes
		was.Flows += c.Flows
		was.RTTs += c.RTTs
		was.RTTSum += c.RTTSum
		was.Samples += c.Samples
		s.counts[c.Key] = was
		s.variance += float64(b.Sampling) * float64(b.Sampling-1) * float64(c.Squares)
	}
	s.shed += b.Shed
	s.unreadable += b.Unreadable
	s.to = b.Start.Add(time.Second)
}

// of sums up keys that are as wanted.
func (s *summed) of(want func(traffic.Key) bool) (c traffic.Count) {
	for k, v := range s.counts {
		if want(k) {
			c.Packets += v.Packets
			c.Bytes += v.Bytes
			c.Flows += v.Flows
			c.RTTs += v.RTTs
			c.Samples += v.Samples
		}
	}
	return c
}

func between(src, dst *guest) func(traffic.Key) bool {
	return func(k traffic.Key) bool { return k.Src.VM == src.port.VM && k.Dst.VM == dst.port.VM }
}

// frames sends frames on a device in the namespace, with a socket mark.
func (n namespace) frames(t testing.TB, device string, mark int, frames ...[]byte) {
	t.Helper()
	err := n.inside(func() error {
		card, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
			return err
		}
		for _, f := range frames {
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: card.Index}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sent are the packets and bytes that the IP layers of a guest have sent.
func (g *guest) sent(t testing.TB) (packets, bytes uint64) {
	t.Helper()
	err := g.inside(func() error {
		data, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if err != nil {
			return err
		}
		packets, bytes = field(string(data), "Ip6OutRequests"), field(string(data), "Ip6OutOctets")
		for _, file := range []string{"snmp", "netstat"} {
			data, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			packets += column(string(data), "Ip:", "OutRequests")
			bytes += column(string(data), "IpExt:", "OutOctets")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return packets, bytes
}

func field(text, name string) uint64 {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == name {
			n, _ := strconv.ParseUint(f[1], 10, 64)
			return n
		}
	}
	return 0
}

func column(text, table, name string) uint64 {
	var names []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != table {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i := range names {
			if names[i] == name {
				n, _ := strconv.ParseUint(f[i], 10, 64)
				return n
			}
		}
	}
	return 0
}
