package story

import (
	"context"
	"errors"
	"fmt"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/topologies"
	"heliotrope/topologies/lab/claim"
	"heliotrope/topologies/lab/probe"
)

// pilot is what an autopilot did: it followed the traffic, emptied a host, and brought a VM
// to what cannot come to it.
type pilot struct {
	Wanted   int          `json:"wanted"` // moves that a plan asked for before it was let do
	Plan     api.Plan     `json:"plan"`
	Drained  api.Plan     `json:"drained"`
	EmptiedS float64      `json:"emptied_s"`       // from the order to the host without VMs
	Once     uint64       `json:"pages_sent_once"` // of memory, that the VMs which left it had in common
	Stub     errand       `json:"stub"`
	Client   probe.Report `json:"client"`
}

const (
	pilotWindow = 10 * time.Second // of traffic that decides; a demo cannot wait for minutes
	mostEmptied = time.Minute      // what a revoked host is given
)

// fly lets the autopilot of a pool of all VMs do what the plan before only said, and then
// drains the host that the client's VM is at.
func (d *Demo) fly(ctx context.Context, t heliotrope.Topology) (p pilot, err error) {
	plan, err := d.client.SimulatePlan(ctx, api.PlanRequest{Policy: "closest", WindowS: pilotWindow.Seconds()})
	if err != nil {
		return p, err
	}
	p.Wanted = len(plan.Moves)
	if _, err := d.probe.Mark(ctx, "pilot"); err != nil {
		return p, err
	}
	if p.Wanted > 0 {
		if p.Plan, err = d.follow(ctx, t); err != nil {
			return p, err
		}
	}
	if p.Drained, p.EmptiedS, err = d.drain(ctx); err != nil {
		return p, err
	}
	if p.Once, err = d.together(ctx, p.Drained); err != nil {
		return p, err
	}
	if p.Stub, err = d.run(ctx, t); err != nil {
		return p, err
	}
	p.Client, err = d.probe.Settle(ctx, "pilot")
	return p, err
}

// follow turns an autopilot on, and waits until it has told what it gained.
func (d *Demo) follow(ctx context.Context, t heliotrope.Topology) (api.Plan, error) {
	const near = "near"
	t.Policies = map[heliotrope.PolicyID]heliotrope.Policy{near: {Base: "closest", Weights: map[heliotrope.WeightID]float64{"usd_per_tonne_co2": 90}}}
	t.Pools = map[heliotrope.PoolID]heliotrope.Pool{"all": {Autopilot: heliotrope.AutopilotAuto, Policy: near,
		Window: heliotrope.Duration(pilotWindow), Interval: heliotrope.Duration(time.Second)}}
	text, err := topologies.Marshal(t)
	if err != nil {
		return api.Plan{}, err
	}
	if _, err := d.client.ApplyTopology(ctx, text, -1); err != nil {
		return api.Plan{}, err
	}
	d.say("a policy of its own: distance first, as closest, and USD 90 for a tonne of CO₂")
	d.say("a pool of all VMs, autopilot: auto, policy: %s, by the traffic of the last %v", near, pilotWindow)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	p, err := d.plan(ctx, "autopilot")
	if err != nil {
		return p, err
	}
	for _, m := range p.Plan.Moves {
		d.say("  it moves %s from %s to %s: %s", m.VM, m.From, m.To, m.Why)
	}
	for !p.Ended() {
		if p, err = d.client.AwaitPlan(ctx, p.ID, p.Revision); err != nil {
			return p, err
		}
	}
	d.say("  %s", p.Note)
	return p, nil
}

// plan waits for a plan that somebody made.
func (d *Demo) plan(ctx context.Context, by string) (found api.Plan, err error) {
	err = d.until(ctx, func(ctx context.Context) error {
		all, err := d.client.Plans(ctx)
		for _, p := range all {
			if p.By == by {
				found = p
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("there is no plan by %s yet", by))
	})
	return found, err
}

// drain revokes the host that the client's VM is at, and waits until it is empty.
func (d *Demo) drain(ctx context.Context) (p api.Plan, seconds float64, err error) {
	vm, err := d.client.VM(ctx, d.VM)
	if err != nil {
		return p, 0, err
	}
	begin := time.Now()
	if err := d.client.DrainHost(ctx, vm.Host, api.DrainRequest{Reason: "revoked by its provider", DeadlineS: mostEmptied.Seconds()}); err != nil {
		return p, 0, err
	}
	d.say("%s is revoked by its provider, and goes away in %v", vm.Host, mostEmptied)
	ctx, cancel := context.WithTimeout(ctx, 2*mostEmptied)
	defer cancel()
	if p, err = d.plan(ctx, "drain"); err != nil {
		return p, 0, err
	}
	for p.State == api.PlanRunning || p.State == api.PlanProposed {
		if p, err = d.client.AwaitPlan(ctx, p.ID, p.Revision); err != nil {
			return p, 0, err
		}
	}
	err = d.until(ctx, func(ctx context.Context) error {
		h, err := d.client.Host(ctx, vm.Host)
		if err == nil && len(h.VMs) > 0 {
			err = fmt.Errorf("%v are still at %s", h.VMs, vm.Host)
		}
		return err
	})
	seconds = time.Since(begin).Seconds()
	for _, m := range p.Plan.Moves {
		d.say("  %s went to %s", m.VM, m.To)
	}
	d.say("  it is empty after %.1f s", seconds)
	return p, seconds, err
}

// together is how many pages of a plan's VMs crossed for another of them.
func (d *Demo) together(ctx context.Context, p api.Plan) (n uint64, err error) {
	for _, m := range p.Moves {
		mg, err := d.client.Migration(ctx, m.Migration)
		if err != nil {
			return n, err
		}
		n += pages(mg, "peer")
	}
	d.say("  %d pages of memory that its %d VMs had in common crossed once", n, len(p.Moves))
	return n, nil
}

func (p pilot) claims() []claim.Claim {
	moved, gained := 0.0, 1.0
	for _, m := range p.Plan.Moves {
		if m.Phase == api.PhaseSucceeded {
			moved++
		}
	}
	if p.Plan.Measured != nil {
		gained = p.Plan.Measured.Gained / p.Plan.Measured.Promised
	} else if p.Wanted > 0 {
		gained = 0
	}
	moves := float64(p.Wanted + len(p.Drained.Moves) + len(p.Stub.Plan.Moves))
	return append(p.Stub.claims(), []claim.Claim{
		claim.New("moves that the autopilot made", moved, "==", float64(p.Wanted)),
		claim.New("what they gained, as a share of what was promised", gained, ">=", 0.8),
		claim.New("seconds until a revoked host was empty", p.EmptiedS, "<=", mostEmptied.Seconds()),
		claim.New("pages that crossed once for the VMs which left it", float64(p.Once), ">", 0),
		claim.New("probes lost in these moves (aim 0)", float64(p.Client.UDP.Lost), "<=", maxLost*moves),
	}...)
}
