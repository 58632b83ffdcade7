package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"heliotrope"
	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"heliotrope/migration/wan/ramstream/golden"
)

// qemuStream is a stream that QEMU made.
func qemuStream(t *testing.T) []byte {
	t.Helper()
	stream, err := golden.Stream("qemu10-rounds")
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

var mirrors = &Encoding{MirrorPages: 1 << 14, Least: wan.Fast}

// encodingDestination runs a relay port that decodes, and joins the memory of move m1 to sock.
func encodingDestination(t *testing.T, p *pki, e *Encoding, sock string) netip.AddrPort {
	t.Helper()
	return tenantsDestination(t, p, e, sock, "")
}

// tenantsDestination is one of a tenant's VM.
func tenantsDestination(t *testing.T, p *pki, e *Encoding, sock string, tenant heliotrope.TenantID) netip.AddrPort {
	t.Helper()
	s := NewServer(p.config(t, "dst"), peer, slog.New(slog.NewTextHandler(t.Output(), nil)))
	s.Encoding = e
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(ctx context.Context) error { return s.Serve(ctx, l) })
	s.Expect("m1", Expectation{VM: "web", Tenant: tenant, From: "src", Sockets: map[Kind]string{Memory: sock}})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// reads everything and answers with it.
func mirrorBack(c *net.UnixConn) {
	all, err := io.ReadAll(c)
	if err == nil {
		c.Write(all)
	}
}

func TestMemoryIsEncodedWhereBothCan(t *testing.T) {
	stream := qemuStream(t)
	for name, c := range map[string]struct {
		source, destination *Encoding
		encoded             bool
	}{
		"both":             {mirrors, mirrors, true},
		"small mirror":     {mirrors, &Encoding{MirrorPages: 10}, true},
		"source only":      {mirrors, nil, false},
		"destination only": {nil, mirrors, false},
		"none":             {nil, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t)
			addr := encodingDestination(t, p, c.destination, hypervisor(t, mirrorBack))
			client := &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: c.source}
			_, connect := source(t, client, memory)
			conn := connect()
			if _, err := conn.Write(stream); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(conn)
			if err != nil || !bytes.Equal(got, stream) {
				t.Fatalf("%d bytes came out of %d: %v", len(got), len(stream), err)
			}
			stats := client.Memory()
			if spent := client.Codec(); c.encoded != (spent > 0) {
				t.Errorf("the codec took %v of a processor", spent)
			}
			in, out := stats.Total()
			t.Logf("sent %d of %d bytes: pages %v", client.Sent(), len(stream), stats.Pages)
			if c.encoded != (in == uint64(len(stream))) || c.encoded != (client.Sent() < uint64(len(stream)/2)) || client.Sent() < out {
				t.Errorf("sent %d of %d bytes; counted %d to %d", client.Sent(), len(stream), in, out)
			}
		})
	}
}

func TestPackers(t *testing.T) {
	for processors, want := range map[int]int{1: 1, 2: 1, 3: 2, 4: 3, 64: 3} {
		if got := packers(processors); got != want {
			t.Errorf("%d processors: got %d packers, want %d", processors, got, want)
		}
	}
}

func TestMemoryOfOlderPeers(t *testing.T) {
	stream := qemuStream(t)
	p := newPKI(t)
	sock := hypervisor(t, mirrorBack)
	t.Run("source", func(t *testing.T) {
		addr := encodingDestination(t, p, mirrors, sock)
		conn, err := tls.Dial("tcp", addr.String(), p.config(t, "src"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := writeHeader(conn, memory); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 3)
		if _, err := io.ReadFull(conn, line); err != nil || string(line) != "ok\n" {
			t.Fatalf("answer: %q, %v", line, err)
		}
		conn.Write(stream)
		conn.CloseWrite()
		if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, stream) {
			t.Errorf("%d bytes came out of %d: %v", len(got), len(stream), err)
		}
	})
	t.Run("destination", func(t *testing.T) {
		l, err := tls.Listen("tcp", "127.0.0.1:0", p.config(t, "dst"))
		if err != nil {
			t.Fatal(err)
		}
		run(t, func(context.Context) error {
			conn, err := l.Accept()
			if err != nil {
				return err
			}
			defer conn.Close()
			h, err := readHeader(conn)
			if err != nil || h != memory {
				return errors.Join(err, writeAnswer(conn, Offer{}, errors.New("a header that it does not know")))
			}
			if err := writeAnswer(conn, Offer{}, nil); err != nil {
				return err
			}
			_, err = io.Copy(conn, conn)
			return err
		})
		t.Cleanup(func() { l.Close() })
		client := &Client{Addr: l.Addr().(*net.TCPAddr).AddrPort(), TLS: p.config(t, "src"), Encoding: mirrors}
		_, connect := source(t, client, memory)
		conn := connect()
		go conn.Write(stream)
		got := make([]byte, len(stream))
		if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, stream) {
			t.Errorf("not what was sent: %v", err)
		}
	})
}

