package controller

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/world"
	"heliotrope/migration"
)

// An image is used where its VMs run, are to be, and were lately, in this order.
func TestImageUses(t *testing.T) {
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
	for _, u := range imageUses(v, now) {
		got = append(got, fmt.Sprintf("%s at %s: %s", u.Image, u.Site, u.Why))
	}
	want := "debian at a: web runs there; debian at b: db is to start there; debian at c: web moves there; debian at b: web was there until Mon 11:00 UTC"
	if got := strings.Join(got, "; "); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// A host shares the links on its way from the store that say what images may take of them, also where those lead
// through other sites; a host beside the store shares none.
func TestSharedLinks(t *testing.T) {
	link := func(a, b heliotrope.SiteID, rate heliotrope.BitRate) heliotrope.Link {
		return heliotrope.Link{Between: [2]heliotrope.SiteID{a, b}, ImagesRate: rate}
	}
	top := heliotrope.Topology{Controller: heliotrope.Controller{Site: "eu"}, Links: map[heliotrope.LinkID]heliotrope.Link{
		"eu-us": link("eu", "us", 80e6), "us-asia": link("us", "asia", 20e6), "eu-mars": link("eu", "mars", 0)}}
	c := counted{&Controller{}}
	want := map[heliotrope.SiteID]map[heliotrope.LinkID]heliotrope.BitRate{"us": {"eu-us": 80e6}, "asia": {"eu-us": 80e6, "us-asia": 20e6}}
	if got := c.sharedLinks(top); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	c.cfg.ImageSite = "asia"
	want = map[heliotrope.SiteID]map[heliotrope.LinkID]heliotrope.BitRate{"us": {"us-asia": 20e6}, "eu": {"eu-us": 80e6, "us-asia": 20e6}, "mars": {"eu-us": 80e6, "us-asia": 20e6}}
	if got := c.sharedLinks(top); !reflect.DeepEqual(got, want) {
		t.Errorf("with the store in asia: got %v, want %v", got, want)
	}
	if got := c.sharedLinks(heliotrope.Topology{Links: map[heliotrope.LinkID]heliotrope.Link{"eu-us": link("eu", "us", 0)}}); got != nil {
		t.Errorf("where none is shared: %v", got)
	}
}
