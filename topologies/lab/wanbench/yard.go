package wanbench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"heliotrope"
	"heliotrope/topologies/lab/netns"
	"heliotrope/topologies/lab/wan"
)

// link is a way between two sites.
type link struct {
	Mbits int           `json:"mbit_s"`
	RTT   time.Duration `json:"rtt"`
}

func (l link) String() string { return fmt.Sprintf("%d Mbit/s, %v", l.Mbits, l.RTT) }

// bytes a second.
func (l link) rate() float64 { return float64(l.Mbits) * 1e6 / 8 }

// sites are the yard's two; each is a network namespace without a name.
var sites = [2]string{"a", "b"}

// yard is two sites and the WAN between them.
type yard struct {
	ns  [2]*os.File
	wan *wan.WAN

	stop func()
	done chan error
}

func address(site int) netip.Addr { return netip.AddrFrom4([4]byte{100, 64, 9, byte(site + 1)}) }

func newYard(ctx context.Context) (*yard, error) {
	y := &yard{wan: wan.New(slog.New(slog.DiscardHandler)), done: make(chan error, 1)}
	ctx, y.stop = context.WithCancel(ctx)
	go func() { y.done <- y.wan.Run(ctx) }()
	for i := range sites {
		if err := y.plug(i); err != nil {
			return nil, errors.Join(err, y.close())
		}
	}
	return y, nil
}

// plug makes a site. Its TCP may fill a long way.
func (y *yard) plug(i int) (err error) {
	if y.ns[i], err = netns.New(); err != nil {
		return err
	}
	mac := heliotrope.MAC{2, 0, 0, 0, 9, byte(i + 1)}
	tap, err := wan.OpenTap(y.path(i), "wan0", mac)
	if err != nil {
		return err
	}
	if err := y.wan.AddPort(sites[i], mac, tap); err != nil {
		return err
	}
	return netns.Shell(y.ns[i], fmt.Sprintf(`ip link set lo up; ip address add %s/24 dev wan0
		for f in tcp_rmem tcp_wmem; do echo "4096 1048576 67108864" > /proc/sys/net/ipv4/$f; done`, address(i)))
}

func (y *yard) path(site int) string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), y.ns[site].Fd())
}

// shape makes the way between the sites one like l, in both directions.
func (y *yard) shape(l link) error {
	s := wan.Shape{Delay: l.RTT / 2, Rate: heliotrope.BitRate(l.Mbits) * 1e6}
	return errors.Join(y.wan.SetShape(sites[0], sites[1], s), y.wan.SetShape(sites[1], sites[0], s))
}

// meter is how many bytes have crossed the WAN, both directions, and how many frames its queues
// dropped.
func (y *yard) meter() (bytes, dropped uint64) {
	for _, m := range y.wan.Meters() {
		bytes += m.Bytes
		dropped += m.QueueDrop
	}
	return bytes, dropped
}

func (y *yard) close() error {
	y.stop()
	errs := []error{<-y.done}
	for _, ns := range y.ns {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(errs...)
}
