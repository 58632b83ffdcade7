package snapshots

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/hostagent/agentapi"
	"heliotrope/imagesync"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/storetest"
)

// rig is a controller's world: one host with a VM, and an image store.
type rig struct {
	t       *testing.T
	dir     string
	vm      VM
	term    uint64
	away    bool // the host's agent
	removed bool // the host
	records map[string]json.RawMessage
	told    []string
	made    int

	host map[string]*agentapi.ImageSnapshot // what the host has
	ends []agentapi.SnapshotOrder
	err  error // what the host says to the next order
	lost bool  // and it carries it out all the same
	m    *Snapshots
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, dir: t.TempDir(), term: 3, vm: VM{Host: "eu-1", State: heliotrope.VMRunning, Link: heliotrope.Link{Rate: 8e6, PricePerGB: 2}},
		records: map[string]json.RawMessage{}, host: map[string]*agentapi.ImageSnapshot{}}
	storetest.Import(t, r.path("store"), r.path("keys"), "debian", make([]byte, 4*manifest.ChunkSize))
	r.restart()
	return r
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

// restart puts another controller in the place of the one there is.
func (r *rig) restart() {
	r.m = New(Config{World: r, Records: r, Made: func() { r.made++ }, Log: slog.New(slog.NewTextHandler(r.t.Output(), nil)),
		Store: func(context.Context) (*imagesync.Store, error) { return r.open("keys"), nil }})
}

func (r *rig) open(keys string) *imagesync.Store {
	d, err := depot.OpenDir(r.path("store"))
	r.must(err)
	s, err := imagesync.Open(r.t.Context(), r.path("store"), d, imagesync.Options{Keys: keyring.Dir(r.path(keys))})
	r.must(err)
	r.t.Cleanup(func() { s.Close() })
	return s
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) SnapshotVM(vm heliotrope.VMID) (VM, bool) { return r.vm, vm == "web" }
func (r *rig) SnapshotAgent(heliotrope.HostID) (Agent, bool) {
	if r.away || r.removed {
		return nil, !r.removed
	}
	return agent{r}, true
}
func (r *rig) Term() uint64 { return r.term }
func (r *rig) Tell(kind, subject, message string) {
	r.told = append(r.told, kind+" "+subject+": "+message)
}

func (r *rig) Snapshots(context.Context) ([]json.RawMessage, error) {
	return slices.Collect(maps.Values(r.records)), nil
}

func (r *rig) SetSnapshot(_ context.Context, term uint64, id string, now any) (err error) {
	if term != r.term {
		return errors.New("another leads")
	}
	r.records[id], err = json.Marshal(now)
	return err
}

func (r *rig) ForgetSnapshot(_ context.Context, _ uint64, id string) error {
	delete(r.records, id)
	return nil
}

// agent is the host's.
type agent struct{ *rig }

func (a agent) Snapshot(_ context.Context, o agentapi.SnapshotOrder) (agentapi.ImageSnapshot, error) {
	if o.Term != a.term {
		return agentapi.ImageSnapshot{}, agentapi.ErrStale
	}
	err := a.err
	a.err = nil
	if err != nil && !a.lost {
		return agentapi.ImageSnapshot{}, err
	}
	now := agentapi.ImageSnapshot{Snapshot: o.Snapshot, VM: o.VM, Image: o.Image, Base: "debian@1", State: agentapi.SnapshotReading, Total: 8 << 20, Read: 2 << 20, TookUs: 40}
	switch s := a.host[o.Snapshot]; {
	case o.Do == agentapi.SnapshotForesee:
		return now, err
	case o.Do == agentapi.SnapshotBegin && s == nil:
		a.host[o.Snapshot] = &now
	case s == nil:
		return now, agentapi.ErrUnknown
	case o.Do == agentapi.SnapshotEnd:
		a.ends = append(a.ends, o)
		s.State, s.Made, s.Note, s.Sealed = agentapi.SnapshotDone, o.Made, o.Note, nil
		if o.Made == "" {
			s.State = agentapi.SnapshotFailed
		}
	}
	return *a.host[o.Snapshot], err
}

