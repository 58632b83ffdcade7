package agentapi

import (
	"context"
	"errors"
	"testing"
	"time"

	"heliotrope/scheduler/perf"
)

// Measure measures what the host has in its terms: each is a value, and an odd one cannot be.
func (h *host) Measure(_ context.Context, o BenchOrder) (perf.Measurement, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if o.Term < h.term {
		return perf.Measurement{}, ErrStale
	}
	h.measured = perf.Measurement{At: time.Unix(int64(o.Term), 0).UTC(), VCPUs: 2, Values: map[perf.Metric]float64{perf.CPUAll: 4e8}}
	if o.Term%2 == 1 {
		h.measured.Values["beauty"] = 1
	}
	close(h.news)
	h.news = make(chan struct{})
	return h.measured, nil
}

func (h *host) Next(ctx context.Context, after time.Time) (perf.Measurement, error) {
	for {
		h.mu.Lock()
		m, news := h.measured, h.news
		h.mu.Unlock()
		if !m.At.IsZero() && !m.At.Equal(after) {
			return m, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return m, context.Cause(ctx)
		}
	}
}

// An order to measure is answered with what was measured; whoever follows gets the newest
// and those to come; and what no agent of ours can have measured is an error.
func TestMeasurements(t *testing.T) {
	r, c, h := newRegistry(t), newController(), newHost()
	addr, _ := listen(t, "127.0.0.1:0", r.ca, c.acceptor(r))
	dial(t, addr, r, h)
	a := c.agent(t, 10*time.Second)
	ctx := within(t, 20*time.Second)
	m, err := a.Measure(ctx, BenchOrder{Term: 2})
	if err != nil || m.Values[perf.CPUAll] != 4e8 || !m.At.Equal(time.Unix(2, 0)) {
		t.Fatalf("%+v, %v", m, err)
	}
	seen, enough := []int64{}, errors.New("enough")
	err = a.Measurements(ctx, func(m perf.Measurement) error {
		if seen = append(seen, m.At.Unix()); len(seen) == 2 {
			return enough
		}
		_, err := a.Measure(ctx, BenchOrder{Term: 4})
		return err
	})
	if !errors.Is(err, enough) || seen[0] != 2 || seen[1] != 4 {
		t.Errorf("saw %v, %v", seen, err)
	}
	if m, err := a.Measure(ctx, BenchOrder{Term: 5}); err == nil {
		t.Errorf("took %+v", m)
	}
	if err := a.Measurements(ctx, func(perf.Measurement) error { return nil }); err == nil || ctx.Err() != nil {
		t.Errorf("what cannot be was taken: %v", err)
	}
	h.mu.Lock()
	h.term = 9
	h.mu.Unlock()
	if _, err := a.Measure(ctx, BenchOrder{Term: 6}); !errors.Is(err, ErrStale) {
		t.Errorf("got %v, want ErrStale", err)
	}
}
