package rest

import (
	"context"
	"encoding/json"
	"mime"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"heliotrope"
	"heliotrope/controller/api"
)

type getTopology struct {
	Accept      string `header:"Accept" doc:"application/json or application/yaml."`
	IfNoneMatch string `header:"If-None-Match" doc:"304 when the topology still has this ETag."`
}

// document is a topology as bytes, since it can be YAML.
type document struct {
	Status      int
	ContentType string `header:"Content-Type"`
	ETag        string `header:"ETag" doc:"The revision; send it as If-Match to change this one and no other."`
	Body        []byte
}

type topologyBody struct {
	ContentType string `header:"Content-Type"`
	RawBody     []byte `contentType:"application/yaml"`
}

type putTopology struct {
	ContentType string `header:"Content-Type"`
	RawBody     []byte `contentType:"application/yaml"`
	IfMatch     string `header:"If-Match" doc:"ETag of the topology that this one replaces, or * for any."`
	IfNoneMatch string `header:"If-None-Match" doc:"* : there is none yet."`
	Key         string `header:"Idempotency-Key" doc:"Same key and request: same answer, one effect; for a day."`
	DryRun      bool   `query:"dry_run" doc:"Say what would change, and change nothing."`
}

type applied struct {
	ETag string `header:"ETag"`
	Body api.TopologyPlan
}

func (h *handler) registerTopology(routes huma.API) {
	get := operation("GET", "/v1/topology", "get-topology", "The topology in force", 404)
	get.Responses = map[string]*huma.Response{"200": {Description: "The topology", Content: topologyContent(routes)},
		"304": {Description: "It still has that ETag"}}
	handle(h, routes, get, h.getTopology)

	takes := func(op huma.Operation) huma.Operation {
		op.RequestBody = &huma.RequestBody{Required: true, Content: topologyContent(routes)}
		op.SkipValidateBody = true // ParseTopology does, and says lines and columns
		op.Errors = append(op.Errors, 400, 413, 415, 422)
		return op
	}
	handle(h, routes, takes(operation("POST", "/v1/topology/validate", "validate-topology", "All that is wrong with a topology")), h.validateTopology)
	handle(h, routes, takes(operation("POST", "/v1/topology/plan", "plan-topology", "What applying a topology would do")), h.planTopology)
	handle(h, routes, takes(operation("POST", "/v1/topology/diff", "diff-topology", "In what a topology differs from the one in force")), h.diffTopology)
	handle(h, routes, takes(operation("PUT", "/v1/topology", "apply-topology", "Put a topology in force", 409, 412, 428)), h.putTopology)
}

func topologyContent(routes huma.API) map[string]*huma.MediaType {
	schema := routes.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[heliotrope.Topology](), true, "Topology")
	return map[string]*huma.MediaType{api.MediaJSON: {Schema: schema}, api.MediaYAML: {Schema: schema}}
}

func (h *handler) getTopology(ctx context.Context, in *getTopology) (*document, error) {
	t, rev, err := h.Topologies.Topology(ctx)
	if err != nil {
		return nil, err
	}
	if rev == 0 {
		p := api.NotFound("topology", "")
		p.Detail, p.Hint = "no topology was applied yet", "heliotrope topology apply FILE puts one in force"
		return nil, p
	}
	d := &document{Status: http.StatusOK, ETag: api.ETag(rev), ContentType: api.MediaJSON}
	if in.IfNoneMatch == d.ETag {
		d.Status = http.StatusNotModified
		return d, nil
	}
	if prefers(in.Accept, "yaml") {
		d.ContentType = api.MediaYAML
		d.Body, err = h.FormatTopology(withoutPasswords(t))
		return d, err
	}
	d.Body, err = json.Marshal(t)
	return d, err
}

// prefers says whether a format is named, before JSON if that is too.
func prefers(accept, format string) bool {
	f, j := strings.Index(accept, format), strings.Index(accept, "json")
	return f >= 0 && (j < 0 || f < j)
}

func withoutPasswords(t heliotrope.Topology) heliotrope.Topology {
	peers := make(map[heliotrope.PeerID]heliotrope.Peer, len(t.Peers))
	for name, p := range t.Peers {
		p.Password = ""
		peers[name] = p
	}
	t.Peers = peers
	return t
}

// keepPasswords gives peers that are named without a password the one they have, since
// what GET answers has none.
func keepPasswords(t, now heliotrope.Topology) {
	for name, p := range t.Peers {
		if p.Password == "" {
			p.Password = now.Peers[name].Password
			t.Peers[name] = p
		}
	}
}

