//go:build lab

package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

// The test's program is also the lab's supervisor, its PID 1s, and what the tests run inside nodes.
func TestMain(m *testing.M) {
	var err error
	switch args := append(os.Args, "", "", ""); args[1] {
	case "lab":
		root := &cobra.Command{Use: "test", SilenceUsage: true}
		root.AddCommand(Command())
		err = root.ExecuteContext(context.Background())
	case "get":
		err = get(args[2])
	case "ping":
		err = ping(args[2])
	case "serve":
		err = serveTCP(args[2])
	case "send":
		err = sendTCP(args[2])
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// get prints a page of a guest.
func get(url string) error {
	client := http.Client{Timeout: 20 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, io.LimitReader(resp.Body, 1<<20))
	return err
}

// ping prints the median round-trip time of five echoes to an address.
func ping(to string) error {
	conn, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return err
	}
	defer conn.Close()
	peer := &net.IPAddr{IP: net.ParseIP(to)}
	var times []time.Duration
	for seq := range 30 {
		if len(times) == 5 {
			break
		}
		echo := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: os.Getpid(), Seq: seq}}
		packet, err := echo.Marshal(nil)
		if err != nil {
			return err
		}
		sent := time.Now()
		if _, err := conn.WriteTo(packet, peer); err != nil {
			return err
		}
		if awaitEcho(conn, to, seq) == nil {
			times = append(times, time.Since(sent))
		} else if len(times) == 0 && seq >= 2 {
			return errors.New("no answer")
		}
	}
	slices.Sort(times)
	fmt.Println(times[len(times)/2])
	return nil
}

func awaitEcho(conn *icmp.PacketConn, from string, seq int) error {
	conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	buf := make([]byte, 1500)
	for {
		n, peer, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		m, err := icmp.ParseMessage(1, buf[:n])
		if echo, ok := m.Body.(*icmp.Echo); err == nil && ok && m.Type == ipv4.ICMPTypeEchoReply && echo.Seq == seq && peer.String() == from {
			return nil
		}
	}
}

// payload is long enough to meet every offload and every queue on its way.
const payload = 8 << 20

// serveTCP takes one connection and answers with the hash of what came.
func serveTCP(at string) error {
	l, err := net.Listen("tcp4", at)
	if err != nil {
		return err
	}
	defer l.Close()
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	hash := sha256.New()
	if _, err := io.CopyN(hash, conn, payload); err != nil {
		return err
	}
	_, err = conn.Write(hash.Sum(nil))
	return err
}

func sendTCP(to string) error {
	var conn net.Conn
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := poll(ctx, 20*time.Millisecond, func(time.Duration) bool {
		c, err := net.Dial("tcp4", to)
		conn = c
		return err == nil
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	data := make([]byte, payload)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	began := time.Now()
	if _, err := conn.Write(data); err != nil {
		return err
	}
	got := make([]byte, sha256.Size)
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if want := sha256.Sum256(data); want != [32]byte(got) {
		return errors.New("the data arrived changed")
	}
	fmt.Printf("%.0f Mbit/s\n", payload*8/1e6/time.Since(began).Seconds())
	return nil
}
