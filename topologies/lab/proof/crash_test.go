//go:build lab

package proof

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/migration"
	"heliotrope/topologies/lab"
)

// crash is one thing that dies in the middle of a move.
type crash struct {
	name  string
	when  func(api.Migration) bool
	node  string
	what  string
	ends  []string // how the move may end
	lost  int      // most probes that may be lost
	tight bool     // a slow link gives time
}

var either = []string{api.PhaseSucceeded, api.PhaseRolledBack}

// A controller, an agent or a QEMU that is killed in the middle of a move: the move ends,
// one QEMU runs, the guest is the same, and everybody knows where it is.
func TestCrash(t *testing.T) {
	for _, c := range []crash{
		{name: "controller in PreCopy", when: copying, node: "controller", what: "controller", ends: either, tight: true},
		{name: "controller in Switchover", when: entered(migration.Switchover), node: "controller", what: "controller", ends: either, lost: 2 * rate},
		{name: "controller in Activate", when: entered(migration.Activate), node: "controller", what: "controller", ends: either, lost: 2 * rate},
		{name: "controller in Cleanup", when: entered(migration.Cleanup), node: "controller", what: "controller", ends: either},
		{name: "source agent in PreCopy", when: copying, node: string(here), what: "agent", ends: either, tight: true},
		{name: "destination agent in PreCopy", when: copying, node: string(there), what: "agent", ends: either, tight: true},
		{name: "source agent in Switchover", when: entered(migration.Switchover), node: string(here), what: "agent", ends: either, lost: 2 * rate},
		{name: "source agent in Activate", when: entered(migration.Activate), node: string(here), what: "agent", ends: either, lost: 2 * rate},
		// Its incoming VM dies with it, and what had been forwarded to that: the move is reverted.
		{name: "destination agent in Activate", when: entered(migration.Activate), node: string(there), what: "agent", ends: either, lost: 2 * rate},
		{name: "destination QEMU in PreCopy", when: copying, node: string(there), what: "qemu", ends: []string{api.PhaseRolledBack}, tight: true},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t) })
	}
}

func (c crash) test(t *testing.T) {
	calm(t)
	witness(t)
	before, epoch := ask(t), vm(t).Epoch
	see := watch(t)
	if c.tight {
		slow(t)
	}
	m := start(t, there)
	if m = reach(t, m.ID, c.when); m.Ended() {
		t.Fatalf("the move was over before the crash: %s", story(m))
	}
	c.kill(t)
	killed := time.Now()
	if c.tight {
		wide(t)
	}
	m = reach(t, m.ID, ended)
	t.Logf("%s %v after the crash in %s: %s", m.Phase, time.Since(killed).Round(time.Millisecond), c.name, story(m))
	c.judge(t, m, epoch)
	until(t, 20*time.Second, well)
	if r := see(); r.UDP.Lost > c.lost {
		t.Errorf("%d probes were lost, at most %d may be", r.UDP.Lost, c.lost)
	}
	sameGuest(t, before)
}

func (c crash) kill(t *testing.T) {
	t.Helper()
	if c.what == "qemu" {
		mustIn(t, c.node, "sh", "-c", "kill -9 $(cat /run/libvirt/qemu/"+string(web)+".pid)")
		return
	}
	if err := lab.Kill(t.Context(), world.target, lab.KillOrder{Node: c.node, Daemon: c.what, Signal: unix.SIGKILL}); err != nil {
		t.Fatal(err)
	}
}

// judge says whether the move ended in order, with one QEMU at its owner's.
func (c crash) judge(t *testing.T, m api.Migration, epoch uint64) {
	t.Helper()
	owner := map[string]heliotrope.HostID{api.PhaseSucceeded: there, api.PhaseRolledBack: here}[m.Phase]
	permitted := false
	for _, end := range c.ends {
		permitted = permitted || m.Phase == end
	}
	if !permitted {
		t.Fatalf("the move ended as %s: %s", m.Phase, m.Error)
	}
	vm := vm(t)
	if vm.Host != owner || owner == there && vm.Epoch != epoch+1 || owner == here && vm.Epoch != epoch && vm.Epoch != epoch+2 {
		t.Errorf("after %s web is at %s, in epoch %d (it was %d)", m.Phase, vm.Host, vm.Epoch, epoch)
	}
	until(t, 5*time.Second, func(ctx context.Context) error {
		for _, host := range []heliotrope.HostID{here, there} {
			want := ""
			if host == owner {
				want = "running"
			}
			state, err := in(ctx, string(host), "sh", "-c", "virsh -q domstate web 2>/dev/null || true")
			if err != nil {
				return err
			}
			if state != want {
				return fmt.Errorf("web is %q at %s, and should be %q", state, host, want)
			}
		}
		return nil
	})
}
