package autopilot

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
	"heliotrope/scheduler"
	"heliotrope/scheduler/survey"
	"heliotrope/scheduler/traffic"
)

// useWindow is the traffic that tells who uses a stub. It is short, since an access may
// wait; what a use costs is added up from window to window, so that bursts are in it.
const useWindow = 10 * time.Second

// use is what a VM makes of a stub.
type use struct {
	api.StubUse
	stub     heliotrope.StubID
	reckoned time.Time // until when its cost is in SpentUSD
	tried    time.Time // when bringing the VM there was last tried
}

// rent is the rule by which a VM is carried or moved. Nobody knows how long a use will last.
// Whoever goes on paying by the hour until that has cost as much as buying would have, and
// buys then, never pays more than twice what he would have paid had he known (Karlin,
// Manasse, Rudolph, Sleator: Competitive Snoopy Caching, 1988).
type rent struct{ spentUSD float64 }

// pay adds what a time cost at so much per hour, which may be negative: being there would
// have cost more. It is true once a move that costs so much is due.
func (r *rent) pay(usdPerHour float64, d time.Duration, moveUSD float64) bool {
	r.spentUSD = max(0, r.spentUSD+usdPerHour*d.Hours())
	return usdPerHour > 0 && r.spentUSD >= moveUSD
}

// serve looks at who uses stubs from elsewhere, and brings those VMs there that have to be
// there, or for which that is cheaper by now. What their pools' autopilots are does not
// matter: the stub says what is to become of an access.
func (a *Autopilot) serve(ctx context.Context, t heliotrope.Topology) error {
	if len(t.Stubs) == 0 {
		a.keepUses(nil)
		return nil
	}
	m, err := a.world.Counted(ctx, time.Time{}, useWindow)
	if err != nil {
		return err
	}
	v, err := a.see(ctx, nil)
	if err != nil {
		return err
	}
	uses := a.usesNow(t, m)
	var problems []error
	for i := range uses {
		problems = append(problems, a.attend(ctx, v, m, &uses[i]))
	}
	a.keepUses(uses)
	return errors.Join(problems...)
}

func (a *Autopilot) keepUses(uses []use) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.uses = uses
}

// usesNow are those that are known, and those that m shows: by stub and VM.
func (a *Autopilot) usesNow(t heliotrope.Topology, m traffic.Matrix) []use {
	type pair struct {
		stub heliotrope.StubID
		vm   heliotrope.VMID
	}
	known := map[pair]use{}
	a.mu.Lock()
	for _, u := range a.uses {
		_, vm := t.VMs[u.VM]
		if s, ok := t.Stubs[u.stub]; ok && vm && time.Since(u.Last) < s.LingerOf() {
			u.BytesPerSecond = 0
			known[pair{u.stub, u.VM}] = u
		}
	}
	a.mu.Unlock()
	span := max(m.To.Sub(m.From).Seconds(), 1)
	for _, c := range m.Cells {
		stub, vm := heliotrope.StubID(c.Dst.VM), c.Src.VM
		_, asks := t.Stubs[stub]
		if !asks {
			stub, vm = heliotrope.StubID(c.Src.VM), c.Dst.VM
		}
		_, isStub := t.Stubs[stub]
		if _, isVM := t.VMs[vm]; !isStub || !isVM || c.Bytes <= 0 {
			continue
		}
		u, ok := known[pair{stub, vm}]
		if !ok && !asks {
			continue // the stub alone speaks
		}
		if !ok {
			u = use{stub: stub, StubUse: api.StubUse{VM: vm, Since: time.Now().UTC()}}
		}
		if asks {
			u.Last = time.Now().UTC()
		}
		u.BytesPerSecond += c.Bytes / span
		known[pair{stub, vm}] = u
	}
	return slices.SortedFunc(maps.Values(known), func(u, w use) int { return cmp.Or(cmp.Compare(u.stub, w.stub), cmp.Compare(u.VM, w.VM)) })
}

