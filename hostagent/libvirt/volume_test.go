//go:build lab

package libvirt

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/imagesync/storetest"
)

// stored makes a store with the image "tiny", of 16 MiB of which the guest writes half, and the
// program that does about it what agents do.
func stored(t *testing.T) (program, store string, content []byte) {
	t.Helper()
	dir := t.TempDir()
	program, store = filepath.Join(dir, "disks"), filepath.Join(dir, "store")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./testdata/disks")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build disks: %v: %s", err, out)
	}
	content = make([]byte, 16<<20)
	rand.NewChaCha8([32]byte{7}).Read(content[8<<20 : 12<<20])
	storetest.Import(t, store, filepath.Join(dir, "keys"), "tiny", content)
	return program, store, content
}

// A volume is described by what its host makes of it, and no other NBD disk is let in.
func TestVolumeIsTheVMsOwn(t *testing.T) {
	good := described(t, func(s *Spec) { s.Volume = &Volume{Bytes: 16 << 20, Base: "tiny@1 <&\"00\">"} })
	d, err := parseDomain(testVM, good, diskDir, logDir)
	if err != nil {
		t.Fatal(err)
	}
	if epoch, ours := epochOf(d); epoch != 3 || !ours {
		t.Errorf("epoch %d, ours %v", epoch, ours)
	}
	if base, bytes, err := VolumeBase(withEpoch(good, 7)); base != "tiny@1 <&\"00\">" || bytes != 16<<20 || err != nil {
		t.Errorf("it stands on %q, of %d bytes, %v", base, bytes, err)
	}
	if base, _, err := VolumeBase(described(t, nil)); base != "" || err != nil {
		t.Errorf("a file stands on %q, %v", base, err)
	}
	for name, text := range map[string]string{
		"another VM's":   strings.ReplaceAll(good, "/vm1.vol", "/vm2.vol"),
		"another socket": strings.ReplaceAll(good, VolumeSocket(diskDir), "/run/libvirt/libvirt-sock"),
		"another host":   strings.ReplaceAll(good, `transport="unix"`, `transport="tcp" name="192.0.2.1"`),
		"two hosts":      strings.ReplaceAll(good, `<reconnect`, `<host name="192.0.2.1"/><reconnect`),
		"another way":    strings.ReplaceAll(good, `protocol="nbd"`, `protocol="ssh"`),
	} {
		if text == good {
			t.Fatalf("%s: nothing is replaced in %s", name, good)
		}
		if _, err := parseDomain(testVM, text, diskDir, logDir); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	for text, wrong := range map[string]bool{"<domain": true, good + strings.Repeat(" ", maxXML): true,
		strings.ReplaceAll(good, `bytes="16777216"`, `bytes="-1"`): true, strings.ReplaceAll(good, volumeURI, "urn:other"): false} {
		if _, _, err := VolumeBase(text); (err != nil) != wrong {
			t.Errorf("%.80s: %v", text, err)
		}
	}
}

// A volume's file is made once, and again when the one there is a move's leavings.
func TestMakeVolume(t *testing.T) {
	disks := filepath.Join(t.TempDir(), "disks")
	spec := Spec{VM: testVM, ImageDir: t.TempDir(), DiskDir: disks, Volume: &Volume{Bytes: 12345}}
	if known, err := KnowsVolume(disks, testVM); known || err != nil || HasVolume(disks, testVM, true) {
		t.Errorf("known before it is made: %v, %v", known, err)
	}
	for range 2 {
		if format, err := spec.makeDisk(false); format != "raw" || err != nil {
			t.Fatalf("%q, %v", format, err)
		}
		if info, err := os.Stat(VolumeExport(disks, testVM)); err != nil || info.Size() != 12345 || !HasVolume(disks, testVM, false) {
			t.Fatalf("%v, %v", info, err)
		}
	}
	if err := os.WriteFile(VolumeExport(disks, testVM)+voidMark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if HasVolume(disks, testVM, false) || !HasVolume(disks, testVM, true) {
		t.Error("void is what is a VM's, or what is nobody's is not")
	}
	spec.Volume.Bytes = 99
	if _, err := spec.makeDisk(false); err != nil || !HasVolume(disks, testVM, false) {
		t.Error(err)
	}
	if vm, ok := VolumeName(disks, VolumeExport(disks, testVM)); vm != testVM || !ok {
		t.Errorf("the export is that of %q", vm)
	}
	for _, export := range []string{"", "vm1.vol", disks + "/vm1.img", disks + "/sub/vm1.vol"} {
		if vm, ok := VolumeName(disks, export); ok {
			t.Errorf("export %q is that of %q", export, vm)
		}
	}
}

func FuzzVolumeBase(f *testing.F) {
	f.Add(described(f, func(s *Spec) { s.Volume = &Volume{Bytes: 1, Base: "tiny@1 00"} }))
	f.Add("<domain><metadata><v xmlns='urn:heliotrope:volume:1' bytes='9'/></metadata></domain>")
	f.Fuzz(func(t *testing.T, text string) {
		if _, bytes, err := VolumeBase(text); err == nil && bytes < 0 {
			t.Errorf("%d bytes", bytes)
		}
	})
}

// disks has the node's part of an agent do something about disks.
func (n *node) disks(argv ...string) string {
	n.t.Helper()
	var said string
	// Its server stays, and must not keep the pipe.
	line := `"$0" "$@" 2>>/var/log/disks.log`
	if err := n.try("Exec", append([]string{"sh", "-c", line}, argv...), &said); err != nil {
		text, _ := os.ReadFile(n.path("/var/log/disks.log"))
		n.t.Fatalf("%v at %s: %v: %s%s", argv, n.name, err, said, text)
	}
	return said
}

// hasBase fails unless a VM's disk at the node has the half that the guest does not write as it
// came from the store.
func (n *node) hasBase(content []byte) {
	n.t.Helper()
	n.disks("nbdcopy", "nbd+unix:///"+VolumeExport(diskDir, testVM)+"?socket="+VolumeSocket(diskDir), "/run/copy.raw")
	got, err := os.ReadFile(n.path("/run/copy.raw"))
	if err != nil {
		n.t.Fatal(err)
	}
	if len(got) != len(content) || !bytes.Equal(got[8<<20:], content[8<<20:]) {
		n.t.Errorf("the disk at %s is not the image where the guest did not write", n.name)
	}
}

// same fails unless the VM's disk is the same at both ends. The guest is stopped.
func (p *pair) same() {
	p.t.Helper()
	var disks [2][]byte
	for i, n := range []*node{p.src, p.dst} {
		n.disks("nbdcopy", "nbd+unix:///"+VolumeExport(diskDir, testVM)+"?socket="+VolumeSocket(diskDir), "/run/copy.raw")
		var err error
		if disks[i], err = os.ReadFile(n.path("/run/copy.raw")); err != nil {
			p.t.Fatal(err)
		}
	}
	if !bytes.Equal(disks[0], disks[1]) {
		p.t.Error("the disks differ")
	}
}

// A VM whose disk is one over an image of a store starts, goes on when the server of disks is
// killed and comes again, and moves to another host and back.
func TestVolume(t *testing.T) {
	dir := t.TempDir()
	buildGuest(t, dir)
	program, store, content := stored(t)
	p := &pair{t: t, src: startNode(t, "east"), dst: startNode(t, "west")}
	var volume Volume
	if err := json.Unmarshal([]byte(p.src.disks(program, store, "make", string(testVM), "tiny")), &volume); err != nil {
		t.Fatal(err)
	}
	if volume.Bytes != 16<<20 || !strings.HasPrefix(volume.Base, "tiny@1 ") {
		t.Fatalf("the volume is %+v", volume)
	}
	spec := testSpec(dir, 1)
	spec.Volume = &volume
	p.src.call("Start", spec, nil)
	t.Cleanup(func() {
		for _, n := range []*node{p.src, p.dst} {
			if text, err := os.ReadFile(n.path("/var/log/disks.log")); err == nil && t.Failed() {
				t.Logf("disks at %s: %s; console: %s", n.name, text, n.console())
			}
		}
	})
	await(t, "the guest", 90*time.Second, func() bool { return strings.Contains(p.src.console(), "GUEST ready") })
	p.src.wantLife()

	for _, signal := range []string{"KILL", "TERM"} {
		t.Run("server ends by "+signal, func(t *testing.T) {
			p.src.t = t
			defer func() { p.src.t = p.t }()
			var before struct{ PID int }
			status(t, p.src.disks(program, store, "status"), &before)
			p.src.disks("sh", "-c", "kill -"+signal+" "+jsonText(before.PID))
			var after struct{ PID int }
			await(t, "another server", 10*time.Second, func() bool {
				status(t, p.src.disks(program, store, "make", string(testVM), "tiny"), &struct{}{})
				status(t, p.src.disks(program, store, "status"), &after)
				return after.PID != before.PID
			})
			p.src.wantLife()
		})
	}
	p.src.hasBase(content)

	since := 0 // writes of the guest that both ends have
	for _, n := range []*node{p.src, p.dst} {
		n.disks("mkfifo", "/run/performing", "/run/performed")
	}
	for _, way := range []string{"there", "back", "there again"} {
		t.Run("move "+way, func(t *testing.T) {
			p.t, p.src.t, p.dst.t = t, t, t
			before := p.src.ask()
			w := p.wire(0)
			var d Description
			p.src.call("Begin", testVM, &d)
			if len(d.Disks) != 1 || d.Disks[0].Bytes != 16<<20 || !d.Partial {
				t.Errorf("described are disks %v, partial: %v", d.Disks, d.Partial)
			}
			leaving := p.src.disks(program, store, "begin", string(testVM))
			if err := os.WriteFile(p.dst.path("/run/vm.xml"), []byte(d.XML), 0o600); err != nil {
				t.Fatal(err)
			}
			has := p.dst.disks(program, store, "receive", string(testVM), "/run/vm.xml", leaving)
			out := Outgoing{VM: testVM, XML: d.XML, MemorySocket: w.memory, DiskSocket: w.disk}
			// A host that knows of no notes gives libvirt the cookie with the note.
			cookie := append(d.Cookie, "{\"a\": \"note\"}\x00"...)
			in := Incoming{VM: testVM, Epoch: 9, XML: d.XML, Cookie: cookie, Disks: d.Disks, DiskDir: diskDir, MemorySocket: w.memory, DiskSocket: w.disk}
			p.dst.call("Prepare", in, &out.Cookie)
			var done Performed
			p.src.disks("sh", "-c", `"$0" "$1" perform "$2" "$3" </dev/null >/run/perform.log 2>&1 &`, program, store, string(testVM), has)
			p.src.disks("timeout", "20", "cat", "/run/performing")
			timed(t, "perform", func() { p.src.call("Perform", out, &done) })
			p.src.disks("sh", "-c", "echo >/run/performed")
			copied := w.carried()
			p.same()
			p.dst.disks(program, store, "arrive", string(testVM))
			p.dst.call("Finish", Last{VM: testVM, Cookie: done.Cookie}, new(time.Time))
			p.src.call("Confirm", Last{VM: testVM}, nil)
			p.src.disks(program, store, "left", string(testVM))
			// A guest's write is a block, and a mirror's 64 KiB: each write while it is copied may be one.
			const granule = 64<<10 + 1024
			after := p.dst.wantLife()
			meanwhile := after.writes - before.writes
			t.Logf("%d bytes of the disk were sent; the guest had written %d blocks and wrote %d meanwhile", copied, before.writes-since, meanwhile)
			if limit := int64(before.writes-since)*4096 + int64(meanwhile+20)*granule; copied > limit {
				t.Errorf("%d bytes of the disk were sent; %d would do", copied, limit)
			}
			since = before.writes
			p.src.wantState(heliotrope.VMAbsent)
			if meanwhile < 0 {
				t.Errorf("%d writes after the move, %d before", after.writes, before.writes)
			}
			p.dst.hasBase(content)
			if left := p.src.disks("sh", "-c", "ls /run/disks"); strings.Contains(left, string(testVM)) {
				t.Errorf("left at %s: %s", p.src.name, left)
			}
			p.src, p.dst = p.dst, p.src
		})
		p.t, p.src.t, p.dst.t = t, t, t
		if t.Failed() {
			return
		}
	}
	var kept struct {
		Disks int `json:"kept_disks"`
		Bytes int `json:"kept_bytes"`
	}
	if status(t, p.dst.disks(program, store, "status"), &kept); kept.Disks != 1 || kept.Bytes == 0 {
		t.Errorf("kept is %+v", kept)
	}
	p.src.call("Remove", testVM, nil)
	p.src.disks(program, store, "settle", string(testVM))
	var s struct{ Volumes []any }
	if status(t, p.src.disks(program, store, "status"), &s); len(s.Volumes) > 0 {
		t.Errorf("volumes of a removed VM: %v", s.Volumes)
	}
}

func status(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v: %q", err, text)
	}
}

func jsonText(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}
