package imagebench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"heliotrope/topologies/lab/netns"
)

// yard is a switch with hosts at its ports: a network namespace for each, whose links have a
// rate in both directions. The namespaces have no names, and end with the process.
type yard struct {
	hub   *os.File
	hosts []*os.File
}

// yardPort is where the hosts listen.
const yardPort = 7000

// newYard makes a yard of so many hosts with links of so many Mbit/s.
func newYard(hosts, mbits int) (*yard, error) {
	y := &yard{}
	hub, err := netns.New()
	if err != nil {
		return nil, err
	}
	y.hub = hub
	script := &strings.Builder{}
	fmt.Fprintln(script, "ip link add br0 type bridge mcast_snooping 0 && ip link set br0 up")
	for i := range hosts {
		ns, err := netns.New()
		if err != nil {
			return nil, errors.Join(err, y.close())
		}
		y.hosts = append(y.hosts, ns)
		fmt.Fprintf(script, "ip link add p%d type veth peer name eth0 netns /proc/%d/fd/%d\nip link set p%d master br0 up\n%s\n",
			i, os.Getpid(), ns.Fd(), i, shaper(fmt.Sprint("p", i), mbits))
	}
	if err := netns.Shell(y.hub, script.String()); err != nil {
		return nil, errors.Join(err, y.close())
	}
	for i, ns := range y.hosts {
		up := fmt.Sprintf("ip link set lo up; ip address add %s/24 dev eth0; ip link set eth0 up\n%s", yardAddress(i), shaper("eth0", mbits))
		if err := netns.Shell(ns, up); err != nil {
			return nil, errors.Join(err, y.close())
		}
	}
	return y, nil
}

// shaper bounds what leaves by a device: what waits for longer than 50 ms is dropped. The burst is
// larger than the largest packet that TCP hands down, which would else be cut to the wire's size there: sixteen
// links would then cost more processor time than two cores have.
func shaper(device string, mbits int) string {
	return fmt.Sprintf("tc qdisc add dev %s root tbf rate %dmbit burst 128kb latency 50ms", device, mbits)
}

func yardAddress(host int) string { return fmt.Sprintf("10.77.0.%d", host+1) }

func (y *yard) close() error {
	errs := []error{y.hub.Close()}
	for _, h := range y.hosts {
		errs = append(errs, h.Close())
	}
	return errors.Join(errs...)
}

// listen opens a host's port.
func (y *yard) listen(ctx context.Context, host int) (l net.Listener, err error) {
	err = netns.Inside(y.hosts[host], func() (err error) {
		var lc net.ListenConfig
		l, err = lc.Listen(ctx, "tcp", net.JoinHostPort(yardAddress(host), strconv.Itoa(yardPort)))
		return err
	})
	return l, err
}

// dial opens a connection from one host to another.
func (y *yard) dial(ctx context.Context, from, to int) (conn net.Conn, err error) {
	err = netns.Inside(y.hosts[from], func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "tcp", net.JoinHostPort(yardAddress(to), strconv.Itoa(yardPort)))
		return err
	})
	return conn, err
}

// cut takes a host's link down: nothing tells the others.
func (y *yard) cut(host int) error {
	return netns.Shell(y.hub, fmt.Sprintf("ip link set p%d down", host))
}
