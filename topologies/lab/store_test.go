//go:build lab

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/imagesync/pages"
	"heliotrope/migration"
	"heliotrope/topologies"
	"heliotrope/topologies/lab/guest"
)

// stored is a lab whose VMs' disks stand on an image of its store.
type stored struct {
	*testing.T
	lab    Target
	client *api.Client
	file   []byte // the topology
}

// bringStored brings the lab of a file in testdata up.
func bringStored(t *testing.T, name string) *stored {
	t.Helper()
	file := filepath.Join("testdata", name+".yaml")
	top, err := topologies.LoadFile(file, topologies.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", dir, "heliotrope/cmd/heliotrope", "heliotrope/cmd/heliotrope-agent").CombinedOutput(); err != nil {
		t.Fatalf("build programs: %v: %s", err, out)
	}
	s := &stored{T: t, lab: Target{Name: name, Dir: filepath.Join(dir, name)}}
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, s.lab)
		}
		if err := Down(context.Background(), s.lab); err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	err = Up(t.Context(), Options{Topology: top, TopologyFile: file, Name: s.lab.Name, Dir: s.lab.Dir, ImageStore: true, Binary: filepath.Join(dir, "heliotrope"),
		Progress: func(what string) { t.Logf("%v: %s", time.Since(began).Round(time.Millisecond), what) }})
	if err != nil {
		t.Fatal(err)
	}
	s.client = api.NewUnixClient(filepath.Join(s.lab.Dir, "controller", "api.sock"))
	if s.file, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	return s
}

// until waits for do to succeed.
func (s *stored) until(limit time.Duration, do func(context.Context) error) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), limit)
	defer cancel()
	var last error
	if poll(ctx, 50*time.Millisecond, func(time.Duration) bool {
		if err := do(ctx); err == nil || ctx.Err() == nil {
			last = err
		}
		return last == nil
	}) != nil {
		s.Fatal(last)
	}
}

// runs waits until a VM runs.
func (s *stored) runs(vm heliotrope.VMID) {
	s.Helper()
	s.until(90*time.Second, func(ctx context.Context) error {
		v, err := s.client.VM(ctx, vm)
		if err == nil && v.State != string(heliotrope.VMRunning) {
			err = fmt.Errorf("%s is %s at %s: %q", vm, v.State, v.Host, v.Warnings)
		}
		return err
	})
}

// account is what the guest says of its memory and its disk.
type account struct {
	BootID  string `json:"boot_id"`
	Ticks   int64  `json:"ticks"`
	Pages   int    `json:"pages"`
	Records uint64 `json:"records"`
	LastSeq uint64 `json:"last_seq"`
	Found   uint64 `json:"found"`
}

// ask has web check its memory and its disk.
func (s *stored) ask() account { return s.askAt("203.0.113.10") }

// askAt asks the guest that has an address.
func (s *stored) askAt(address string) (a account) {
	s.Helper()
	for _, page := range []string{"ticks", "checksum", "disk"} {
		s.until(60*time.Second, func(ctx context.Context) error {
			var out bytes.Buffer
			code, err := Exec(ctx, s.lab, "visitor", []string{self(s.T), "get", "http://" + address + "/" + page}, Stdio{Out: &out, Err: &out})
			var bad struct {
				Bad    int    `json:"bad"`
				Errors uint64 `json:"errors"`
			}
			err = errors.Join(err, exitError(code))
			if err == nil {
				err = errors.Join(json.Unmarshal(out.Bytes(), &a), json.Unmarshal(out.Bytes(), &bad))
			}
			if err != nil {
				return fmt.Errorf("/%s: %w: %s", page, err, &out)
			}
			if bad.Bad != 0 || bad.Errors != 0 {
				s.Errorf("the guest says of its %s: %s", page, &out)
			}
			return nil
		})
	}
	return a
}

