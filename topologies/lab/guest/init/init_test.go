package main

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"heliotrope/topologies/lab/guest/record"
)

func TestParseCommandLine(t *testing.T) {
	got, err := parseCommandLine(`BOOT_IMAGE=x quiet heliotrope.nic=52:54:00:AA:bb:01,10.0.0.5/24,10.0.0.1,1450 ` +
		`heliotrope.nic=52:54:00:aa:bb:02,fd00::5/64,,  heliotrope.hostname=web heliotrope.workingset_mib=2 ` +
		`heliotrope.dirty_pages_per_s=100 heliotrope.disk_writes_per_s=7 heliotrope.peer=10.0.0.6:7,10.0.0.7:7 ` +
		`"heliotrope.motd=two words" heliotrope.role=x` + "\n")
	if err != nil {
		t.Fatal(err)
	}
	want := config{
		hostname: "web", workingSetPages: 512, dirtyRate: 100, diskRate: 7, peers: []string{"10.0.0.6:7", "10.0.0.7:7"},
		nics: []nic{
			{mac: "52:54:00:aa:bb:01", address: netip.MustParsePrefix("10.0.0.5/24"), gateway: netip.MustParseAddr("10.0.0.1"), mtu: 1450},
			{mac: "52:54:00:aa:bb:02", address: netip.MustParsePrefix("fd00::5/64")},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

func TestParseCommandLineRefuses(t *testing.T) {
	for _, word := range []string{
		"nic=", "nic=a,b,c,d", "nic=52:54:00:aa:bb:01,10.0.0.5,10.0.0.1,1450", "nic=52:54:00:aa:bb:01,10.0.0.5/24,fd00::1,1450",
		"nic=52:54:00:aa:bb:01,10.0.0.5/24,10.0.0.1,12", "nic=52:54:00:aa:bb:01,10.0.0.5/24,10.0.0.1,1450,1",
		"hostname=", "workingset_mib=-1", "workingset_mib=x", "dirty_pages_per_s=1e9", "peer=nowhere",
	} {
		if _, err := parseCommandLine("heliotrope." + word); err == nil {
			t.Errorf("%s is accepted", word)
		} else if !strings.HasPrefix(err.Error(), "heliotrope.") {
			t.Errorf("%s: the error %q does not name the key", word, err)
		}
	}
}

func FuzzParseCommandLine(f *testing.F) {
	f.Add(`a=b heliotrope.nic=52:54:00:aa:bb:01,10.0.0.5/24,10.0.0.1,1450 "heliotrope.peer=a:1 b`)
	f.Fuzz(func(t *testing.T, line string) { parseCommandLine(line) })
}

func TestMemoryCountsBadPages(t *testing.T) {
	var m memory
	if err := m.resize(64, 10); err != nil {
		t.Fatal(err)
	}
	defer m.resize(0, 0)
	for range 1000 {
		m.dirty()
	}
	if r := m.sweep(); r.Pages != 64 || r.Verified != 64 || r.Bad != 0 || r.Sweeps != 1 || r.Dirtied != 1000 {
		t.Fatalf("after a sweep: %+v", r)
	}
	m.page(3)[100]++
	clear(m.page(9))
	if r := m.sweep(); r.Bad != 2 {
		t.Fatalf("with two bad pages: %+v", r)
	}
	if m.resize(1<<40, 1) == nil || m.resize(-1, 1) == nil || m.resize(1, maxRate+1) == nil {
		t.Fatal("a senseless working set is accepted")
	}
	if r := m.sweep(); r.Pages != 64 {
		t.Fatalf("a refused change changed it: %+v", r)
	}
}

func TestPaceIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p pace
		rate := rapid.IntRange(0, 10000).Draw(t, "rate")
		now := time.Unix(0, 0)
		total := p.due(now, rate)
		for range 200 {
			now = now.Add(time.Duration(rapid.IntRange(0, 20000).Draw(t, "µs")) * time.Microsecond)
			total += p.due(now, rate)
		}
		want := now.Sub(time.Unix(0, 0)).Seconds() * float64(rate)
		if diff := want - float64(total); diff < -0.01 || diff > 1.01 {
			t.Fatalf("%d were due, want %.2f", total, want)
		}
		if n := p.due(now.Add(time.Hour), rate); n > rate {
			t.Fatalf("%d are due after an hour's pause, want at most a second's worth", n)
		}
	})
}

