package rest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/report"
)

var (
	noon     = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	web, db  = traffic.VM("web"), traffic.VM("db")
	internet = traffic.Outside(netip.MustParsePrefix("203.0.113.0/24"))
	postgres = traffic.Service{Protocol: traffic.TCP, Port: 5432}
)

// count adds a minute in which web asks db, which answers bytes.
func (m *memory) count(bytes float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	from := noon.Add(time.Duration(len(m.counted)) * time.Minute)
	m.counted = append(m.counted, traffic.Matrix{From: from, To: from.Add(time.Minute), Cells: []traffic.Cell{
		{Src: db, Dst: web, Bytes: bytes, Low: bytes - 600, High: bytes + 600, Packets: 60, Services: []traffic.ServiceShare{{Service: postgres, Reply: true, Bytes: bytes}},
			RTT: 80 * time.Millisecond, RTTMin: 79500 * time.Microsecond},
		{Src: web, Dst: db, Bytes: 600, Low: 600, High: 600, Packets: 6, Flows: 2, Services: []traffic.ServiceShare{{Service: postgres, Bytes: 600}}},
		{Src: internet, Dst: web, Bytes: 60.5, Low: 60.5, High: 60.5, Packets: 1, Burst: 2},
	}})
}

// Matrix is the newest, or the oldest where an end is asked for.
func (m *memory) Matrix(_ context.Context, q api.TrafficQuery) (traffic.Matrix, error) {
	end, err := m.begin()
	defer end()
	m.asked = append(m.asked, q)
	switch {
	case err != nil || len(m.counted) == 0:
		return traffic.Matrix{}, err
	case q.End.IsZero():
		return m.counted[len(m.counted)-1], nil
	}
	return m.counted[0], nil
}

func (m *memory) Report(ctx context.Context, q api.TrafficQuery) (report.Report, error) {
	matrix, err := m.Matrix(ctx, q)
	return report.Build(report.Input{Now: noon, Matrix: matrix, Groups: []report.Group{
		{ID: "g1", Group: pattern.Group{Ends: []traffic.End{web, db}, Kind: pattern.Pair, Confidence: 0.9, Evidence: []string{"they talk"}}}},
	}, report.Options{Top: q.Top}), err
}

func (m *memory) Diff(ctx context.Context, before, after api.TrafficQuery) (api.TrafficDiff, error) {
	m1, err1 := m.Matrix(ctx, before)
	m2, err2 := m.Matrix(ctx, after)
	b, err3 := m.Report(ctx, before)
	a, err4 := m.Report(ctx, after)
	return api.CompareTraffic(b, a, traffic.Diff(m1, m2), after.Top), errors.Join(err1, err2, err3, err4)
}

func (m *memory) Page(ctx context.Context, q api.TrafficQuery) ([]byte, error) {
	r, err := m.Report(ctx, q)
	return fmt.Appendf(nil, "<!DOCTYPE html><title>%d pairs</title>", len(r.Pairs)), err
}

// query is what the backend was asked last.
func (m *memory) query() api.TrafficQuery {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked[len(m.asked)-1]
}

