package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/store"
	"heliotrope/controller/world"
	"heliotrope/hostagent/agentapi"
	"heliotrope/migration"
)

// operations answers for migrations.
type operations struct{ *Controller }

// resolve finds the VM and the host that a request means.
func resolve(v *world.View, r api.MigrationRequest) (from, to heliotrope.HostID, err error) {
	if _, ok := v.Topology.VMs[r.VM]; !ok {
		return "", "", api.Invalid("the migration cannot be", api.FieldProblem{Pointer: "/vm", Detail: fmt.Sprintf("there is no VM %q", r.VM), Hint: "heliotrope vm list shows what there is"})
	}
	p, ok := v.Placements[r.VM]
	if !ok {
		return "", "", api.Unavailable(fmt.Sprintf("%s has no owner yet", r.VM))
	}
	if _, ok := v.Topology.Hosts[heliotrope.HostID(r.To)]; ok {
		to = heliotrope.HostID(r.To)
	} else if _, ok := v.Topology.Sites[heliotrope.SiteID(r.To)]; ok {
		to = roomiest(v, heliotrope.SiteID(r.To), p.Host)
	}
	if to == "" {
		return "", "", api.Invalid("the migration cannot be", api.FieldProblem{Pointer: "/to", Detail: fmt.Sprintf("%q is no host, and no site that has one", r.To), Hint: "heliotrope host list shows what there is"})
	}
	if to == p.Host {
		return "", "", api.Conflict(fmt.Sprintf("%s is at %s already", r.VM, to), "")
	}
	return p.Host, to, nil
}

// roomiest is the site's connected host with the most memory left, other than not.
func roomiest(v *world.View, site heliotrope.SiteID, not heliotrope.HostID) heliotrope.HostID {
	var best heliotrope.HostID
	bestFree := 0
	for _, h := range slices.Sorted(maps.Keys(v.Topology.Hosts)) {
		if v.Topology.Hosts[h].Site != site {
			continue
		}
		free := cmp.Or(v.Topology.Hosts[h].MemoryMiB, v.Hosts[h].Status.MemoryMiB) - memoryUsed(v, h)
		if v.Hosts[h].Agent == nil || h == not || v.Members[h].Drained() {
			free -= 1 << 30 // only if there is no other
		}
		if best == "" || free > bestFree {
			best, bestFree = h, free
		}
	}
	return best
}

// PreviewMigration checks a move and predicts what it takes.
func (c operations) PreviewMigration(ctx context.Context, r api.MigrationRequest) (api.MigrationPreview, error) {
	v := c.world.View()
	from, to, err := resolve(v, r)
	if err != nil {
		return api.MigrationPreview{}, err
	}
	p := api.MigrationPreview{VM: r.VM, From: from, To: to, OK: true, Checks: preflightChecks(v, r.VM, from, to)}
	if m, moving := v.Moving(r.VM); moving {
		p.Checks = append(p.Checks, check("not moving", false, "%s is on the move already: %s", r.VM, m.ID))
	}
	for _, ch := range p.Checks {
		p.OK = p.OK && ch.OK
	}
	c.predict(v, &p)
	c.predictImage(ctx, v, &p)
	return p, nil
}

// predict goes by the last move of the same VM, which says more than its size: most of a
// guest's memory is usually empty and costs nothing.
func (c operations) predict(v *world.View, p *api.MigrationPreview) {
	var last world.Move
	for _, m := range v.Moves {
		if m.VM == p.VM && m.Phase == migration.Succeeded && m.Revision > last.Revision {
			last = m
		}
	}
	link := linkBetween(v.Topology, v.Topology.Hosts[p.From].Site, v.Topology.Hosts[p.To].Site)
	p.DiskBytes = uint64(diskOf(v, p.From, p.VM).Written)
	if p.Bytes = last.Measured.Copy.RelayBytes; p.Bytes == 0 {
		p.Bytes = uint64(v.Topology.VMs[p.VM].MemoryMiB)<<20 + p.DiskBytes
	}
	p.CostUSD = float64(p.Bytes) / 1e9 * link.PricePerGB
	if last.Revision != 0 {
		p.PauseMs = milliseconds(time.Duration(last.Measured.Pause))
	}
	if link.Rate > 0 {
		p.ETAS = float64(p.Bytes) * 8 / float64(link.Rate)
	}
}

