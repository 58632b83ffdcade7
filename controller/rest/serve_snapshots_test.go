package rest

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"heliotrope/controller/api"
)

// StartSnapshot takes one of any VM.
func (m *memory) StartSnapshot(_ context.Context, id string, r api.SnapshotRequest) (api.Snapshot, error) {
	end, err := m.begin()
	defer end()
	s := api.Snapshot{ID: id, VM: r.VM, Image: r.As, Next: r.Next, State: api.SnapshotReading}
	if r.DryRun {
		s.ID, s.State = "", api.SnapshotForeseen
	} else if err == nil {
		m.snapshots = append(m.snapshots, s)
	}
	return s, err
}

func (m *memory) Snapshots(context.Context) ([]api.Snapshot, error) {
	end, err := m.begin()
	defer end()
	return m.snapshots, err
}

func (m *memory) Snapshot(_ context.Context, id string) (api.Snapshot, error) {
	end, err := m.begin()
	defer end()
	for _, s := range m.snapshots {
		if s.ID == id {
			s.State, s.Made = api.SnapshotDone, s.Image+"@1"
			return s, err
		}
	}
	return api.Snapshot{}, api.NotFound("snapshot", id)
}

func (m *memory) DropSnapshot(_ context.Context, id string) error {
	end, err := m.begin()
	defer end()
	if len(m.snapshots) == 0 || m.snapshots[0].ID != id {
		return api.NotFound("snapshot", id)
	}
	m.snapshots = nil
	return err
}

// A snapshot is ordered once for each key, shown, and dropped; and where there is no image store, that is said.
func TestSnapshots(t *testing.T) {
	s := serve(t, Options{})
	c, ctx := s.client(t), t.Context()
	r := api.SnapshotRequest{VM: "web", As: "copy"}
	one, err := c.StartSnapshot(ctx, r, "key")
	if err != nil || one.VM != "web" || one.Image != "copy" {
		t.Fatalf("%+v, %v", one, err)
	}
	again, err := c.StartSnapshot(ctx, r, "key")
	if err != nil || again.ID != one.ID || len(s.memory.snapshots) != 1 {
		t.Errorf("the same key: %+v, %v", again, err)
	}
	r.DryRun = true
	if s, err := c.StartSnapshot(ctx, r, ""); err != nil || s.State != api.SnapshotForeseen {
		t.Errorf("a dry run: %+v, %v", s, err)
	}
	if all, err := c.Snapshots(ctx); err != nil || len(all) != 1 {
		t.Errorf("all are %+v, %v", all, err)
	}
	told := 0
	if s, err := c.WatchSnapshot(ctx, one.ID, func(api.Snapshot) { told++ }); err != nil || s.Made != "copy@1" || told != 1 {
		t.Errorf("watched: %+v, %v", s, err)
	}
	var p *api.Problem
	if _, err := c.StartSnapshot(ctx, api.SnapshotRequest{VM: "web"}, ""); !errors.As(err, &p) || p.Status != http.StatusUnprocessableEntity {
		t.Errorf("without a name: %v", err)
	}
	if err := c.DropSnapshot(ctx, one.ID); err != nil {
		t.Error(err)
	}
	if _, err := c.Snapshot(ctx, one.ID); !errors.As(err, &p) || p.Status != http.StatusNotFound {
		t.Errorf("one that was dropped: %v", err)
	}
	none := handler{}
	if err := none.taken(); !errors.As(err, &p) || p.Status != http.StatusServiceUnavailable || p.Hint == "" {
		t.Errorf("without a store: %v", err)
	}
}
