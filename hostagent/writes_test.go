package hostagent

import (
	"log/slog"
	"reflect"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/libvirt"
	"heliotrope/migration"
)

// What is counted until a stretch begins is of the one before; one in which nothing was written has
// no mean.
func TestWriteStretches(t *testing.T) {
	const ms = time.Millisecond
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	w := &writeWatch{}
	if w.on() != migration.WritesBefore || w.now() != nil {
		t.Errorf("before anything was seen: %s, %v", w.on(), w.now())
	}
	w.saw(migration.WritesBefore, libvirt.DiskCounters{Writes: 100, WriteTime: 700 * ms, Flushes: 9, FlushTime: ms}, at(0))
	w.saw(migration.WritesBulk, libvirt.DiskCounters{Writes: 110, WriteTime: 720 * ms, Flushes: 10, FlushTime: 6 * ms}, at(2))
	w.saw(migration.WritesBulk, libvirt.DiskCounters{Writes: 111, WriteTime: 730 * ms, Flushes: 10, FlushTime: 6 * ms}, at(3))
	w.saw(migration.WritesMirror, libvirt.DiskCounters{Writes: 112, WriteTime: 750 * ms, Flushes: 10, FlushTime: 6 * ms}, at(4))
	w.saw(w.on(), libvirt.DiskCounters{Writes: 112, WriteTime: 750 * ms, Flushes: 12, FlushTime: 7 * ms}, at(5))
	want := []migration.DiskWrites{
		{Stretch: migration.WritesBefore, Seconds: 2, Writes: 10, WriteMs: 2, Flushes: 1, FlushMs: 5},
		{Stretch: migration.WritesBulk, Seconds: 2, Writes: 2, WriteMs: 15},
		{Stretch: migration.WritesMirror, Seconds: 1, Flushes: 2, FlushMs: 0.5},
	}
	if got := w.now(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if (*writeWatch)(nil).now() != nil || (*writeWatch)(nil).on() != migration.WritesBefore {
		t.Error("a move that nobody watches has stretches")
	}
}

// A destination tells how writes go there: of a VM with disks, that runs here by that move, which came lately.
func TestWritesAfter(t *testing.T) {
	w := newWorld(t)
	b := newMachine(t, w, "b")
	conn := newConnection(b.dial, slog.New(slog.DiscardHandler))
	s := &moves{conn: conn, log: conn.log, byID: map[heliotrope.MoveID]*move{}}
	m := &move{}
	m.Begun = agentapi.MoveOrder{Move: mv, VM: vm, Disks: []agentapi.Disk{{Target: "vda"}}}
	s.byID[mv] = m
	hv, err := b.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn.set(hv)
	b.vms[vm] = &fakeVM{state: agentapi.VMRunning, counters: libvirt.DiskCounters{Writes: 4, WriteTime: 8 * time.Millisecond}}
	active := agentapi.MoveReport{Move: mv, Role: agentapi.Destination, State: agentapi.MoveActive, ResumedAt: time.Now().Add(-2 * time.Second)}
	got := s.arrived(t.Context(), active)
	if len(got) != 1 || got[0].Stretch != migration.WritesAfter || got[0].Writes != 4 || got[0].WriteMs != 2 || got[0].Seconds < 2 {
		t.Errorf("got %+v", got)
	}
	for name, change := range map[string]func(*agentapi.MoveReport){
		"source":     func(r *agentapi.MoveReport) { r.Role = agentapi.Source },
		"not active": func(r *agentapi.MoveReport) { r.State = agentapi.MovePrepared },
		"long ago":   func(r *agentapi.MoveReport) { r.ResumedAt = r.ResumedAt.Add(-time.Hour) },
		"just now":   func(r *agentapi.MoveReport) { r.ResumedAt = time.Now() },
		"unknown":    func(r *agentapi.MoveReport) { r.Move = "m2" },
	} {
		r := active
		change(&r)
		if got := s.arrived(t.Context(), r); got != nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	delete(b.vms, vm)
	if got := s.arrived(t.Context(), active); got != nil {
		t.Errorf("a VM that has gone: %+v", got)
	}
	b.vms[vm] = &fakeVM{state: agentapi.VMRunning}
	m.Begun.Disks = nil
	if got := s.arrived(t.Context(), active); got != nil {
		t.Errorf("a VM without disks: %+v", got)
	}
}