// seal has the host send all of it, whose first byte is that.
func (r *rig) seal(id string, first byte, as string) *imagesync.Writer {
	store := r.open("trust")
	base, err := store.Version(r.t.Context(), "debian")
	r.must(err)
	w, err := store.Begin(r.t.Context(), as, imagesync.BeginOptions{Size: base.Size, Base: &base, Unsigned: true})
	r.must(err)
	chunk := make([]byte, manifest.ChunkSize)
	chunk[0] = first
	r.must(w.Put(r.t.Context(), 1, chunk))
	v, err := w.Seal(r.t.Context())
	r.must(err)
	r.t.Cleanup(func() { w.Abort(context.Background()) })
	s := r.host[id]
	s.State, s.Read, s.Sealed = agentapi.SnapshotSealed, s.Total, &v
	return w
}

func (r *rig) start(id, as string) api.Snapshot {
	r.t.Helper()
	s, err := r.m.StartSnapshot(r.t.Context(), id, api.SnapshotRequest{VM: "web", As: as})
	r.must(err)
	return s
}

func (r *rig) see(id, state string) api.Snapshot {
	r.t.Helper()
	r.m.round(r.t.Context())
	s, err := r.m.Snapshot(r.t.Context(), id)
	r.must(err)
	if s.State != state {
		r.t.Fatalf("snapshot %s is %+v, and has to be %s", id, s, state)
	}
	return s
}

// versions are the images that there are.
func (r *rig) versions() (refs string) {
	all, err := r.open("keys").Versions(r.t.Context(), "")
	r.must(err)
	for _, v := range all {
		refs += v.Ref() + " "
	}
	return refs
}

// A snapshot goes its way, under whatever controller leads.
func TestSnapshotBecomesAVersion(t *testing.T) {
	r := newRig(t)
	s := r.start("s-1", "copy")
	if s.Host != "eu-1" || s.Base != "debian@1" || s.Progress != 0.25 || s.PauseMs != 0.04 || s.BeganAt.IsZero() {
		t.Errorf("begun is %+v", s)
	}
	if again := r.start("s-1", "copy"); again.BeganAt != s.BeganAt || len(r.host) != 1 {
		t.Errorf("the same again is %+v", again)
	}
	r.see("s-1", api.SnapshotReading)
	r.restart()
	r.term++
	r.vm.Host, r.vm.Move = "us-1", "m-1" // the VM moves meanwhile
	r.seal("s-1", 1, "copy")
	s = r.see("s-1", api.SnapshotDone)
	if s.Made != "copy@1" || s.Progress != 1 || s.EndedAt.IsZero() || r.made != 1 {
		t.Errorf("done is %+v", s)
	}
	if got := r.versions(); got != "copy@1 debian@1 " {
		t.Errorf("there are %s", got)
	}
	if len(r.ends) != 1 || r.ends[0].Made != "copy@1" {
		t.Errorf("the host hears %+v", r.ends)
	}
	if told := strings.Join(r.told, "; "); told != "vm web: a snapshot of its disk was taken at eu-1, to become image copy; "+
		"image copy: copy@1 is a snapshot of web at eu-1; vm web: the snapshot of its disk is copy@1" {
		t.Errorf("events: %s", told)
	}
	// One that was published by a controller that died before it said so is not published again.
	r.vm.Move, r.vm.Host = "", "eu-1"
	r.start("s-2", "other")
	r.seal("s-2", 2, "other")
	r.err = errors.New("the line is cut") // to the first question
	r.see("s-2", api.SnapshotReading)
	_, _, err := r.m.publish(t.Context(), api.Snapshot{ID: "s-2", VM: "web", Host: "eu-1", Image: "other"}, *r.host["s-2"].Sealed)
	r.must(err)
	r.restart()
	r.see("s-2", api.SnapshotDone)
	if got := r.versions(); got != "copy@1 debian@1 other@1 " {
		t.Errorf("there are %s", got)
	}
	// The next version of an image that is there.
	if _, err := r.m.StartSnapshot(t.Context(), "s-3", api.SnapshotRequest{VM: "web", As: "other", Next: true}); err != nil {
		t.Fatal(err)
	}
	r.seal("s-3", 3, "other")
	if s := r.see("s-3", api.SnapshotDone); s.Made != "other@2" {
		t.Errorf("made is %s", s.Made)
	}
	all, err := r.m.Snapshots(t.Context())
	if err != nil || len(all) != 3 || all[0].ID != "s-3" {
		t.Errorf("all are %+v, %v", all, err)
	}
	r.term = 0 // another one leads: what is kept is shown
	if s, err := r.m.Snapshot(t.Context(), "s-3"); err != nil || s.Made != "other@2" {
		t.Errorf("without leading: %+v, %v", s, err)
	}
}

