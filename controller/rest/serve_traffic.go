package rest

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/report"
)

type (
	// TrafficFilter is what all questions about traffic take. It and TrafficQuery have
	// capitals since huma passes over embedded types that have none.
	TrafficFilter struct {
		Window  string               `query:"window" default:"1m" doc:"Length of the time that is looked at, 1s to 24h." example:"10m"`
		Network heliotrope.NetworkID `query:"network" doc:"Only traffic of VMs in this network."`
		Site    heliotrope.SiteID    `query:"site" doc:"Only traffic of VMs at this site."`
		VM      []string             `query:"vm,explode" doc:"Only traffic of these VMs."`
		Top     int                  `query:"top" minimum:"1" maximum:"1000" default:"20" doc:"How many ends, pairs, services or changes are listed."`
	}
	// TrafficQuery is what those about one window take.
	TrafficQuery struct {
		TrafficFilter
		End string `query:"end" doc:"End of the window: now, how long ago, or RFC 3339. Default: now." example:"10m"`
	}
	trafficTop struct {
		TrafficQuery
		By string `query:"by" enum:"pairs,vms,services" default:"pairs" doc:"What is listed."`
	}
	trafficMatrix struct {
		TrafficQuery
		Accept string `header:"Accept" doc:"application/json or text/csv."`
		Format string `query:"format" enum:"json,csv" doc:"The same, where a header is hard to send."`
	}
	trafficDiff struct {
		TrafficFilter
		Before string `query:"before" required:"true" doc:"End of the first window: how long ago, or RFC 3339." example:"10m"`
		After  string `query:"after" default:"now" doc:"End of the second window: now, how long ago, or RFC 3339." example:"now"`
	}
	// content is an answer in a format of its own.
	content struct {
		ContentType string `header:"Content-Type"`
		Body        []byte
	}
)

func (h *handler) registerTraffic(routes huma.API) {
	handle(h, routes, operation("GET", "/v1/traffic/report", "traffic-report", "Who talks to whom, in which patterns, and what that costs", 404, 422), h.trafficReport)
	handle(h, routes, operation("GET", "/v1/traffic/top", "traffic-top", "The pairs, VMs or services with most traffic", 404, 422), h.trafficTop)
	handle(h, routes, operation("GET", "/v1/traffic/patterns", "traffic-patterns", "VMs that belong together, and how they talk", 404, 422), h.trafficPatterns)
	handle(h, routes, operation("GET", "/v1/traffic/diff", "traffic-diff", "What changed from one window to another", 404, 422), h.trafficDiff)

	matrix := operation("GET", "/v1/traffic/matrix", "traffic-matrix", "All that was counted, a cell for each two ends", 404, 422)
	matrix.Responses = map[string]*huma.Response{"200": {Description: "The matrix", Content: map[string]*huma.MediaType{
		api.MediaJSON: {Schema: schemaOf[traffic.Matrix](routes.OpenAPI().Components.Schemas)},
		api.MediaCSV:  {Schema: &huma.Schema{Type: huma.TypeString}},
	}}}
	handle(h, routes, matrix, h.trafficMatrix)
	page := operation("GET", "/v1/traffic/report.html", "traffic-page", "The report as a page that needs nothing else", 404, 422)
	page.Responses = map[string]*huma.Response{"200": {Description: "The page", Content: map[string]*huma.MediaType{
		api.MediaHTML: {Schema: &huma.Schema{Type: huma.TypeString}},
	}}}
	handle(h, routes, page, h.trafficPage)
}

func (h *handler) trafficReport(ctx context.Context, in *TrafficQuery) (*body[report.Report], error) {
	q, err := h.trafficQuery(ctx, in)
	if err != nil {
		return nil, err
	}
	r, err := h.Traffic.Report(ctx, q)
	return &body[report.Report]{r}, err
}

func (h *handler) trafficTop(ctx context.Context, in *trafficTop) (*body[api.TrafficTop], error) {
	r, err := h.trafficReport(ctx, &in.TrafficQuery)
	if err != nil {
		return nil, err
	}
	top := api.TrafficTop{From: r.Body.From, To: r.Body.To, Total: r.Body.Total, Notes: r.Body.Notes}
	switch in.By {
	case "vms":
		top.Talkers = r.Body.Talkers
	case "services":
		top.Services = r.Body.Services
	default:
		top.Pairs = r.Body.Pairs
	}
	return &body[api.TrafficTop]{top}, nil
}

func (h *handler) trafficPatterns(ctx context.Context, in *TrafficQuery) (*body[api.TrafficPatterns], error) {
	r, err := h.trafficReport(ctx, in)
	if err != nil {
		return nil, err
	}
	p := api.TrafficPatterns{From: r.Body.From, To: r.Body.To, Groups: r.Body.Groups, Notes: r.Body.Notes}
	return &body[api.TrafficPatterns]{p}, nil
}

func (h *handler) trafficMatrix(ctx context.Context, in *trafficMatrix) (*content, error) {
	q, err := h.trafficQuery(ctx, &in.TrafficQuery)
	if err != nil {
		return nil, err
	}
	m, err := h.Traffic.Matrix(ctx, q)
	if err != nil {
		return nil, err
	}
	c := &content{ContentType: api.MediaJSON}
	if in.Format == "csv" || in.Format == "" && prefers(in.Accept, "csv") {
		c.ContentType = api.MediaCSV + "; charset=utf-8; header=present"
		c.Body, err = matrixCSV(m)
		return c, err
	}
	c.Body, err = json.Marshal(m)
	return c, err
}

