package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"heliotrope/controller/api"
)

// wantProblem checks that an answer is a well-formed problem of a status, and of a type
// unless that is empty.
func wantProblem(t *testing.T, a answer, status int, typ string) api.Problem {
	t.Helper()
	var p api.Problem
	if ct := a.Header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("content type is %q, body %s", ct, a.body)
	}
	if err := json.Unmarshal(a.body, &p); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
	if a.StatusCode != status || p.Status != status || typ != "" && p.Type != typ || p.Title == "" || p.Instance == "" {
		t.Errorf("got %d %s, want %d %s", a.StatusCode, a.body, status, typ)
	}
	return p
}

// silent is the error of a store that does not answer.
type silent struct{}

func (silent) Error() string     { return "the store does not answer" }
func (silent) Unavailable() bool { return true }

const (
	asJSON = "application/json"
	asYAML = "application/yaml"
)

// Every route with every kind of wrong input answers with a problem that says what.
func TestWrongInput(t *testing.T) {
	s := serve(t, Options{})
	yaml := string(s.example(t))
	big := strings.Repeat("x", api.MaxBody+1)
	for _, c := range []struct {
		name, method, path, contentType, body string
		header                                [2]string
		status                                int
		typ                                   string
		pointer                               string // of the first field, where there is one
	}{
		{name: "no such route", method: "GET", path: "/v1/nothing", status: 404, typ: api.TypeNotFound},
		{name: "root", method: "GET", path: "/", status: 404, typ: api.TypeNotFound},
		{name: "method", method: "PATCH", path: "/v1/topology", status: 405, typ: api.TypeMethod},
		{name: "method on one", method: "PUT", path: "/v1/vms/web", status: 405, typ: api.TypeMethod},
		{name: "odd method", method: "FOO", path: "/healthz", status: 405, typ: api.TypeMethod},
		{name: "no such site", method: "GET", path: "/v1/sites/mars", status: 404, typ: api.TypeNotFound},
		{name: "no such host", method: "GET", path: "/v1/hosts/mars", status: 404, typ: api.TypeNotFound},
		{name: "no such network", method: "GET", path: "/v1/networks/mars", status: 404, typ: api.TypeNotFound},
		{name: "no such vm", method: "GET", path: "/v1/vms/mars", status: 404, typ: api.TypeNotFound},
		{name: "odd name", method: "GET", path: "/v1/vms/%00%ff", status: 404, typ: api.TypeNotFound},
		{name: "no such migration", method: "GET", path: "/v1/migrations/m-1", status: 404, typ: api.TypeNotFound},
		{name: "abort nothing", method: "POST", path: "/v1/migrations/m-1/abort", status: 404, typ: api.TypeNotFound},
		{name: "token for nobody", method: "POST", path: "/v1/hosts/mars/token", status: 404, typ: api.TypeNotFound},
		{name: "revoke nobody", method: "DELETE", path: "/v1/hosts/mars", status: 404, typ: api.TypeNotFound},
		{name: "flows of nobody", method: "GET", path: "/v1/hosts/mars/flows", status: 404, typ: api.TypeNotFound},
		{name: "flow diff of nobody", method: "GET", path: "/v1/hosts/mars/flows/diff", status: 404, typ: api.TypeNotFound},
		{name: "why no address", method: "GET", path: "/v1/routes/why/web", status: 422, typ: api.TypeInvalid, pointer: "path.ip"},
		{name: "unknown query", method: "GET", path: "/v1/vms?color=red", status: 422, typ: api.TypeInvalid, pointer: "query.color"},
		{name: "query not a number", method: "GET", path: "/v1/migrations?limit=many", status: 422, typ: api.TypeInvalid, pointer: "query.limit"},
		{name: "query out of range", method: "GET", path: "/v1/migrations?limit=0", status: 422, typ: api.TypeInvalid, pointer: "query.limit"},
		{name: "after not a number", method: "GET", path: "/v1/migrations/x?wait=true&after=-3", status: 422, typ: api.TypeInvalid, pointer: "query.after"},
		{name: "wait not a bool", method: "GET", path: "/v1/migrations/x?wait=perhaps", status: 422, typ: api.TypeInvalid, pointer: "query.wait"},
		{name: "event id", method: "GET", path: "/v1/events", header: [2]string{"Last-Event-ID", "abc"}, status: 422, typ: api.TypeInvalid, pointer: "header.Last-Event-ID"},
		{name: "event limit", method: "GET", path: "/v1/events?limit=5000", status: 422, typ: api.TypeInvalid, pointer: "query.limit"},

		{name: "window no duration", method: "GET", path: "/v1/traffic/report?window=long", status: 422, typ: api.TypeInvalid, pointer: "query.window"},
		{name: "window too short", method: "GET", path: "/v1/traffic/matrix?window=10ms", status: 422, typ: api.TypeInvalid, pointer: "query.window"},
		{name: "window too long", method: "GET", path: "/v1/traffic/report.html?window=25h", status: 422, typ: api.TypeInvalid, pointer: "query.window"},
		{name: "end no time", method: "GET", path: "/v1/traffic/patterns?end=noon", status: 422, typ: api.TypeInvalid, pointer: "query.end"},
		{name: "end in the future", method: "GET", path: "/v1/traffic/report?end=2999-01-01T00:00:00Z", status: 422, typ: api.TypeInvalid, pointer: "query.end"},
		{name: "end before birth", method: "GET", path: "/v1/traffic/report?end=-10m", status: 422, typ: api.TypeInvalid, pointer: "query.end"},
		{name: "top none", method: "GET", path: "/v1/traffic/report?top=0", status: 422, typ: api.TypeInvalid, pointer: "query.top"},
		{name: "top too many", method: "GET", path: "/v1/traffic/report?top=1001", status: 422, typ: api.TypeInvalid, pointer: "query.top"},
		{name: "by colour", method: "GET", path: "/v1/traffic/top?by=colour", status: 422, typ: api.TypeInvalid, pointer: "query.by"},
		{name: "matrix as XML", method: "GET", path: "/v1/traffic/matrix?format=xml", status: 422, typ: api.TypeInvalid, pointer: "query.format"},
		{name: "diff without before", method: "GET", path: "/v1/traffic/diff", status: 422, typ: api.TypeInvalid, pointer: "query.before"},
		{name: "diff backwards", method: "GET", path: "/v1/traffic/diff?before=1m&after=2m", status: 422, typ: api.TypeInvalid, pointer: "query.before"},
		{name: "diff of nothing", method: "GET", path: "/v1/traffic/diff?before=now", status: 422, typ: api.TypeInvalid, pointer: "query.before"},
		{name: "diff after", method: "GET", path: "/v1/traffic/diff?before=1m&after=later", status: 422, typ: api.TypeInvalid, pointer: "query.after"},
		{name: "traffic of no vm", method: "GET", path: "/v1/traffic/report?vm=web&vm=mars", status: 404, typ: api.TypeNotFound, pointer: "query.vm"},
		{name: "traffic of no site", method: "GET", path: "/v1/traffic/report?site=mars", status: 404, typ: api.TypeNotFound, pointer: "query.site"},
		{name: "traffic of no network", method: "GET", path: "/v1/traffic/report?network=mars", status: 404, typ: api.TypeNotFound, pointer: "query.network"},

		{name: "images of no store", method: "GET", path: "/v1/images", status: 503, typ: api.TypeUnavailable},
		{name: "upload to no store", method: "POST", path: "/v1/uploads", contentType: asJSON, body: `{"image":"web","size_bytes":1}`, status: 503, typ: api.TypeUnavailable},
		{name: "part without an offset", method: "PATCH", path: "/v1/uploads/u-1", contentType: api.MediaPart, body: "x", status: 422, typ: api.TypeInvalid, pointer: "header.Upload-Offset"},

		{name: "no body", method: "POST", path: "/v1/migrations", status: 400, typ: api.TypeBadRequest},
		{name: "no JSON", method: "POST", path: "/v1/migrations", contentType: asJSON, body: "{", status: 400, typ: api.TypeBadRequest},
		{name: "JSON of another shape", method: "POST", path: "/v1/migrations", contentType: asJSON, body: "[1]", status: 422, typ: api.TypeInvalid},
		{name: "null", method: "POST", path: "/v1/migrations", contentType: asJSON, body: "null", status: 422, typ: api.TypeInvalid},
		{name: "media type", method: "POST", path: "/v1/migrations", contentType: "text/xml", body: "<a/>", status: 415, typ: api.TypeMediaType},
		{name: "field missing", method: "POST", path: "/v1/migrations", contentType: asJSON, body: `{"vm":"web"}`, status: 422, typ: api.TypeInvalid},
		{name: "field of another type", method: "POST", path: "/v1/migrations", contentType: asJSON, body: `{"vm":7,"to":"eu"}`, status: 422, typ: api.TypeInvalid, pointer: "/vm"},
		{name: "field empty", method: "POST", path: "/v1/migrations", contentType: asJSON, body: `{"vm":"","to":"eu"}`, status: 422, typ: api.TypeInvalid, pointer: "/vm"},
		{name: "field unknown", method: "POST", path: "/v1/migrations", contentType: asJSON, body: `{"vm":"web","to":"eu","max_downtime":3}`, status: 422, typ: api.TypeInvalid, pointer: "/max_downtime"},
		{name: "field out of range", method: "POST", path: "/v1/migrations", contentType: asJSON, body: `{"vm":"web","to":"eu","max_downtime_ms":-1}`, status: 422, typ: api.TypeInvalid, pointer: "/max_downtime_ms"},
		{name: "no such vm to move", method: "POST", path: "/v1/migrations", contentType: asJSON, body: `{"vm":"mars","to":"eu"}`, status: 404, typ: api.TypeNotFound},
		{name: "no such vm to preview", method: "POST", path: "/v1/migrations", contentType: asJSON, body: `{"vm":"mars","to":"eu","dry_run":true}`, status: 404, typ: api.TypeNotFound},
		{name: "body too large", method: "POST", path: "/v1/migrations", contentType: asJSON, body: big, status: 413, typ: api.TypeTooLarge},
		{name: "key too long", method: "POST", path: "/v1/migrations", contentType: asJSON, body: `{}`, header: [2]string{"Idempotency-Key", strings.Repeat("k", 300)}, status: 400, typ: api.TypeBadRequest, pointer: "header.Idempotency-Key"},
		{name: "packet size", method: "POST", path: "/v1/mesh/verify", contentType: asJSON, body: `{"packet_size":1}`, status: 422, typ: api.TypeInvalid, pointer: "/packet_size"},
		{name: "packet size missing", method: "POST", path: "/v1/mesh/verify", contentType: asJSON, body: `{}`, status: 422, typ: api.TypeInvalid},

		{name: "empty topology", method: "POST", path: "/v1/topology/validate", contentType: asYAML, status: 400, typ: api.TypeBadRequest},
		{name: "topology as XML", method: "POST", path: "/v1/topology/validate", contentType: "text/xml", body: "<a/>", status: 415, typ: api.TypeMediaType},
		{name: "topology as nonsense", method: "POST", path: "/v1/topology/plan", contentType: ";;", body: "a: b", status: 415, typ: api.TypeMediaType},
		{name: "wrong topology", method: "POST", path: "/v1/topology/validate", contentType: asYAML, body: "version: 1\nnam: x\n", status: 422, typ: api.TypeInvalid, pointer: "/nam"},
		{name: "wrong topology in JSON", method: "POST", path: "/v1/topology/diff", contentType: asJSON, body: `{"version":1,"nam":"x"}`, status: 422, typ: api.TypeInvalid, pointer: "/nam"},
		{name: "plan of a wrong one", method: "POST", path: "/v1/topology/plan", contentType: asYAML, body: "version: 9\n", status: 422, typ: api.TypeInvalid},
		{name: "dry run of a wrong one", method: "PUT", path: "/v1/topology?dry_run=true", contentType: asYAML, body: "version: 9\n", status: 422, typ: api.TypeInvalid},
		{name: "topology too large", method: "POST", path: "/v1/topology/validate", contentType: asYAML, body: big, status: 413, typ: api.TypeTooLarge},
		{name: "no condition", method: "PUT", path: "/v1/topology", contentType: asYAML, body: yaml, status: 428, typ: api.TypeNoCondition},
		{name: "stale", method: "PUT", path: "/v1/topology", contentType: asYAML, body: yaml, header: [2]string{"If-Match", `"1"`}, status: 412, typ: api.TypeStale},
		{name: "there is one", method: "PUT", path: "/v1/topology", contentType: asYAML, body: yaml, header: [2]string{"If-None-Match", "*"}, status: 412, typ: api.TypeStale},
		{name: "weak ETag", method: "PUT", path: "/v1/topology", contentType: asYAML, body: yaml, header: [2]string{"If-Match", `W/"1"`}, status: 400, typ: api.TypeBadRequest, pointer: "header.If-Match"},
		{name: "bare ETag", method: "PUT", path: "/v1/topology", contentType: asYAML, body: yaml, header: [2]string{"If-Match", "12"}, status: 400, typ: api.TypeBadRequest, pointer: "header.If-Match"},
	} {
		t.Run(c.name, func(t *testing.T) {
			header := map[string]string{}
			if c.contentType != "" {
				header["Content-Type"] = c.contentType
			}
			if c.header[0] != "" {
				header[c.header[0]] = c.header[1]
			}
			p := wantProblem(t, s.ask(t, c.method, c.path, header, strings.NewReader(c.body)), c.status, c.typ)
			if c.pointer != "" && !slices.ContainsFunc(p.Errors, func(f api.FieldProblem) bool { return f.Pointer == c.pointer }) {
				t.Errorf("errors are %+v, want one at %s", p.Errors, c.pointer)
			}
			if strings.HasPrefix(c.pointer, "query.") && p.Hint+p.Errors[0].Hint == "" {
				t.Error("it does not say how to mend it")
			}
			if c.status == 422 && len(p.Errors) == 0 {
				t.Error("it does not say which field")
			}
		})
	}
	if len(s.memory.migrations) != 0 {
		t.Errorf("a wrong request started %v", s.memory.migrations)
	}
}

