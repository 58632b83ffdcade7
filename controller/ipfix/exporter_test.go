package ipfix

import (
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func record(src, dst string, bytes uint64) Record {
	return Record{Src: netip.MustParsePrefix(src), Dst: netip.MustParsePrefix(dst), Service: traffic.Service{Protocol: traffic.TCP, Port: 443},
		Bytes: bytes, Packets: 2, Start: noon, End: noon.Add(999 * time.Millisecond)}
}

// listen is a collector's socket and an exporter to it.
func listen(t *testing.T, o Options) (net.PacketConn, *Exporter) {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	e, err := Dial(t.Context(), c.LocalAddr().String(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	e.now = func() time.Time { return noon }
	return c, e
}

func receive(t *testing.T, c net.PacketConn) []byte {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 65536)
	n, _, err := c.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// Read off RFC 7011 §3 by hand, not off the encoder.
const golden = `
000a 00db 6b06cdc0 00000000 00000007
0002 0034 0100 000b 0008 0004 000c 0004 0009 0001 000d 0001 0004 0001 0007 0002 000b 0002 0001 0008 0002 0008 0098 0008 0099 0008
0002 0034 0101 000b 001b 0010 001c 0010 001d 0001 001e 0001 0004 0001 0007 0002 000b 0002 0001 0008 0002 0008 0098 0008 0099 0008
0003 0012 0102 0002 0001 0008 0004 015e ffff
0003 0012 0103 0002 0001 001b 0010 015e ffff
0102 000c 0a000001 03 61 62 63
0100 0033 0a000001 c6336400 20 18 06 0000 01bb 00000000000003e8 0000000000000002 000001a21293b600 000001a21293b9e7
`

func TestGolden(t *testing.T) {
	c, e := listen(t, Options{Domain: 7, Names: true})
	r := record("10.0.0.1/32", "198.51.100.0/24", 1000)
	r.SrcVM = "abc"
	if err := e.Export(t.Context(), []Record{r}); err != nil {
		t.Fatal(err)
	}
	got := hex.EncodeToString(receive(t, c))
	if want := strings.Join(strings.Fields(golden), ""); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// walk returns how many flow records of 47 bytes (template 256) messages have, and checks
// lengths and sequence numbers.
func walk(t *testing.T, msg []byte, sequence *uint32) (templates, flows int) {
	t.Helper()
	if int(binary.BigEndian.Uint16(msg[2:])) != len(msg) {
		t.Fatalf("a message of %d bytes says %d", len(msg), binary.BigEndian.Uint16(msg[2:]))
	}
	if got := binary.BigEndian.Uint32(msg[8:]); got != *sequence {
		t.Errorf("sequence number %d, want %d", got, *sequence)
	}
	for set := msg[16:]; len(set) > 0; {
		id, n := binary.BigEndian.Uint16(set), int(binary.BigEndian.Uint16(set[2:]))
		switch id {
		case 2, 3:
			templates++
		case 256:
			if (n-4)%47 != 0 {
				t.Errorf("a set of %d bytes", n)
			}
			flows += (n - 4) / 47
		}
		set = set[n:]
	}
	*sequence += uint32(flows)
	return templates, flows
}

func TestSequenceAndTemplates(t *testing.T) {
	c, e := listen(t, Options{Payload: 600, Templates: time.Minute})
	var sequence uint32
	var records []Record
	for range 100 {
		records = append(records, record("10.0.0.1/32", "10.0.0.2/32", 1))
	}
	for step, want := range []int{4, 0, 4} { // templates are told anew after a minute
		if err := e.Export(t.Context(), records); err != nil {
			t.Fatal(err)
		}
		templates, flows := 0, 0
		for flows < len(records) {
			msg := receive(t, c)
			if len(msg) > 600 {
				t.Errorf("a message of %d bytes", len(msg))
			}
			a, b := walk(t, msg, &sequence)
			templates, flows = templates+a, flows+b
		}
		if flows != len(records) || templates != want {
			t.Errorf("step %d: %d records and %d templates, want %d and %d", step, flows, templates, len(records), want)
		}
		at := noon.Add(time.Duration(step+1) * 40 * time.Second)
		e.now = func() time.Time { return at }
	}
}

// A stream is a sequence of messages; a new connection begins anew.
func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e, err := Dial(t.Context(), "tcp://"+l.Addr().String(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for range 2 {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Export(t.Context(), []Record{record("10.0.0.1/32", "10.0.0.2/32", 1)}); err != nil {
			t.Fatal(err)
		}
		header := make([]byte, 16)
		if _, err := io.ReadFull(c, header); err != nil {
			t.Fatal(err)
		}
		msg := append(header, make([]byte, binary.BigEndian.Uint16(header[2:])-16)...)
		if _, err := io.ReadFull(c, msg[16:]); err != nil {
			t.Fatal(err)
		}
		var sequence uint32
		if templates, flows := walk(t, msg, &sequence); templates != 4 || flows != 1 {
			t.Errorf("%d templates, %d records", templates, flows)
		}
		c.(*net.TCPConn).SetLinger(0) // a reset
		c.Close()
		for e.Export(t.Context(), []Record{record("10.0.0.1/32", "10.0.0.2/32", 1)}) == nil && e.conn != nil {
		}
		if err := e.connect(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBinsBecomeRecords(t *testing.T) {
	_, e := listen(t, Options{Address: func(id heliotrope.VMID, six bool) (netip.Addr, bool) {
		a, ok := map[heliotrope.VMID]string{"a": "10.0.0.1", "b": "10.0.0.2"}[id]
		if six || !ok {
			return netip.Addr{}, false
		}
		return netip.MustParseAddr(a), true
	}})
	count := func(src, dst traffic.End) traffic.Count {
		return traffic.Count{Key: traffic.Key{Src: src, Dst: dst, Service: traffic.Service{Protocol: 6, Port: 80}}, Bytes: 9, Packets: 1}
	}
	b := traffic.Bin{Start: noon, Counts: []traffic.Count{
		count(traffic.VM("a"), traffic.VM("b")), count(traffic.VM("a"), traffic.VM("gone")),
		count(traffic.Outside(netip.MustParsePrefix("2001:db8::/48")), traffic.VM("a")),
		count(traffic.Outside(netip.MustParsePrefix("192.0.2.0/24")), traffic.VM("a")),
	}}
	got := e.records(b)
	if len(got) != 2 || got[0].DstVM != "b" || got[1].Src.String() != "192.0.2.0/24" || got[1].Dst.String() != "10.0.0.1/32" {
		t.Errorf("%+v", got)
	}
}