// attend says what becomes of a use, and sees to it.
func (a *Autopilot) attend(ctx context.Context, v *sight, m traffic.Matrix, u *use) error {
	s := v.topology.Stubs[u.stub]
	to := v.topology.Hosts[s.Host].Site
	p := v.placements[u.VM]
	plan, moving := a.mover(u.VM)
	before := u.State
	u.Site = v.topology.Hosts[p.Host].Site
	defer func() {
		if u.State != before {
			a.world.Tell("stub", string(u.stub), fmt.Sprintf("%s uses it: %s", u.VM, u.Says))
		}
	}()
	switch {
	case u.Site == to && p.Incoming == "" && !moving:
		u.State, u.Says = api.UseNear, fmt.Sprintf("%s is at %s as well", u.VM, to)
		u.GainUSDPerHour, u.SpentUSD, u.MoveUSD, u.BreakEvenBytesPerHour = 0, 0, 0, 0
		return nil
	case moving:
		u.State, u.Says = api.UseMoving, fmt.Sprintf("%s is on its way, by plan %s", u.VM, plan)
		return nil
	case p.Incoming != "":
		u.State, u.Says = api.UseMoving, fmt.Sprintf("%s is on its way to %s", u.VM, p.Incoming)
		return nil
	case u.BytesPerSecond == 0:
		u.State, u.Says = api.UseIdle, fmt.Sprintf("%s is at %s, and has sent it nothing for %v", u.VM, u.Site, useWindow)
		u.GainUSDPerHour, u.BreakEvenBytesPerHour, u.reckoned = 0, 0, time.Now()
		return nil
	case s.AccessOf() == heliotrope.AccessLocal:
		u.State, u.Says = api.UseWaiting, fmt.Sprintf("what %s sends it waits until the VM is at %s", u.VM, to)
		return a.bring(ctx, v, m, u)
	}
	due, err := a.reckon(v, m, u, s)
	if err != nil {
		return err
	}
	u.State, u.Says = api.UseCarried, fmt.Sprintf("carried from %s over the mesh. ", u.Site)+u.account(to, s.AccessOf())
	if !due || s.AccessOf() == heliotrope.AccessProxy {
		return nil
	}
	return a.bring(ctx, v, m, u)
}

// account is what carrying costs, in words.
func (u *use) account(to heliotrope.SiteID, access string) string {
	if u.GainUSDPerHour <= 0 {
		return fmt.Sprintf("At %s the VM would cost no less", to)
	}
	says := fmt.Sprintf("That costs USD %.4f/h more than from %s, USD %.4f so far; a move costs USD %.4f", u.GainUSDPerHour, to, u.SpentUSD, u.MoveUSD)
	if access == heliotrope.AccessProxy {
		return says
	}
	left := time.Duration(max(0, u.MoveUSD-u.SpentUSD) / u.GainUSDPerHour * float64(time.Hour)).Round(time.Second)
	return says + fmt.Sprintf(", and is due in %v if it goes on like this", left)
}

// reckon adds up what the VM's being elsewhere costs, by the policy of its pool, and is
// true when a move is due.
func (a *Autopilot) reckon(v *sight, m traffic.Matrix, u *use, spec heliotrope.Stub) (bool, error) {
	policy, err := survey.Policy(v.topology, survey.PoolOf(v.topology, u.VM))
	if err != nil {
		return false, err
	}
	gain, move, err := v.differs(m, policy, u.VM, spec.Host)
	if err != nil {
		return false, err
	}
	without := m
	without.Cells = slices.DeleteFunc(slices.Clone(m.Cells), func(c traffic.Cell) bool {
		return c.Src.VM == heliotrope.VMID(u.stub) && c.Dst.VM == u.VM || c.Src.VM == u.VM && c.Dst.VM == heliotrope.VMID(u.stub)
	})
	rest, _, err := v.differs(without, policy, u.VM, spec.Host)
	if err != nil {
		return false, err
	}
	// What speaks for that site besides is no reason of the stub's; what speaks against it is.
	use := gain - rest
	gain = use + min(rest, 0)
	u.BreakEvenBytesPerHour = 0
	if use > 0 {
		u.BreakEvenBytesPerHour = (move/cmp.Or(policy.AmortisationHours, 24) - min(rest, 0)) / use * u.BytesPerSecond * 3600
	}
	now := time.Now()
	since := u.reckoned
	if since.IsZero() {
		since = u.Since
	}
	r := rent{u.SpentUSD}
	due := r.pay(gain, now.Sub(since), move)
	u.reckoned, u.GainUSDPerHour, u.MoveUSD, u.SpentUSD = now, gain, move, r.spentUSD
	return due, nil
}

// differs is what a VM would cost less at a host, in USD per hour and without the move, and
// what the move costs, in USD.
func (v *sight) differs(m traffic.Matrix, policy scheduler.Policy, vm heliotrope.VMID, to heliotrope.HostID) (gain, moveUSD float64, err error) {
	s := v.survey(m)
	here, there := s.Placement(), s.Placement()
	there[vm] = to
	was, is, _, err := scheduler.Compare(s, policy, here, there)
	moves := is.Moves - was.Moves
	return was.Total() - is.Total() + moves, moves * cmp.Or(policy.AmortisationHours, 24), err
}

