package rest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/webreport"
	"heliotrope/scheduler"
	"heliotrope/scheduler/survey"
)

type (
	// AsPage asks for a page that needs nothing else, in place of JSON. It has capitals since
	// huma passes over embedded types that have none.
	AsPage struct {
		Accept string `header:"Accept" doc:"application/json or text/html."`
		Format string `query:"format" enum:"json,html" doc:"The same, where a header is hard to send."`
	}
	planRef struct {
		ID heliotrope.PlanID `path:"id"`
	}
	createPlan struct {
		Key  string `header:"Idempotency-Key" doc:"Same key and request: same answer, one plan; for a day."`
		Body api.PlanRequest
	}
	waitPlan struct {
		ID    heliotrope.PlanID `path:"id"`
		Wait  bool              `query:"wait" doc:"Answer when its revision is above after, or after 30 s."`
		After int64             `query:"after" minimum:"0" doc:"Revision that the caller has seen."`
		AsPage
	}
	policyRef struct {
		Policy heliotrope.PolicyID `path:"policy"`
	}
	stubRef struct {
		Stub heliotrope.StubID `path:"stub"`
	}
	poolRef struct {
		Pool heliotrope.PoolID `path:"pool"`
		AsPage
	}
)

func (h *handler) registerPlans(routes huma.API) {
	create := operation("POST", "/v1/plans", "create-plan", "Make a plan of where VMs ought to be, and keep it; moves nothing", 400, 409, 415, 422)
	schemas := routes.OpenAPI().Components.Schemas
	create.Responses = map[string]*huma.Response{
		"201": {Description: "The plan, which waits to be applied", Content: map[string]*huma.MediaType{api.MediaJSON: {Schema: schemaOf[api.Plan](schemas)}},
			Headers: map[string]*huma.Param{"Location": {Description: "Where to watch it.", Schema: &huma.Schema{Type: huma.TypeString}}}},
		"200": {Description: "What it would be (dry_run)", Content: map[string]*huma.MediaType{api.MediaJSON: {Schema: schemaOf[scheduler.Plan](schemas)}}},
	}
	create.DefaultStatus = http.StatusCreated
	handle(h, routes, create, h.createPlan)
	handle(h, routes, operation("GET", "/v1/plans", "list-plans", "Plans that are kept, newest first"), func(ctx context.Context, _ *struct{}) (*body[api.List[api.Plan]], error) {
		if err := h.planned(); err != nil {
			return nil, err
		}
		all, err := h.Plans.Plans(ctx)
		return listOf(all), err
	})
	plan := operation("GET", "/v1/plans/{id}", "get-plan", "One plan, now or when it changed", 404, 422)
	plan.Responses = pageOr(schemaOf[api.Plan](schemas))
	handle(h, routes, plan, h.getPlan)
	for verb, act := range map[string]struct {
		summary string
		do      func(context.Context, heliotrope.PlanID) (api.Plan, error)
	}{
		"apply": {"Begin the plan's moves; 409 where it does not hold any more", func(ctx context.Context, id heliotrope.PlanID) (api.Plan, error) { return h.Plans.ApplyPlan(ctx, id) }},
		"abort": {"Begin no more of its moves and undo those that can be; 409 once they have ended", func(ctx context.Context, id heliotrope.PlanID) (api.Plan, error) { return h.Plans.AbortPlan(ctx, id) }},
	} {
		op := operation("POST", "/v1/plans/{id}/"+verb, verb+"-plan", act.summary, 404, 409)
		op.DefaultStatus = http.StatusAccepted
		handle(h, routes, op, func(ctx context.Context, in *planRef) (*body[api.Plan], error) {
			if err := h.planned(); err != nil {
				return nil, err
			}
			p, err := act.do(ctx, in.ID)
			return &body[api.Plan]{p}, err
		})
	}
	handle(h, routes, operation("GET", "/v1/policies", "list-policies", "What plans can be made by: the scheduler's policies, and the topology's"), func(ctx context.Context, _ *struct{}) (*body[api.List[api.Policy]], error) {
		all, err := h.policies(ctx)
		return listOf(all), err
	})
	handle(h, routes, operation("GET", "/v1/policies/{policy}", "get-policy", "One policy, with all its weights", 404), func(ctx context.Context, in *policyRef) (*body[api.Policy], error) {
		all, err := h.policies(ctx)
		if err != nil {
			return nil, err
		}
		return one(all, "policy", string(in.Policy), func(p api.Policy) bool { return p.Name == in.Policy })
	})
	handle(h, routes, operation("GET", "/v1/pools", "list-pools", "Pools, and what their autopilots think"), func(ctx context.Context, _ *struct{}) (*body[api.List[api.Pool]], error) {
		if err := h.planned(); err != nil {
			return nil, err
		}
		all, err := h.Plans.Pools(ctx)
		return listOf(all), err
	})
	pool := operation("GET", "/v1/pools/{pool}", "get-pool", "One pool, what it was like, and the plan that its autopilot found last", 404, 422)
	pool.Responses = pageOr(schemaOf[api.Pool](schemas))
	handle(h, routes, pool, h.getPool)
	handle(h, routes, operation("GET", "/v1/stubs", "list-stubs", "Stubs, and the VMs that use them"), func(ctx context.Context, _ *struct{}) (*body[api.List[api.Stub]], error) {
		if err := h.planned(); err != nil {
			return nil, err
		}
		all, err := h.Plans.Stubs(ctx)
		return listOf(all), err
	})
	handle(h, routes, operation("GET", "/v1/stubs/{stub}", "get-stub", "One stub, and what becomes of each VM's use of it", 404), func(ctx context.Context, in *stubRef) (*body[api.Stub], error) {
		if err := h.planned(); err != nil {
			return nil, err
		}
		s, err := h.Plans.Stub(ctx, in.Stub)
		return &body[api.Stub]{s}, err
	})
}