func (h *handler) trafficPage(ctx context.Context, in *TrafficQuery) (*content, error) {
	q, err := h.trafficQuery(ctx, in)
	if err != nil {
		return nil, err
	}
	page, err := h.Traffic.Page(ctx, q)
	return &content{ContentType: api.MediaHTML + "; charset=utf-8", Body: page}, err
}

func (h *handler) trafficDiff(ctx context.Context, in *trafficDiff) (*body[api.TrafficDiff], error) {
	now := time.Now().UTC()
	after, err := h.trafficFilter(ctx, in.TrafficFilter)
	if err != nil {
		return nil, err
	}
	before := after
	if before.End, err = moment("query.before", in.Before, now); err != nil {
		return nil, err
	}
	if after.End, err = moment("query.after", in.After, now); err != nil {
		return nil, err
	}
	if before.End.IsZero() || !after.End.IsZero() && !before.End.Before(after.End) {
		return nil, wrongQuery("query.before", "is not earlier than after", "swap them, or write before=10m")
	}
	d, err := h.Traffic.Diff(ctx, before, after)
	return &body[api.TrafficDiff]{d}, err
}

func (h *handler) trafficQuery(ctx context.Context, in *TrafficQuery) (api.TrafficQuery, error) {
	q, err := h.trafficFilter(ctx, in.TrafficFilter)
	if err != nil {
		return q, err
	}
	q.End, err = moment("query.end", in.End, time.Now().UTC())
	return q, err
}

// trafficFilter checks all that is asked but the time. Where nothing is counted it says so.
func (h *handler) trafficFilter(ctx context.Context, in TrafficFilter) (api.TrafficQuery, error) {
	q := api.TrafficQuery{Network: in.Network, Site: in.Site, Top: in.Top}
	if h.Traffic == nil {
		p := api.Unavailable("traffic is not counted")
		p.Hint = "capture in the topology says how hosts count"
		return q, p
	}
	window, err := time.ParseDuration(in.Window)
	if err != nil {
		return q, wrongQuery("query.window", "is no duration", "write it like 30s, 10m or 24h")
	}
	if window < api.MinWindow || window > api.MaxWindow {
		return q, wrongQuery("query.window", "is out of range", "use 1s to 24h")
	}
	q.Window = window
	if in.Network == "" && in.Site == "" && len(in.VM) == 0 {
		return q, nil
	}
	t, _, err := h.Topologies.Topology(ctx)
	if err != nil {
		return q, err
	}
	if _, ok := t.Networks[in.Network]; !ok && in.Network != "" {
		return q, unknown("network", string(in.Network))
	}
	if _, ok := t.Sites[in.Site]; !ok && in.Site != "" {
		return q, unknown("site", string(in.Site))
	}
	for _, vm := range in.VM {
		if _, ok := t.VMs[heliotrope.VMID(vm)]; !ok {
			return q, unknown("vm", vm)
		}
		q.VMs = append(q.VMs, heliotrope.VMID(vm))
	}
	slices.Sort(q.VMs)
	q.VMs = slices.Compact(q.VMs)
	return q, nil
}

// unknown is a filter that names nothing.
func unknown(kind, name string) *api.Problem {
	p := api.NotFound(kind, name)
	p.Errors = []api.FieldProblem{{Pointer: "query." + kind, Detail: "is not in the topology"}}
	return p
}

func moment(pointer, s string, now time.Time) (time.Time, error) {
	t, err := api.ParseMoment(s, now)
	if err != nil {
		return t, wrongQuery(pointer, err.Error(), "write now, how long ago, such as 10m, or a time like 2026-11-25T12:00:00Z")
	}
	return t, nil
}

func wrongQuery(pointer, detail, hint string) *api.Problem {
	return api.Invalid("the query is not valid", api.FieldProblem{Pointer: pointer, Detail: detail, Hint: hint})
}

// serviceText is empty for none.
func serviceText(s traffic.Service) string {
	if s == (traffic.Service{}) {
		return ""
	}
	return s.String()
}

// matrixCSV is a line for each cell. Bytes, packets and flows are those of the whole window.
func matrixCSV(m traffic.Matrix) ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	rows := [][]string{{"src", "dst", "bytes", "low", "high", "packets", "flows", "service", "reply", "rtt_ms", "rtt_min_ms", "burst"}}
	number := func(x float64) string { return strconv.FormatFloat(x, 'f', -1, 64) }
	ms := func(d time.Duration) string { return number(float64(d) / float64(time.Millisecond)) }
	for _, c := range m.Cells {
		var largest traffic.ServiceShare
		if len(c.Services) > 0 {
			largest = c.Services[0]
		}
		rows = append(rows, []string{c.Src.String(), c.Dst.String(), number(c.Bytes), number(c.Low), number(c.High), number(c.Packets), number(c.Flows),
			serviceText(largest.Service), strconv.FormatBool(largest.Reply), ms(c.RTT), ms(c.RTTMin), number(c.Burst)})
	}
	err := w.WriteAll(rows)
	return b.Bytes(), err
}