// move moves web and returns what was measured.
func (s *stored) move(to string) api.Migration {
	s.Helper()
	m, err := s.client.StartMigration(s.Context(), api.MigrationRequest{VM: "web", To: to}, "")
	if err != nil {
		s.Fatal(err)
	}
	if m, err = s.client.WatchMigration(s.Context(), m.ID, func(api.Migration) {}); err != nil || m.Phase != api.PhaseSucceeded {
		s.Fatalf("the move to %s ended as %s: %s, %v", to, m.Phase, m.Error, err)
	}
	s.Logf("to %s: %.1f s, paused %.0f ms, disk %d bytes copied, %d spared; warnings %q", to, took(m), m.Measured.PauseMs,
		m.Measured.DiskBytes, m.Measured.SparedBytes, m.Warnings)
	s.writes(m)
	return m
}

// writes says whether a move told how long the guest's writes took in all of its stretches.
func (s *stored) writes(m api.Migration) {
	s.Helper()
	var seen []migration.Stretch
	all := uint64(0)
	for _, w := range m.Measured.DiskWrites {
		s.Logf("%-6s %5.2f s: %3d writes of %.2f ms, %3d flushes of %.2f ms", w.Stretch, w.Seconds, w.Writes, w.WriteMs, w.Flushes, w.FlushMs)
		seen, all = append(seen, w.Stretch), all+w.Writes
		if w.Seconds <= 0 || w.Writes > 0 && (w.WriteMs <= 0 || w.WriteMs > 1000*w.Seconds) {
			s.Errorf("that cannot be: %+v", w)
		}
	}
	if want := []migration.Stretch{migration.WritesBefore, migration.WritesBulk, migration.WritesMirror, migration.WritesAfter}; !slices.Equal(seen, want) || all == 0 {
		s.Errorf("of the disk %d writes are told, in the stretches %v", all, seen)
	}
}

func took(m api.Migration) float64 { return m.FinishedAt.Sub(m.CreatedAt).Seconds() }

// granule is what a move copies at least, in bytes.
const granule = 64 << 10

// A VM on an image of the store moves between two agents and back: what crosses of its disk is what
// it has written, and on the way back what it has written since.
func TestImageStore(t *testing.T) {
	s := bringStored(t, "stored")
	s.runs("web")
	s.runs("db")
	first := s.ask()
	if first.Found != guest.StoredRecords {
		t.Errorf("the guest found %d records on its disk, the image has %d", first.Found, guest.StoredRecords)
	}
	s.places("left-1 1", "right-1 1")
	s.indexed("left-1")

	there := s.move("right-1")
	s.ofImage(there)
	arrived := s.ask()
	s.same(first, arrived)
	s.copied(there, arrived.LastSeq-guest.StoredRecords)
	s.restart("right-1")
	s.places("left-1 0", "right-1 2")
	before := s.ask()

	back := s.move("left-1")
	s.same(before, s.ask())
	s.copied(back, s.ask().LastSeq-first.LastSeq)
	if sent, all := guest.StoredBytes-back.Measured.SparedBytes, (before.LastSeq-guest.StoredRecords)*4096; sent >= all {
		t.Errorf("on the way back %d bytes were not spared: that is all that the guest had written, and not what it wrote since it came", sent)
	}
	s.places("left-1 1", "right-1 1")
	s.wrong()
}

// indexed waits until a host finds VMs' pages in the image: it sees to that once all has come.
func (s *stored) indexed(host string) {
	s.Helper()
	s.until(60*time.Second, func(context.Context) error {
		found, err := filepath.Glob(filepath.Join(s.lab.Dir, "nodes", host, "var-lib-heliotrope", "vm-volumes", "caches", "*", pages.File))
		if err == nil && len(found) == 0 {
			err = fmt.Errorf("%s has no index of its image", host)
		}
		return err
	})
}

