//go:build lab

package proof

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
)

// A move there and back: the client, the guest, the network and the hosts are as they were.
func TestMove(t *testing.T) {
	calm(t)
	witness(t)
	before, epoch := ask(t), vm(t).Epoch
	mac := heliotrope.NICMAC(web, 0).String()
	for _, leg := range [][2]heliotrope.HostID{{here, there}, {there, here}} {
		from, to := leg[0], leg[1]
		see := watch(t)
		m := move(t, to)
		t.Logf("%s → %s: %s; paused %.0f ms, %d rounds, %d packets rescued", from, to, story(m), m.Measured.PauseMs, m.Measured.Rounds, m.Measured.RescuedPackets)
		if m.Phase != api.PhaseSucceeded {
			t.Fatalf("the move ended as %s: %s", m.Phase, m.Error)
		}
		recorded(t, m)
		took := until(t, 5*time.Second, func(ctx context.Context) error { return gone(ctx, from, to, mac) })
		t.Logf("nothing was left at %s %v after the end", from, took.Round(time.Millisecond))
		until(t, 5*time.Second, well)
		if r := see(); r.UDP.Lost > 0 {
			t.Errorf("%d probes were lost, longest row %+v", r.UDP.Lost, r.UDP.LongestLoss)
		}
		sameGuest(t, before)
	}
	if after := vm(t).Epoch; after != epoch+2 {
		t.Errorf("two moves took the epoch from %d to %d", epoch, after)
	}
}

// recorded says whether the record of a move that succeeded tells all.
func recorded(t *testing.T, m api.Migration) {
	t.Helper()
	want := "Pending Preflight SyncImage Prepare PreCopy Switchover Commit Activate Converge Cleanup Succeeded"
	var phases []string
	for _, p := range m.Phases {
		phases = append(phases, p.Phase)
	}
	if got := strings.Join(phases, " "); got != want {
		t.Errorf("the record has the phases %s", got)
	}
	s := m.Measured
	if m.Progress != 1 || m.CanAbort || m.Error != "" || !m.FinishedAt.After(m.CreatedAt) || s.PauseMs <= 0 || s.Bytes == 0 || s.MemoryBytes == 0 || s.Rounds == 0 || s.ConvergedMs <= 0 {
		t.Errorf("the record is not complete: %+v", m)
	}
}

// gone looks for what web may have left at a host that it went away from.
func gone(ctx context.Context, from, to heliotrope.HostID, mac string) error {
	left, err := in(ctx, string(from), "sh", "-c", "virsh -q list --all; ls -d /sys/class/net/ht* /var/lib/heliotrope/disks/* /run/heliotrope/moves/* 2>/dev/null; "+
		"ovs-vsctl --bare --columns=name find Interface external_ids:iface-id="+heliotrope.InterfaceID(web, 0))
	if err != nil {
		return err
	}
	if left != "" {
		return fmt.Errorf("left at %s: %s", from, left)
	}
	list, err := world.client.Flows(ctx, from)
	if err != nil {
		return err
	}
	remote := false
	for _, f := range list.Flows {
		text := f.Table + " " + f.Match + " → " + f.Actions
		switch {
		case strings.Contains(f.Match, "in_port") && strings.Contains(f.Match, mac):
			return fmt.Errorf("%s still lets web send: %s", from, text)
		case f.Table == "output" && strings.Contains(f.Match, mac):
			return fmt.Errorf("%s has a flow of the old place: %s", from, text)
		case f.Table == "mobility" && strings.Contains(f.Match, mac) && strings.Contains(f.Actions, "tun_id"):
			remote = true
		case f.Table == "mobility" && strings.Contains(f.Match, mac):
			return fmt.Errorf("%s has a flow of the old place: %s", from, text)
		}
	}
	if !remote {
		return fmt.Errorf("%s does not know that web is at %s", from, to)
	}
	return nil
}
