//go:build lab

package proof

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/topologies"
	"heliotrope/topologies/lab"
)

const (
	window   = 10 * time.Second // of the traffic that decides
	followed = time.Minute      // until web is where it ought to be: a window, a look, a move
	emptied  = time.Minute      // what a revoked host is given
)

// steer puts the topology in force with a pool of web alone, and other changes.
func steer(t *testing.T, mode string, policy heliotrope.PolicyID, edit func(*heliotrope.Topology)) {
	t.Helper()
	file, err := os.ReadFile(topologyFile)
	if err != nil {
		t.Fatal(err)
	}
	topology, err := topologies.Parse(file, topologyFile, topologies.Options{})
	if err != nil {
		t.Fatal(err)
	}
	topology.Pools = map[heliotrope.PoolID]heliotrope.Pool{"web": {VMs: []heliotrope.VMID{web}, Autopilot: mode, Policy: policy,
		Window: heliotrope.Duration(window), Interval: heliotrope.Duration(time.Second)}}
	if edit != nil {
		edit(&topology)
	}
	text, err := topologies.Marshal(topology)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := world.client.ApplyTopology(t.Context(), text, -1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := world.client.ApplyTopology(context.WithoutCancel(t.Context()), file, -1); err != nil {
			t.Error(err)
		}
	})
}

// crowd has clients at a node ask web until the function that it returns is called.
func crowd(t *testing.T, node string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		for ctx.Err() == nil {
			asks(ctx, t, node, 1000)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); group.Wait() })
	t.Cleanup(stop)
	return stop
}

// asks has clients at a node ask web so many times, a hundred times a second.
func asks(ctx context.Context, t *testing.T, node string, times int) {
	t.Helper()
	var out bytes.Buffer
	err := enter(ctx, &out, node, "ping", "-q", "-i", "0.01", "-s", "1000", "-c", strconv.Itoa(times), vm(t).NICs[0].Public.String())
	if err != nil && ctx.Err() == nil {
		t.Errorf("ask from %s: %v: %s", node, err, out.String())
	}
}

// goes waits until web runs at a site and is on no move.
func goes(t *testing.T, site heliotrope.SiteID) {
	t.Helper()
	took := until(t, followed, func(ctx context.Context) error {
		v, err := world.client.VM(ctx, web)
		if err == nil && (v.Site != site || v.Migration != "") {
			err = fmt.Errorf("web is at %s, in migration %q", v.Site, v.Migration)
		}
		return err
	})
	t.Logf("web is at %s after %v", site, took.Round(time.Millisecond))
}

// moves counts the migrations of web so far.
func moves(t *testing.T) int {
	t.Helper()
	all, err := world.client.Migrations(t.Context(), web, false)
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// An autopilot follows clients from one site to another and back, and tells what that gained.
func TestAutopilotFollowsClients(t *testing.T) {
	calm(t)
	see := watch(t)
	steer(t, heliotrope.AutopilotAuto, "closest", nil)
	stop := crowd(t, "east")
	goes(t, "right")
	var p api.Plan
	until(t, followed, func(ctx context.Context) error {
		all, err := world.client.Plans(ctx)
		if err != nil {
			return err
		}
		if p = all[0]; p.Measured == nil {
			return fmt.Errorf("plan %s is %s: %s", p.ID, p.State, p.Note)
		}
		return nil
	})
	t.Log(p.Note)
	if p.By != "autopilot" || p.Pool != "web" || p.Measured.Gained < 0.5*p.Measured.Promised {
		t.Errorf("%+v, measured %+v", p, p.Measured)
	}
	stop()
	crowd(t, "west")
	goes(t, "left")
	if r := see(); r.UDP.Lost > 0 {
		t.Errorf("%d probes were lost", r.UDP.Lost)
	}
}

// An autopilot follows a price, at once where it is told that one changed.
func TestAutopilotFollowsPrices(t *testing.T) {
	calm(t)
	see := watch(t)
	price := func(site heliotrope.SiteID) func(*heliotrope.Topology) {
		return func(t *heliotrope.Topology) {
			s := t.Sites[site]
			s.PricePerVCPUHour = 0.5
			t.Sites[site] = s
		}
	}
	steer(t, heliotrope.AutopilotAuto, "cheapest", price("left"))
	goes(t, "right")
	steer(t, heliotrope.AutopilotAuto, "cheapest", price("right"))
	goes(t, "left")
	if r := see(); r.UDP.Lost > 0 {
		t.Errorf("%d probes were lost", r.UDP.Lost)
	}
}

// noisy is how many windows of traffic the noise lasts. A window is 10 s here and 10 min by
// default, so 144 of them are a day.
var noisy = flag.Int("noisy", 6, "windows of noise")

// Clients that come and go by chance, window after window, move nothing.
func TestAutopilotIgnoresNoise(t *testing.T) {
	calm(t)
	steer(t, heliotrope.AutopilotAuto, "closest", nil)
	before, node, again, since := moves(t), "west", 0, time.Now()
	for begin := time.Now(); time.Since(begin) < time.Duration(*noisy)*window; {
		// Some time here, some there; never for a whole window at one, on a slow machine either.
		if again++; rand.IntN(2) == 0 || again > 2 || time.Since(since) > window/2 {
			node, again, since = map[string]string{"west": "east", "east": "west"}[node], 1, time.Now()
		}
		asks(t.Context(), t, node, 50+rand.IntN(200))
	}
	if n := moves(t) - before; n > 0 {
		t.Errorf("%d moves", n)
	}
	pool, err := world.client.Pool(t.Context(), "web")
	if err != nil || time.Since(pool.ConsideredAt) > window {
		t.Errorf("it does not look: %+v, %v", pool, err)
	}
	t.Log(pool.Says)
}

// A host whose cloud takes it away is empty in the time that it is given, though web is in
// no pool.
func TestRevokedHost(t *testing.T) {
	calm(t)
	see := watch(t)
	const reason = "taken by its provider"
	notice := fmt.Sprintf("echo %s %s > %s", time.Now().Add(emptied).UTC().Format(time.RFC3339), reason, lab.RevokedFile)
	mustIn(t, string(here), "sh", "-c", notice)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		_, err := in(ctx, string(here), "rm", lab.RevokedFile)
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		err = errors.Join(err, poll(ctx, func() error {
			h, err := world.client.Host(ctx, here)
			if err == nil && !h.DrainedAt.IsZero() {
				err = fmt.Errorf("%s is still drained: %s", here, h.DrainReason)
			}
			return err
		}))
		if err != nil {
			t.Error(err)
		}
	})
	took := until(t, emptied, func(ctx context.Context) error {
		h, err := world.client.Host(ctx, here)
		if err == nil && (len(h.VMs) > 0 || h.DrainReason != reason || time.Until(h.DrainedBy) > emptied) {
			err = fmt.Errorf("%v are still there; it is drained for %q, and goes away at %v", h.VMs, h.DrainReason, h.DrainedBy)
		}
		return err
	})
	t.Logf("%s is empty after %v; web is at %s", here, took.Round(time.Millisecond), vm(t).Host)
	if r := see(); r.UDP.Lost > 0 {
		t.Errorf("%d probes were lost", r.UDP.Lost)
	}
}
