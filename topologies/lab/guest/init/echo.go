package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const echoPort = 7

// listenUDP takes one address, so that an answer leaves from where the question went.
func listenUDP(a netip.Addr) (*net.UDPConn, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, echoPort)))
	if err != nil {
		return nil, fmt.Errorf("listen on UDP: %w", err)
	}
	if err := growReadBuffer(conn); err != nil {
		return nil, errors.Join(fmt.Errorf("grow UDP buffer: %w", err), conn.Close())
	}
	return conn, nil
}

// readBuffer holds what a pause of many seconds leaves for the guest's return. A small
// datagram takes about 1 kB of it.
const readBuffer = 4 << 20

// growReadBuffer asks as root first: anybody else gets net.core.rmem_max at most, and a
// guest that comes back after two seconds at 100 datagrams a second would drop some.
func growReadBuffer(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var forced error
	err = raw.Control(func(fd uintptr) {
		forced = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, readBuffer)
	})
	if err == nil && errors.Is(forced, unix.EPERM) {
		return conn.SetReadBuffer(readBuffer)
	}
	return errors.Join(err, forced)
}

// echoUDP answers each datagram, one after the other in the order of arrival.
func echoUDP(conn *net.UDPConn) error {
	buffer := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		conn.WriteToUDPAddrPort(buffer[:n], from) // what cannot be answered is lost, as on any network
	}
}

func acceptEcho(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // no memory, no descriptors: there will be again
			time.Sleep(10 * time.Millisecond)
			continue
		}
		go func() {
			defer conn.Close()
			io.Copy(conn, conn)
		}()
	}
}
