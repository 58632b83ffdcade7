package agentapi

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"heliotrope"
	"heliotrope/imagesync/manifest"
)

// What a SnapshotOrder asks for.
const (
	SnapshotBegin   = "begin"   // take one now; one of that name that is there stays what it is
	SnapshotForesee = "foresee" // say how much it would be, and take none
	SnapshotLook    = "look"    // say how it goes on
	SnapshotEnd     = "end"     // it was published, or is to be given up
)

// SnapshotOrder is about a snapshot of a VM's disk.
type SnapshotOrder struct {
	Term     uint64          `json:"term"`
	Snapshot string          `json:"snapshot"`
	Do       string          `json:"do"`
	VM       heliotrope.VMID `json:"vm,omitempty"`
	Image    string          `json:"image,omitempty"` // of which it is to be a version
	Made     string          `json:"made,omitempty"`  // end: the version that it became, IMAGE@VERSION
	Note     string          `json:"note,omitempty"`  // end: why it is given up, for people
}

// States of a snapshot. Done and failed are the last.
const (
	SnapshotReading = "reading" // it is read, and sent to the store
	SnapshotSealed  = "sealed"  // all of it is in the store, and somebody who has the store's key is to publish it
	SnapshotDone    = "done"
	SnapshotFailed  = "failed"
)

// ImageSnapshot is a snapshot of a VM's disk that becomes a version of an image.
type ImageSnapshot struct {
	Snapshot string          `json:"snapshot"`
	VM       heliotrope.VMID `json:"vm"`
	Image    string          `json:"image"`
	Base     string          `json:"base"` // IMAGE@VERSION that the disk stands on
	State    string          `json:"state"`
	Total    int64           `json:"total_bytes"`  // of the disk, that are not the base's
	Read     int64           `json:"read_bytes"`   // of them, so far
	New      int64           `json:"new_bytes"`    // of them, that the store did not have
	Stored   int64           `json:"stored_bytes"` // that these take there, compressed
	Began    time.Time       `json:"began"`
	Ended    time.Time       `json:"ended,omitzero"`
	TookUs   int64           `json:"took_us"` // for which a write of the guest's may have waited
	Made     string          `json:"made,omitempty"`
	Note     string          `json:"note,omitempty"` // why it failed

	Sealed *manifest.Sealed `json:"sealed,omitempty"` // what is to be published
}

// Over says whether nothing more becomes of it.
func (s ImageSnapshot) Over() bool { return s.State == SnapshotDone || s.State == SnapshotFailed }

// Snapshot gives a SnapshotOrder and returns what the snapshot is at. It may be repeated.
func (a *Agent) Snapshot(ctx context.Context, order SnapshotOrder) (ImageSnapshot, error) {
	var s ImageSnapshot
	if err := call(ctx, a.http, http.MethodPut, "/v1/snapshots/"+url.PathEscape(order.Snapshot), order, &s); err != nil {
		return s, fmt.Errorf("snapshot at %s: %w", a.host, err)
	}
	return s, nil
}

func serveSnapshot(w http.ResponseWriter, r *http.Request, host Host) {
	var o SnapshotOrder
	err := readOrder(w, r, &o)
	if err == nil {
		err = named(r.PathValue("id"), o.Snapshot)
	}
	if err == nil && o.VM != "" {
		err = named(string(o.VM), string(o.VM))
	}
	var s ImageSnapshot
	if err == nil {
		s, err = host.Snapshot(r.Context(), o)
	}
	answer(w, s, err)
}
