package controller

import (
	"reflect"
	"testing"

	"heliotrope"
)

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
