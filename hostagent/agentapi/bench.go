package agentapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"heliotrope/scheduler/perf"
)

// measurementLimit is the longest measurement, in bytes.
const measurementLimit = 64 << 10

// BenchOrder asks a host to be measured now.
type BenchOrder struct {
	Term uint64 `json:"term"`
}

// Bencher is an agent's part in measuring its host.
type Bencher interface {
	// Measure measures now, which takes some seconds, and fails with ErrBusy where a move is
	// under way.
	Measure(ctx context.Context, order BenchOrder) (perf.Measurement, error)
	// Next returns the newest measurement that is not that of after, and waits while there
	// is none.
	Next(ctx context.Context, after time.Time) (perf.Measurement, error)
}

// Measure gives a BenchOrder and returns what was measured.
func (a *Agent) Measure(ctx context.Context, order BenchOrder) (perf.Measurement, error) {
	var m perf.Measurement
	err := call(ctx, a.http, http.MethodPost, "/v1/measurements", order, &m)
	if err == nil {
		err = m.Check()
	}
	if err != nil {
		return perf.Measurement{}, fmt.Errorf("measure %s: %w", a.host, err)
	}
	return m, nil
}

// Measurements calls f for the newest measurement, if there is one, and for each to come,
// until ctx or the connection ends or f fails; it never returns nil.
func (a *Agent) Measurements(ctx context.Context, f func(perf.Measurement) error) error {
	resp, err := send(ctx, a.http, http.MethodGet, "/v1/measurements", nil)
	if err != nil {
		return fmt.Errorf("get measurements of %s: %w", a.host, err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, measurementLimit)
	for lines.Scan() {
		m, err := perf.Parse(lines.Bytes())
		if err != nil {
			return fmt.Errorf("get measurements of %s: %w", a.host, err)
		}
		if err := f(m); err != nil {
			return err
		}
	}
	return fmt.Errorf("get measurements of %s: %w", a.host, errors.Join(lines.Err(), io.EOF))
}

func serveMeasure(w http.ResponseWriter, r *http.Request, b Bencher) {
	var o BenchOrder
	err := readOrder(w, r, &o)
	var m perf.Measurement
	if err == nil {
		m, err = b.Measure(r.Context(), o)
	}
	answer(w, m, err)
}

func serveMeasurements(w http.ResponseWriter, r *http.Request, b Bencher) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	control, lines := http.NewResponseController(w), json.NewEncoder(w)
	var after time.Time
	for control.Flush() == nil {
		m, err := b.Next(r.Context(), after)
		if err != nil || lines.Encode(m) != nil {
			return // the caller has gone, or the agent ends: it sees the stream end
		}
		after = m.At
	}
}
