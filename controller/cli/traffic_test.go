package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/phases"
	"heliotrope/scheduler/traffic/report"
)

// Matrix is a minute of a web server, its clients outside and its database across the sea.
// Ten minutes ago the database was idle.
func (f *fake) Matrix(_ context.Context, q api.TrafficQuery) (traffic.Matrix, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken {
		return traffic.Matrix{}, api.Unavailable("the store is away")
	}
	if f.counted != nil {
		return f.counted(q), nil
	}
	web, db, internet := traffic.VM("web"), traffic.VM("db"), traffic.Outside(netip.MustParsePrefix("203.0.113.0/24"))
	postgres, https := traffic.Service{Protocol: traffic.TCP, Port: 5432}, traffic.Service{Protocol: traffic.TCP, Port: 443}
	m := traffic.Matrix{From: noon.Add(-time.Minute), To: noon, Shed: 1200, Missing: map[heliotrope.HostID]float64{"eu-1": 0.25}, Cells: []traffic.Cell{
		{Src: db, Dst: web, Bytes: 90e6, Low: 84e6, High: 96e6, Packets: 72000, RTT: 80300 * time.Microsecond, RTTMin: 80 * time.Millisecond, Burst: 3.25,
			Services: []traffic.ServiceShare{{Service: postgres, Reply: true, Bytes: 89e6}, {Service: traffic.Service{Protocol: traffic.ICMP}, Bytes: 1e6}}},
		{Src: web, Dst: db, Bytes: 6e6, Low: 6e6, High: 6e6, Packets: 60000, Flows: 30, Services: []traffic.ServiceShare{{Service: postgres, Bytes: 6e6}}},
		{Src: internet, Dst: web, Bytes: 30, Low: 30, High: 30, Packets: 3, Flows: 1, Services: []traffic.ServiceShare{{Service: https, Bytes: 30}}},
	}}
	if !q.End.IsZero() {
		m.From, m.To, m.Cells = m.From.Add(-10*time.Minute), m.To.Add(-10*time.Minute), m.Cells[1:]
	}
	return m, nil
}

func (f *fake) Report(ctx context.Context, q api.TrafficQuery) (report.Report, error) {
	m, err := f.Matrix(ctx, q)
	pair := pattern.Group{Ends: []traffic.End{traffic.VM("web"), traffic.VM("db")}, Kind: pattern.Star, Confidence: 0.97, Coverage: 0.99, Bytes: 1.6e6, Outside: 0.5,
		Second: pattern.Pair, Evidence: []string{"db answers all that is asked", "web opens all 30 connections"},
		Tiers: []pattern.Tier{{Name: "tcp/5432 server", Members: []traffic.End{traffic.VM("db")}, Confidence: 0.9}}}
	if !q.End.IsZero() {
		pair.Kind = pattern.Pair
	}
	return report.Build(report.Input{
		Now: noon, Matrix: m, Topology: f.topology, HostOf: map[heliotrope.VMID]heliotrope.HostID{"web": "left-1", "db": "right-1"},
		Groups: []report.Group{{ID: "g1", Group: pair, Since: noon.Add(-5 * time.Minute), Sites: []heliotrope.SiteID{"left", "right"},
			Phases: []phases.Phase{{From: noon.Add(-time.Hour), To: noon.Add(-5 * time.Minute), Group: pattern.Group{Kind: pattern.Unknown, Ends: pair.Ends}}}}},
		Events:  []report.Event{{At: noon.Add(-5 * time.Minute), Kind: "pattern", Group: "g1", What: "was unknown, is a star"}},
		Savings: []traffic.Saving{{VMs: []heliotrope.VMID{"db"}, From: "right", To: "left", USDPerHour: 0.11, Bytes: 1.6e6, Why: "its only client is there"}},
		Sources: []report.Source{{Host: "left-1", Source: traffic.SourcePackets, Sampling: 64, Ports: 3, CPU: 0.051, Shed: 1200, LastBin: noon},
			{Host: "right-1", Source: traffic.SourceEBPF, Sampling: 1, Ports: 1, CPU: 0.004, Missing: 0.25, LastBin: noon}},
		History: []report.Volume{{At: noon.Add(-3 * time.Minute), Rate: 0}, {At: noon.Add(-2 * time.Minute), Rate: 8e5}, {At: noon, Rate: 1.6e6}},
	}, report.Options{Top: q.Top}), err
}

func (f *fake) Diff(ctx context.Context, before, after api.TrafficQuery) (api.TrafficDiff, error) {
	m1, err1 := f.Matrix(ctx, before)
	m2, err2 := f.Matrix(ctx, after)
	b, err3 := f.Report(ctx, before)
	a, err4 := f.Report(ctx, after)
	return api.CompareTraffic(b, a, traffic.Diff(m1, m2), after.Top), errors.Join(err1, err2, err3, err4)
}

