//go:build lab

package proof

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"heliotrope/controller/api"
	"heliotrope/migration"
	"heliotrope/topologies/lab"
)

// A move that is aborted while memory is on its way leaves web where it is, and nothing at
// the destination; the next one succeeds.
func TestAbort(t *testing.T) {
	calm(t)
	witness(t)
	before, epoch := ask(t), vm(t).Epoch
	see := watch(t)
	slow(t)
	m := start(t, there)
	if m = reach(t, m.ID, copying); m.Ended() {
		t.Fatalf("the copy was over before it could be aborted: %s", story(m))
	}
	asked := time.Now()
	if _, err := world.client.AbortMigration(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	m = reach(t, m.ID, ended)
	t.Logf("%s; rolled back %v after the request", story(m), time.Since(asked).Round(time.Millisecond))
	rolledBack(t, m, epoch)
	if r := see(); r.UDP.Lost > 0 {
		t.Errorf("%d probes were lost", r.UDP.Lost)
	}
	sameGuest(t, before)
	wide(t)
	again(t, before)
}

// A move that is aborted as soon as it is asked for, before anybody has taken it up, does
// not take place either; to abort it again is no error, to abort it when it is over is one.
func TestAbortAtOnce(t *testing.T) {
	calm(t)
	m := start(t, there)
	for range 2 {
		if _, err := world.client.AbortMigration(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	m = reach(t, m.ID, ended)
	t.Log(story(m))
	if m.Phase != api.PhaseRolledBack && m.Phase != api.PhaseFailed || vm(t).Host != here {
		t.Errorf("the aborted move ended as %s: %s", m.Phase, m.Error)
	}
	until(t, 20*time.Second, well)
	if m = move(t, there); m.Phase != api.PhaseSucceeded {
		t.Fatalf("the next move ended as %s: %s", m.Phase, m.Error)
	}
	_, err := world.client.AbortMigration(t.Context(), m.ID)
	refusedWith(t, err, http.StatusConflict)
}

// A WAN that is cut in the middle of a copy: the move is rolled back, and the next one
// succeeds once the WAN is there again.
func TestWANCut(t *testing.T) {
	calm(t)
	witness(t)
	before, epoch := ask(t), vm(t).Epoch
	see := watch(t)
	slow(t)
	m := start(t, there)
	if m = reach(t, m.ID, copying); m.Ended() {
		t.Fatalf("the copy was over before the link could be cut: %s", story(m))
	}
	cut := time.Now()
	down := true
	link(t, lab.LinkChange{Down: &down})
	m = reach(t, m.ID, entered(migration.Rollback))
	t.Logf("given up %v after the cut", time.Since(cut).Round(time.Millisecond))
	wide(t)
	mended := time.Now()
	m = reach(t, m.ID, ended)
	t.Logf("%s; rolled back %v after the link was mended", story(m), time.Since(mended).Round(time.Millisecond))
	rolledBack(t, m, epoch)
	if r := see(); r.UDP.Lost > 0 {
		t.Errorf("%d probes were lost", r.UDP.Lost)
	}
	sameGuest(t, before)
	again(t, before)
}

// wide gives the link between the clouds back what it had.
func wide(t *testing.T) {
	t.Helper()
	if _, err := lab.Change(t.Context(), world.target, whole()); err != nil {
		t.Fatal(err)
	}
}

// rolledBack says whether a move ended without effect.
func rolledBack(t *testing.T, m api.Migration, epoch uint64) {
	t.Helper()
	if m.Phase != api.PhaseRolledBack {
		t.Fatalf("the move ended as %s: %s", m.Phase, m.Error)
	}
	if vm := vm(t); vm.Host != here || vm.Epoch != epoch {
		t.Errorf("web is at %s in epoch %d", vm.Host, vm.Epoch)
	}
	until(t, 20*time.Second, well)
	until(t, 5*time.Second, func(ctx context.Context) error {
		left, err := in(ctx, string(there), "sh", "-c", "virsh -q list --all; ls -d /sys/class/net/ht* /var/lib/heliotrope/disks/* /run/heliotrope/moves/* 2>/dev/null; true")
		if err == nil && left != "" {
			err = fmt.Errorf("left at %s: %s", there, left)
		}
		return err
	})
}

// again moves web after a move that failed.
func again(t *testing.T, before account) {
	t.Helper()
	until(t, 20*time.Second, well)
	see := watch(t)
	if m := move(t, there); m.Phase != api.PhaseSucceeded {
		t.Fatalf("the next move ended as %s: %s", m.Phase, m.Error)
	}
	if r := see(); r.UDP.Lost > 0 {
		t.Errorf("%d probes were lost in the next move", r.UDP.Lost)
	}
	sameGuest(t, before)
}
