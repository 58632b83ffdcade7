//go:build lab

package libvirt

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"heliotrope"
)

const (
	testVM  = heliotrope.VMID("vm1")
	testMiB = 192
	diskDir = "/run/disks"
	logDir  = "/var/log/heliotrope"
)

var testMAC = heliotrope.NICMAC(testVM, 0)

// testSpec is a VM with one card and a disk of 16 MiB, whose guest keeps both busy.
func testSpec(images string, epoch uint64) Spec {
	return Spec{
		VM: testVM, Epoch: epoch, ImageDir: images, DiskDir: diskDir,
		What: heliotrope.VM{
			MemoryMiB: testMiB,
			NICs:      []heliotrope.NIC{{Network: "blue", Address: netip.MustParseAddr("10.0.0.5")}},
			Metadata:  map[string]string{"dirty_mib": "16", "dirty_pages": "1000"},
		},
		Networks: map[heliotrope.NetworkID]heliotrope.Network{
			"blue": {VNI: 7, Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.1")},
		},
	}
}

// images makes an image directory with a kernel and an empty disk.
func images(t *testing.T) string {
	dir := t.TempDir()
	buildGuest(t, dir)
	f, err := os.Create(filepath.Join(dir, "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(16 << 20); err != nil {
		t.Fatal(err)
	}
	return dir
}

// await asks until the answer is yes, at most for a limit.
func await(t *testing.T, what string, limit time.Duration, yes func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); !yes(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("wait for %s: not within %v", what, limit)
		}
	}
}

func (n *node) console() string {
	text, err := os.ReadFile(n.path(logDir + "/" + string(testVM) + ".console"))
	if err != nil && !os.IsNotExist(err) {
		n.t.Fatal(err)
	}
	return string(text)
}

// start runs the test's VM at the node until its guest says that it is ready.
func (n *node) start(images string) {
	n.t.Helper()
	n.call("Start", testSpec(images, 1), nil)
	n.t.Cleanup(func() {
		if n.t.Failed() {
			n.t.Logf("console at %s: %s", n.name, n.console())
		}
	})
	await(n.t, "the guest", 90*time.Second, func() bool { return strings.Contains(n.console(), "GUEST ready") })
}

// vm returns the test's VM as the node sees it.
func (n *node) vm() Domain {
	n.t.Helper()
	var all []Domain
	n.call("Domains", nothing, &all)
	for _, d := range all {
		if d.Name == string(testVM) {
			return d
		}
	}
	return Domain{State: heliotrope.VMAbsent}
}

func (n *node) wantState(want heliotrope.VMState) {
	n.t.Helper()
	if got := n.vm().State; got != want {
		n.t.Fatalf("VM at %s is %s, want %s", n.name, got, want)
	}
}

// guestReport is what the guest has seen.
type guestReport struct {
	total, last, doubled, ticks, writes, badBlocks, badPages int
	missing                                                  string
}

var reportLine = regexp.MustCompile(`GUEST report total=(\d+) last=(\d+) doubled=(\d+) missing=\[([^\]]*)\] ticks=(\d+) writes=(\d+) badblocks=(\d+) badpages=(\d+)`)

// ask has the guest at the node report on its console.
func (n *node) ask() guestReport {
	n.t.Helper()
	before := len(reportLine.FindAllString(n.console(), -1))
	n.call("Inject", Shipment{TapName(testVM, 0), [][]byte{numbered(0xffffffff)}}, nil)
	var all [][]string
	await(n.t, "the guest's report", time.Minute, func() bool {
		all = reportLine.FindAllStringSubmatch(n.console(), -1)
		return len(all) > before
	})
	f := all[len(all)-1]
	number := func(i int) int { v, _ := strconv.Atoi(f[i]); return v }
	return guestReport{number(1), number(2), number(3), number(5), number(6), number(7), number(8), f[4]}
}

// wantLife fails unless the guest at the node goes on, with memory and disk intact.
func (n *node) wantLife() guestReport {
	n.t.Helper()
	n.wantState(heliotrope.VMRunning)
	first := n.ask()
	var now guestReport
	await(n.t, "the guest's clock", time.Minute, func() bool {
		now = n.ask()
		return now.ticks > first.ticks && now.writes > first.writes
	})
	if now.badBlocks != 0 || now.badPages != 0 {
		n.t.Fatalf("guest at %s found %d bad blocks and %d bad pages", n.name, now.badBlocks, now.badPages)
	}
	return now
}

