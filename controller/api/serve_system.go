package api

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// alive is the answer of /healthz.
type alive struct {
	Status string `json:"status" example:"ok"`
}

type nothing struct{}

func (h *handler) registerSystem(api huma.API) {
	handle(h, api, public(operation("GET", "/healthz", "health", "Whether the process answers at all")),
		func(context.Context, *nothing) (*body[alive], error) { return &body[alive]{alive{"ok"}}, nil })
	handle(h, api, public(operation("GET", "/readyz", "ready", "Whether the store, the leader and the loops work; 503 if not")), h.ready)
	handle(h, api, public(operation("GET", "/version", "version", "What program this is")),
		func(context.Context, *nothing) (*body[Version], error) { return &body[Version]{h.opts.Version}, nil })
	handle(h, api, operation("GET", "/v1/status", "status", "The whole system on one screen"), h.status)
	h.mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(h.spec) // the caller is gone
	})
	if h.Metrics != nil {
		h.mux.Handle("GET /metrics", h.Metrics)
	}
}

func (h *handler) ready(ctx context.Context, _ *nothing) (*body[List[Check]], error) {
	checks := h.Health.Checks(ctx)
	var wrong []FieldProblem
	for _, c := range checks {
		if !c.OK {
			wrong = append(wrong, FieldProblem{Pointer: c.Name, Detail: c.Detail})
		}
	}
	if len(wrong) == 0 {
		return listOf(checks), nil
	}
	p := Unavailable("not ready")
	p.Errors = wrong
	return nil, p
}

// status asks every part, and says what it could find out.
func (h *handler) status(ctx context.Context, _ *nothing) (*body[Status], error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s := Status{Version: h.opts.Version, Ready: true, Checks: h.Health.Checks(ctx)}
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
	s.count(hosts, vms, moves)
	return &body[Status]{s}, errors.Join(errHosts, errVMs, errMoves)
}

func (s *Status) count(hosts []Host, vms []VM, moves []Migration) {
	s.Hosts, s.VMs = len(hosts), len(vms)
	for _, x := range hosts {
		if x.State == HostUp {
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
		case m.Phase == PhaseHeld:
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
