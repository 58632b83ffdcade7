package api

import (
	"context"
	"net/url"

	"heliotrope"
	"heliotrope/scheduler/perf"
)

// Benchmarks knows how fast hosts are.
type Benchmarks interface {
	// HostModels are those of all hosts, or (host not empty) of one and its class.
	HostModels(ctx context.Context, host heliotrope.HostID) (perf.Report, error)
	// MeasureHost measures a host now, which takes some seconds; Conflict while a move is
	// under way there, or the host is not connected.
	MeasureHost(ctx context.Context, host heliotrope.HostID) (perf.Measurement, error)
}

// Benchmarks says how fast hosts are: all, or (host not empty) one and its class.
func (c *Client) Benchmarks(ctx context.Context, host heliotrope.HostID) (perf.Report, error) {
	q := url.Values{}
	if host != "" {
		q.Set("host", string(host))
	}
	return get[perf.Report](ctx, c, q, "/v1/benchmarks")
}

// MeasureHost has a host measured now, and returns what was measured.
func (c *Client) MeasureHost(ctx context.Context, host heliotrope.HostID) (perf.Measurement, error) {
	return post[perf.Measurement](ctx, c, "", struct{}{}, "/v1/hosts/%s/benchmark", host)
}
