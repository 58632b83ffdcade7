package rest

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"heliotrope/controller/api"
)

// alive is the answer of /healthz.
type alive struct {
	Status string `json:"status" example:"ok"`
}

type nothing struct{}

func (h *handler) registerSystem(routes huma.API) {
	handle(h, routes, public(operation("GET", "/healthz", "health", "Whether the process answers at all")),
		func(context.Context, *nothing) (*body[alive], error) { return &body[alive]{alive{"ok"}}, nil })
	handle(h, routes, public(operation("GET", "/readyz", "ready", "Whether the store, the leader and the loops work; 503 if not")), h.ready)
	handle(h, routes, public(operation("GET", "/version", "version", "What program this is")),
		func(context.Context, *nothing) (*body[api.Version], error) {
			return &body[api.Version]{h.opts.Version}, nil
		})
	handle(h, routes, operation("GET", "/v1/status", "status", "The whole system on one screen"), h.status)
	h.mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(h.spec) // the caller is gone
	})
	if h.Metrics != nil {
		h.mux.Handle("GET /metrics", h.Metrics)
	}
}

func (h *handler) ready(ctx context.Context, _ *nothing) (*body[api.List[api.Check]], error) {
	checks := h.Health.Checks(ctx)
	var wrong []api.FieldProblem
	for _, c := range checks {
		if !c.OK {
			wrong = append(wrong, api.FieldProblem{Pointer: c.Name, Detail: c.Detail})
		}
	}
	if len(wrong) == 0 {
		return listOf(checks), nil
	}
	p := api.Unavailable("not ready")
	p.Errors = wrong
	return nil, p
}

// status asks every part, and says what it could find out.
func (h *handler) status(ctx context.Context, _ *nothing) (*body[api.Status], error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s := api.Status{Version: h.opts.Version, Ready: true, Checks: h.Health.Checks(ctx)}
	for _, c := range s.Checks {
		s.Ready = s.Ready && c.OK
	}
	s.Leader, s.Term = h.Health.Leader(ctx)
	t, rev, err := h.Topologies.Topology(ctx)
	if err != nil {
		return nil, err
	}
	s.Topology, s.Revision, s.Sites = t.Name, rev, len(t.Sites)
	hosts, errHosts := h.Inventory.Hosts(ctx)
	vms, errVMs := h.Inventory.VMs(ctx)
	moves, errMoves := h.Migrations.Migrations(ctx)
	count(&s, hosts, vms, moves)
	return &body[api.Status]{s}, errors.Join(errHosts, errVMs, errMoves)
}

func count(s *api.Status, hosts []api.Host, vms []api.VM, moves []api.Migration) {
	s.Hosts, s.VMs = len(hosts), len(vms)
	for _, x := range hosts {
		if x.State == api.HostUp {
			s.HostsUp++
		}
	}
	for _, x := range vms {
		if x.State == "running" {
			s.VMsRunning++
		}
	}
	for _, m := range moves {
		switch {
		case m.Phase == api.PhaseHeld:
			s.NeedAttention++
		case !m.Ended():
			s.Moving++
		}
	}
}

// wantsStream says whether the caller takes an event stream and no JSON.
func wantsStream(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "text/event-stream")
}
