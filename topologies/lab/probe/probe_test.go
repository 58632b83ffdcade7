package probe

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// echo is a guest's echo that can misbehave.
type echo struct {
	addr   netip.AddrPort
	silent atomic.Bool // drops what comes
	twice  atomic.Bool // answers two times
	swap   atomic.Bool // answers pairs in the wrong order
	hangUp func()      // ends the TCP connections
}

func newEcho(t *testing.T) *echo {
	t.Helper()
	var listener net.Listener
	var packets *net.UDPConn
	for packets == nil { // one port for both
		var err error
		if listener, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		addr := listener.Addr().(*net.TCPAddr)
		if packets, err = net.ListenUDP("udp4", &net.UDPAddr{IP: addr.IP, Port: addr.Port}); err != nil {
			listener.Close()
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	e := &echo{addr: listener.Addr().(*net.TCPAddr).AddrPort(), hangUp: cancel}
	t.Cleanup(func() { cancel(); listener.Close(); packets.Close() })
	go e.serveUDP(packets)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(ctx, func() { conn.Close() })
			go io.Copy(conn, conn)
		}
	}()
	return e
}

func (e *echo) serveUDP(conn *net.UDPConn) {
	buffer := make([]byte, 2048)
	var held []byte
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || e.silent.Load() {
			continue
		}
		if e.swap.Load() && held == nil {
			held = append([]byte(nil), buffer[:n]...)
			continue
		}
		conn.WriteToUDPAddrPort(buffer[:n], from)
		if e.twice.Load() {
			conn.WriteToUDPAddrPort(buffer[:n], from)
		}
		if held != nil {
			conn.WriteToUDPAddrPort(held, from)
			held = nil
		}
	}
}

// start runs a probe of e until the test ends.
func start(t *testing.T, e *echo, rate int) *Probe {
	t.Helper()
	p, err := New(Config{
		Target: e.addr, Rate: rate, Socket: filepath.Join(t.TempDir(), "probe"),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	until(t, "the first answers", func() bool { r := p.Total(); return r.UDP.Answered > 0 && r.TCP.Echoed > 0 })
	return p
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s did not come", what)
		}
	}
}

// more waits until p has sent n more probes.
func more(t *testing.T, p *Probe, n int) {
	t.Helper()
	want := p.Total().UDP.Sent + n
	until(t, "more probes", func() bool { return p.Total().UDP.Sent >= want })
}

