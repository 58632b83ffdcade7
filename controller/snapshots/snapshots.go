// Package snapshots makes versions of images of running VMs' disks.
//
// A snapshot is taken by the host where the VM is, whose server of disks sends it to the image store (package
// hostagent/images), and published by the controller: hosts have no key of the store, and nothing is
// published that no engineer has asked for. So what was asked for is in the controller's store before a host
// hears of it, with the name that it is to get; a host says only what it has sealed, and what that may become is here.
//
// The controller that leads asks the hosts how theirs go on, and publishes what is whole. One that takes its place
// goes on with what is in the store; publishing twice makes one version (imagesync.Store.Publish). A host that does not know
// a snapshot any more, or was removed, has failed.
package snapshots

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/hostagent/agentapi"
	"heliotrope/imagesync"
	"heliotrope/imagesync/manifest"
)

// Agent takes snapshots at a host; *agentapi.Agent is one.
type Agent interface {
	Snapshot(ctx context.Context, order agentapi.SnapshotOrder) (agentapi.ImageSnapshot, error)
}

// VM is what is known of one.
type VM struct {
	Host  heliotrope.HostID // empty: it has no place yet
	State heliotrope.VMState
	Move  heliotrope.MoveID // that is under way; empty: none
	Link  heliotrope.Link   // from the host's site to the store's; zero where there is none, or it is the same site
}

// World is what must be known of the rest.
type World interface {
	// SnapshotVM is a VM of the topology; false: there is none of that name.
	SnapshotVM(vm heliotrope.VMID) (VM, bool)
	// SnapshotAgent is that of a host; nil: it is not connected. known is false where there is no such host.
	SnapshotAgent(h heliotrope.HostID) (a Agent, known bool)
	// Term is that under which hosts may be given orders; 0: another controller leads.
	Term() uint64
	// Tell records what happened.
	Tell(kind, subject, message string)
}

// Records keeps snapshots. controller/store has it.
type Records interface {
	Snapshots(ctx context.Context) ([]json.RawMessage, error)
	// SetSnapshot keeps one as it is now, and ForgetSnapshot nothing of it, as long as the leader of term leads.
	SetSnapshot(ctx context.Context, term uint64, id string, now any) error
	ForgetSnapshot(ctx context.Context, term uint64, id string) error
}

// Config says where snapshots go.
type Config struct {
	World   World
	Records Records
	Store   func(ctx context.Context) (*imagesync.Store, error)
	Made    func() // there may be a new version
	Log     *slog.Logger
}

const (
	lookEvery = time.Second
	keptOver  = 50 // that are over, and shown
	answerBy  = 10 * time.Second
	takenBy   = 30 * time.Second // a host has taken an order up by then, or its answer was lost
)

var _ api.Snapshots = (*Snapshots)(nil)

// Snapshots takes them. Make it with New; Run goes on with them.
type Snapshots struct {
	cfg  Config
	kick chan struct{} // of size 1: there is something to look at

	mu   sync.Mutex // guards what follows, and is held while one is begun or ended
	now  map[string]api.Snapshot
	term uint64 // of what is in now
}

// New makes it.
func New(cfg Config) *Snapshots {
	return &Snapshots{cfg: cfg, kick: make(chan struct{}, 1), now: map[string]api.Snapshot{}}
}

// load takes up what was under way, once this controller leads anew. The lock is held.
func (m *Snapshots) load(ctx context.Context) (term uint64, err error) {
	if term = m.cfg.World.Term(); term == m.term {
		return term, nil
	}
	m.term, m.now = 0, map[string]api.Snapshot{}
	if term == 0 {
		return 0, nil
	}
	all, err := m.kept(ctx)
	if err != nil {
		return term, err
	}
	for _, s := range all {
		m.now[s.ID] = s
	}
	m.term = term
	return term, nil
}

// kept are all that are in the records, the newest first.
func (m *Snapshots) kept(ctx context.Context) ([]api.Snapshot, error) {
	records, err := m.cfg.Records.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]api.Snapshot, len(records))
	for i, r := range records {
		if err := json.Unmarshal(r, &all[i]); err != nil {
			return nil, fmt.Errorf("read snapshots: %w", err)
		}
	}
	slices.SortFunc(all, newestFirst)
	return all, nil
}