// What a host says does not become what nobody has asked for.
func TestHostCannotHaveSigned(t *testing.T) {
	r := newRig(t)
	r.host["s-9"] = &agentapi.ImageSnapshot{Snapshot: "s-9", VM: "web", Image: "debian"}
	r.seal("s-9", 9, "debian")
	r.m.round(t.Context())
	r.start("s-1", "copy")
	r.seal("s-1", 1, "debian") // it was asked for copy
	r.host["s-1"].Sealed.Epoch, r.host["s-1"].Sealed.From = 99, "the controller"
	r.see("s-1", api.SnapshotDone)
	if got := r.versions(); got != "copy@1 debian@1 " {
		t.Errorf("there are %s", got)
	}
	v, err := r.open("keys").Version(t.Context(), "copy")
	if err != nil || v.From != "snapshot s-1 of web at eu-1" || v.Epoch != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	// It says that it has sent what it has not.
	r.start("s-2", "more")
	r.seal("s-2", 2, "more")
	r.host["s-2"].Sealed.Root[0]++
	if s := r.see("s-2", api.SnapshotFailed); !strings.Contains(s.Note, "another than the controller's") {
		t.Errorf("it is %+v", s)
	}
	if s := r.ends[len(r.ends)-1]; s.Made != "" || s.Note == "" {
		t.Errorf("the host hears %+v", s)
	}
}

// What cannot be is told in the words of who asked, and nothing is ordered or kept.
func TestSnapshotRefused(t *testing.T) {
	type request = api.SnapshotRequest
	for name, c := range map[string]struct {
		do     func(r *rig)
		r      request
		status int
		says   string
	}{
		"no such VM":    {nil, request{VM: "db", As: "x"}, 422, `no VM "db"`},
		"no name":       {nil, request{VM: "web", As: "../x"}, 422, "/as"},
		"name taken":    {nil, request{VM: "web", As: "debian"}, 409, "debian@1 is there"},
		"next of none":  {nil, request{VM: "web", As: "x", Next: true}, 422, "no image x"},
		"no place yet":  {func(r *rig) { r.vm.Host = "" }, request{VM: "web", As: "x"}, 503, "no owner"},
		"on the move":   {func(r *rig) { r.vm.Move = "m-7" }, request{VM: "web", As: "x"}, 409, "m-7"},
		"shut off":      {func(r *rig) { r.vm.State = "shut-off" }, request{VM: "web", As: "x"}, 409, "it is shut-off"},
		"not there":     {func(r *rig) { r.vm.State = "" }, request{VM: "web", As: "x"}, 409, "not there"},
		"away":          {func(r *rig) { r.away = true }, request{VM: "web", As: "x"}, 503, "not connected"},
		"not leading":   {func(r *rig) { r.term = 0 }, request{VM: "web", As: "x"}, 503, "leads"},
		"plain file":    {func(r *rig) { r.err = agentapi.ErrInvalid }, request{VM: "web", As: "x"}, 409, "invalid"},
		"another":       {func(r *rig) { r.err = agentapi.ErrBusy }, request{VM: "web", As: "x"}, 409, "try again"},
		"and dry":       {func(r *rig) { r.err = agentapi.ErrInvalid }, request{VM: "web", As: "x", DryRun: true}, 409, "invalid"},
		"dry, taken":    {nil, request{VM: "web", As: "debian", DryRun: true}, 409, "--next"},
		"older than us": {func(r *rig) { r.err = agentapi.ErrStale }, request{VM: "web", As: "x"}, 503, "leads"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if c.do != nil {
				c.do(r)
			}
			s, err := r.m.StartSnapshot(t.Context(), "s-1", c.r)
			var p *api.Problem
			if !errors.As(err, &p) || p.Status != c.status || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%+v, %v", s, err)
			}
			if len(r.host)+len(r.records)+len(r.told) > 0 {
				t.Errorf("there is %v %v %v", r.host, r.records, r.told)
			}
		})
	}
}

