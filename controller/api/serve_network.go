package api

import (
	"context"
	"net/netip"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

type (
	whyRoute struct {
		IP string `path:"ip" doc:"A public or private address of a VM."`
	}
	verifyMesh struct{ Body MeshVerifyRequest }
	waitFlows  struct {
		Revision int64 `query:"revision" minimum:"0" doc:"Such as an applied topology's; 0 is the newest." example:"42"`
		Wait     bool  `query:"wait" doc:"Answer when all switches know of it, or after 30 s."`
	}
)

func (h *handler) registerNetwork(api huma.API) {
	handle(h, api, operation("GET", "/v1/routes", "list-routes", "The public routes that are announced"),
		func(ctx context.Context, _ *nothing) (*body[List[Route]], error) {
			routes, err := h.Routes.Routes(ctx)
			return listOf(routes), err
		})
	handle(h, api, operation("GET", "/v1/routes/why/{ip}", "why-route", "Where an address goes, and who believes what", 422), h.whyRoute)
	handle(h, api, operation("GET", "/v1/mesh", "get-mesh", "Every tunnel, seen from both ends"),
		func(ctx context.Context, _ *nothing) (*body[Mesh], error) {
			m, err := h.Meshes.Mesh(ctx)
			return &body[Mesh]{m}, err
		})
	handle(h, api, operation("POST", "/v1/mesh/verify", "verify-mesh", "Prove that packets of a size pass every tunnel", 400, 415, 422),
		func(ctx context.Context, in *verifyMesh) (*body[MeshVerification], error) {
			v, err := h.Meshes.VerifyMesh(ctx, in.Body.PacketSize)
			return &body[MeshVerification]{v}, err
		})
	handle(h, api, operation("GET", "/v1/flows", "get-flows-reached", "Whether all switches know of a change, now or when they do", 422), h.waitFlows)
	handle(h, api, operation("GET", "/v1/hosts/{host}/flows", "list-flows", "The flows of a host's br-int", 404),
		func(ctx context.Context, in *hostRef) (*body[FlowList], error) {
			l, err := h.Flows.Flows(ctx, in.Host)
			return &body[FlowList]{l}, err
		})
	handle(h, api, operation("GET", "/v1/hosts/{host}/flows/diff", "diff-flows", "Flows wanted minus flows installed", 404),
		func(ctx context.Context, in *hostRef) (*body[FlowDiff], error) {
			d, err := h.Flows.FlowDiff(ctx, in.Host)
			return &body[FlowDiff]{d}, err
		})
}

func (h *handler) whyRoute(ctx context.Context, in *whyRoute) (*body[RouteWhy], error) {
	addr, err := netip.ParseAddr(in.IP)
	if err != nil {
		return nil, Invalid("that is no address",
			FieldProblem{Pointer: "path.ip", Detail: "not an IP address", Hint: "write it like 203.0.113.10"})
	}
	why, err := h.Routes.WhyRoute(ctx, addr)
	return &body[RouteWhy]{why}, err
}

func (h *handler) waitFlows(ctx context.Context, in *waitFlows) (*body[FlowsReached], error) {
	limit := time.Duration(0) // a look at what is known takes none
	if in.Wait {
		limit = longPoll
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, err := h.Flows.WaitFlows(ctx, in.Revision)
	return &body[FlowsReached]{r}, err
}

func schemaOf[T any](r huma.Registry) *huma.Schema {
	t := reflect.TypeFor[T]()
	return r.Schema(t, true, t.Name())
}
