package lab

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/topologies/lab/wan"
)

// wanDevice is a router's way to all other sites.
const wanDevice = "wan0"

// droppedAt counts the frames that a router's queue to the WAN had no room for, 0 where
// the router is just ending.
func droppedAt(router int) (frames uint64) {
	_ = inNetns(router, func() error {
		l, err := netlink.LinkByName(wanDevice)
		if err == nil && l.Attrs().Statistics != nil {
			frames = l.Attrs().Statistics.TxDropped
		}
		return err
	})
	return frames
}

// wire makes the cables: in each router a bridge, a veth to each node of its site and the
// tap to the WAN. A veth is born in the router's namespace with its other end in the
// node's, so no name of it is ever seen by the machine or by another lab.
func wire(w *wan.WAN, top heliotrope.Topology, nodes []*handle) error {
	number := 0
	for _, router := range nodes {
		if router.plan.Kind != KindRouter {
			continue
		}
		var members []*handle
		for _, n := range nodes {
			if n.plan.Kind != KindRouter && n.plan.Kind != KindVM && n.plan.Site == router.plan.Site {
				members = append(members, n)
			}
		}
		if err := inNetns(router.pid, func() error { return wireLAN(router, members) }); err != nil {
			return fmt.Errorf("wire site %s: %w", router.plan.Site, err)
		}
		for _, m := range members {
			devices := []string{"eth0"}
			if m.plan.Kind == KindHost {
				devices = append(devices, bulkDevice)
			}
			for _, device := range devices {
				if err := inNetns(m.pid, func() error { return startPort(device) }); err != nil {
					return fmt.Errorf("wire node %s: %w", m.plan.Node, err)
				}
			}
		}
		mac := wanMAC(number)
		number++
		tap, err := wan.OpenTap(netnsOf(router.pid), wanDevice, mac)
		if err != nil {
			return fmt.Errorf("wire site %s: %w", router.plan.Site, err)
		}
		if err := w.AddPort(string(router.plan.Site), mac, tap); err != nil {
			return fmt.Errorf("wire site %s: %w", router.plan.Site, err)
		}
	}
	if err := wireVMs(top, nodes); err != nil {
		return err
	}
	return shape(w, top)
}

// shape gives every pair of sites the line of its link; a pair without a link has none.
func shape(w *wan.WAN, top heliotrope.Topology) error {
	for a := range top.Sites {
		for b := range top.Sites {
			if a == b {
				continue
			}
			if err := w.SetShape(string(a), string(b), wan.Shape{Down: true}); err != nil {
				return err
			}
		}
	}
	for id, l := range top.Links {
		for _, ends := range [][2]heliotrope.SiteID{l.Between, {l.Between[1], l.Between[0]}} {
			if err := w.SetShape(string(ends[0]), string(ends[1]), wan.LinkShape(l)); err != nil {
				return fmt.Errorf("shape link %s: %w", id, err)
			}
		}
	}
	return nil
}

// wireLAN runs in the router's namespace.
func wireLAN(router *handle, members []*handle) error {
	snooping := false
	mac := labMAC(router.plan.Node, "lan")
	lan := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "lan", HardwareAddr: mac[:]}, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(lan); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	for i, m := range members {
		cables := []cable{{portName(i, m.plan.Node), "eth0"}}
		if m.plan.Kind == KindHost {
			cables = append(cables, cable{fmt.Sprintf("bulk%d", i), bulkDevice})
		}
		for _, c := range cables {
			if err := c.plug(m, lan); err != nil {
				return fmt.Errorf("add cable to %s: %w", m.plan.Node, err)
			}
		}
	}
	return startPort("lan")
}

// cable is a veth, by the names of its ends.
type cable struct{ here, there string }

// plug makes the cable between a site's bridge and a node.
func (c cable) plug(m *handle, lan netlink.Link) error {
	here, there := labMAC(m.plan.Node, "port of "+c.there), labMAC(m.plan.Node, c.there)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = c.here, net.HardwareAddr(here[:])
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: c.there, PeerHardwareAddr: there[:], PeerNamespace: netlink.NsPid(m.pid)}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(veth, lan); err != nil {
		return err
	}
	return startPort(c.here)
}

// portName is the node's name where that can be a device's.
func portName(i int, node string) string {
	if len(node) < unix.IFNAMSIZ && node != "lan" && node != wanDevice && node != "lo" {
		return node
	}
	return fmt.Sprintf("port%d", i)
}

// startPort brings a device up without offloads: a checksum or a segmentation that is
// left to hardware never happens when the next one to see the packet is OVS's userspace.
func startPort(name string) error {
	for _, feature := range []uint32{unix.ETHTOOL_STXCSUM, unix.ETHTOOL_STSO, unix.ETHTOOL_SGSO} {
		if err := ethtoolOff(name, feature); err != nil {
			return fmt.Errorf("switch offload of %s off: %w", name, err)
		}
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

func ethtoolOff(name string, command uint32) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(s)
	value := struct{ command, data uint32 }{command: command}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 && !errors.Is(errno, unix.EOPNOTSUPP) {
		return errno
	}
	return nil
}

func netnsOf(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }

// inNetns runs do in the network namespace of a process.
func inNetns(pid int, do func() error) error {
	return onOwnThread(func() error {
		fd, err := unix.Open(netnsOf(pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open namespace: %w", err)
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		return do()
	})
}

// onOwnThread runs do on a thread that ends with it: one that has been in other
// namespaces must serve nobody else. It is never the main thread, which cannot end: Go
// would keep it, and with it the namespaces, for as long as the process lives.
func onOwnThread(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- onOwnThread(do) // on another thread, for this one is taken
			return
		}
		done <- do()
	}()
	return <-done
}