// diskOf is a VM's disk over an image of the store; zero where it has none.
func diskOf(v *world.View, host heliotrope.HostID, vm heliotrope.VMID) (disk agentapi.ImageVolume) {
	if images := v.Hosts[host].Status.Images; images != nil {
		for _, d := range images.Volumes {
			if d.VM == vm {
				disk = d
			}
		}
	}
	return disk
}

// predictImage says what the destination has to get of the image that the VM's disk stands on. It
// comes from the store, as the VM reads it or before, and nobody waits for it with the move.
func (c operations) predictImage(ctx context.Context, v *world.View, p *api.MigrationPreview) {
	on := diskOf(v, p.From, p.VM).Base
	if on == "" || c.images == nil {
		return
	}
	host := counted(c).imageHost(v, p.To)
	l, err := c.images.Lacks(ctx, host, on)
	if err != nil { // the move does not need to know
		c.log.Warn("what a host lacks of an image is not known", "host", p.To, "image", on, "err", err)
		return
	}
	p.ImageBytes = uint64(l.Stored)
	p.CostUSD += float64(l.Stored) / 1e9 * host.Link.PricePerGB
}

// linkBetween is the link between two sites; zero where there is none.
func linkBetween(t heliotrope.Topology, a, b heliotrope.SiteID) (link heliotrope.Link) {
	for _, l := range t.Links {
		if l.Between == [2]heliotrope.SiteID{a, b} || l.Between == [2]heliotrope.SiteID{b, a} {
			link = l
		}
	}
	return link
}

// StartMigration stores a new move; the leader takes it up from there.
func (c operations) StartMigration(ctx context.Context, id heliotrope.MoveID, r api.MigrationRequest) (api.Migration, error) {
	if kv, err := store.Get[migration.Move](ctx, c.store, store.MoveKey(id)); err == nil {
		return moveView(world.Move{Move: kv.Value, Revision: kv.Rev}), nil
	}
	v := c.world.View()
	from, to, err := resolve(v, r)
	if err != nil {
		return api.Migration{}, err
	}
	now := time.Now().UTC()
	deadline := migration.DefaultDeadline
	if r.DeadlineS > 0 {
		deadline = time.Duration(r.DeadlineS) * time.Second
	}
	m := migration.New(id, r.VM, from, to, v.Placements[r.VM].Epoch, now.Add(deadline), now)
	m.MaxDowntime = heliotrope.Duration(time.Duration(r.MaxDowntimeMs) * time.Millisecond)
	if m.MaxSlowdown = migration.DefaultMaxSlowdown; r.MaxSlowdown != nil {
		m.MaxSlowdown = *r.MaxSlowdown
	}
	rev, err := c.store.StartMove(ctx, r.VM, id, m)
	switch {
	case errors.Is(err, store.ErrMoving):
		return api.Migration{}, api.Conflict(fmt.Sprintf("%s is on the move already", r.VM), "wait for it to end, or abort it: heliotrope migration list")
	case errors.Is(err, store.ErrConflict): // another request with this id was faster
		kv, err := store.Get[migration.Move](ctx, c.store, store.MoveKey(id))
		return moveView(world.Move{Move: kv.Value, Revision: kv.Rev}), err
	case err != nil:
		return api.Migration{}, err
	}
	return moveView(world.Move{Move: m, Revision: rev}), nil
}

// Migrations are all that are kept, newest first.
func (c operations) Migrations(context.Context) ([]api.Migration, error) {
	moves := slices.Collect(maps.Values(c.world.View().Moves))
	slices.SortFunc(moves, func(a, b world.Move) int { return b.Passed[0].At.Compare(a.Passed[0].At) })
	out := make([]api.Migration, len(moves))
	for i, m := range moves {
		out[i] = moveView(m)
	}
	return out, nil
}