func (f *fake) Page(context.Context, api.TrafficQuery) ([]byte, error) {
	return []byte("<!DOCTYPE html>\n"), nil
}

func TestTrafficPage(t *testing.T) {
	root := shortDir(t)
	f := &fake{}
	serve(t, f, root)
	file := filepath.Join(root, "traffic.html")
	if r := execute(t.Context(), root, "", "traffic", "report", "--html", file); r.code != 0 || !strings.Contains(r.out, file) {
		t.Errorf("%+v", r)
	}
	if page, err := os.ReadFile(file); err != nil || string(page) != "<!DOCTYPE html>\n" {
		t.Errorf("%q, %v", page, err)
	}
	// What is wrong is said, and the page that is there stays.
	for _, args := range [][]string{{"--html", file, "--vm", "mars"}, {"--html", filepath.Join(root, "no", "dir.html")}} {
		if r := execute(t.Context(), root, "", append([]string{"traffic", "report"}, args...)...); r.code == 0 {
			t.Errorf("%v: %+v", args, r)
		}
	}
	if page, err := os.ReadFile(file); err != nil || len(page) == 0 {
		t.Errorf("%q, %v", page, err)
	}
	if r := execute(t.Context(), root, "", "traffic", "report", "--html", "-"); r.out != "<!DOCTYPE html>\n" {
		t.Errorf("%+v", r)
	}
}

// watch goes on until it is interrupted, which is no error, also while the controller is away.
func TestTrafficWatch(t *testing.T) {
	root := shortDir(t)
	f := &fake{}
	serve(t, f, root)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a := &app{place: api.Place{Root: root}}
	cmd := a.command()
	looks, away := 0, 0
	cmd.SetOut(writerFunc(func(p []byte) (int, error) {
		if looks++; looks == 3 {
			f.breakDown(true)
		}
		if looks == 5 {
			cancel()
		}
		if !bytes.HasPrefix(p, []byte("2026-11-21 12:00:00Z  1.6 MB/s")) {
			t.Errorf("got %q", p)
		}
		return len(p), nil
	}))
	cmd.SetErr(writerFunc(func(p []byte) (int, error) {
		if away++; away == 2 {
			f.breakDown(false)
		}
		return len(p), nil
	}))
	cmd.SetArgs([]string{"traffic", "watch", "--interval", "1ms"})
	if err := cmd.ExecuteContext(ctx); err != nil || looks < 5 || away < 2 {
		t.Errorf("%d looks, %d times away, %v", looks, away, err)
	}
	f.breakDown(true)
	if r := execute(t.Context(), root, "", "traffic", "watch"); r.code != codeFailed || !strings.Contains(r.err, "store is away") {
		t.Errorf("away from the start: %+v", r)
	}
}

func (f *fake) breakDown(broken bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = broken
}

// A screen is cleared once and then drawn over; what does not fit on it is cut.
func TestTrafficScreen(t *testing.T) {
	root := shortDir(t)
	serve(t, &fake{}, root)
	screen, terminal := openTerminal(t, 4, 40)
	cmd := (&app{place: api.Place{Root: root}}).command()
	cmd.SetOut(terminal)
	cmd.SetArgs([]string{"traffic", "watch", "--interval", "1ms", "--count", "2"})
	if err := errors.Join(cmd.ExecuteContext(t.Context()), terminal.Close()); err != nil {
		t.Fatal(err)
	}
	shown, err := io.ReadAll(screen)
	if err != nil && !errors.Is(err, unix.EIO) { // what a terminal says that nobody writes to any more
		t.Fatal(err)
	}
	const frame = "\x1b[H" +
		"2026-11-21 11:59:00Z to 12:00:00Z (1m): \x1b[K\r\n" +
		"\x1b[K\r\n" +
		"SOURCE          DESTINATION  RATE       \x1b[K\r\n" +
		"\x1b[J"
	if want := "\x1b[2J" + frame + frame; string(shown) != want {
		t.Errorf("got %q\nwant %q", shown, want)
	}
}

// openTerminal makes a terminal of this size; what is written to it is read from screen.
func openTerminal(t *testing.T, rows, columns uint16) (screen, terminal *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = screen.Close() })
	fd := int(screen.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	err = errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0), unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}))
	if err != nil {
		t.Fatal(err)
	}
	if terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	return screen, terminal
}

// Names of VMs, sites and networks are offered for the flags.
func TestTrafficCompletion(t *testing.T) {
	root := shortDir(t)
	serve(t, &fake{}, root)
	execute(t.Context(), root, "", "topology", "apply", "testdata/small.yaml")
	for flag, want := range map[string]string{"--vm": "web", "--site": "left", "--network": "web", "--by": "services", "-o": "csv"} {
		if r := execute(t.Context(), root, "", "__complete", "traffic", "top", flag, ""); !strings.Contains(r.out, want+"\n") {
			t.Errorf("%s: %+v", flag, r)
		}
	}
}
