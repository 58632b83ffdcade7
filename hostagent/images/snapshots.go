package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/libvirt"
	"heliotrope/imagesync"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/site"
	"heliotrope/imagesync/volume"
)

const (
	mostSnapshots = 4                // that are under way at a host: each has 32 MiB of a pack in memory
	oldSnapshots  = 32               // that are over and still known
	publishWithin = 30 * time.Minute // of sealing: half of what the lease lasts
	snapshotsDir  = "snapshots"      // with a file for each
	stopWithin    = 2 * time.Second
)

// Errors of snapshots that cross the socket.
var (
	errNoSnapshot = serverError{agentapi.ErrUnknown, "the host has no such snapshot"}
	errStopped    = errors.New("the server of disks was stopped or killed: ask for another snapshot; what was sent already is not sent again")
	errDiskGone   = errors.New("the disk was removed, or the VM came back to this host by a move, before all of it was read")
)

// snapshots are those of a host's disks.
type snapshots struct {
	dir    string
	run    sync.WaitGroup
	ending bool // no more begin; guarded by server.mu

	mu  sync.Mutex // nobody waits for a network with it
	all map[string]*snapshot
}

// snapshot is one of a disk.
type snapshot struct {
	agentapi.ImageSnapshot // guarded by snapshots.mu
	cancel                 context.CancelCauseFunc
	read                   chan struct{}               // closed once the volume is not needed any more
	verdict                chan agentapi.SnapshotOrder // of size 1: how it ends
	keep                   bool                        // the disk has left, and is to be kept once it was read; guarded by server.mu
}

// load takes up what is known of snapshots. What was under way ended with the last server.
func (s *snapshots) load(dir string) error {
	s.dir, s.all = filepath.Join(dir, snapshotsDir), map[string]*snapshot{}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(s.dir, "*.json"))
	for _, name := range files {
		j := &snapshot{}
		b, err := os.ReadFile(name)
		if err == nil {
			err = json.Unmarshal(b, &j.ImageSnapshot)
		}
		if err != nil || j.Snapshot+".json" != filepath.Base(name) {
			_ = os.Remove(name) // it was being written
			continue
		}
		if !j.Over() {
			j.fail(errStopped)
			s.write(j)
		}
		s.all[j.Snapshot] = j
	}
	return err
}

func (j *snapshot) fail(err error) {
	j.State, j.Note, j.Ended, j.Sealed = agentapi.SnapshotFailed, err.Error(), time.Now().UTC(), nil
}

// write writes down what a snapshot is at, for the next server. That this fails does no harm now. The lock is held.
func (s *snapshots) write(j *snapshot) {
	name := filepath.Join(s.dir, j.Snapshot+".json")
	b, err := json.Marshal(j.ImageSnapshot)
	if err == nil {
		err = os.WriteFile(name+".new", b, 0o600)
	}
	if err == nil {
		_ = os.Rename(name+".new", name)
	}
}

// change changes a snapshot, unless it is over.
func (s *snapshots) change(j *snapshot, do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.Over() {
		return
	}
	was := j.State
	do()
	if j.State != was {
		s.write(j)
	}
}

// begin makes room for one more, and notes it.
func (s *snapshots) begin(j *snapshot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var over []*snapshot
	for _, other := range s.all {
		if other.Over() {
			over = append(over, other)
		}
	}
	if len(s.all)-len(over) >= mostSnapshots {
		return serverError{agentapi.ErrBusy, fmt.Sprintf("%d snapshots are under way at this host", mostSnapshots)}
	}
	slices.SortFunc(over, func(a, b *snapshot) int {
		return cmp.Or(a.Ended.Compare(b.Ended), strings.Compare(a.Snapshot, b.Snapshot))
	})
	for len(over) >= oldSnapshots {
		delete(s.all, over[0].Snapshot)
		_ = os.Remove(filepath.Join(s.dir, over[0].Snapshot+".json"))
		over = over[1:]
	}
	s.all[j.Snapshot] = j
	s.run.Add(1)
	s.write(j)
	return nil
}

// find is a snapshot as it is now.
func (s *snapshots) find(id string) (j *snapshot, now agentapi.ImageSnapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j = s.all[id]; j != nil {
		now = j.ImageSnapshot
	}
	return j, now
}

// list are all of them, by when they began.
func (s *snapshots) list() (all []agentapi.ImageSnapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range s.all {
		all = append(all, j.ImageSnapshot)
	}
	slices.SortFunc(all, func(a, b agentapi.ImageSnapshot) int {
		return cmp.Or(a.Began.Compare(b.Began), strings.Compare(a.Snapshot, b.Snapshot))
	})
	return all
}

