//go:build lab

package libvirt

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"

	"heliotrope"
)

// described is the description of the test's VM as its Spec gives it.
func described(t testing.TB, change func(*Spec)) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "vmlinuz"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	spec := testSpec(dir, 3)
	if change != nil {
		change(&spec)
	}
	text, err := spec.xml("raw")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestSpec(t *testing.T) {
	d := new(libvirtxml.Domain)
	if err := d.Unmarshal(described(t, nil)); err != nil {
		t.Fatal(err)
	}
	if epoch, ours := epochOf(d); epoch != 3 || !ours {
		t.Errorf("epoch %d, ours %v", epoch, ours)
	}
	want := "console=ttyS0 quiet panic=1 heliotrope.nic=" + testMAC.String() + ",10.0.0.5/24,10.0.0.1,1450 heliotrope.dirty_mib=16 heliotrope.dirty_pages=1000"
	if d.OS.Cmdline != want {
		t.Errorf("command line\n%s, want\n%s", d.OS.Cmdline, want)
	}
	if d.Type != "qemu" || d.Memory.Value != testMiB || d.UUID != heliotrope.VMUUID(testVM) {
		t.Errorf("domain %s of %d %s, %s", d.Type, d.Memory.Value, d.Memory.Unit, d.UUID)
	}
	for name, change := range map[string]func(*Spec){
		"unknown network": func(s *Spec) { s.Networks = nil },
		"blank":           func(s *Spec) { s.What.Metadata["greeting"] = "good day" },
	} {
		spec := testSpec(t.TempDir(), 3)
		os.WriteFile(filepath.Join(spec.ImageDir, "vmlinuz"), nil, 0o600)
		change(&spec)
		if _, err := spec.xml(""); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestTapNameFits(t *testing.T) {
	for _, vm := range []heliotrope.VMID{"a", heliotrope.VMID(strings.Repeat("long", 15))} {
		if name := TapName(vm, 99); len(name) > 15 || name == TapName(vm, 98) {
			t.Errorf("tap of %s is %q", vm, name)
		}
	}
}

func TestWithEpoch(t *testing.T) {
	for _, mark := range []string{
		`<heliotrope:vm xmlns:heliotrope="urn:heliotrope:domain:1" epoch="1"/>`,
		`<heliotrope:vm epoch='18446744073709551615' xmlns:heliotrope='urn:heliotrope:domain:1'></heliotrope:vm>`,
	} {
		text := "<domain type='qemu'><name>epoch=\"1\"</name><metadata>" + mark + "</metadata></domain>"
		d := new(libvirtxml.Domain)
		if err := d.Unmarshal(withEpoch(text, 42)); err != nil {
			t.Fatal(err)
		}
		if epoch, ours := epochOf(d); epoch != 42 || !ours || d.Name != `epoch="1"` {
			t.Errorf("%s becomes %d, %v, name %s", mark, epoch, ours, d.Name)
		}
	}
}

func TestParseDomainRefuses(t *testing.T) {
	good := described(t, nil)
	if _, err := parseDomain(testVM, good, diskDir, logDir); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"not XML":     "<domain",
		"other name":  strings.ReplaceAll(good, "<name>vm1", "<name>vm2"),
		"no mark":     strings.ReplaceAll(good, metadataURI, "urn:other"),
		"host disk":   strings.ReplaceAll(good, diskDir+"/vm1.img", "/etc/shadow"),
		"path":        strings.ReplaceAll(good, diskDir+"/vm1.img", diskDir+"/../vm1.img"),
		"host device": strings.ReplaceAll(good, "</devices>", "<hostdev mode='subsystem' type='usb'><source><vendor id='1'/></source></hostdev></devices>"),
		"log":         strings.ReplaceAll(good, logDir, "/etc/cron.d"),
		"program":     strings.ReplaceAll(good, "<devices>", "<devices><emulator>/bin/sh</emulator>"),
		"format":      strings.ReplaceAll(good, `type="raw"`, `type="qcow2"`),
		"too long":    good + strings.Repeat(" ", maxXML),
	} {
		if _, err := parseDomain(testVM, text, diskDir, logDir); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if _, err := parseDomain("vm2", good, diskDir, logDir); !errors.Is(err, ErrForeign) {
		t.Errorf("another VM's description: %v", err)
	}
}

func FuzzParseDomain(f *testing.F) {
	f.Add(described(f, nil))
	f.Add("<domain><metadata><a/></metadata><devices><disk/></devices></domain>")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseDomain(testVM, text, diskDir, logDir)
		if err != nil {
			return
		}
		// What the rest of Prepare does with it must be safe too.
		tapsOf(d)
		for i := range d.Devices.Disks {
			if filepath.Dir(diskSource(&d.Devices.Disks[i])) != diskDir {
				t.Errorf("disk %q passed", diskSource(&d.Devices.Disks[i]))
			}
		}
		withEpoch(text, 1)
	})
}

