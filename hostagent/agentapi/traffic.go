package agentapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"heliotrope/scheduler/traffic"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

// binLimit is the longest bin, in bytes: 20,000 keys with the longest names fit.
const binLimit = 16 << 20

// CaptureOrder says what the host is to count from now on.
type CaptureOrder struct {
	Term uint64 `json:"term"`
	traffic.Orders
}

// Counter is an agent's part in counting traffic.
type Counter interface {
	// Count takes an order in place of the one before.
	Count(ctx context.Context, order CaptureOrder) error
	// Bins returns the bins that follow the one numbered after, oldest first, and waits
	// while there is none. Where boot is not the agent's own it begins with the oldest kept.
	Bins(ctx context.Context, boot string, after uint64) ([]traffic.Bin, error)
}

// Count gives a CaptureOrder. It may be repeated.
func (a *Agent) Count(ctx context.Context, order CaptureOrder) error {
	var done struct{}
	if err := call(ctx, a.http, http.MethodPut, "/v1/capture", order, &done); err != nil {
		return fmt.Errorf("order %s to count: %w", a.host, err)
	}
	return nil
}

// Bins calls f for each bin after the one numbered after of boot, in order, as it comes,
// until ctx or the connection ends or f fails; it never returns nil.
func (a *Agent) Bins(ctx context.Context, boot string, after uint64, f func(traffic.Bin) error) error {
	q := url.Values{"boot": {boot}, "after": {strconv.FormatUint(after, 10)}}
	resp, err := send(ctx, a.http, http.MethodGet, "/v1/bins?"+q.Encode(), nil)
	if err != nil {
		return fmt.Errorf("get bins of %s: %w", a.host, err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, binLimit)
	for lines.Scan() {
		var b traffic.Bin
		if err := json.Unmarshal(lines.Bytes(), &b); err != nil {
			return fmt.Errorf("get bins of %s: parse bin: %w", a.host, err)
		}
		b.Host = a.host // whose it is, the certificate says
		if err := f(b); err != nil {
			return err
		}
	}
	return fmt.Errorf("get bins of %s: %w", a.host, errors.Join(lines.Err(), io.EOF))
}

func serveCount(w http.ResponseWriter, r *http.Request, c Counter) {
	var o CaptureOrder
	err := readOrder(w, r, &o)
	if err == nil {
		err = c.Count(r.Context(), o)
	}
	answer(w, struct{}{}, err)
}

func serveBins(w http.ResponseWriter, r *http.Request, c Counter) {
	boot := r.FormValue("boot")
	after, err := strconv.ParseUint(r.FormValue("after"), 10, 64)
	if err != nil {
		writeError(w, fmt.Errorf("%w: after must be a number", ErrInvalid))
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	control, lines := http.NewResponseController(w), json.NewEncoder(w)
	for control.Flush() == nil {
		bins, err := c.Bins(r.Context(), boot, after)
		if err != nil {
			return // the caller has gone, or the agent ends: it sees the stream end
		}
		for _, b := range bins {
			if lines.Encode(b) != nil {
				return
			}
			boot, after = b.Boot, b.Seq
		}
	}
}
