package cli

import (
	"context"
	"time"

	"heliotrope/controller/api"
)

// A snapshot of web becomes an image, unless that is to be called "full".
func (f *fake) StartSnapshot(_ context.Context, _ string, r api.SnapshotRequest) (api.Snapshot, error) {
	s := api.Snapshot{ID: "s-0123456789abcdef", VM: r.VM, Host: "us-1", Image: r.As, Base: "debian@3", State: api.SnapshotReading, TotalBytes: 80 << 20, ReadBytes: 20 << 20, Progress: 0.25,
		PauseMs: 0.03, BeganAt: noon}
	switch {
	case r.VM != "web":
		return s, api.Invalid("the snapshot cannot be", api.FieldProblem{Pointer: "/vm", Detail: `there is no VM "` + string(r.VM) + `"`, Hint: "heliotrope vm list shows what there is"})
	case r.As == "debian" && !r.Next:
		return s, api.Conflict("debian@3 is there", "choose another name, or say that it is to become the version after debian@3 (CLI: --next)")
	case r.DryRun:
		s.ID, s.State, s.ETAS, s.CostUSD = "", api.SnapshotForeseen, 6.7, 0.0017
		return s, nil
	}
	f.snapshot = s
	return s, nil
}

func (f *fake) Snapshot(_ context.Context, id string) (api.Snapshot, error) {
	if f.snapshot.ID != id {
		return api.Snapshot{}, api.NotFound("snapshot", id)
	}
	s := &f.snapshot
	s.Progress, s.ReadBytes, s.NewBytes, s.StoredBytes, s.EndedAt = 1, s.TotalBytes, 30<<20, 12<<20, noon.Add(7*time.Second)
	if s.State, s.Made = api.SnapshotDone, s.Image+"@1"; s.Image == "full" {
		s.State, s.Made, s.Note = api.SnapshotFailed, "", "image store /store: the store's quota is used up"
	}
	return *s, nil
}

func (f *fake) Snapshots(context.Context) ([]api.Snapshot, error) {
	if f.snapshot.ID == "" {
		return nil, nil
	}
	return []api.Snapshot{f.snapshot}, nil
}

func (f *fake) DropSnapshot(_ context.Context, id string) error {
	if f.snapshot.ID != id {
		return api.NotFound("snapshot", id)
	}
	f.snapshot = api.Snapshot{}
	return nil
}
