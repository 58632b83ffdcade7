package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

const echoPort = 7

// listenUDP takes one address, so that an answer leaves from where the question went.
func listenUDP(a netip.Addr) (*net.UDPConn, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, echoPort)))
	if err != nil {
		return nil, fmt.Errorf("listen on UDP: %w", err)
	}
	conn.SetReadBuffer(4 << 20)
	return conn, nil
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