// ofImage says whether pages of the guest's memory were told as those of its image: it has read 512 of them.
func (s *stored) ofImage(m api.Migration) {
	s.Helper()
	for _, part := range m.Measured.Memory {
		s.Logf("%-8s %6d pages, %9d bytes of the stream, %8d on the wire", part.Kind, part.Pages, part.Stream, part.Wire)
		if part.Kind == "image" && part.Pages >= 256 && part.Wire == 0 {
			return
		}
	}
	s.Error("hardly anything of the guest's memory is found in its image")
}

// same says whether the guest is the one that it was.
func (s *stored) same(before, after account) {
	s.Helper()
	if after.BootID != before.BootID || after.Ticks <= before.Ticks || after.Pages != before.Pages || after.Records < before.Records || after.Found != before.Found {
		s.Errorf("the guest was %+v and is %+v", before, after)
	}
}

// copied says whether a move copied no more of the disk than what so many records may have touched.
func (s *stored) copied(m api.Migration, records uint64) {
	s.Helper()
	if most := (records + 2) * granule; m.Measured.DiskBytes > most || m.Measured.DiskBytes > guest.StoredBytes/4 || m.Measured.SparedBytes == 0 {
		s.Errorf("%d bytes of the disk were copied for %d records, and %d spared", m.Measured.DiskBytes, records, m.Measured.SparedBytes)
	}
}

// restart kills a host's agent and waits for the next.
func (s *stored) restart(host string) {
	s.Helper()
	if err := Kill(s.Context(), s.lab, KillOrder{Node: host, Daemon: "agent", Signal: unix.SIGKILL}); err != nil {
		s.Fatal(err)
	}
	s.until(30*time.Second, func(ctx context.Context) error {
		status, err := Read(ctx, s.lab)
		if err != nil {
			return err
		}
		n, _ := status.Node(host)
		d, _ := n.Daemon("agent")
		h, err := s.client.Host(ctx, heliotrope.HostID(host))
		if err == nil && (d.Restarts == 0 || h.State != api.HostUp) {
			err = fmt.Errorf("the agent of %s has not come back: %+v, %s", host, d, h.State)
		}
		return err
	})
}

// places waits until hosts have all of the image, and so many disks on it each.
func (s *stored) places(want ...string) {
	s.Helper()
	s.until(30*time.Second, func(ctx context.Context) error {
		places, err := s.client.ImagePlaces(ctx, "guest")
		var got []string
		for _, p := range places {
			got = append(got, fmt.Sprintf("%s %d", p.Host, p.Disks))
		}
		if err == nil && strings.Join(got, " ") != strings.Join(want, " ") {
			err = fmt.Errorf("disks on the image are %v, want %v", got, want)
		}
		return err
	})
}

// wrong asks for what is not there, and for a disk while the store is away.
func (s *stored) wrong() {
	s.Helper()
	add := func(vm, image, address string) {
		s.Helper()
		s.file = bytes.Replace(s.file, []byte("\npeers:"), fmt.Appendf(nil, "  %s: {host: left-1, image: %q, nics: [{network: web, address: %s}]}\n\npeers:", vm, image, address), 1)
		if _, err := s.client.ApplyTopology(s.Context(), s.file, -1); err != nil {
			s.Fatal(err)
		}
	}
	says := func(vm heliotrope.VMID, what string) {
		s.Helper()
		s.until(30*time.Second, func(ctx context.Context) error {
			v, err := s.client.VM(ctx, vm)
			if err == nil && (v.State == string(heliotrope.VMRunning) || !strings.Contains(strings.Join(v.Warnings, " "), what)) {
				err = fmt.Errorf("%s is %s, warnings %q; want %q", vm, v.State, v.Warnings, what)
			}
			return err
		})
	}
	add("none", "nix", "10.1.0.30")
	says("none", "the image store has no such image")
	store := filepath.Join(s.lab.Dir, "image-store", "images")
	if err := os.Rename(store, store+".away"); err != nil {
		s.Fatal(err)
	}
	add("late", "guest", "10.1.0.40")
	says("late", "guest")
	if err := os.Rename(store+".away", store); err != nil {
		s.Fatal(err)
	}
	s.runs("late")
}