// parse reads the body of a request, and finds all that is wrong with it.
func (h *handler) parse(in *topologyBody) (heliotrope.Topology, error) {
	var none heliotrope.Topology
	media, _, err := mime.ParseMediaType(in.ContentType)
	if in.ContentType == "" {
		media, err = api.MediaYAML, nil // which JSON is too
	}
	switch {
	case err != nil:
		return none, api.NewProblem(http.StatusUnsupportedMediaType, "the Content-Type cannot be read")
	case strings.HasSuffix(media, "yaml"):
		media = api.MediaYAML
	case media != api.MediaJSON:
		return none, api.NewProblem(http.StatusUnsupportedMediaType, "a topology is "+api.MediaYAML+" or "+api.MediaJSON+", not "+media)
	}
	if len(in.RawBody) == 0 {
		return none, api.NewProblem(http.StatusBadRequest, "the body is empty; it should be a topology")
	}
	t, problems := h.ParseTopology(in.RawBody, media)
	if len(problems) > 0 {
		return none, api.Invalid("the topology is not valid; nothing was changed", problems...)
	}
	return t, nil
}

func (h *handler) validateTopology(_ context.Context, in *topologyBody) (*body[api.TopologyCheck], error) {
	t, err := h.parse(in)
	if err != nil {
		return nil, err
	}
	return &body[api.TopologyCheck]{api.TopologyCheck{Valid: true, Name: t.Name,
		Sites: len(t.Sites), Hosts: len(t.Hosts), Networks: len(t.Networks), VMs: len(t.VMs)}}, nil
}

func (h *handler) planTopology(ctx context.Context, in *topologyBody) (*body[api.TopologyPlan], error) {
	t, err := h.parse(in)
	if err != nil {
		return nil, err
	}
	now, _, err := h.Topologies.Topology(ctx)
	if err != nil {
		return nil, err
	}
	keepPasswords(t, now)
	plan, err := h.Topologies.PlanTopology(ctx, t)
	return &body[api.TopologyPlan]{plan}, err
}

// diffTopology is the plan without what it would do to traffic.
func (h *handler) diffTopology(ctx context.Context, in *topologyBody) (*body[api.TopologyPlan], error) {
	plan, err := h.planTopology(ctx, in)
	if err != nil {
		return nil, err
	}
	plan.Body.Warnings = nil
	changes := make([]api.ObjectChange, len(plan.Body.Changes))
	for i, c := range plan.Body.Changes {
		c.Effect = ""
		changes[i] = c
	}
	plan.Body.Changes = changes
	return plan, nil
}

func (h *handler) putTopology(ctx context.Context, in *putTopology) (*applied, error) {
	doc := topologyBody{ContentType: in.ContentType, RawBody: in.RawBody}
	if in.DryRun {
		plan, err := h.planTopology(ctx, &doc)
		if err != nil {
			return nil, err
		}
		return &applied{ETag: api.ETag(plan.Body.Revision), Body: plan.Body}, nil
	}
	ifMatch, err := in.condition()
	if err != nil {
		return nil, err
	}
	t, err := h.parse(&doc)
	if err != nil {
		return nil, err
	}
	now, _, err := h.Topologies.Topology(ctx)
	if err != nil {
		return nil, err
	}
	keepPasswords(t, now)
	plan, err := h.Topologies.ApplyTopology(ctx, t, ifMatch)
	if err != nil {
		return nil, err
	}
	return &applied{ETag: api.ETag(plan.Revision), Body: plan}, nil
}

// condition is the revision that the topology in force must have: -1 for any, 0 for none.
func (in *putTopology) condition() (int64, error) {
	switch {
	case in.IfNoneMatch == "*" && in.IfMatch == "":
		return 0, nil
	case in.IfMatch == "*":
		return -1, nil
	case in.IfMatch == "":
		p := api.NewProblem(http.StatusPreconditionRequired, "say which topology this one replaces")
		p.Hint = "send If-Match with the ETag that GET /v1/topology gave you; If-None-Match: * when there is none yet; If-Match: * to replace any"
		return 0, p
	}
	digits, ok := strings.CutPrefix(in.IfMatch, `"`)
	digits, ok2 := strings.CutSuffix(digits, `"`)
	rev, err := strconv.ParseInt(digits, 10, 64)
	if !ok || !ok2 || err != nil || rev < 0 {
		p := api.NewProblem(http.StatusBadRequest, "If-Match is no ETag of a topology")
		p.Errors = []api.FieldProblem{{Pointer: "header.If-Match", Detail: "not an ETag that we gave", Hint: `write it as GET /v1/topology answered it: "42", quotes included`}}
		return 0, p
	}
	return rev, nil
}
