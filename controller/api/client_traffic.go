package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/report"
)

// values are q as a server reads it, without the end of the window.
func (q TrafficQuery) values() url.Values {
	v := url.Values{}
	if q.Window != 0 {
		v.Set("window", q.Window.String())
	}
	if q.Network != "" {
		v.Set("network", string(q.Network))
	}
	if q.Site != "" {
		v.Set("site", string(q.Site))
	}
	for _, vm := range q.VMs {
		v.Add("vm", string(vm))
	}
	if q.Top != 0 {
		v.Set("top", strconv.Itoa(q.Top))
	}
	return v
}

func (q TrafficQuery) valuesWithEnd() url.Values {
	v := q.values()
	if !q.End.IsZero() {
		v.Set("end", momentText(q.End))
	}
	return v
}

func momentText(t time.Time) string {
	if t.IsZero() {
		return "now"
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// TrafficReport is who talks to whom.
func (c *Client) TrafficReport(ctx context.Context, q TrafficQuery) (report.Report, error) {
	return get[report.Report](ctx, c, q.valuesWithEnd(), "/v1/traffic/report")
}

// TrafficTop lists pairs, vms or services, those with most traffic first.
func (c *Client) TrafficTop(ctx context.Context, q TrafficQuery, by string) (TrafficTop, error) {
	v := q.valuesWithEnd()
	v.Set("by", by)
	return get[TrafficTop](ctx, c, v, "/v1/traffic/top")
}

// TrafficPatterns are the groups and what they do.
func (c *Client) TrafficPatterns(ctx context.Context, q TrafficQuery) (TrafficPatterns, error) {
	return get[TrafficPatterns](ctx, c, q.valuesWithEnd(), "/v1/traffic/patterns")
}

// TrafficMatrix is all that was counted.
func (c *Client) TrafficMatrix(ctx context.Context, q TrafficQuery) (traffic.Matrix, error) {
	return get[traffic.Matrix](ctx, c, q.valuesWithEnd(), "/v1/traffic/matrix")
}

// TrafficDiff says what changed from the window that ends at before.End to the one that
// ends at after.End. The rest of before does not matter.
func (c *Client) TrafficDiff(ctx context.Context, before, after TrafficQuery) (TrafficDiff, error) {
	v := after.values()
	v.Set("before", momentText(before.End))
	v.Set("after", momentText(after.End))
	return get[TrafficDiff](ctx, c, v, "/v1/traffic/diff")
}

// WriteTrafficCSV writes the matrix to w, a line for each cell.
func (c *Client) WriteTrafficCSV(ctx context.Context, q TrafficQuery, w io.Writer) error {
	return c.copy(ctx, w, call{method: http.MethodGet, path: "/v1/traffic/matrix", query: q.valuesWithEnd(), header: http.Header{"Accept": {MediaCSV}}})
}

// WriteTrafficPage writes the report as an HTML page to w.
func (c *Client) WriteTrafficPage(ctx context.Context, q TrafficQuery, w io.Writer) error {
	return c.copy(ctx, w, call{method: http.MethodGet, path: "/v1/traffic/report.html", query: q.valuesWithEnd()})
}

// copy writes the body of an answer of any size.
func (c *Client) copy(ctx context.Context, w io.Writer, q call) error {
	resp, err := c.send(ctx, q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("read answer of %s: %w", c.name, err)
	}
	return nil
}
