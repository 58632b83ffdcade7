package relay

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"heliotrope"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// pki makes hosts' certificates.
type pki struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	p := &pki{pool: x509.NewCertPool()}
	c := p.issue(t, "ca")
	p.cert, p.key = c.Leaf, c.PrivateKey.(*ecdsa.PrivateKey)
	p.pool.AddCert(p.cert)
	return p
}

func (p *pki) issue(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: p.cert == nil, BasicConstraintsValid: true,
	}
	parent, signer := p.cert, p.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (p *pki) config(t testing.TB, name string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ALPN}, Certificates: []tls.Certificate{p.issue(t, name)},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: p.pool, RootCAs: p.pool, ServerName: "dst",
		DynamicRecordSizingDisabled: true,
	}
}

func peer(cs tls.ConnectionState) (heliotrope.HostID, error) {
	return heliotrope.HostID(cs.PeerCertificates[0].Subject.CommonName), nil
}

// destination runs a relay port.
func destination(t testing.TB, p *pki) (*Server, netip.AddrPort) {
	t.Helper()
	s := NewServer(p.config(t, "dst"), peer, slog.New(slog.NewTextHandler(t.Output(), nil)))
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(ctx context.Context) error { return s.Serve(ctx, l) })
	return s, l.Addr().(*net.TCPAddr).AddrPort()
}

// run runs f until the test ends and waits for it.
func run(t testing.TB, f func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(t.Context())
	var g sync.WaitGroup
	g.Go(func() { f(ctx) })
	t.Cleanup(func() { cancel(); g.Wait() })
}

// hypervisor listens on a unix socket and gives each connection to serve.
func hypervisor(t testing.TB, serve func(*net.UnixConn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hv.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	var g sync.WaitGroup
	g.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			g.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); g.Wait() })
	return path
}

// source makes a socket that stands for the destination's, and connects to it.
func source(t testing.TB, c *Client, h Header) (path string, connect func() *net.UnixConn) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "fwd.sock")
	f, err := c.Forward(path, h)
	if err != nil {
		t.Fatal(err)
	}
	run(t, f.Serve)
	return path, func() *net.UnixConn {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(60 * time.Second))
		return conn
	}
}

var memory = Header{Move: "m1", VM: "web", Kind: Memory}

func TestStreamIsWhole(t *testing.T) {
	const size = 256 << 20
	p := newPKI(t)
	s, addr := destination(t, p)
	sock := hypervisor(t, func(c *net.UnixConn) {
		// It answers only after the end of what it got: half-close must be passed on.
		sum := sha256.New()
		io.CopyBuffer(sum, struct{ io.Reader }{c}, make([]byte, bufferSize))
		c.Write(sum.Sum(nil))
	})
	s.Expect("m1", Expectation{VM: "web", From: "src", Sockets: map[Kind]string{Memory: sock}})
	client := &Client{Addr: addr, TLS: p.config(t, "src")}
	_, connect := source(t, client, memory)
	conn := connect()

	block := make([]byte, 1<<20)
	rand.Read(block)
	want := sha256.New()
	for range size / len(block) {
		want.Write(block)
	}
	start := time.Now()
	for range size / len(block) {
		if _, err := conn.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, want.Sum(nil)) {
		t.Fatalf("checksum: got %x, %v, want %x", got, err, want.Sum(nil))
	}
	took := time.Since(start)
	t.Logf("%d MiB in %s: %.0f MB/s; on the wire %.4f bytes per byte",
		size>>20, took.Round(time.Millisecond), size/took.Seconds()/1e6, float64(client.Sent())/size)
	if client.Sent() < size || client.Sent() > size*102/100 {
		t.Errorf("sent: got %d, want a little more than %d", client.Sent(), size)
	}
}

func TestSeveralStreamsOfAMove(t *testing.T) {
	p := newPKI(t)
	s, addr := destination(t, p)
	sock := hypervisor(t, func(c *net.UnixConn) { io.Copy(c, c) })
	s.Expect("m1", Expectation{VM: "web", From: "src", Sockets: map[Kind]string{Memory: sock}})
	_, connect := source(t, &Client{Addr: addr, TLS: p.config(t, "src")}, Header{Move: "m1", VM: "web", Kind: Memory})
	for i := range 4 {
		c := connect()
		fmt.Fprintf(c, "stream %d", i)
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != fmt.Sprintf("stream %d", i) {
			t.Errorf("stream %d: got %q, %v", i, got, err)
		}
	}
}