func TestStart(t *testing.T) {
	dir := images(t)
	n := startNode(t, "solo")
	n.start(dir)
	d := n.vm()
	if d.UUID != heliotrope.VMUUID(testVM) || d.Epoch != 1 || d.Foreign || d.State != heliotrope.VMRunning || d.PID == 0 ||
		!slices.Equal(d.Taps, []Tap{{NIC: 0, Name: TapName(testVM, 0), MAC: testMAC}}) {
		t.Fatalf("started VM is %+v", d)
	}
	n.wantLife()

	t.Run("network", func(t *testing.T) {
		var said string
		n.call("Exec", []string{"ovs-vsctl", "--bare", "--columns=external_ids,mtu", "find", "interface", "name=" + TapName(testVM, 0)}, &said)
		if !strings.Contains(said, "iface-id="+heliotrope.InterfaceID(testVM, 0)) || !strings.Contains(said, "1450") {
			t.Errorf("Open vSwitch has %q", said)
		}
		n.call("Exec", []string{"cat", "/sys/class/net/" + TapName(testVM, 0) + "/tx_queue_len"}, &said)
		if strings.TrimSpace(said) != strconv.Itoa(QueuePackets) {
			t.Errorf("queue of the tap is %s", said)
		}
	})
	t.Run("adopt", func(t *testing.T) {
		n.call("Drop", nothing, nil)
		n.call("Dial", nothing, nil)
		n.call("Start", testSpec(dir, 2), nil)
		if now := n.vm(); now.PID != d.PID || now.Epoch != 2 || now.State != heliotrope.VMRunning {
			t.Errorf("adopted VM is %+v, was %+v", now, d)
		}
	})
	t.Run("pause", func(t *testing.T) {
		n.call("Suspend", testVM, nil)
		n.wantState(heliotrope.VMPaused)
		if err := n.try("Start", testSpec(dir, 2), nil); err == nil || !strings.Contains(err.Error(), ErrPaused.Error()) {
			t.Errorf("start of a paused VM says %v", err)
		}
		n.call("Resume", testVM, nil)
		n.wantLife()
	})
	t.Run("foreign", func(t *testing.T) {
		n.call("Define", `<domain type='qemu'><name>theirs</name><memory unit='MiB'>32</memory><os><type arch='x86_64' machine='pc'>hvm</type></os></domain>`, nil)
		var all []Domain
		n.call("Domains", nothing, &all)
		if !slices.ContainsFunc(all, func(d Domain) bool {
			return d.Name == "theirs" && d.Foreign && d.State == heliotrope.VMShutOff
		}) {
			t.Errorf("domains are %+v", all)
		}
		spec := testSpec(dir, 1)
		spec.VM = "theirs"
		if err := n.try("Start", spec, nil); err == nil || !strings.Contains(err.Error(), ErrForeign.Error()) {
			t.Errorf("start of a foreign domain says %v", err)
		}
		if err := n.try("Remove", heliotrope.VMID("theirs"), nil); err == nil || !strings.Contains(err.Error(), ErrForeign.Error()) {
			t.Errorf("removal of a foreign domain says %v", err)
		}
	})
	t.Run("remove", func(t *testing.T) {
		n.call("Remove", testVM, nil)
		n.call("Remove", testVM, nil)
		n.wantState(heliotrope.VMAbsent)
		if _, err := os.Stat(n.path(diskDir + "/vm1.img")); !os.IsNotExist(err) {
			t.Errorf("disk of a removed VM: %v", err)
		}
		var seen []string
		await(t, "the events", 5*time.Second, func() bool {
			var events []Event
			n.call("Events", nothing, &events)
			seen = seen[:0]
			for _, e := range events {
				seen = append(seen, e.What)
			}
			return slices.Contains(seen, EventStopped)
		})
		if want := []string{EventSuspended, EventResumed, EventStopped}; !slices.Equal(seen[max(len(seen)-3, 0):], want) {
			t.Errorf("events end in %v, want %v", seen, want)
		}
	})
	t.Run("daemon dies", func(t *testing.T) {
		n.call("Exec", []string{"sh", "-c", "kill -9 $(cat /run/libvirtd.pid)"}, new(string))
		if err := n.try("Domains", nothing, new([]Domain)); err == nil {
			t.Error("a dead libvirtd answers")
		}
		n.call("Drop", nothing, nil) // returns when Done is closed
	})
}