func settle(t *testing.T, p *Probe, name string) Report {
	t.Helper()
	r, err := p.Settle(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if r.UDP.Sent != r.UDP.Answered+r.UDP.Lost || r.UDP.Pending != 0 {
		t.Fatalf("settled and does not add up: %+v", r.UDP)
	}
	return r
}

func TestQuietWindow(t *testing.T) {
	p := start(t, newEcho(t), 100)
	p.Mark("quiet")
	more(t, p, 100)
	r := settle(t, p, "quiet")
	if r.UDP.Lost+r.UDP.Duplicated+r.UDP.Reordered != 0 || r.UDP.Sent < 99 || r.UDP.LongestLoss.Probes != 0 {
		t.Errorf("%+v", r.UDP)
	}
	if r.UDP.RTT.MinMS <= 0 || r.UDP.RTT.MaxMS < r.UDP.RTT.P99MS || r.UDP.RTT.P99MS < r.UDP.RTT.MedianMS || r.UDP.RTT.MedianMS < r.UDP.RTT.MinMS ||
		r.UDP.RTT.MeanMS < r.UDP.RTT.MinMS || r.UDP.RTT.MeanMS > r.UDP.RTT.MaxMS {
		t.Errorf("%+v", r.UDP.RTT)
	}
	if r.UDP.LongestGap.MS < 9 || r.UDP.LongestGap.MS > 200 {
		t.Errorf("longest gap %v ms", r.UDP.LongestGap.MS)
	}
	if !r.TCP.Connected || r.TCP.Broken || r.TCP.Echoed < 50 || r.TCP.BytesEchoed != 8*int64(r.TCP.Echoed) {
		t.Errorf("%+v", r.TCP)
	}
	if age := time.Since(r.To); age < 0 || age > 10*time.Second || r.From.Location() != time.UTC {
		t.Errorf("the window ended %v ago, at %v", age, r.To)
	}
}

func TestSilenceIsLossAndAGap(t *testing.T) {
	e := newEcho(t)
	p := start(t, e, 200)
	p.Mark("silence")
	more(t, p, 20)
	e.silent.Store(true)
	more(t, p, 60)
	e.silent.Store(false)
	more(t, p, 20)
	early, err := p.Report("silence")
	if err != nil || early.UDP.Pending < 50 || early.UDP.Lost != 0 {
		t.Errorf("before 5 s have passed: %+v, %v", early.UDP, err)
	}
	r := settle(t, p, "silence")
	if r.UDP.Lost < 55 || r.UDP.LongestLoss.Probes < 55 || r.UDP.LongestGap.MS < 275 || r.TCP.Broken {
		t.Errorf("%+v", r)
	}
	again := p.Window(r.From, r.To)
	if again.UDP.Lost != r.UDP.Lost || again.UDP.Sent < r.UDP.Sent-1 || again.UDP.Sent > r.UDP.Sent+1 {
		t.Errorf("asked again: %+v", again.UDP)
	}
	if after := p.Window(r.To, time.Now()); after.UDP.LongestLoss.Probes != 0 {
		t.Errorf("after it: %+v", after.UDP)
	}
}

func TestDuplicatesAndOrder(t *testing.T) {
	e := newEcho(t)
	p := start(t, e, 500)
	p.Mark("twice")
	e.twice.Store(true)
	more(t, p, 50)
	e.twice.Store(false)
	if r := settle(t, p, "twice"); r.UDP.Duplicated < 45 || r.UDP.Lost != 0 {
		t.Errorf("each answer twice: %+v", r.UDP)
	}
	p.Mark("swapped")
	e.swap.Store(true)
	more(t, p, 50)
	if r, err := p.Report("swapped"); err != nil || r.UDP.Reordered < 15 {
		t.Errorf("pairs swapped: %+v, %v", r.UDP, err)
	}
}

func TestBrokenConnection(t *testing.T) {
	e := newEcho(t)
	p := start(t, e, 100)
	e.hangUp()
	until(t, "the break", func() bool { return p.Total().TCP.Broken })
	r := p.Total()
	if r.TCP.Error == "" || r.TCP.BrokenAt.Before(r.TCP.Since) || !r.TCP.Connected {
		t.Errorf("%+v", r.TCP)
	}
}

// TestPace sends 1,000 probes a second and looks at the times of sending.
func TestPace(t *testing.T) {
	p := start(t, newEcho(t), 1000)
	began := time.Now()
	more(t, p, 2000)
	took := time.Since(began)
	p.mu.Lock()
	entries := p.udp.entries
	p.mu.Unlock()
	first, burst, slots := entries[0].sent, 0, 0
	for i, e := range entries[1:] {
		slots += 1 + int(e.skipped)
		if e.sent-entries[i].sent < int64(200*time.Microsecond) {
			burst++
		}
		if drift := time.Duration(e.sent - first - int64(slots)*int64(time.Millisecond)); drift < -time.Millisecond || drift > time.Millisecond+grace {
			t.Fatalf("probe %d is %v from its time", i+1, drift)
		}
	}
	r := p.Total()
	t.Logf("2000 probes in %v, %d skipped, %d closer than 0.2 ms, RTT %+v", took, r.UDP.Skipped, burst, r.UDP.RTT)
	if took < 1990*time.Millisecond {
		t.Errorf("2000 probes in %v", took)
	}
	if burst > slots/20 {
		t.Errorf("%d of %d probes came in bursts", burst, slots)
	}
}

// TestRest has the probe rest, and go on with the connection that it had.
func TestRest(t *testing.T) {
	p := start(t, newEcho(t), 1000)
	if err := p.Pace(0); err != nil {
		t.Fatal(err)
	}
	same, before := 0, p.Total()
	until(t, "a rest", func() bool {
		r := p.Total()
		if same++; r.UDP.Sent != before.UDP.Sent || r.TCP.Sent != before.TCP.Sent {
			same, before = 0, r
		}
		return same == 20
	})
	if err := p.Pace(50); err != nil {
		t.Fatal(err)
	}
	p.Mark("again")
	more(t, p, 50)
	r := settle(t, p, "again")
	took := r.To.Sub(r.From).Seconds()
	if r.UDP.Lost > 0 || float64(r.UDP.Sent+r.UDP.Skipped) > 50*took+2 || float64(r.TCP.Sent) > 60*took+2 || r.TCP.Sent == 0 || r.TCP.Broken {
		t.Errorf("in %.2f s after a rest: %+v, %+v", took, r.UDP, r.TCP)
	}
}

func TestControlSocket(t *testing.T) {
	p := start(t, newEcho(t), 200)
	ctx := t.Context()
	var c *Client
	until(t, "the control socket", func() (ok bool) {
		var err error
		c, err = Dial(ctx, p.config.Socket)
		return err == nil
	})
	defer c.Close()
	marked, err := c.Mark(ctx, "move-1")
	if err != nil || marked.Name != "move-1" {
		t.Fatal(marked, err)
	}
	more(t, p, 20)
	ended, err := c.End(ctx, "move-1")
	if err != nil || !ended.At.After(marked.At) {
		t.Fatal(ended, err)
	}
	settled, err := c.Settle(ctx, "move-1")
	if err != nil || settled.UDP.Answered < 19 || !settled.To.Equal(ended.At) {
		t.Fatal(settled, err)
	}
	report, err := c.Report(ctx, "move-1")
	if err != nil || report.UDP != settled.UDP {
		t.Fatalf("%+v %v, settled was %+v", report.UDP, err, settled.UDP)
	}
	window, err := c.Window(ctx, settled.From, settled.To)
	if err != nil || window.UDP.Answered != settled.UDP.Answered {
		t.Fatalf("%+v %v, settled was %+v", window.UDP, err, settled.UDP)
	}
	if total, err := c.Total(ctx); err != nil || total.UDP.Sent < settled.UDP.Sent {
		t.Fatal(total, err)
	}
	if err := c.Pace(ctx, 100); err != nil || p.rate.Load() != 100 {
		t.Fatalf("the pace is %d: %v", p.rate.Load(), err)
	}
	if _, err := c.Report(ctx, "nothing"); err == nil || !strings.Contains(err.Error(), "no mark") {
		t.Fatalf("a mark that is not there: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := c.Total(cancelled); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
}

func TestCommandsRefused(t *testing.T) {
	p, err := New(Config{Target: netip.MustParseAddrPort("127.0.0.1:7")})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"", "mark", "mark a b", "end x", "report x", "settle x", "window a b", "window 2026-01-01T00:00:00Z x", "pace", "pace -1", "pace x", "pace 10001", "drop table"} {
		if answer, err := p.command(t.Context(), line); err == nil {
			t.Errorf("%q is answered with %v", line, answer)
		}
	}
	for _, c := range []Config{{}, {Target: p.config.Target, Rate: -1}, {Target: p.config.Target, Rate: maxProbeRate + 1}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}

func FuzzCommand(f *testing.F) {
	f.Add("mark x")
	f.Add("window 2026-01-01T00:00:00Z 9999-01-01T00:00:00Z")
	p, err := New(Config{Target: netip.MustParseAddrPort("127.0.0.1:7")})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, line string) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		answer, err := p.command(ctx, line)
		if err == nil {
			if _, err := json.Marshal(answer); err != nil {
				t.Errorf("%q: %v", line, err)
			}
		}
	})
}

func FuzzDatagram(f *testing.F) {
	b := make([]byte, datagramSize)
	putDatagram(b, 1, 2, 3)
	f.Add(b, []byte{})
	f.Fuzz(func(t *testing.T, b, control []byte) {
		if number, ok := datagramNumber(b, 1); ok && number != binary.BigEndian.Uint64(b[16:]) {
			t.Errorf("number %d", number)
		}
		if at := arrival(control, 1e12, 1e18); at > 1e12 {
			t.Errorf("arrived %d ns from now", at-1e12)
		}
	})
}

// TestNobodyThere reports, and does not fail.
func TestNobodyThere(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := listener.Addr().(*net.TCPAddr).AddrPort()
	listener.Close()
	ctx, cancel := context.WithCancel(t.Context())
	p, err := New(Config{Target: target, Patience: 300 * time.Millisecond, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	until(t, "the end of patience", func() bool { return p.Total().TCP.Error != "" })
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r := p.Total()
	if r.TCP.Connected || r.TCP.Broken || r.UDP.Sent == 0 || r.UDP.Answered != 0 {
		t.Fatalf("%+v", r)
	}
}