// WaitMigration waits for a revision above after.
func (c operations) WaitMigration(ctx context.Context, id heliotrope.MoveID, after int64) (api.Migration, error) {
	// One that was just started may not be in the view yet; the store has it.
	if _, ok := c.world.View().Moves[id]; !ok {
		kv, err := store.Get[migration.Move](ctx, c.store, store.MoveKey(id))
		if errors.Is(err, store.ErrNotFound) {
			return api.Migration{}, api.NotFound("migration", string(id))
		}
		if err != nil {
			return api.Migration{}, err
		}
		if after < 0 {
			return moveView(world.Move{Move: kv.Value, Revision: kv.Rev}), nil
		}
	}
	v, err := c.world.Wait(ctx, func(v *world.View) bool { m, ok := v.Moves[id]; return ok && m.Revision > after })
	m, ok := v.Moves[id]
	if !ok {
		return api.Migration{}, cmp.Or[error](err, api.NotFound("migration", string(id)))
	}
	return moveView(m), nil
}

// abortPatience is how long the driver may take to store that it was asked for a rollback.
const abortPatience = 10 * time.Second

// AbortMigration asks the driver for a rollback. The answer comes once that is stored, so
// that no crash forgets it. Asking again is no error.
func (c operations) AbortMigration(ctx context.Context, id heliotrope.MoveID) (api.Migration, error) {
	m, err := c.WaitMigration(ctx, id, -1)
	if err != nil {
		return m, err
	}
	d := c.leading()
	if d == nil {
		return m, api.Unavailable("this controller does not lead")
	}
	if m.CanAbort {
		d.abort(id)
	}
	ctx, cancel := context.WithTimeout(ctx, abortPatience)
	defer cancel()
	v, err := c.world.Wait(ctx, func(v *world.View) bool {
		s, ok := v.Moves[id]
		return ok && (s.Aborted || !moveView(s).CanAbort)
	})
	if err != nil {
		return m, api.Unavailable("the request is not stored yet")
	}
	if m = moveView(v.Moves[id]); !v.Moves[id].Aborted {
		return m, api.Conflict(fmt.Sprintf("%s is in phase %s: it cannot be undone any more", id, m.Phase), "move the VM back with a new migration")
	}
	return m, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// moveView is a move as the API shows it.
func moveView(m world.Move) api.Migration {
	c := m.Measured.Copy
	out := api.Migration{ID: m.ID, VM: m.VM, From: m.From, To: m.To, Phase: string(m.Phase), Progress: m.Fraction(),
		Epoch: m.Epoch, Revision: m.Revision, CreatedAt: m.Passed[0].At, Deadline: m.Deadline, Error: m.Error, Warnings: m.Warnings,
		CanAbort: slices.Contains([]migration.Phase{migration.Pending, migration.Preflight, migration.SyncImage, migration.Prepare, migration.PreCopy, migration.Switchover}, m.Phase),
		Measured: api.Measured{PauseMs: milliseconds(time.Duration(m.Measured.Pause)), Bytes: c.RelayBytes, MemoryBytes: c.DoneBytes,
			TotalBytes: c.TotalBytes, Rounds: c.Rounds, BytesPerSecond: c.BytesPerSecond, DirtyPerSecond: c.DirtyPerSecond,
			RescuedPackets: m.Measured.Rescued, Memory: c.Memory, Blocks: c.Blocks, CodecMs: milliseconds(c.Codec), Passes: c.Passes, DiskBytes: c.DiskBytes, SparedBytes: c.SparedBytes, DiskWrites: m.Measured.DiskWrites,
			ConvergedMs: milliseconds(time.Duration(m.Measured.Converged))}}
	for i, p := range m.Passed {
		pt := api.PhaseTime{Phase: string(p.Phase), At: p.At}
		if i+1 < len(m.Passed) {
			pt.TookS = m.Passed[i+1].At.Sub(p.At).Seconds()
		}
		out.Phases = append(out.Phases, pt)
	}
	if m.Phase.Ended() {
		out.FinishedAt = m.Passed[len(m.Passed)-1].At
	} else if at, ok := m.ETA(time.Now()); ok {
		out.ETAS = max(0, time.Until(at).Seconds())
	}
	return out
}
