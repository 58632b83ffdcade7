package story

import (
	"context"
	"errors"
	"fmt"
	"io"

	"heliotrope/controller/api"
	"heliotrope/topologies/lab"
	"heliotrope/topologies/lab/claim"
	"heliotrope/topologies/lab/guest/record"
)

// likeness is a snapshot of the VM's disk, taken while it wrote on, next to what the VM said that it had written.
type likeness struct {
	Taken  api.Snapshot `json:"snapshot"`
	Before uint64       `json:"newest_record_before"` // that the VM was told to be on its disk
	After  uint64       `json:"newest_record_after"`
	Newest uint64       `json:"newest_record_in_it"`
	Bad    int          `json:"bad_records"` // in it: lost, torn, or of later than its newest
}

// snapshot makes an image of the VM's disk, and holds it against what the VM has written.
func (d *Demo) snapshot(ctx context.Context) (l likeness, err error) {
	before, err := d.visitor.account(ctx)
	if err != nil {
		return l, err
	}
	s, err := d.client.StartSnapshot(ctx, api.SnapshotRequest{VM: d.VM, As: string(d.VM) + "-backup"}, "")
	if err != nil {
		return l, err
	}
	after, err := d.visitor.account(ctx)
	if err != nil {
		return l, err
	}
	if l.Taken, err = d.client.WatchSnapshot(ctx, s.ID, func(api.Snapshot) {}); err != nil {
		return l, err
	}
	if l.Taken.State != api.SnapshotDone {
		return l, fmt.Errorf("the snapshot of %s is %s: %s", d.VM, l.Taken.State, l.Taken.Note)
	}
	l.Before, l.After = before.Disk.LastSeq, after.Disk.LastSeq
	if l.Newest, l.Bad, err = records(ctx, d.target, l.Taken.Made); err != nil {
		return l, err
	}
	d.say("the disk of %s as it was at one moment is image %s, while %s wrote on: %.1f MB were read for it, and a write waited %.2f ms at most for the moment; its newest record is %d (%d before, %d after)",
		d.VM, l.Taken.Made, d.VM, float64(l.Taken.ReadBytes)/1e6, l.Taken.PauseMs, l.Newest, l.Before, l.After)
	return l, nil
}

// records reads the guest's records of an image of the lab's store: which is the newest, and how many of those that were
// written up to it are not as they were.
func records(ctx context.Context, target lab.Target, ref string) (newest uint64, bad int, err error) {
	store, err := lab.ImageStore(ctx, target)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	r, err := store.Open(ctx, ref)
	if err != nil {
		return 0, 0, err
	}
	defer r.Close()
	disk := make([]byte, r.Size()/record.PageSize*record.PageSize)
	if _, err := r.ReadAt(disk, 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, 0, err
	}
	slots := uint64(len(disk) / record.PageSize)
	page := func(slot uint64) []byte { return disk[slot*record.PageSize:][:record.PageSize] }
	for slot := range slots {
		if seq := record.Version(page(slot)); seq%slots == slot && record.Intact(page(slot), record.Disk, seq) {
			newest = max(newest, seq)
		}
	}
	for seq := newest; seq > 0 && seq+slots > newest; seq-- {
		if !record.Intact(page(seq%slots), record.Disk, seq) {
			bad++
		}
	}
	return newest, bad, nil
}

// claims are what must hold of it; one that was not taken has none.
func (l likeness) claims() []claim.Claim {
	if l.Taken.ID == "" {
		return nil
	}
	return []claim.Claim{
		claim.New("records in the snapshot that are not as they were written", float64(l.Bad), "==", 0),
		claim.New("records that were on the disk before the snapshot and are not in it", max(0, float64(l.Before)-float64(l.Newest)), "==", 0),
		claim.New("records in the snapshot that were written after it", max(0, float64(l.Newest)-float64(l.After)), "==", 0),
	}
}
