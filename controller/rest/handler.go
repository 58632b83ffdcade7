package rest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"heliotrope/controller/api"
)

const (
	longest    = 100 * time.Second // any request but a stream
	longPoll   = 30 * time.Second
	writeLimit = 30 * time.Second // for one event of a stream
)

// Options of a handler; zero values take the defaults.
type Options struct {
	Version   api.Version
	TokenHash []byte        // SHA-256 of the bearer token; none: nobody gets in without the unix socket
	Heartbeat time.Duration // between comments of a silent event stream; default 15 s
	Rate      float64       // requests per second and caller; default 500
	Burst     int           // default 1000
	Log       *slog.Logger
}

type handler struct {
	api.Backend
	opts  Options
	mux   *http.ServeMux
	limit *limiter
	spec  []byte // /openapi.json
}

// NewHandler serves b. Requests on a connection that Server took from its unix socket
// carry the caller's user; all others must show the token.
func NewHandler(b api.Backend, o Options) (http.Handler, error) {
	if b.ParseTopology == nil || b.FormatTopology == nil {
		return nil, errors.New("serve API: the backend cannot read or write topologies")
	}
	o.Heartbeat = cmp.Or(o.Heartbeat, 15*time.Second)
	o.Rate, o.Burst = cmp.Or(o.Rate, 500), cmp.Or(o.Burst, 1000)
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	h := &handler{Backend: b, opts: o, mux: http.NewServeMux(), limit: newLimiter(o.Rate, o.Burst)}
	routes := h.register()
	var err error
	if h.spec, err = json.MarshalIndent(routes.OpenAPI(), "", "  "); err != nil {
		return nil, fmt.Errorf("describe API: %w", err)
	}
	// Outermost last: what a request meets first is at the bottom.
	var next http.Handler = h.mux
	next = h.idempotent(next)
	next = h.routed(next)
	next = h.bounded(next)
	next = h.authorized(next)
	return h.recovered(next), nil
}

// humaSetup makes huma speak in Problems; it knows only package variables for that.
var humaSetup = sync.OnceFunc(func() {
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		return humaProblem(status, msg, errs)
	}
	huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
		p := humaProblem(status, msg, errs)
		u := ctx.URL()
		p.Instance = u.Path
		return p
	}
})

func (h *handler) register() huma.API {
	humaSetup()
	config := huma.DefaultConfig("Heliotrope", "v1")
	config.CreateHooks, config.OpenAPIPath, config.DocsPath, config.SchemasPath = nil, "", "", ""
	config.Formats = map[string]huma.Format{api.MediaJSON: huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat} // the latter: of problem+json
	config.RejectUnknownQueryParameters = true
	config.Info.Description = "Moves running virtual machines between clouds, with their networks."
	config.Components = &huma.Components{
		Schemas:         huma.NewMapRegistry("#/components/schemas/", schemaName),
		SecuritySchemes: map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer"}},
	}
	routes := humago.New(h.mux, config)
	h.registerSystem(routes)
	h.registerTopology(routes)
	h.registerInventory(routes)
	h.registerMigrations(routes)
	h.registerNetwork(routes)
	h.registerTraffic(routes)
	h.registerPlans(routes)
	h.registerBenchmarks(routes)
	h.registerImages(routes)
	h.registerSnapshots(routes)
	h.registerEvents(routes)
	return routes
}

// schemaName keeps the nouns of a topology and of traffic apart from the views of the same
// name.
func schemaName(t reflect.Type, hint string) string {
	name := huma.DefaultSchemaNamer(t, hint)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	prefix := map[string]string{"heliotrope": "Topology", "heliotrope/scheduler/traffic": "Traffic",
		"heliotrope/scheduler": "Scheduler", "heliotrope/scheduler/traffic/report": "Traffic", "heliotrope/scheduler/traffic/pattern": "Pattern", "heliotrope/scheduler/perf": "Benchmark"}[t.PkgPath()]
	if name == prefix {
		return name
	}
	return prefix + name
}

// operation is one route. Public ones are open to strangers.
func operation(method, path, id, summary string, errs ...int) huma.Operation {
	return huma.Operation{
		Method: method, Path: path, OperationID: id, Summary: summary,
		Errors:          append([]int{http.StatusUnauthorized, http.StatusTooManyRequests, http.StatusServiceUnavailable}, errs...),
		Security:        []map[string][]string{{"token": {}}},
		MaxBodyBytes:    2 * api.MaxBody, // bounded refuses sooner
		BodyReadTimeout: -1,              // bounded has read it
	}
}

func public(op huma.Operation) huma.Operation {
	op.Security = nil
	return op
}

// handle registers fn; its errors become Problems.
func handle[I, O any](h *handler, routes huma.API, op huma.Operation, fn func(context.Context, *I) (*O, error)) {
	huma.Register(routes, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := fn(ctx, in)
		if err != nil {
			return nil, h.problem(ctx, op.OperationID, err)
		}
		return out, nil
	})
}

// problem says err as a Problem. What is not one is our fault and goes to the log.
func (h *handler) problem(ctx context.Context, what string, err error) *api.Problem {
	var p *api.Problem
	var away interface {
		error
		Unavailable() bool
	}
	switch {
	case errors.As(err, &p):
		q := *p // it may be shared
		p = &q
	case errors.As(err, &away) && away.Unavailable():
		p = api.Unavailable(away.Error())
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		p = api.Unavailable("the answer did not come in time")
	default:
		h.opts.Log.Error("request failed", "operation", what, "err", err)
		p = api.NewProblem(http.StatusInternalServerError, "the controller failed; its log says why")
	}
	p.Instance = instanceOf(ctx)
	return p
}

// body is an answer with nothing but a body.
type body[T any] struct{ Body T }

func listOf[T any](items []T) *body[api.List[T]] {
	if items == nil {
		items = []T{}
	}
	return &body[api.List[T]]{api.List[T]{Items: items}}
}
