package rest

import (
	"context"
	"net/netip"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"heliotrope/controller/api"
)

type (
	whyRoute struct {
		IP string `path:"ip" doc:"A public or private address of a VM."`
	}
	verifyMesh struct{ Body api.MeshVerifyRequest }
	waitFlows  struct {
		Revision int64 `query:"revision" minimum:"0" doc:"Such as an applied topology's; 0 is the newest." example:"42"`
		Wait     bool  `query:"wait" doc:"Answer when all switches know of it, or after 30 s."`
	}
)

func (h *handler) registerNetwork(routes huma.API) {
	handle(h, routes, operation("GET", "/v1/routes", "list-routes", "The public routes that are announced"),
		func(ctx context.Context, _ *nothing) (*body[api.List[api.Route]], error) {
			routes, err := h.Routes.Routes(ctx)
			return listOf(routes), err
		})
	handle(h, routes, operation("GET", "/v1/routes/why/{ip}", "why-route", "Where an address goes, and who believes what", 422), h.whyRoute)
	handle(h, routes, operation("GET", "/v1/mesh", "get-mesh", "Every tunnel, seen from both ends"),
		func(ctx context.Context, _ *nothing) (*body[api.Mesh], error) {
			m, err := h.Meshes.Mesh(ctx)
			return &body[api.Mesh]{m}, err
		})
	handle(h, routes, operation("POST", "/v1/mesh/verify", "verify-mesh", "Prove that packets of a size pass every tunnel", 400, 415, 422),
		func(ctx context.Context, in *verifyMesh) (*body[api.MeshVerification], error) {
			v, err := h.Meshes.VerifyMesh(ctx, in.Body.PacketSize)
			return &body[api.MeshVerification]{v}, err
		})
	handle(h, routes, operation("GET", "/v1/flows", "get-flows-reached", "Whether all switches know of a change, now or when they do", 422), h.waitFlows)
	handle(h, routes, operation("GET", "/v1/hosts/{host}/flows", "list-flows", "The flows of a host's br-int", 404),
		func(ctx context.Context, in *hostRef) (*body[api.FlowList], error) {
			l, err := h.Flows.Flows(ctx, in.Host)
			return &body[api.FlowList]{l}, err
		})
	handle(h, routes, operation("GET", "/v1/hosts/{host}/flows/diff", "diff-flows", "Flows wanted minus flows installed", 404),
		func(ctx context.Context, in *hostRef) (*body[api.FlowDiff], error) {
			d, err := h.Flows.FlowDiff(ctx, in.Host)
			return &body[api.FlowDiff]{d}, err
		})
}

func (h *handler) whyRoute(ctx context.Context, in *whyRoute) (*body[api.RouteWhy], error) {
	addr, err := netip.ParseAddr(in.IP)
	if err != nil {
		return nil, api.Invalid("that is no address",
			api.FieldProblem{Pointer: "path.ip", Detail: "not an IP address", Hint: "write it like 203.0.113.10"})
	}
	why, err := h.Routes.WhyRoute(ctx, addr)
	return &body[api.RouteWhy]{why}, err
}

func (h *handler) waitFlows(ctx context.Context, in *waitFlows) (*body[api.FlowsReached], error) {
	limit := time.Duration(0) // a look at what is known takes none
	if in.Wait {
		limit = longPoll
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, err := h.Flows.WaitFlows(ctx, in.Revision)
	return &body[api.FlowsReached]{r}, err
}

func schemaOf[T any](r huma.Registry) *huma.Schema {
	t := reflect.TypeFor[T]()
	return r.Schema(t, true, t.Name())
}
