package rest

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"heliotrope"
	"heliotrope/scheduler/perf"
)

type benchmarkQuery struct {
	Host heliotrope.HostID `query:"host" doc:"Only this host, with the class that it is in."`
}

func (h *handler) registerBenchmarks(routes huma.API) {
	handle(h, routes, operation("GET", "/v1/benchmarks", "benchmarks", "How fast hosts are: histograms by class, what a vCPU is worth, anomalies", 404), h.benchmarks)
	handle(h, routes, operation("POST", "/v1/hosts/{host}/benchmark", "measure-host", "Measure a host now; takes some seconds", 404, 409), h.measureHost)
}

func (h *handler) benchmarks(ctx context.Context, in *benchmarkQuery) (*body[perf.Report], error) {
	r, err := h.Benchmarks.HostModels(ctx, in.Host)
	return &body[perf.Report]{r}, err
}

func (h *handler) measureHost(ctx context.Context, in *hostRef) (*body[perf.Measurement], error) {
	m, err := h.Benchmarks.MeasureHost(ctx, in.Host)
	return &body[perf.Measurement]{m}, err
}