// bring makes the plan of a VM's move to a stub's site and begins it. Rules and room are
// kept; what they do not let through is told, and tried again.
func (a *Autopilot) bring(ctx context.Context, v *sight, m traffic.Matrix, u *use) error {
	if time.Since(u.tried) < drainAgain {
		return nil
	}
	policy, err := survey.Policy(v.topology, survey.PoolOf(v.topology, u.VM))
	if err != nil {
		return err
	}
	policy.OnlyForced = true
	site := v.topology.Hosts[v.topology.Stubs[u.stub].Host].Site
	s := bind(v.survey(m), map[heliotrope.VMID]heliotrope.SiteID{u.VM: site}).Only([]heliotrope.VMID{u.VM})
	plan, err := scheduler.Solve(s, policy, effort(ctx, s, 0))
	if err != nil {
		return fmt.Errorf("make plan: %w", err)
	}
	p := api.Plan{By: "stub", WindowS: defaultWindow.Seconds(), Plan: plan, Policy: policy}
	u.tried = time.Now()
	for _, b := range plan.Blocked {
		u.Says += fmt.Sprintf("; it cannot come: %s", b.Why)
		a.world.Tell("stub", string(u.stub), fmt.Sprintf("%s cannot come to %s: %s", u.VM, site, b.Why))
	}
	if len(plan.Moves) == 0 {
		return nil
	}
	if p, err = a.propose(ctx, p); err != nil {
		return err
	}
	u.State, u.Says = api.UseMoving, fmt.Sprintf("%s goes to %s by plan %s", u.VM, plan.Moves[len(plan.Moves)-1].To, p.ID)
	_, err = a.begin(ctx, p)
	return err
}

// bind lets VMs be at one site only.
func bind(s scheduler.Snapshot, to map[heliotrope.VMID]heliotrope.SiteID) scheduler.Snapshot {
	s.VMs = slices.Clone(s.VMs)
	for i := range s.VMs {
		only, bound := to[s.VMs[i].ID]
		if !bound {
			continue
		}
		s.VMs[i].Forbidden = slices.Clone(s.VMs[i].Forbidden)
		for _, site := range s.Sites {
			if site.ID != only && !slices.Contains(s.VMs[i].Forbidden, site.ID) {
				s.VMs[i].Forbidden = append(s.VMs[i].Forbidden, site.ID)
			}
		}
	}
	return s
}

// bound are the VMs that must stay where they are for a stub of access local that they
// have used lately.
func (a *Autopilot) bound(t heliotrope.Topology) map[heliotrope.VMID]heliotrope.SiteID {
	a.mu.Lock()
	defer a.mu.Unlock()
	stay := map[heliotrope.VMID]heliotrope.SiteID{}
	for _, u := range a.uses {
		if s := t.Stubs[u.stub]; s.AccessOf() == heliotrope.AccessLocal && u.State == api.UseNear {
			stay[u.VM] = u.Site
		}
	}
	return stay
}

// Stubs are those of the topology, by name.
func (a *Autopilot) Stubs(context.Context) ([]api.Stub, error) {
	if _, err := a.leads(); err != nil {
		return nil, err
	}
	t, _ := a.world.Topology()
	list := []api.Stub{}
	for _, id := range slices.Sorted(maps.Keys(t.Stubs)) {
		list = append(list, a.stubView(t, id))
	}
	return list, nil
}

// Stub is one of them.
func (a *Autopilot) Stub(_ context.Context, id heliotrope.StubID) (api.Stub, error) {
	if _, err := a.leads(); err != nil {
		return api.Stub{}, err
	}
	t, _ := a.world.Topology()
	if _, ok := t.Stubs[id]; !ok {
		return api.Stub{}, api.NotFound("stub", string(id))
	}
	return a.stubView(t, id), nil
}

func (a *Autopilot) stubView(t heliotrope.Topology, id heliotrope.StubID) api.Stub {
	s := t.Stubs[id]
	out := api.Stub{Name: id, Description: s.Description, Host: s.Host, Site: t.Hosts[s.Host].Site, Port: s.Port, Network: s.Network,
		Address: s.Address, MAC: s.NIC(id).MAC.String(), Access: s.AccessOf(), Uses: []api.StubUse{}}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, u := range a.uses {
		if u.stub == id {
			out.Uses = append(out.Uses, u.StubUse)
		}
	}
	return out
}