func TestForeseen(t *testing.T) {
	r := newRig(t)
	s, err := r.m.StartSnapshot(t.Context(), "s-1", api.SnapshotRequest{VM: "web", As: "x", DryRun: true})
	if err != nil || s.State != api.SnapshotForeseen || s.TotalBytes != 8<<20 || s.CostUSD == 0 || s.ETAS < 8.3 || s.ETAS > 8.4 || s.ID != "" {
		t.Errorf("%+v, %v", s, err)
	}
	if len(r.host)+len(r.records)+len(r.told) > 0 {
		t.Errorf("there is %v %v %v", r.host, r.records, r.told)
	}
}

// One whose host is away waits; one that nobody has any more, or that is given up, has failed.
func TestSnapshotEnds(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	for _, id := range []string{"s-1", "s-2", "s-3", "s-4"} {
		r.start(id, "copy"+id[2:])
	}
	r.away = true
	if s := r.see("s-1", api.SnapshotReading); !strings.Contains(s.Note, "not connected") {
		t.Errorf("it says %q", s.Note)
	}
	r.away = false
	if s := r.see("s-1", api.SnapshotReading); s.Note != "" {
		t.Errorf("it says %q", s.Note)
	}
	// The host has failed.
	r.host["s-1"].State, r.host["s-1"].Note, r.host["s-1"].Ended = agentapi.SnapshotFailed, "no room", time.Now()
	if s := r.see("s-1", api.SnapshotFailed); s.Note != "no room" {
		t.Errorf("it says %q", s.Note)
	}
	// The host knows nothing of it: at first its answer may have been lost.
	delete(r.host, "s-2")
	s := r.see("s-2", api.SnapshotReading)
	s.BeganAt = s.BeganAt.Add(-2 * takenBy)
	r.m.now["s-2"] = s
	r.see("s-2", api.SnapshotFailed)
	// It is given up.
	r.must(r.m.DropSnapshot(ctx, "s-3"))
	r.see("s-3", api.SnapshotFailed)
	if r.host["s-3"].State != agentapi.SnapshotFailed {
		t.Error("the host does not hear that it is given up")
	}
	r.must(r.m.DropSnapshot(ctx, "s-3"))
	var p *api.Problem
	if err := r.m.DropSnapshot(ctx, "s-3"); !errors.As(err, &p) || p.Status != http.StatusNotFound {
		t.Errorf("a third time: %v", err)
	}
	r.removed = true
	r.see("s-4", api.SnapshotFailed)
	r.removed = false
	// The name was taken while it was sent.
	r.start("s-5", "copy")
	r.seal("s-5", 5, "copy")
	storetest.Import(t, r.path("store"), r.path("keys"), "copy", make([]byte, 4096))
	if s := r.see("s-5", api.SnapshotFailed); !strings.Contains(s.Note, "copy@1") {
		t.Errorf("it says %q", s.Note)
	}
	// An answer that was lost is asked for.
	r.err, r.lost = errors.New("the line is cut"), true
	r.start("s-6", "copy6")
	r.lost = false
	r.see("s-6", api.SnapshotReading)
	// Many that are over are forgotten.
	for i := range 2 * keptOver {
		id := "o-" + string(rune('a'+i%26)) + string(rune('a'+i/26))
		r.start(id, "x"+id[2:])
		r.must(r.m.DropSnapshot(ctx, id))
	}
	if n := len(r.records); n > keptOver+2 {
		t.Errorf("%d are kept", n)
	}
}
