package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bringUp configures the loopback and every NIC. The first gateway is the default route.
func bringUp(nics []nic) error {
	r, err := openRoute(0)
	if err != nil {
		return err
	}
	defer r.close()
	if err := r.setLink(1, 0); err != nil {
		return fmt.Errorf("start loopback: %w", err)
	}
	routed := false
	for _, n := range nics {
		index, name, err := findDevice(n.mac)
		if err != nil {
			return err
		}
		dropOffloads(name)
		if err := r.setLink(index, n.mtu); err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
		if err := r.addAddress(index, n); err != nil {
			return fmt.Errorf("add address %v: %w", n.address, err)
		}
		if n.gateway.IsValid() && !routed {
			routed = true
			if err := r.addDefault(index, n); err != nil {
				return fmt.Errorf("add default route by %v: %w", n.gateway, err)
			}
		}
	}
	return nil
}

// findDevice waits a moment for the driver to show the device with this address.
func findDevice(mac string) (index int, name string, err error) {
	for range 200 {
		devices, err := net.Interfaces()
		if err != nil {
			return 0, "", fmt.Errorf("list devices: %w", err)
		}
		for _, d := range devices {
			if d.HardwareAddr.String() == mac {
				return d.Index, d.Name, nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return 0, "", fmt.Errorf("find the NIC with address %s: none in 2 s", mac)
}

// dropOffloads makes the device send finished packets only: Open vSwitch's userspace datapath
// does not complete checksums that a guest leaves to the hardware. What the device cannot
// switch off, it does not do.
func dropOffloads(name string) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(s)
	for _, command := range []uint32{unix.ETHTOOL_STSO, unix.ETHTOOL_SGSO, unix.ETHTOOL_STXCSUM} {
		value := [2]uint32{command, 0}
		request := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&value)}
		copy(request.name[:unix.IFNAMSIZ-1], name)
		unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
		runtime.KeepAlive(&value)
	}
}

// route is an rtnetlink socket.
type route struct{ fd int }

// openRoute subscribes to the given groups of notifications, 0 for none.
func openRoute(groups uint32) (route, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return route{}, fmt.Errorf("open netlink: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return route{}, fmt.Errorf("open netlink: %w", err)
	}
	return route{fd}, nil
}

func (r route) close() { unix.Close(r.fd) }

// setLink starts a device and, unless mtu is 0, sets its MTU.
func (r route) setLink(index, mtu int) error {
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	binary.NativeEndian.PutUint32(body[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(body[12:], unix.IFF_UP)
	if mtu > 0 {
		body = append(body, attribute(unix.IFLA_MTU, native32(uint32(mtu)))...)
	}
	return r.request(unix.RTM_NEWLINK, 0, body)
}

func (r route) addAddress(index int, n nic) error {
	ip := n.address.Addr().AsSlice()
	// Nobody else can have the address, so IPv6 need not ask and wait.
	body := []byte{family(n), byte(n.address.Bits()), unix.IFA_F_NODAD, unix.RT_SCOPE_UNIVERSE}
	body = append(body, native32(uint32(index))...)
	body = append(body, attribute(unix.IFA_LOCAL, ip)...)
	body = append(body, attribute(unix.IFA_ADDRESS, ip)...)
	return r.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
}

func (r route) addDefault(index int, n nic) error {
	body := []byte{family(n), 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST}
	flags := uint32(0)
	if !n.address.Contains(n.gateway) {
		flags = unix.RTNH_F_ONLINK
	}
	body = append(body, native32(flags)...)
	body = append(body, attribute(unix.RTA_GATEWAY, n.gateway.AsSlice())...)
	body = append(body, attribute(unix.RTA_OIF, native32(uint32(index)))...)
	return r.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
}

func family(n nic) byte {
	if n.address.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// request sends one message and waits for the kernel's answer.
func (r route) request(kind, flags uint16, body []byte) error {
	m := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	binary.NativeEndian.PutUint32(m, uint32(unix.SizeofNlMsghdr+len(body)))
	binary.NativeEndian.PutUint16(m[4:], kind)
	binary.NativeEndian.PutUint16(m[6:], flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	m = append(m, body...)
	if err := unix.Sendto(r.fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	reply := make([]byte, 8192)
	n, err := unix.Read(r.fd, reply)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 {
		return errors.New("netlink's answer is too short")
	}
	if code := int32(binary.NativeEndian.Uint32(reply[unix.SizeofNlMsghdr:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// attribute is a netlink attribute, padded to four bytes.
func attribute(kind uint16, value []byte) []byte {
	a := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	a = binary.NativeEndian.AppendUint16(a, kind)
	a = append(a, value...)
	return append(a, make([]byte, -len(a)&3)...)
}

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