// reading is the snapshot that still needs a VM's volume; nil: none does.
func (s *snapshots) reading(vm string) *snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range s.all {
		if string(j.VM) == vm && j.read != nil {
			select {
			case <-j.read:
			default:
				return j
			}
		}
	}
	return nil
}

// stopReading ends the snapshot that needs a VM's volume, and waits until it does not; not for a store that does
// not answer, since a volume that is closed lets nobody read it. The server's lock is held.
func (s *snapshots) stopReading(vm string, why error) {
	j := s.reading(vm)
	if j == nil {
		return
	}
	j.keep = false
	j.cancel(why)
	late := time.NewTimer(stopWithin)
	defer late.Stop()
	select {
	case <-j.read:
	case <-late.C:
	}
}

// wait waits until what was under way has ended; not for a store that does not answer, since guests wait for the next server.
func (s *snapshots) wait() {
	ended := make(chan struct{})
	go func() { s.run.Wait(); close(ended) }()
	late := time.NewTimer(stopWithin)
	defer late.Stop()
	select {
	case <-ended:
	case <-late.C:
	}
}

// handleSnapshots are what agents ask a server about snapshots.
func (s *server) handleSnapshots(mux *http.ServeMux) {
	mux.HandleFunc("PUT /v1/snapshots/{id}", func(w http.ResponseWriter, r *http.Request) {
		var o agentapi.SnapshotOrder
		err := readJSON(w, r, &o)
		if err == nil {
			err = manifest.CheckName(o.Snapshot)
		}
		var now agentapi.ImageSnapshot
		if err == nil {
			now, err = s.snapshot(r.Context(), o)
		}
		answer(w, now, err)
	})
}

// snapshot does what an order about one says.
func (s *server) snapshot(ctx context.Context, o agentapi.SnapshotOrder) (agentapi.ImageSnapshot, error) {
	j, now := s.snapshots.find(o.Snapshot)
	switch {
	case o.Do == agentapi.SnapshotForesee, o.Do == agentapi.SnapshotBegin && j == nil:
		return s.takeSnapshot(ctx, o)
	case j == nil:
		return now, errNoSnapshot
	case o.Do == agentapi.SnapshotEnd && !now.Over():
		s.endSnapshot(j, o)
		_, now = s.snapshots.find(o.Snapshot)
	}
	return now, nil
}

// endSnapshot ends one as the controller says.
func (s *server) endSnapshot(j *snapshot, o agentapi.SnapshotOrder) {
	s.snapshots.change(j, func() {
		if o.Made == "" {
			j.fail(errors.New(o.Note))
			j.cancel(errors.New(o.Note))
			return
		}
		j.State, j.Made, j.Ended, j.Sealed = agentapi.SnapshotDone, o.Made, time.Now().UTC(), nil
	})
	select {
	case j.verdict <- o:
	default:
	}
	s.log.Info("snapshot ended", "vm", j.VM, "snapshot", o.Snapshot, "made", o.Made, "why", o.Note)
}

