//go:build lab

package ipfix

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
)

// sum is what nfdump says of one conversation.
type sum struct{ bytes, packets, flows uint64 }

// TestNfcapdCountsTheSame sends 1,000 records to nfdump's collector.
func TestNfcapdCountsTheSame(t *testing.T) {
	for _, names := range []bool{false, true} {
		t.Run(fmt.Sprintf("names=%v", names), func(t *testing.T) { collect(t, names) })
	}
}

func collect(t *testing.T, names bool) {
	dir := t.TempDir()
	port := freePort(t)
	cmd := exec.CommandContext(t.Context(), "nfcapd", "-w", dir, "-b", "127.0.0.1", "-p", strconv.Itoa(port), "-B", "4000000")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "nfcapd listens", func() bool { _, ok := queue(t, port); return ok })

	e, err := Dial(t.Context(), fmt.Sprintf("127.0.0.1:%d", port), Options{Domain: 1, Names: names})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	r := rand.New(rand.NewPCG(1, 2))
	now := time.Now().Truncate(time.Second)
	want := map[string]sum{}
	for range 10 {
		var records []Record
		for range 100 {
			rec := random(r, now)
			records = append(records, rec)
			s := want[name(rec)]
			want[name(rec)] = sum{s.bytes + rec.Bytes, s.packets + rec.Packets, s.flows + 1}
		}
		if err := e.Export(t.Context(), records); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "nfcapd has read all", func() bool { n, ok := queue(t, port); return ok && n == 0 })
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("nfcapd: %v\n%s", err, log.String())
	}
	if said := "Sequence Errors: 0, Bad Packets: 0"; !names && !strings.Contains(log.String(), said) {
		t.Errorf("nfcapd did not say %q:\n%s", said, log.String())
	}
	got := dump(t, dir)
	if len(got) != len(want) {
		t.Errorf("nfdump has %d conversations, want %d", len(got), len(want))
	}
	for k, w := range want {
		if got[k] != w {
			t.Errorf("%s: nfdump has %+v, want %+v", k, got[k], w)
		}
	}
}

func random(r *rand.Rand, now time.Time) Record {
	rec := Record{Bytes: 1 + r.Uint64N(1<<40), Packets: 1 + r.Uint64N(1<<30), Start: now, End: now.Add(999 * time.Millisecond),
		Service: traffic.Service{Protocol: []uint8{traffic.TCP, traffic.UDP}[r.IntN(2)], Port: []uint16{53, 80, 443, 5432}[r.IntN(4)]},
		Reply:   r.IntN(2) == 0}
	host := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, 0, n}) }
	if r.IntN(3) == 0 {
		host = func(n byte) netip.Addr { return netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 15: n}) }
	}
	src, dst := byte(1+r.IntN(50)), byte(51+r.IntN(50))
	rec.Src, rec.Dst = netip.PrefixFrom(host(src), host(src).BitLen()), netip.PrefixFrom(host(dst), host(dst).BitLen())
	rec.SrcVM, rec.DstVM = heliotrope.VMID(fmt.Sprint("vm-", src)), heliotrope.VMID(fmt.Sprint("vm-", dst))
	return rec
}

func name(r Record) string {
	from, to := uint16(0), r.Service.Port
	if r.Reply {
		from, to = to, from
	}
	proto := strings.ToUpper(strings.Split(r.Service.String(), "/")[0])
	return fmt.Sprint(r.Src.Addr(), " ", r.Dst.Addr(), " ", proto, " ", from, " ", to)
}

// dump is what nfdump reads of what nfcapd wrote.
func dump(t *testing.T, dir string) map[string]sum {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "nfdump", "-q", "-R", dir, "-o", "csv").Output()
	if err != nil {
		t.Fatal(err)
	}
	reader := csv.NewReader(bytes.NewReader(out))
	reader.FieldsPerRecord = -1
	lines, err := reader.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]sum{}
	for _, l := range lines {
		if len(l) < 13 || l[0] == "ts" {
			continue
		}
		// ts, te, td, sa, da, sp, dp, pr, flg, fwd, stos, ipkt, ibyt
		packets, err1 := strconv.ParseUint(l[11], 10, 64)
		octets, err2 := strconv.ParseUint(l[12], 10, 64)
		if err1 != nil || err2 != nil {
			t.Fatalf("nfdump says %q", l)
		}
		k := strings.Join([]string{l[3], l[4], l[7], l[5], l[6]}, " ")
		sums[k] = sum{sums[k].bytes + octets, sums[k].packets + packets, sums[k].flows + 1}
	}
	return sums
}

func freePort(t *testing.T) int {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).Port
}

// queue is how many bytes wait in the socket of a local UDP port; false where nobody listens.
func queue(t *testing.T, port int) (n uint64, ok bool) {
	t.Helper()
	f, err := os.Open("/proc/net/udp")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) > 4 && strings.HasSuffix(words[1], fmt.Sprintf(":%04X", port)) {
			_, rx, _ := strings.Cut(words[4], ":")
			n, err = strconv.ParseUint(rx, 16, 64)
			return n, err == nil
		}
	}
	return 0, false
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}