// TestMemoryWaitsForNothing is a hypervisor that sends and waits for an answer, wherever in
// the stream that is.
func TestMemoryWaitsForNothing(t *testing.T) {
	stream := qemuStream(t)
	p := newPKI(t)
	addr := encodingDestination(t, p, mirrors, hypervisor(t, func(c *net.UnixConn) { io.Copy(c, c) }))
	_, connect := source(t, &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: mirrors}, memory)
	conn := connect()
	got := make([]byte, len(stream))
	for i, n := range []int{1, 7, 20, 300, 100000, 1, 4000, 1000000, 5} {
		if _, err := conn.Write(stream[:n]); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, got[:n]); err != nil || !bytes.Equal(got[:n], stream[:n]) {
			t.Fatalf("turn %d, %d bytes: %v", i, n, err)
		}
		stream = stream[n:]
	}
	conn.CloseWrite()
	if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
		t.Errorf("behind the end: %d bytes, %v", len(rest), err)
	}
}

func TestMemoryThatIsNoStream(t *testing.T) {
	p := newPKI(t)
	addr := encodingDestination(t, p, mirrors, hypervisor(t, mirrorBack))
	client := &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: mirrors}
	_, connect := source(t, client, memory)
	conn := connect()
	data := make([]byte, 3<<20)
	rand.Read(data)
	go func() { conn.Write(data); conn.CloseWrite() }()
	if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes came out of %d: %v", len(got), len(data), err)
	}
	if client.Sent() > uint64(len(data))*102/100 {
		t.Errorf("sent %d bytes for %d", client.Sent(), len(data))
	}
}

// TestMemoryEndsAtBothEnds: where one hypervisor goes away in the middle, the other's
// connection ends at once, and not as if that were the end of the stream.
func TestMemoryEndsAtBothEnds(t *testing.T) {
	stream := qemuStream(t)
	t.Run("destination dies", func(t *testing.T) {
		p := newPKI(t)
		addr := encodingDestination(t, p, mirrors, hypervisor(t, func(c *net.UnixConn) { io.CopyN(io.Discard, c, 1000); c.Close() }))
		_, connect := source(t, &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: mirrors}, memory)
		conn := connect()
		var err error
		for i := 0; i < 1000 && err == nil; i++ {
			_, err = conn.Write(stream)
		}
		if err == nil || os.IsTimeout(err) {
			t.Errorf("the source can go on writing: %v", err)
		}
	})
	t.Run("more comes behind the end", func(t *testing.T) {
		p := newPKI(t)
		addr := encodingDestination(t, p, mirrors, hypervisor(t, func(c *net.UnixConn) { io.Copy(io.Discard, c) }))
		client := &Client{Addr: addr, TLS: p.config(t, "src")}
		h := memory
		h.Codec, _ = mirrors.offer("web", 1<<14, share.Way{})
		conn, taken, err := client.offer(t.Context(), h)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		enc := wan.NewEncoder(taken.config(), new(wan.Batch), func(b *wan.Batch) (*wan.Batch, error) { return b, nil })
		end := new(wan.Packer).Pack(nil, enc.End())
		conn.Write(slices.Concat(end, end))
		io.Copy(io.Discard, conn) // that it comes to an end is all
	})
	t.Run("a frame is wrong", func(t *testing.T) {
		p := newPKI(t)
		ended := make(chan int, 1)
		addr := encodingDestination(t, p, mirrors, hypervisor(t, func(c *net.UnixConn) {
			n, _ := io.Copy(io.Discard, c)
			ended <- int(n)
		}))
		client := &Client{Addr: addr, TLS: p.config(t, "src")}
		h := memory
		h.Codec, _ = mirrors.offer("web", 1<<14, share.Way{})
		conn, taken, err := client.offer(t.Context(), h)
		if err != nil || taken.Version == 0 {
			t.Fatal(taken, err)
		}
		defer conn.Close()
		conn.Write(make([]byte, wan.FrameHead)) // as if it were the end
		if n := <-ended; n != 0 {
			t.Errorf("%d bytes were given to the hypervisor", n)
		}
		if _, err := io.ReadAll(conn); err == nil {
			t.Error("the source does not learn of it")
		}
	})
}