func TestMakeDisk(t *testing.T) {
	image, disks := t.TempDir(), t.TempDir()
	spec := Spec{VM: testVM, ImageDir: image, DiskDir: disks}
	if format, err := spec.makeDisk(false); format != "" || err != nil {
		t.Fatalf("image without a disk: %q, %v", format, err)
	}
	template := make([]byte, 300_000)
	copy(template[:], "head")
	copy(template[299_000:], "tail")
	write := func(file string, content []byte) {
		t.Helper()
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(image, "disk.img"), template)
	want := func(what string, defined bool, content []byte) {
		t.Helper()
		format, err := spec.makeDisk(defined)
		got, _ := os.ReadFile(spec.diskFile())
		if format != "raw" || err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %q, %v, %d bytes", what, format, err, len(got))
		}
	}
	want("copied", false, template)
	write(spec.diskFile(), []byte("its own"))
	want("kept", false, []byte("its own"))
	write(spec.diskFile()+voidMark, nil)
	want("kept for a defined VM", true, []byte("its own"))
	want("left by a move", false, template)
	if left, err := filepath.Glob(filepath.Join(disks, "*")); len(left) != 1 || err != nil {
		t.Errorf("left are %v, %v", left, err)
	}
}

func TestPrecede(t *testing.T) {
	frames := func(words string) (all [][]byte) {
		for w := range strings.FieldsSeq(words) {
			all = append(all, []byte(w))
		}
		return all
	}
	for _, c := range []struct {
		name, records, queued string
		n                     int
		want                  string
	}{
		{"one taken", "a b c d", "c d", 1, "b"},
		{"two taken", "a b c d", "c d", 2, "a b"},
		{"all taken", "a b", "", 1, "b"},
		{"doubles", "a x x x", "x x", 2, "a x"},
		{"queue was full", "a b c d e", "c", 1, "b"},
		{"order of two senders", "a b d c", "c d", 1, "b"},
		{"not as many recorded", "a b c", "c", 5, "a b"},
	} {
		got, err := precede(frames(c.records), frames(c.queued), c.n)
		if words := string(bytes.Join(got, []byte(" "))); err != nil || words != c.want {
			t.Errorf("%s: %q, %v, want %s", c.name, words, err, c.want)
		}
	}
	for _, queued := range []string{"b", "a"} { // one that was never recorded, and none before
		if got, err := precede(frames("a"), frames(queued), 1); err == nil {
			t.Errorf("before %s comes %q", queued, got)
		}
	}
}

func TestMemoryPages(t *testing.T) {
	for xml, want := range map[string]int{
		`<domain><memory unit='KiB'>262144</memory></domain>`:                                                   1 << 16,
		`<domain><maxMemory slots='2' unit='KiB'>524288</maxMemory><memory unit='KiB'>262144</memory></domain>`: 1 << 17,
		`<domain><memory unit='stone'>1</memory></domain>`:                                                      0,
		`<domain/>`: 0,
		`no XML`:    0,
	} {
		if got := MemoryPages(xml); got != want {
			t.Errorf("%s: %d pages, want %d", xml, got, want)
		}
	}
}
