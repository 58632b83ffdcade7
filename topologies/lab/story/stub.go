package story

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/topologies"
	"heliotrope/topologies/lab/claim"
)

// errand is what became of a VM's access to a stub at another site.
type errand struct {
	Stub    heliotrope.StubID `json:"stub,omitempty"`
	WaitedS float64           `json:"waited_s"` // from the order to the guest to its connection
	Near    bool              `json:"near"`     // the VM was at the stub's site then
	Plan    api.Plan          `json:"plan"`     // that brought it there
}

const (
	longestErrand = time.Minute
	stubPort      = 7 // its echo
)

// run has the guest open a connection to a stub that it must be near to use.
func (d *Demo) run(ctx context.Context, t heliotrope.Topology) (e errand, err error) {
	for _, id := range slices.Sorted(maps.Keys(t.Stubs)) {
		if t.Stubs[id].AccessOf() == heliotrope.AccessLocal {
			e.Stub = id
		}
	}
	if e.Stub == "" {
		return e, errors.New("the demo needs a stub of access local in its topology")
	}
	t.Pools = nil // what moves now is the stub's doing
	text, err := topologies.Marshal(t)
	if err != nil {
		return e, err
	}
	if _, err := d.client.ApplyTopology(ctx, text, -1); err != nil {
		return e, err
	}
	stub := t.Stubs[e.Stub]
	site := t.Hosts[stub.Host].Site
	address := netip.AddrPortFrom(stub.Address, stubPort).String()
	d.say("%s opens a connection to %s, %s, which may be used only from %s", d.VM, address, stub.Description, site)
	ctx, cancel := context.WithTimeout(ctx, 2*longestErrand)
	defer cancel()
	begin := time.Now()
	var peers []struct {
		Peer      string `json:"peer"`
		Connected bool   `json:"connected"`
	}
	if err := d.visitor.ask(ctx, "/peer?add="+url.QueryEscape(address), &peers); err != nil {
		return e, err
	}
	err = d.until(ctx, func(ctx context.Context) error {
		if err := d.visitor.ask(ctx, "/peer", &peers); err != nil {
			return err
		}
		for _, p := range peers {
			if p.Peer == address && p.Connected {
				return nil
			}
		}
		return fmt.Errorf("%s has no connection to %s", d.VM, address)
	})
	if err != nil {
		return e, err
	}
	e.WaitedS = time.Since(begin).Seconds()
	vm, err := d.client.VM(ctx, d.VM)
	if err != nil {
		return e, err
	}
	e.Near = vm.Site == site
	if e.Plan, err = d.plan(ctx, "stub"); err != nil {
		return e, err
	}
	for _, m := range e.Plan.Plan.Moves {
		d.say("  it waited, and %s went from %s to %s for it", m.VM, m.From, m.To)
	}
	d.say("  it has its connection after %.1f s", e.WaitedS)
	return e, nil
}

func (e errand) claims() []claim.Claim {
	near := 0.0
	if e.Near {
		near = 1
	}
	return []claim.Claim{
		claim.New("a VM was brought to what it used", near, "==", 1),
		claim.New("seconds that its access waited for that", e.WaitedS, "<=", longestErrand.Seconds()),
	}
}
