//go:build lab

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"context"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/topologies/lab/guest"
)

// A VM that writes without end, each record after the one before was on its disk: its disk becomes an image while it
// goes on, and a VM of that image boots, and finds all records up to one of that moment. A move and a snapshot do not hinder each other,
// but for one that is asked for while the VM moves.
func TestSnapshotOfAVM(t *testing.T) {
	s := bringStored(t, "stored")
	s.runs("web")
	before := s.ask()
	take := func(r api.SnapshotRequest) api.Snapshot {
		t.Helper()
		n, err := s.client.StartSnapshot(t.Context(), r, "")
		if err == nil {
			n, err = s.client.WatchSnapshot(t.Context(), n.ID, func(api.Snapshot) {})
		}
		if err != nil || n.State != api.SnapshotDone {
			t.Fatalf("snapshot of %s: %+v, %v", r.VM, n, err)
		}
		t.Logf("%s in %.2f s: %d bytes read, %d of them new, %d stored; a write may have waited %.3f ms", n.Made, n.EndedAt.Sub(n.BeganAt).Seconds(),
			n.ReadBytes, n.NewBytes, n.StoredBytes, n.PauseMs)
		return n
	}
	made := take(api.SnapshotRequest{VM: "web", As: "guest", Next: true}) // for which the hosts have a kernel
	after := s.ask()
	s.same(before, after)
	if made.Made != "guest@2" || made.ReadBytes > guest.StoredBytes/4 {
		t.Errorf("made is %+v", made)
	}

	s.file = bytes.Replace(s.file, []byte("\npeers:"), []byte("  copy: {host: left-1, image: guest@2, metadata: {disk_writes_per_s: \"1\"}, nics: [{network: web, address: 10.1.0.11, public: 203.0.113.11}]}\n\npeers:"), 1)
	if _, err := s.client.ApplyTopology(t.Context(), s.file, -1); err != nil {
		t.Fatal(err)
	}
	s.runs("copy")
	if c := s.askAt("203.0.113.11"); c.Found < before.LastSeq || c.Found > after.LastSeq || c.BootID == before.BootID {
		t.Errorf("the copy has found %d records; web had written %d before the snapshot and %d after it", c.Found, before.LastSeq, after.LastSeq)
	}

	// While it moves there is none; one that was taken before goes on.
	n, err := s.client.StartSnapshot(t.Context(), api.SnapshotRequest{VM: "web", As: "leaving"}, "")
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.client.StartMigration(t.Context(), api.MigrationRequest{VM: "web", To: "right-1"}, "")
	if err != nil {
		t.Fatal(err)
	}
	s.until(10*time.Second, func(ctx context.Context) error {
		n, err := s.client.StartSnapshot(ctx, api.SnapshotRequest{VM: "web", As: "moving", DryRun: true}, "")
		if p := (*api.Problem)(nil); errors.As(err, &p) && p.Status == http.StatusConflict {
			return nil
		}
		return fmt.Errorf("while it moves: %+v, %w", n, err)
	})
	if m, err = s.client.WatchMigration(t.Context(), m.ID, func(api.Migration) {}); err != nil || m.Phase != api.PhaseSucceeded {
		t.Fatalf("the move ended as %s: %s, %v", m.Phase, m.Error, err)
	}
	if n, err = s.client.WatchSnapshot(t.Context(), n.ID, func(api.Snapshot) {}); err != nil || n.Made != "leaving@1" {
		t.Errorf("what was taken before the move: %+v, %v", n, err)
	}
	s.same(before, s.ask())
	if n = take(api.SnapshotRequest{VM: "web", As: "arrived"}); n.Host != "right-1" {
		t.Errorf("it was taken at %s", n.Host)
	}
	_, err = s.client.StartSnapshot(t.Context(), api.SnapshotRequest{VM: "web", As: "arrived"}, "")
	if p := (*api.Problem)(nil); !errors.As(err, &p) || p.Status != http.StatusConflict {
		t.Errorf("a name that is taken: %v", err)
	}
	disks := filepath.Join(s.lab.Dir, "nodes", "*", "var-lib-heliotrope", "vm-volumes", "volumes", "*", "disk")
	if all, err := filepath.Glob(disks); err != nil || len(all) == 0 {
		t.Errorf("there are no volumes at %s: %v", disks, err)
	}
	if left, err := filepath.Glob(filepath.Join(disks, "before")); err != nil || len(left) > 0 {
		t.Errorf("what was saved for snapshots remains: %v, %v", left, err)
	}
	if v, err := s.client.VM(t.Context(), "web"); err != nil || v.State != string(heliotrope.VMRunning) {
		t.Errorf("web is %+v, %v", v, err)
	}
}
