package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"heliotrope/controller/api"
)

type (
	startSnapshot struct {
		Key  string `header:"Idempotency-Key" doc:"Same key and request: same answer, one snapshot; for a day."`
		Body api.SnapshotRequest
	}
	snapshotRef struct {
		ID string `path:"id"`
	}
	snapshotBegun struct {
		Status   int
		Location string `header:"Location" doc:"How it goes on."`
		Body     api.Snapshot
	}
)

func (h *handler) registerSnapshots(routes huma.API) {
	start := operation("POST", "/v1/snapshots", "start-snapshot", "Make a version of an image of a running VM's disk as it is now", 400, 404, 409, 415, 422)
	start.DefaultStatus = http.StatusAccepted
	handle(h, routes, start, func(ctx context.Context, in *startSnapshot) (*snapshotBegun, error) {
		if err := h.taken(); err != nil {
			return nil, err
		}
		s, err := h.Snapshots.StartSnapshot(ctx, "s-"+nameOf(ctx, "snapshot", in.Key), in.Body)
		if in.Body.DryRun {
			return &snapshotBegun{Status: http.StatusOK, Body: s}, err
		}
		return &snapshotBegun{http.StatusAccepted, "/v1/snapshots/" + s.ID, s}, err
	})
	handle(h, routes, operation("GET", "/v1/snapshots", "list-snapshots", "Snapshots of VMs' disks that are under way, or ended lately, the newest first"), func(ctx context.Context, _ *struct{}) (*body[api.List[api.Snapshot]], error) {
		if err := h.taken(); err != nil {
			return nil, err
		}
		all, err := h.Snapshots.Snapshots(ctx)
		return listOf(all), err
	})
	handle(h, routes, operation("GET", "/v1/snapshots/{id}", "get-snapshot", "How much of a snapshot was read, and what became of it", 404), func(ctx context.Context, in *snapshotRef) (*body[api.Snapshot], error) {
		if err := h.taken(); err != nil {
			return nil, err
		}
		s, err := h.Snapshots.Snapshot(ctx, in.ID)
		return &body[api.Snapshot]{s}, err
	})
	drop := operation("DELETE", "/v1/snapshots/{id}", "drop-snapshot", "Give a snapshot up, or forget it if it is over; the version that it has become stays", 404, 409)
	drop.DefaultStatus = http.StatusNoContent
	handle(h, routes, drop, func(ctx context.Context, in *snapshotRef) (*struct{}, error) {
		if err := h.taken(); err != nil {
			return nil, err
		}
		return nil, h.Snapshots.DropSnapshot(ctx, in.ID)
	})
}

// taken says that there is no image store, where there is none.
func (h *handler) taken() error {
	if h.Snapshots != nil {
		return nil
	}
	return h.stored()
}
