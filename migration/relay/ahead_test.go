package relay

import (
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"
)

// A stream goes over the connection that was opened ahead for one of its kind, and over one of its own where
// there is none, or where that has died.
func TestAhead(t *testing.T) {
	p := newPKI(t)
	s, addr := destination(t, p)
	sock := hypervisor(t, func(c *net.UnixConn) { io.Copy(c, c) })
	s.Expect("m1", Expectation{VM: "web", From: "src", Sockets: map[Kind]string{Memory: sock, Disk: sock}})
	g := newGate(t, addr)
	client := &Client{Addr: g.addr, TLS: p.config(t, "src")}
	defer client.Close()
	client.Ahead(Memory, Memory, Packets)
	for _, a := range client.ahead {
		<-a.ready
		if a.conn == nil {
			t.Fatal("nothing was opened ahead")
		}
	}
	if got := g.connections(); got != 3 {
		t.Fatalf("%d connections were opened ahead, want 3", got)
	}
	second := client.ahead[1]
	_, connect := source(t, client, memory)
	echo := func(what string, want int) {
		t.Helper()
		c := connect()
		fmt.Fprint(c, what)
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != what {
			t.Errorf("%s: got %q, %v", what, got, err)
		}
		if got := g.connections(); got != want {
			t.Errorf("%s: %d connections were opened, want %d", what, got, want)
		}
	}
	echo("ahead", 3)
	second.conn.NetConn().Close()
	echo("died", 4)
	echo("none left", 5)
}

// Padding is thrown away, and a header comes after it at any time.
func TestPadding(t *testing.T) {
	p := newPKI(t)
	s, addr := destination(t, p)
	sock := hypervisor(t, func(c *net.UnixConn) { io.Copy(c, c) })
	s.Expect("m1", Expectation{VM: "web", From: "src", Sockets: map[Kind]string{Memory: sock}})
	for _, early := range []bool{false, true} {
		client := &Client{Addr: addr, TLS: p.config(t, "src")}
		conn, err := client.connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		needed := make(chan struct{})
		if early {
			close(needed)
		}
		if err := (&ahead{kind: Memory, needed: needed}).pad(t.Context(), conn); err != nil {
			t.Fatal(err)
		}
		if sent := client.Sent(); early == (sent > uint64(padding[Memory])) {
			t.Errorf("needed early: %t; %d bytes were sent", early, sent)
		}
		if _, err := client.begin(t.Context(), conn, memory); err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, "x")
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		conn.Close()
	}
}

// A destination of before does not wait for a header: nothing is kept open for it, and streams
// are opened as ever.
func TestAheadOfOlderDestination(t *testing.T) {
	p := newPKI(t)
	s, addr := destination(t, p)
	s.tls.NextProtos = slices.DeleteFunc(s.tls.NextProtos, func(v string) bool { return v == alpnV4 || v == alpnV3 })
	sock := hypervisor(t, func(c *net.UnixConn) { io.Copy(c, c) })
	s.Expect("m1", Expectation{VM: "web", From: "src", Sockets: map[Kind]string{Memory: sock}})
	client := &Client{Addr: addr, TLS: p.config(t, "src")}
	client.Ahead(Memory)
	defer client.Close()
	conn, err := client.dial(t.Context(), memory)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.ConnectionState().NegotiatedProtocol; got != alpnV2 {
		t.Errorf("the stream's protocol is %s", got)
	}
}

// What was opened ahead in vain is no error at the destination, and ends with the client.
func TestAheadInVain(t *testing.T) {
	p := newPKI(t)
	_, addr := destination(t, p)
	client := &Client{Addr: addr, TLS: p.config(t, "src")}
	client.Ahead(Memory, Disk)
	all := slices.Clone(client.ahead)
	<-all[0].ready
	client.Close()
	if len(client.ahead) != 0 {
		t.Error("connections are left")
	}
	for _, a := range all {
		if a.conn != nil {
			a.conn.NetConn().SetDeadline(time.Now().Add(time.Second))
			if _, err := a.conn.Read(make([]byte, 1)); err == nil {
				t.Error("a connection is open")
			}
		}
	}
}
