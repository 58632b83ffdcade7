package images

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/hostagent/agentapi"
)

// agent is a host's that pulls at once, unless it has no store.
type agent struct {
	orders []agentapi.PullOrder
	fails  error
}

func (a *agent) PullImage(_ context.Context, o agentapi.PullOrder) (agentapi.ImageCache, error) {
	if a.orders = append(a.orders, o); a.fails != nil {
		return agentapi.ImageCache{}, a.fails
	}
	return agentapi.ImageCache{Image: o.Image, Bytes: 1 << 20, Here: 1 << 19}, nil
}

// A push orders those hosts of its sites that can pull and lack something, and says of all how
// they are.
func TestPush(t *testing.T) {
	r := newRig(t)
	r.send(api.UploadRequest{Image: "web"}, random(7, 1<<20))
	agents := map[heliotrope.HostID]*agent{}
	has := func(images ...agentapi.ImageCache) *agentapi.ImageStatus {
		return &agentapi.ImageStatus{Caches: images}
	}
	for _, h := range []struct {
		id    heliotrope.HostID
		site  heliotrope.SiteID
		has   *agentapi.ImageStatus
		fails error
		away  bool
	}{
		{"a-1", "a", has(), nil, false},
		{"a-2", "a", has(agentapi.ImageCache{Image: "web@1", Bytes: 1 << 20, Here: 1 << 20, Volumes: 3}), nil, false},
		{"a-3", "a", nil, agentapi.ErrInvalid, false},
		{"b-1", "b", has(), errors.New("the line is cut"), false},
		{"b-2", "b", has(), nil, true},
	} {
		agents[h.id] = &agent{fails: h.fails}
		host := Host{ID: h.id, Site: h.site, Images: h.has}
		if !h.away {
			host.Agent = agents[h.id]
		}
		r.hosts = append(r.hosts, host)
	}
	if _, err := r.api.PushImage(t.Context(), "web", api.PushRequest{}); status(err) != http.StatusServiceUnavailable {
		t.Errorf("who does not lead: got %v", err)
	}
	r.term = 7
	states := func(places []api.ImagePlace, err error) (all string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range places {
			all += string(p.Host) + " " + p.State + "; "
		}
		return all
	}
	for _, c := range []struct {
		name   string
		r      api.PushRequest
		want   string
		orders int
	}{
		{"a dry run", api.PushRequest{DryRun: true}, "a-1 absent; a-2 here; a-3 no-store; b-1 absent; b-2 away; ", 0},
		{"a site", api.PushRequest{Sites: []heliotrope.SiteID{"a"}}, "a-1 coming; a-2 here; a-3 no-store; ", 2},
		{"all", api.PushRequest{}, "a-1 coming; a-2 here; a-3 no-store; b-1 failed; b-2 away; ", 5},
	} {
		if got := states(r.api.PushImage(t.Context(), "web", c.r)); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
		orders := 0
		for _, a := range agents {
			orders += len(a.orders)
		}
		if orders != c.orders {
			t.Errorf("%s: %d orders, want %d", c.name, orders, c.orders)
		}
	}
	if o := agents["a-1"].orders[0]; o.Image != "web@1" || o.Term != 7 {
		t.Errorf("got %+v", o)
	}
	if got, want := states(r.api.ImagePlaces(t.Context(), "web")), "a-1 absent; a-2 here; a-3 no-store; b-1 absent; b-2 away; "; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := r.api.PushImage(t.Context(), "web", api.PushRequest{Sites: []heliotrope.SiteID{"mars"}}); status(err) != http.StatusUnprocessableEntity {
		t.Errorf("got %v, want 422", err)
	}
	if _, err := r.api.PushImage(t.Context(), "db", api.PushRequest{}); status(err) != http.StatusNotFound {
		t.Errorf("got %v, want 404", err)
	}
}
