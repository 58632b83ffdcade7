package relay

import (
	"context"
	"encoding/binary"
	"fmt"
	"heliotrope/migration/wan"
	"heliotrope/migration/wan/ramstream"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"
)

// guestStream is a stream of pages with records of words, numbers and digests. An eighth of them
// are the guest's own, the others those of any guest.
func guestStream(pages int, guest uint64) []byte {
	rnd, all, own := (*rand.Rand)(nil), rand.New(rand.NewPCG(1, 2)), rand.New(rand.NewPCG(guest, 3))
	words := []string{"customer", "invoice", "order", "pending", "delivered", "street", "payment", "account", "reference"}
	s := []byte("QEVM\x00\x00\x00\x03\x01\x00\x00\x00\x02\x03ram\x00\x00\x00\x00\x00\x00\x00\x04")
	s = binary.BigEndian.AppendUint64(s, uint64(pages)<<12|4)
	s = binary.BigEndian.AppendUint64(append(s, "\x06pc.ram"...), uint64(pages)<<12)
	const end = "\x00\x00\x00\x00\x00\x00\x00\x10\x7e\x00\x00\x00\x02"
	s = append(s, end+"\x02\x00\x00\x00\x02"...)
	for i := range pages {
		s = ramstream.AppendHead(s, ramstream.Page, []byte("pc.ram"), i == 0, uint64(i)<<12)
		at := len(s)
		if rnd = all; i%8 == 0 {
			rnd = own
		}
		for len(s) < at+4096-100 {
			s = fmt.Appendf(s, "%012d|%s-%s|%d.%02d|", rnd.IntN(1e9), words[rnd.IntN(len(words))], words[rnd.IntN(len(words))], rnd.IntN(10000), rnd.IntN(100))
			s = binary.LittleEndian.AppendUint64(s, 0x7f0000000000+rnd.Uint64N(1<<30))
			s = append(s, make([]byte, rnd.IntN(20))...)
		}
		s = append(s, make([]byte, at+4096-len(s))...)
	}
	return append(s, end+"\x00"...)
}

// BenchmarkMemory carries a stream over loopback, TLS at both ends and both ends on this
// machine's processors: the shortest way that there is.
func BenchmarkMemory(b *testing.B) {
	stream := guestStream(32<<10, 1)
	for name, e := range map[string]*Encoding{
		"none":  nil,
		"light": {MirrorPages: 1 << 16, Least: wan.Light, Most: wan.Light},
		"fast":  {MirrorPages: 1 << 16, Least: wan.Fast},
		"auto":  {MirrorPages: 1 << 16},
	} {
		b.Run(name, func(b *testing.B) {
			p := newPKI(b)
			sock := hypervisor(b, func(c *net.UnixConn) {
				io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, bufferSize))
			})
			s := NewServer(p.config(b, "dst"), peer, slog.New(slog.DiscardHandler))
			s.Encoding = e
			l, err := Listen(b.Context(), "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			run(b, func(ctx context.Context) error { return s.Serve(ctx, l) })
			s.Expect("m1", Expectation{VM: "web", From: "src", Sockets: map[Kind]string{Memory: sock}})
			client := &Client{Addr: l.Addr().(*net.TCPAddr).AddrPort(), TLS: p.config(b, "src"), Encoding: e}
			_, connect := source(b, client, memory)
			b.SetBytes(int64(len(stream)))
			before := processorTime(b)
			for b.Loop() {
				c := connect()
				if _, err := c.Write(stream); err != nil {
					b.Fatal(err)
				}
				c.CloseWrite()
				io.Copy(io.Discard, c)
				c.Close()
			}
			n := float64(len(stream)) * float64(b.N)
			b.ReportMetric(float64(client.Sent())/n, "wire/B")
			b.ReportMetric(n/1e6/(processorTime(b)-before).Seconds(), "cpuMB/s")
		})
	}
}

func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