// takeSnapshot takes a snapshot of a disk, and lets it go to the store; or says how much that would be.
func (s *server) takeSnapshot(ctx context.Context, o agentapi.SnapshotOrder) (now agentapi.ImageSnapshot, err error) {
	if err := errors.Join(manifest.CheckName(string(o.VM)), manifest.CheckName(o.Image)); err != nil {
		return now, fmt.Errorf("take snapshot: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snapshots.ending {
		return now, errStopped
	}
	d, err := s.open(ctx, string(o.VM))
	if errors.Is(err, fs.ErrNotExist) {
		err = serverError{agentapi.ErrUnknown, "it has no disk here"}
	}
	var taken *site.Snapshot
	if err == nil {
		taken, err = d.Snapshot()
	}
	if errors.Is(err, volume.ErrLooked) {
		err = serverError{agentapi.ErrBusy, "a snapshot of it is under way"}
	}
	if err != nil {
		return now, fmt.Errorf("take snapshot of %s: %w", o.VM, err)
	}
	j := &snapshot{read: make(chan struct{}), verdict: make(chan agentapi.SnapshotOrder, 1), ImageSnapshot: agentapi.ImageSnapshot{
		Snapshot: o.Snapshot, VM: o.VM, Image: o.Image, Base: taken.Base.Ref(), State: agentapi.SnapshotReading, Total: taken.Bytes(),
		Began: time.Now().UTC(), TookUs: taken.Took.Microseconds()}}
	if now = j.ImageSnapshot; o.Do == agentapi.SnapshotForesee {
		return now, taken.Close()
	}
	if err := s.snapshots.begin(j); err != nil {
		return now, errors.Join(err, taken.Close())
	}
	var life context.Context
	life, j.cancel = context.WithCancelCause(s.background)
	s.log.Info("snapshot taken", "vm", o.VM, "snapshot", o.Snapshot, "bytes", now.Total, "took", taken.Took)
	go s.runSnapshot(life, j, taken) // close waits for it
	return now, nil
}

// runSnapshot sends a snapshot to the store, and waits for its verdict.
func (s *server) runSnapshot(ctx context.Context, j *snapshot, taken *site.Snapshot) {
	defer s.snapshots.run.Done()
	defer j.cancel(nil)
	w, v, err := s.sendSnapshot(ctx, j, taken)
	if failed := taken.Close(); failed != nil {
		s.log.Warn("what was kept for a snapshot could not be freed", "vm", j.VM, "error", failed)
	}
	close(j.read)
	s.keepRead(ctx, j)
	if w != nil {
		defer w.Abort(ctx)
	}
	if err != nil {
		if s.background.Err() != nil {
			err = errStopped
		}
		s.log.Warn("a snapshot has failed", "vm", j.VM, "snapshot", j.Snapshot, "error", err)
		s.snapshots.change(j, func() { j.fail(err) })
		return
	}
	s.snapshots.change(j, func() { j.State, j.Sealed = agentapi.SnapshotSealed, &v })
	late := time.NewTimer(publishWithin)
	defer late.Stop()
	err = nil
	select {
	case <-j.verdict:
	case <-ctx.Done():
		err = errStopped
	case <-late.C:
		err = fmt.Errorf("no controller has published it within %s", publishWithin)
	}
	if err != nil {
		s.snapshots.change(j, func() { j.fail(err) })
	}
}

// sendSnapshot sends all of it.
func (s *server) sendSnapshot(ctx context.Context, j *snapshot, taken *site.Snapshot) (*imagesync.Writer, manifest.Sealed, error) {
	store, err := s.source.Store(ctx)
	if err != nil {
		return nil, manifest.Sealed{}, err
	}
	from := fmt.Sprintf("snapshot %s of %s at %s", j.Snapshot, j.VM, s.c.Host)
	w, v, err := taken.Send(ctx, store, j.Image, from, func(p imagesync.WriteStats) {
		s.snapshots.mu.Lock()
		defer s.snapshots.mu.Unlock()
		j.Read, j.New, j.Stored = p.Put, p.New, p.Stored
	})
	if err != nil && ctx.Err() == nil && !errors.Is(err, volume.ErrNoRoom) {
		err = fmt.Errorf("image store %s: %w", s.c.Store, err)
	}
	return w, v, err
}

// keepRead keeps a disk that has left while it was read.
func (s *server) keepRead(ctx context.Context, j *snapshot) {
	s.mu.Lock()
	keep := j.keep
	j.keep = false
	s.mu.Unlock()
	if !keep || s.background.Err() != nil { // the next agent that starts removes it
		return
	}
	if err := s.keep(context.WithoutCancel(ctx), string(j.VM)); err != nil {
		s.log.Warn("a disk that has left is not kept", "vm", j.VM, "error", err)
	}
}

// waits says that what is to become of a disk that has left waits until a snapshot was read. The lock is held.
func (s *server) waits(vm string, left bool) bool {
	j := s.snapshots.reading(vm)
	if j != nil && left {
		j.keep = true
	}
	return j != nil && j.keep
}

// Snapshot is agentapi.Host's: the agent's end of it.
func (d *Disks) Snapshot(ctx context.Context, o agentapi.SnapshotOrder) (s agentapi.ImageSnapshot, err error) {
	if o.Do == agentapi.SnapshotBegin || o.Do == agentapi.SnapshotForesee {
		if err := d.hasVolume(o.VM); err != nil {
			return s, fmt.Errorf("take snapshot of %s: %w", o.VM, err)
		}
	}
	if err := d.wait(ctx); err != nil {
		return s, fmt.Errorf("snapshot of %s: %w", o.VM, err)
	}
	err = d.client.call(ctx, http.MethodPut, "/v1/snapshots/"+url.PathEscape(o.Snapshot), o, &s)
	return s, err
}

// hasVolume says why a VM's disk is none of which a snapshot can be taken.
func (d *Disks) hasVolume(vm heliotrope.VMID) error {
	known, err := libvirt.KnowsVolume(d.c.DiskDir, vm)
	switch {
	case err != nil || known:
		return err
	case d.c.Store == "":
		return serverError{agentapi.ErrInvalid, "its host has no image store: its agent was started without --image-store"}
	}
	return serverError{agentapi.ErrInvalid, "its disk is a file of its host, and not over an image of the store. Import the file once while the VM is shut off " +
		"(heliotrope image import), and make the VM of that image: from then on it can have snapshots"}
}