// StartSnapshot implements api.Snapshots, as do the methods below.
func (m *Snapshots) StartSnapshot(ctx context.Context, id string, r api.SnapshotRequest) (api.Snapshot, error) {
	if err := manifest.CheckName(r.As); err != nil {
		return api.Snapshot{}, api.Invalid("the snapshot cannot be", api.FieldProblem{Pointer: "/as", Detail: err.Error()})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	term, err := m.load(ctx)
	if err != nil {
		return api.Snapshot{}, err
	}
	if term == 0 {
		return api.Snapshot{}, api.Unavailable("another controller leads, and knows the hosts")
	}
	if s, ok := m.now[id]; ok {
		return s, nil
	}
	vm, agent, err := m.find(r.VM)
	if err == nil {
		err = m.mayBe(ctx, r)
	}
	if err != nil {
		return api.Snapshot{}, err
	}
	s := api.Snapshot{ID: id, VM: r.VM, Host: vm.Host, Image: r.As, Next: r.Next, State: api.SnapshotReading, BeganAt: time.Now().UTC()}
	order := agentapi.SnapshotOrder{Term: term, Snapshot: id, VM: r.VM, Image: r.As, Do: agentapi.SnapshotBegin}
	if r.DryRun {
		order.Do = agentapi.SnapshotForesee
		return foreseen(ctx, agent, order, s, vm.Link)
	}
	if err := m.prune(ctx, term); err != nil {
		return api.Snapshot{}, err
	}
	if err := m.cfg.Records.SetSnapshot(ctx, term, s.ID, s); err != nil {
		return api.Snapshot{}, err
	}
	told, err := ask(ctx, agent, order)
	if refused := refusal(err, vm.Host); refused != nil {
		return api.Snapshot{}, errors.Join(refused, m.cfg.Records.ForgetSnapshot(ctx, term, id))
	}
	if err != nil { // nobody knows whether the host has heard of it: it is asked
		m.cfg.Log.Warn("a host's answer was lost", "host", vm.Host, "snapshot", id, "err", err)
	} else {
		s = seen(s, told)
	}
	m.now[id] = s
	m.cfg.World.Tell("vm", string(s.VM), fmt.Sprintf("a snapshot of its disk was taken at %s, to become image %s", s.Host, s.Image))
	m.look()
	return s, nil
}

// ask gives a host an order; who does not answer soon is asked again later.
func ask(ctx context.Context, a Agent, order agentapi.SnapshotOrder) (agentapi.ImageSnapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, answerBy)
	defer cancel()
	return a.Snapshot(ctx, order)
}

// find is where a VM is, if a snapshot of it can be taken.
func (m *Snapshots) find(id heliotrope.VMID) (VM, Agent, error) {
	vm, ok := m.cfg.World.SnapshotVM(id)
	switch {
	case !ok:
		return vm, nil, api.Invalid("the snapshot cannot be", api.FieldProblem{Pointer: "/vm", Detail: fmt.Sprintf("there is no VM %q", id), Hint: "heliotrope vm list shows what there is"})
	case vm.Host == "":
		return vm, nil, api.Unavailable(fmt.Sprintf("%s has no owner yet", id))
	case vm.Move != "":
		return vm, nil, api.Conflict(fmt.Sprintf("%s is on the move: %s", id, vm.Move), "wait for the move to end: heliotrope migration watch "+string(vm.Move))
	}
	agent, _ := m.cfg.World.SnapshotAgent(vm.Host)
	if agent == nil {
		return vm, nil, api.Unavailable(fmt.Sprintf("%s is at %s, which is not connected", id, vm.Host))
	}
	if vm.State != heliotrope.VMRunning && vm.State != heliotrope.VMPaused {
		return vm, nil, api.Conflict(fmt.Sprintf("%s does not run: at %s it is %s", id, vm.Host, cmp.Or(string(vm.State), "not there")), "heliotrope vm show "+string(id)+" says why")
	}
	return vm, agent, nil
}

// mayBe says whether the image may get a version.
func (m *Snapshots) mayBe(ctx context.Context, r api.SnapshotRequest) error {
	store, err := m.cfg.Store(ctx)
	if err != nil {
		return err
	}
	v, err := store.Version(ctx, r.As)
	there := err == nil
	switch {
	case err != nil && !errors.Is(err, imagesync.ErrNotFound):
		return err
	case there && !r.Next:
		return api.Conflict(v.Ref()+" is there", fmt.Sprintf("choose another name, or say that it is to become the version after %s (CLI: --next)", v.Ref()))
	case !there && r.Next:
		return api.Invalid("the snapshot cannot be", api.FieldProblem{Pointer: "/next", Detail: fmt.Sprintf("there is no image %s", r.As), Hint: "leave it out: the image is made"})
	}
	return nil
}

// refusal is what a host said that took no order; nil: it has taken it, or nobody knows.
func refusal(err error, host heliotrope.HostID) error {
	switch {
	case errors.Is(err, agentapi.ErrInvalid):
		return api.Conflict(err.Error(), "")
	case errors.Is(err, agentapi.ErrBusy), errors.Is(err, agentapi.ErrUnknown):
		return api.Conflict(err.Error(), "try again in a moment")
	case errors.Is(err, agentapi.ErrStale):
		return api.Unavailable("another controller leads")
	case err != nil && agentapi.Answered(err):
		return api.Conflict(fmt.Sprintf("%s could not: %v", host, err), "an agent that is older than this controller knows of no snapshots")
	}
	return nil
}

// foreseen says how much would go, and what that takes.
func foreseen(ctx context.Context, agent Agent, order agentapi.SnapshotOrder, s api.Snapshot, link heliotrope.Link) (api.Snapshot, error) {
	told, err := ask(ctx, agent, order)
	if err != nil {
		return api.Snapshot{}, cmp.Or(refusal(err, s.Host), err)
	}
	s = seen(s, told)
	s.ID, s.State, s.Progress, s.BeganAt = "", api.SnapshotForeseen, 0, time.Time{}
	s.CostUSD = float64(s.TotalBytes) / 1e9 * link.PricePerGB
	if link.Rate > 0 {
		s.ETAS = float64(s.TotalBytes) * 8 / float64(link.Rate)
	}
	return s, nil
}