// pageOr are the answers of what can be had as a page as well.
func pageOr(schema *huma.Schema) map[string]*huma.Response {
	return map[string]*huma.Response{"200": {Description: "It, as JSON or as a page", Content: map[string]*huma.MediaType{
		api.MediaJSON: {Schema: schema},
		api.MediaHTML: {Schema: &huma.Schema{Type: huma.TypeString}},
	}}}
}

// answer is v, or its page where that is asked for.
func (p AsPage) answer(v any, page func(io.Writer) error) (*content, error) {
	if p.Format == "html" || p.Format == "" && prefers(p.Accept, "html") {
		var b bytes.Buffer
		err := page(&b)
		return &content{ContentType: api.MediaHTML + "; charset=utf-8", Body: b.Bytes()}, err
	}
	data, err := json.Marshal(v)
	return &content{ContentType: api.MediaJSON, Body: data}, err
}

func (h *handler) policies(ctx context.Context) ([]api.Policy, error) {
	t, _, err := h.Topologies.Topology(ctx)
	if err != nil {
		return nil, err
	}
	var all []api.Policy
	for _, name := range survey.Policies(t) {
		id := heliotrope.PolicyID(name)
		p, err := survey.Named(t, id)
		if err != nil {
			return nil, err
		}
		shown := api.Policy{Name: id, Weights: survey.WeightsOf(p), Hosts: heliotrope.HostsFill, Forced: p.OnlyForced, Pools: []heliotrope.PoolID{}}
		if own, ok := t.Policies[id]; ok {
			shown.Base = cmp.Or(own.Base, survey.DefaultPolicy)
		}
		if p.Spread {
			shown.Hosts = heliotrope.HostsSpread
		}
		for _, pool := range slices.Sorted(maps.Keys(t.Pools)) {
			if cmp.Or(t.Pools[pool].Policy, survey.DefaultPolicy) == id {
				shown.Pools = append(shown.Pools, pool)
			}
		}
		all = append(all, shown)
	}
	return all, nil
}