// The client's every question about traffic arrives as it was asked, and its answer too.
func TestTraffic(t *testing.T) {
	s := serve(t, Options{})
	s.example(t)
	s.memory.count(6000)
	s.memory.count(12000)
	c, ctx := s.client(t), t.Context()

	ask := api.TrafficQuery{Window: 90 * time.Second, End: noon.Add(time.Nanosecond), Site: "us", VMs: []heliotrope.VMID{"web"}, Top: 2}
	r, err := c.TrafficReport(ctx, ask)
	if err != nil || r.Total.Pairs != 3 || len(r.Pairs) != 2 || r.Pairs[0].Rate != 100 || r.Pairs[0].Service != postgres || !r.Pairs[0].Reply {
		t.Errorf("%+v, %v", r, err)
	}
	if got := s.memory.query(); !reflect.DeepEqual(got, ask) {
		t.Errorf("asked %+v, want %+v", got, ask)
	}
	if _, err := c.TrafficReport(ctx, api.TrafficQuery{}); err != nil || !reflect.DeepEqual(s.memory.query(), api.TrafficQuery{Window: api.DefaultWindow, Top: api.DefaultTop}) {
		t.Errorf("defaults: asked %+v, %v", s.memory.query(), err)
	}
	if _, err := c.TrafficReport(ctx, api.TrafficQuery{VMs: []heliotrope.VMID{"web", "web"}}); err != nil || len(s.memory.query().VMs) != 1 {
		t.Errorf("twice the same: asked %+v, %v", s.memory.query(), err)
	}

	m, err := c.TrafficMatrix(ctx, api.TrafficQuery{})
	if err != nil || !reflect.DeepEqual(m, s.memory.counted[1]) {
		t.Errorf("matrix %+v, %v", m, err)
	}
	p, err := c.TrafficPatterns(ctx, api.TrafficQuery{})
	if err != nil || len(p.Groups) != 1 || p.Groups[0].Kind != pattern.Pair || p.Groups[0].ID != "g1" || len(p.Groups[0].Ends) != 2 {
		t.Errorf("patterns %+v, %v", p, err)
	}
	for by, want := range map[string][3]int{"pairs": {3, 0, 0}, "vms": {0, 3, 0}, "services": {0, 0, len(r.Services)}} {
		top, err := c.TrafficTop(ctx, api.TrafficQuery{}, by)
		if got := [3]int{len(top.Pairs), len(top.Talkers), len(top.Services)}; err != nil || got != want || top.Total.Pairs != 3 {
			t.Errorf("top by %s: %v %+v, %v", by, got, top, err)
		}
	}
	d, err := c.TrafficDiff(ctx, api.TrafficQuery{End: noon}, api.TrafficQuery{Top: 5})
	want := []traffic.Change{{Kind: traffic.Grown, Src: db, Dst: web, Before: 100, After: 200, Least: 80}}
	if err != nil || !reflect.DeepEqual(d.Pairs, want) || len(d.Groups) != 0 || d.After.Total.BytesPerSecond <= d.Before.Total.BytesPerSecond {
		t.Errorf("diff %+v, %v", d, err)
	}
	var page bytes.Buffer
	if err := c.WriteTrafficPage(ctx, api.TrafficQuery{}, &page); err != nil || !strings.Contains(page.String(), "<title>3 pairs") {
		t.Errorf("page %s, %v", page.String(), err)
	}
}

func TestTrafficFormats(t *testing.T) {
	s := serve(t, Options{})
	s.memory.count(6000)
	const want = `src,dst,bytes,low,high,packets,flows,service,reply,rtt_ms,rtt_min_ms,burst
db,web,6000,5400,6600,60,0,tcp/5432,true,80,79.5,0
web,db,600,600,600,6,2,tcp/5432,false,0,0,0
203.0.113.0/24,web,60.5,60.5,60.5,1,0,,false,0,0,2
`
	for _, c := range []struct{ accept, query, contentType string }{
		{"", "", "application/json"}, {"*/*", "", "application/json"}, {"application/json, text/csv", "", "application/json"},
		{"text/csv", "", "text/csv"}, {"", "?format=csv", "text/csv"}, {"text/csv", "?format=json", "application/json"},
	} {
		a := s.ask(t, "GET", "/v1/traffic/matrix"+c.query, map[string]string{"Accept": c.accept}, nil)
		if a.StatusCode != http.StatusOK || !strings.HasPrefix(a.Header.Get("Content-Type"), c.contentType) {
			t.Errorf("%+v: %d %s", c, a.StatusCode, a.Header)
		}
		if c.contentType == "text/csv" && string(a.body) != want {
			t.Errorf("%+v: got %s\nwant %s", c, a.body, want)
		}
	}
	a := s.ask(t, "GET", "/v1/traffic/report.html?window=1h&end=10m", nil, nil)
	q := s.memory.query()
	if ct := a.Header.Get("Content-Type"); a.StatusCode != http.StatusOK || !strings.HasPrefix(ct, "text/html") {
		t.Errorf("page: %d %s", a.StatusCode, ct)
	}
	if ago := time.Since(q.End); q.Window != time.Hour || ago < 10*time.Minute || ago > 11*time.Minute {
		t.Errorf("window of %v that ended %v ago", q.Window, ago)
	}
}

// A controller that counts nothing says so on every route.
func TestNoTraffic(t *testing.T) {
	b := newMemory().backend()
	b.Traffic = nil
	h, err := NewHandler(b, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"report", "top", "matrix", "patterns", "diff?before=1m", "report.html"} {
		w := httptest.NewRecorder()
		r, err := http.NewRequestWithContext(context.WithValue(t.Context(), peerKey, peer{admin: true}), "GET", "/v1/traffic/"+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		h.ServeHTTP(w, r)
		p := wantProblem(t, answer{w.Result(), w.Body.Bytes()}, 503, api.TypeUnavailable)
		if p.Detail != "traffic is not counted" {
			t.Errorf("%s: %+v", path, p)
		}
	}
}