func TestMethodNotAllowedSaysWhatIs(t *testing.T) {
	a := serve(t, Options{}).ask(t, "PATCH", "/v1/topology", nil, nil)
	if allow := a.Header.Get("Allow"); !strings.Contains(allow, "GET") || !strings.Contains(allow, "PUT") {
		t.Errorf("Allow is %q", allow)
	}
}

// When the store is away everything answers 503; what is our fault answers 500 without its text.
func TestFailures(t *testing.T) {
	s := serve(t, Options{})
	s.example(t)
	set := func(err error) {
		s.memory.mu.Lock()
		defer s.memory.mu.Unlock()
		s.memory.err = err
	}
	for _, path := range []string{"/v1/topology", "/v1/status", "/v1/sites", "/v1/hosts", "/v1/networks", "/v1/vms", "/v1/vms/web", "/v1/migrations",
		"/v1/routes", "/v1/mesh", "/v1/events", "/v1/routes/why/1.2.3.4",
		"/v1/traffic/report", "/v1/traffic/top", "/v1/traffic/matrix", "/v1/traffic/patterns", "/v1/traffic/diff?before=1m", "/v1/traffic/report.html"} {
		set(fmt.Errorf("read: %w", silent{}))
		wantProblem(t, s.ask(t, "GET", path, nil, nil), 503, api.TypeUnavailable)
		set(api.Unavailable("the store does not answer"))
		wantProblem(t, s.ask(t, "GET", path, nil, nil), 503, api.TypeUnavailable)
		set(fmt.Errorf("read: %w", context.DeadlineExceeded))
		wantProblem(t, s.ask(t, "GET", path, nil, nil), 503, api.TypeUnavailable)
		set(errors.New("the secret is 42"))
		if a := s.ask(t, "GET", path, nil, nil); strings.Contains(string(a.body), "42") {
			t.Errorf("%s tells %s", path, a.body)
		} else {
			wantProblem(t, a, 500, api.TypeInternal)
		}
	}
	set(errors.New("broken"))
	wantProblem(t, s.ask(t, "POST", "/v1/migrations", map[string]string{"Content-Type": asJSON, "Idempotency-Key": "k"}, strings.NewReader(`{"vm":"web","to":"eu"}`)), 500, api.TypeInternal)
	set(nil)
	s.memory.mu.Lock()
	s.memory.checks = []api.Check{{Name: "store", Detail: "does not answer"}}
	s.memory.panics = true
	s.memory.mu.Unlock()
	wantProblem(t, s.ask(t, "GET", "/v1/vms", nil, nil), 500, api.TypeInternal)
	if p := wantProblem(t, s.ask(t, "GET", "/readyz", nil, nil), 503, api.TypeUnavailable); len(p.Errors) != 1 {
		t.Errorf("readyz: %+v", p)
	}
	if a := s.ask(t, "GET", "/healthz", nil, nil); a.StatusCode != 200 {
		t.Errorf("healthz: %d", a.StatusCode)
	}
}

func TestRateLimit(t *testing.T) {
	s := serve(t, Options{Rate: 0.001, Burst: 3})
	for range 3 {
		if a := s.ask(t, "GET", "/healthz", nil, nil); a.StatusCode != 200 {
			t.Fatalf("%d %s", a.StatusCode, a.body)
		}
	}
	a := s.ask(t, "GET", "/healthz", nil, nil)
	wantProblem(t, a, 429, api.TypeTooMany)
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}