// planned says that plans are not made, where they are not.
func (h *handler) planned() error {
	if h.Plans == nil {
		return api.Unavailable("no plans are made here")
	}
	return nil
}

func (h *handler) createPlan(ctx context.Context, in *createPlan) (*started, error) {
	if err := h.planned(); err != nil {
		return nil, err
	}
	if err := h.checkPlan(ctx, in.Body); err != nil {
		return nil, err
	}
	if in.Body.DryRun {
		p, err := h.Plans.SimulatePlan(ctx, in.Body)
		return &started{Status: http.StatusOK, Body: p}, err
	}
	p, err := h.Plans.CreatePlan(ctx, heliotrope.PlanID("p-"+nameOf(ctx, "plan", in.Key)), in.Body)
	if err != nil {
		return nil, err
	}
	return &started{Status: http.StatusCreated, Location: "/v1/plans/" + string(p.ID), Body: p}, nil
}

// checkPlan says what of a request is not there.
func (h *handler) checkPlan(ctx context.Context, r api.PlanRequest) error {
	t, _, err := h.Topologies.Topology(ctx)
	if err != nil {
		return err
	}
	var wrong []api.FieldProblem
	say := func(pointer, detail, hint string) {
		wrong = append(wrong, api.FieldProblem{Pointer: pointer, Detail: detail, Hint: hint})
	}
	if _, ok := t.Pools[r.Pool]; r.Pool != "" && !ok {
		say("/pool", fmt.Sprintf("there is no pool %q", r.Pool), "heliotrope pool list shows what there is")
	}
	if known := survey.Policies(t); r.Policy != "" && !slices.Contains(known, string(r.Policy)) {
		say("/policy", fmt.Sprintf("%q is not known", r.Policy), "use "+strings.Join(known, ", "))
	}
	if w := r.Window(); w != 0 && (w < api.MinWindow || w > api.MaxWindow) {
		say("/window_s", "is out of range", "use 1 to 86400")
	}
	if !r.DryRun && (!r.At.IsZero() || len(r.Down)+len(r.Prices) > 0) {
		say("/dry_run", "what is not so cannot be planned for, only simulated", "set dry_run, or leave out at, down and prices")
	}
	for i, id := range r.Down {
		if _, ok := t.Sites[id]; !ok {
			say(fmt.Sprintf("/down/%d", i), fmt.Sprintf("there is no site %q", id), "heliotrope site list shows what there is")
		}
	}
	for _, id := range slices.Sorted(maps.Keys(r.Prices)) {
		if _, ok := t.Sites[id]; !ok {
			say("/prices/"+string(id), fmt.Sprintf("there is no site %q", id), "heliotrope site list shows what there is")
		} else if r.Prices[id] < 0 {
			say("/prices/"+string(id), "is negative", "")
		}
	}
	if len(wrong) > 0 {
		return api.Invalid("the plan cannot be", wrong...)
	}
	return nil
}

func (h *handler) getPlan(ctx context.Context, in *waitPlan) (*content, error) {
	if err := h.planned(); err != nil {
		return nil, err
	}
	after := int64(-1)
	if in.Wait {
		after = in.After
	}
	ctx, cancel := context.WithTimeout(ctx, longPoll)
	defer cancel()
	p, err := h.Plans.WaitPlan(ctx, in.ID, after)
	if err != nil {
		return nil, err
	}
	return in.answer(p, func(w io.Writer) error { return webreport.RenderPlan(w, p) })
}

func (h *handler) getPool(ctx context.Context, in *poolRef) (*content, error) {
	if err := h.planned(); err != nil {
		return nil, err
	}
	p, err := h.Plans.Pool(ctx, in.Pool)
	if err != nil {
		return nil, err
	}
	plans, err := h.Plans.Plans(ctx)
	if err != nil {
		return nil, err
	}
	return in.answer(p, func(w io.Writer) error { return webreport.RenderPool(w, p, plans) })
}
