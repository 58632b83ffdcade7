package images

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/world"
	"heliotrope/migration"
)

// An image is used where its VMs run, are to be, and were lately, in this order.
func TestUses(t *testing.T) {
	now := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	moved := func(id heliotrope.MoveID, vm heliotrope.VMID, from heliotrope.HostID, phase migration.Phase, ago time.Duration) world.Move {
		m := migration.New(id, vm, from, "c-1", 1, now, now.Add(-ago))
		m.Phase, m.Passed = phase, append(m.Passed, migration.Passed{Phase: phase, At: now.Add(-ago)})
		return world.Move{Move: m}
	}
	v := &world.View{Topology: heliotrope.Topology{
		Hosts: map[heliotrope.HostID]heliotrope.Host{"a-1": {Site: "a"}, "b-1": {Site: "b"}, "c-1": {Site: "c"}},
		VMs:   map[heliotrope.VMID]heliotrope.VM{"web": {Image: "debian@3", Host: "a-1"}, "db": {Image: "debian", Host: "b-1"}}},
		Placements: map[heliotrope.VMID]heliotrope.Placement{"web": {Host: "a-1", Incoming: "c-1"}},
		Moves: map[heliotrope.MoveID]world.Move{"m-1": moved("m-1", "web", "b-1", migration.Succeeded, time.Hour), "m-2": moved("m-2", "web", "b-1", migration.Succeeded, 8*24*time.Hour),
			"m-3": moved("m-3", "web", "b-1", migration.RolledBack, time.Hour), "m-4": moved("m-4", "gone", "b-1", migration.Succeeded, time.Hour)},
	}
	var got []string
	for _, u := range UsesOf(v, now) {
		got = append(got, fmt.Sprintf("%s at %s: %s", u.Image, u.Site, u.Why))
	}
	want := "debian at a: web runs there; debian at b: db is to start there; debian at c: web moves there; debian at b: web was there until Mon 11:00 UTC"
	if got := strings.Join(got, "; "); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}