func TestNewestRecordOfASlot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		slots, last := rapid.Uint64Range(1, 50).Draw(t, "slots"), rapid.Uint64Range(0, 300).Draw(t, "last")
		want := map[uint64]uint64{}
		for seq := uint64(1); seq <= last; seq++ {
			want[seq%slots] = seq
		}
		for slot := range slots {
			if got := newest(last, slot, slots); got != want[slot] {
				t.Fatalf("newest(%d, %d, %d) = %d, want %d", last, slot, slots, got, want[slot])
			}
		}
	})
}

// TestDiskSeesLostAndOldRecords works on a file as on a device.
func TestDiskSeesLostAndOldRecords(t *testing.T) {
	const slots = 300
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, slots*pageSize), 0o600); err != nil {
		t.Fatal(err)
	}
	var d disk
	if err := d.open(path, 1); err != nil {
		t.Fatal(err)
	}
	for range 2*slots + 10 {
		d.write()
	}
	if r := d.verify(); r.Records != slots || r.Bad != 0 || r.LastSeq != 2*slots+10 || r.Errors != 0 {
		t.Fatalf("after writing: %+v", r)
	}
	damage(t, path, 5)
	stale := make([]byte, pageSize)
	record.Fill(stale, record.Disk, slots+7) // what was there a round before
	if _, err := unix.Pwrite(d.fd, append(d.buffer[:0:pageSize], stale...), 7*pageSize); err != nil {
		t.Fatal(err)
	}
	if r := d.verify(); r.Bad != 2 {
		t.Fatalf("with one torn and one old record: %+v", r)
	}
	var again disk
	if err := again.open(path, 1); err != nil {
		t.Fatal(err)
	}
	if again.last != 2*slots+10 || again.found != again.last {
		t.Fatalf("the next boot finds %d, want %d", again.last, 2*slots+10)
	}
	unix.Close(d.fd)
	d.write()
	if r := d.verify(); r.Errors == 0 || r.Error == "" {
		t.Fatalf("a dead disk is not reported: %+v", r)
	}
	unix.Close(again.fd)
}

func damage(t *testing.T, path string, slot int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("x"), slot*pageSize+2000)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestAnnouncements(t *testing.T) {
	message := func(kind uint16, attributes ...byte) []byte {
		m := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)
		m = append(m, attributes...)
		binary.NativeEndian.PutUint32(m, uint32(len(m)))
		binary.NativeEndian.PutUint16(m[4:], kind)
		return m
	}
	event := func(v uint32) []byte { return attribute(unix.IFLA_EVENT, native32(v)) }
	mtu := attribute(unix.IFLA_MTU, native32(1450))
	for name, c := range map[string]struct {
		batch []byte
		want  bool
	}{
		"announcement":      {message(unix.RTM_NEWLINK, append(mtu, event(unix.IFLA_EVENT_NOTIFY_PEERS)...)...), true},
		"second in a batch": {append(message(unix.RTM_NEWLINK, mtu...), message(unix.RTM_NEWLINK, event(unix.IFLA_EVENT_NOTIFY_PEERS)...)...), true},
		"another event":     {message(unix.RTM_NEWLINK, event(1)...), false},
		"no event":          {message(unix.RTM_NEWLINK, mtu...), false},
		"another message":   {message(unix.RTM_DELLINK, event(unix.IFLA_EVENT_NOTIFY_PEERS)...), false},
		"nothing":           {nil, false},
	} {
		if got := announces(c.batch); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzAnnounces(f *testing.F) {
	f.Add(make([]byte, 40))
	f.Fuzz(func(t *testing.T, batch []byte) { announces(batch) })
}

// TestPeerSeesAGap talks to an echo that stops for a while and then breaks.
func TestPeerSeesAGap(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			served <- err
			return
		}
		defer conn.Close()
		io.CopyN(conn, conn, 80)
		<-time.After(2 * peerGap)
		_, err = io.CopyN(conn, conn, 80)
		// A reset would take what the peer has not read yet with it.
		err = errors.Join(err, conn.(*net.TCPConn).CloseWrite())
		io.Copy(io.Discard, conn)
		served <- err
	}()
	p := &peer{address: listener.Addr().String()}
	talked := make(chan error, 1)
	go func() { talked <- p.talk() }()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if err := <-talked; err == nil {
		t.Fatal("a broken connection is no error")
	}
	listener.Close()
	if err := p.talk(); err == nil {
		t.Fatal("a peer that is not there is no error")
	}
	r := p.report()
	if r.Acked != 20 || r.Gaps != 1 || r.Wrong != 0 || r.LongestMS < 500 || r.Sent < r.Acked {
		t.Fatalf("%+v", r)
	}
}
