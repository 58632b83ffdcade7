package api

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"heliotrope"
)

// SnapshotRequest asks for a version of an image that is a running VM's disk as it is now.
type SnapshotRequest struct {
	VM     heliotrope.VMID `json:"vm" minLength:"1" maxLength:"63" example:"web"`
	As     string          `json:"as" minLength:"1" maxLength:"63" doc:"The image that it becomes." example:"web-backup"`
	Next   bool            `json:"next,omitempty" doc:"It becomes the next version of an image that is there; default: there must be no image of that name."`
	DryRun bool            `json:"dry_run,omitempty" doc:"Only say how much would go to the store at most, and what that takes and costs."`
}

// States of a snapshot. Done and failed are the last.
const (
	SnapshotReading    = "reading"    // it is read, and sent to the store
	SnapshotPublishing = "publishing" // all of it is in the store
	SnapshotDone       = "done"
	SnapshotFailed     = "failed"
	SnapshotForeseen   = "foreseen" // of a dry run: there is none
)

// Snapshot is a VM's disk at one moment, on its way to becoming a version of an image.
type Snapshot struct {
	ID          string            `json:"id"`
	VM          heliotrope.VMID   `json:"vm"`
	Host        heliotrope.HostID `json:"host" doc:"Where the VM was at that moment: it may have moved since."`
	Image       string            `json:"image"`
	Next        bool              `json:"next,omitempty" doc:"It becomes the next version of an image that was there."`
	Base        string            `json:"base" doc:"The version that the VM's disk stands on, and goes on to."`
	State       string            `json:"state" doc:"reading, publishing, done or failed; foreseen for a dry run."`
	Progress    float64           `json:"progress" doc:"0 to 1."`
	TotalBytes  int64             `json:"total_bytes" doc:"Of the disk, that were written since it was made: no more is read, or sent."`
	ReadBytes   int64             `json:"read_bytes" doc:"Of them, so far."`
	NewBytes    int64             `json:"new_bytes" doc:"Of them, what the store did not have, and was sent."`
	StoredBytes int64             `json:"stored_bytes" doc:"What that takes in the store, compressed."`
	PauseMs     float64           `json:"pause_ms" doc:"For which a write of the VM's may have waited when the snapshot was taken."`
	BeganAt     time.Time         `json:"began_at,omitzero"`
	EndedAt     time.Time         `json:"ended_at,omitzero"`
	Made        string            `json:"made,omitempty" doc:"The version, IMAGE@NUMBER, once it is done."`
	Note        string            `json:"note,omitempty" doc:"Why it failed, or what it waits for."`

	ETAS    float64 `json:"eta_s,omitempty" doc:"Dry run: seconds that so much takes at most, if the link to the store's site has nothing else to carry; 0 where there is none with a rate."`
	CostUSD float64 `json:"cost_usd,omitempty" doc:"Dry run: what that costs at most by the link's price."`
}

// Over says whether nothing more becomes of it.
func (s Snapshot) Over() bool { return s.State == SnapshotDone || s.State == SnapshotFailed }

// Snapshots makes versions of running VMs' disks. Where the controller has no image store every method fails with
// Unavailable.
type Snapshots interface {
	// StartSnapshot takes one under id, and does not wait for its end; if there is one under id already it
	// returns that.
	StartSnapshot(ctx context.Context, id string, r SnapshotRequest) (Snapshot, error)
	// Snapshots are those that are under way, or ended lately, the newest first.
	Snapshots(ctx context.Context) ([]Snapshot, error)
	// Snapshot is one of them.
	Snapshot(ctx context.Context, id string) (Snapshot, error)
	// DropSnapshot gives one up, or forgets it if it is over.
	DropSnapshot(ctx context.Context, id string) error
}

// StartSnapshot takes a snapshot of a VM's disk. The same key and request give the same one.
func (c *Client) StartSnapshot(ctx context.Context, r SnapshotRequest, key string) (Snapshot, error) {
	return post[Snapshot](ctx, c, key, r, "/v1/snapshots")
}

// Snapshots are those that are under way or ended lately.
func (c *Client) Snapshots(ctx context.Context) ([]Snapshot, error) {
	return list[Snapshot](ctx, c, nil, "/v1/snapshots")
}

// Snapshot is one snapshot as it is now.
func (c *Client) Snapshot(ctx context.Context, id string) (Snapshot, error) {
	return get[Snapshot](ctx, c, nil, "/v1/snapshots/%s", id)
}

// DropSnapshot gives a snapshot up, or forgets it if it is over.
func (c *Client) DropSnapshot(ctx context.Context, id string) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: escape("/v1/snapshots/%s", id)}, nil)
	return err
}

// WatchSnapshot tells how a snapshot goes on, each second, until it is over.
func (c *Client) WatchSnapshot(ctx context.Context, id string, told func(Snapshot)) (Snapshot, error) {
	for {
		s, err := c.Snapshot(ctx, id)
		if err != nil {
			return s, fmt.Errorf("watch snapshot: %w", err)
		}
		if told(s); s.Over() {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
}