// seen is a snapshot of which its host has told. What it is to become is not the host's to say.
func seen(s api.Snapshot, told agentapi.ImageSnapshot) api.Snapshot {
	s.Base, s.TotalBytes, s.ReadBytes, s.NewBytes, s.StoredBytes = told.Base, told.Total, told.Read, told.New, told.Stored
	s.PauseMs, s.Note = float64(told.TookUs)/1000, ""
	if s.Progress = 1; told.Total > 0 {
		s.Progress = float64(told.Read) / float64(told.Total)
	}
	switch told.State {
	case agentapi.SnapshotSealed:
		s.State = api.SnapshotPublishing
	case agentapi.SnapshotFailed:
		s.State, s.Note, s.EndedAt = api.SnapshotFailed, told.Note, told.Ended
	}
	return s
}

// prune forgets those that were over first, where there are many. The lock is held.
func (m *Snapshots) prune(ctx context.Context, term uint64) error {
	over := slices.DeleteFunc(m.sorted(), func(s api.Snapshot) bool { return !s.Over() })
	for _, s := range over[min(keptOver-1, len(over)):] {
		if err := m.cfg.Records.ForgetSnapshot(ctx, term, s.ID); err != nil {
			return err
		}
		delete(m.now, s.ID)
	}
	return nil
}

// sorted are all, the newest first. The lock is held.
func (m *Snapshots) sorted() (all []api.Snapshot) {
	for _, s := range m.now {
		all = append(all, s)
	}
	slices.SortFunc(all, newestFirst)
	return all
}

func newestFirst(a, b api.Snapshot) int {
	return cmp.Or(b.BeganAt.Compare(a.BeganAt), strings.Compare(a.ID, b.ID))
}

// Snapshots are all of them, the newest first. A controller that does not lead knows no progress.
func (m *Snapshots) Snapshots(ctx context.Context) ([]api.Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	term, err := m.load(ctx)
	if err != nil {
		return nil, err
	}
	if term != 0 {
		return m.sorted(), nil
	}
	return m.kept(ctx)
}

// Snapshot is one of them.
func (m *Snapshots) Snapshot(ctx context.Context, id string) (api.Snapshot, error) {
	all, err := m.Snapshots(ctx)
	if err != nil {
		return api.Snapshot{}, err
	}
	for _, s := range all {
		if s.ID == id {
			return s, nil
		}
	}
	return api.Snapshot{}, notFound(id)
}

func notFound(id string) error {
	return &api.Problem{Type: api.TypeNotFound, Title: "Not found", Status: http.StatusNotFound, Detail: fmt.Sprintf("there is no snapshot %q", id),
		Hint: "it was dropped, or ended long ago: heliotrope vm snapshots shows what there is"}
}

// DropSnapshot gives one up, or forgets it.
func (m *Snapshots) DropSnapshot(ctx context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	term, err := m.load(ctx)
	if err != nil {
		return err
	}
	s, ok := m.now[id]
	switch {
	case term == 0:
		return api.Unavailable("another controller leads, and knows the hosts")
	case !ok:
		return notFound(id)
	case s.Over():
		delete(m.now, id)
		return m.cfg.Records.ForgetSnapshot(ctx, term, id)
	}
	if agent, _ := m.cfg.World.SnapshotAgent(s.Host); agent != nil {
		order := agentapi.SnapshotOrder{Term: term, Snapshot: id, Do: agentapi.SnapshotEnd, Note: "it was given up"}
		if _, err := ask(ctx, agent, order); err != nil && !errors.Is(err, agentapi.ErrUnknown) {
			return api.Unavailable(fmt.Sprintf("%s did not hear of it: %v", s.Host, err))
		}
	}
	return m.end(ctx, term, failed(s, "it was given up"))
}

func failed(s api.Snapshot, why string) api.Snapshot {
	s.State, s.Note, s.EndedAt = api.SnapshotFailed, why, time.Now().UTC()
	return s
}

// end keeps a snapshot that is over. The lock is held.
func (m *Snapshots) end(ctx context.Context, term uint64, s api.Snapshot) error {
	if err := m.cfg.Records.SetSnapshot(ctx, term, s.ID, s); err != nil {
		return err
	}
	m.now[s.ID] = s
	what := fmt.Sprintf("the snapshot of its disk has failed: %s", s.Note)
	if s.State == api.SnapshotDone {
		what = fmt.Sprintf("the snapshot of its disk is %s", s.Made)
		m.cfg.World.Tell("image", s.Image, fmt.Sprintf("%s is a snapshot of %s at %s", s.Made, s.VM, s.Host))
		m.cfg.Made()
	}
	m.cfg.World.Tell("vm", string(s.VM), what)
	return nil
}