func TestUnexpectedStreamsAreRefused(t *testing.T) {
	p := newPKI(t)
	s, addr := destination(t, p)
	sock := hypervisor(t, func(*net.UnixConn) { t.Error("a stream got through") })
	s.Expect("m1", Expectation{VM: "web", From: "src", Sockets: map[Kind]string{Memory: sock}})
	s.Expect("m2", Expectation{VM: "db", From: "src", Sockets: map[Kind]string{Memory: sock}})
	s.Forget("m2")
	stranger := newPKI(t).config(t, "src")
	stranger.RootCAs = p.pool
	for name, c := range map[string]struct {
		tls *tls.Config
		h   Header
	}{
		"another host":                {p.config(t, "evil"), memory},
		"another VM":                  {p.config(t, "src"), Header{Move: "m1", VM: "db", Kind: Memory}},
		"forgotten move":              {p.config(t, "src"), Header{Move: "m2", VM: "db", Kind: Memory}},
		"kind that is not expected":   {p.config(t, "src"), Header{Move: "m1", VM: "web", Kind: Disk}},
		"packets of a paused nothing": {p.config(t, "src"), Header{Move: "m1", VM: "web", Kind: Packets}},
		"no such kind":                {p.config(t, "src"), Header{Move: "m1", VM: "web", Kind: "shell"}},
		"certificate of another CA":   {stranger, memory},
	} {
		client := &Client{Addr: addr, TLS: c.tls}
		if conn, err := client.dial(t.Context(), c.h); err == nil {
			conn.Close()
			t.Errorf("%s: let in", name)
		}
		_, connect := source(t, client, c.h)
		if n, err := connect().Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%s: the hypervisor read %d bytes", name, n)
		}
	}
	plain, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if err := writeHeader(plain, memory); err != nil {
		t.Fatal(err)
	}
	plain.SetReadDeadline(time.Now().Add(20 * time.Second))
	if got, _ := io.ReadAll(plain); bytes.Contains(got, []byte("ok")) {
		t.Errorf("plain text was answered with %q", got)
	}
}

func TestForgettingEndsStreams(t *testing.T) {
	p := newPKI(t)
	s, addr := destination(t, p)
	sock := hypervisor(t, func(c *net.UnixConn) { io.Copy(c, c) })
	s.Expect("m1", Expectation{VM: "web", From: "src", Sockets: map[Kind]string{Memory: sock}})
	_, connect := source(t, &Client{Addr: addr, TLS: p.config(t, "src")}, memory)
	c := connect()
	fmt.Fprint(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	s.Forget("m1")
	if _, err := io.ReadAll(c); errors.Is(err, context.DeadlineExceeded) {
		t.Error("the stream goes on")
	}
}

func TestBrokenStreamIsNoEnd(t *testing.T) {
	// TCP ends in the middle; the reader must not take that for the stream's end.
	p := newPKI(t)
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(context.Context) error {
		raw, err := l.Accept()
		if err != nil {
			return err
		}
		conn := tls.Server(raw, p.config(t, "dst"))
		readHeader(conn)
		writeAnswer(conn, Offer{}, nil)
		conn.Write([]byte("half of it"))
		return raw.Close()
	})
	defer l.Close()
	client := &Client{Addr: l.Addr().(*net.TCPAddr).AddrPort(), TLS: p.config(t, "src")}
	conn, err := client.dial(t.Context(), memory)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got, err := io.ReadAll(conn)
	if string(got) != "half of it" || !errors.Is(err, errTruncated) {
		t.Errorf("got %q, %v, want half of it and %v", got, err, errTruncated)
	}
}

func TestPackets(t *testing.T) {
	p := newPKI(t)
	s, addr := destination(t, p)
	var mu sync.Mutex
	var got []string
	s.Expect("m1", Expectation{VM: "web", From: "src", Packets: func(_ context.Context, nic int, frames [][]byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		for _, f := range frames {
			got = append(got, fmt.Sprintf("%d:%s", nic, f))
		}
		return len(frames), nil
	}})
	client := &Client{Addr: addr, TLS: p.config(t, "src")}
	send := func(nic int, batch uint64, frames ...string) {
		t.Helper()
		var bs [][]byte
		for _, f := range frames {
			bs = append(bs, []byte(f))
		}
		n, err := client.SendPackets(t.Context(), Header{Move: "m1", VM: "web", NIC: nic, Batch: batch}, bs)
		if err != nil || n != len(frames) {
			t.Errorf("send: got %d, %v, want %d", n, err, len(frames))
		}
	}
	send(0, 1, "a", "b", "")
	send(0, 1, "a", "b", "") // its answer got lost, say
	send(1, 1, "c")
	send(0, 2, "d")
	want := []string{"0:a", "0:b", "0:", "1:c", "0:d"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzHeader(f *testing.F) {
	var b bytes.Buffer
	if err := writeHeader(&b, Header{Move: "m1", VM: "web", Kind: Packets, NIC: 3, Batch: 9, Codec: Offer{Version: 1, MirrorPages: 5, Seed: 6}}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte{0xff, 0xff})
	f.Add([]byte("\x00\x02{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := readHeader(bytes.NewReader(data))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := writeHeader(&again, h); err != nil {
			t.Fatal(err)
		}
		if g, err := readHeader(&again); err != nil || g != h {
			t.Errorf("%+v is read back as %+v, %v", h, g, err)
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte("\x00\x01a\x00\x00\x00\x02bc"))
	f.Add([]byte("\xff\xffshort"))
	f.Fuzz(func(t *testing.T, data []byte) {
		frames, err := readFrames(bytes.NewReader(data))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := writeFrames(&b, frames); err != nil || !bytes.Equal(b.Bytes(), data) {
			t.Errorf("%x is written back as %x, %v", data, b.Bytes(), err)
		}
	})
}
