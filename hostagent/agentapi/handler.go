package agentapi

import (
	"context"
	"encoding/json"
	"fmt"
	"heliotrope"
	"net/http"
	"strconv"
	"time"
)

// moveWait is how long a question about a move waits for news.
const moveWait = 20 * time.Second

// Host is what an agent does for the controller besides moves.
type Host interface {
	Status(ctx context.Context) (HostStatus, error)
	PutVM(ctx context.Context, order VMOrder) error
	RemoveVM(ctx context.Context, order RemoveOrder) error
	Probe(ctx context.Context, order ProbeOrder) ([]Path, error)
	// PullImage lets a version of an image come from the host's store, and does not wait for it.
	PullImage(ctx context.Context, order PullOrder) (ImageCache, error)
	// Snapshot begins a snapshot of a VM's disk, or says what it is at, and does not wait for it.
	Snapshot(ctx context.Context, order SnapshotOrder) (ImageSnapshot, error)
}

// Moves is an agent's part in moves.
type Moves interface {
	// PutMove takes an order up and does not wait for its end.
	PutMove(ctx context.Context, order MoveOrder) (MoveReport, error)
	// GetMove returns once the revision is not after any more, or when ctx ends.
	GetMove(ctx context.Context, id heliotrope.MoveID, role Role, after uint64) MoveReport
	// Watch returns events from now on, until ctx ends; then it closes the channel.
	Watch(ctx context.Context) <-chan Event
}

// Handler serves an agent's HTTP API.
func Handler(host Host, moves Moves, counter Counter, bencher Bencher) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		s, err := host.Status(r.Context())
		answer(w, s, err)
	})
	mux.HandleFunc("PUT /v1/vms/{vm}", func(w http.ResponseWriter, r *http.Request) {
		var o VMOrder
		err := readOrder(w, r, &o)
		if err == nil {
			err = named(r.PathValue("vm"), string(o.VM))
		}
		if err == nil {
			err = host.PutVM(r.Context(), o)
		}
		answer(w, struct{}{}, err)
	})
	mux.HandleFunc("DELETE /v1/vms/{vm}", func(w http.ResponseWriter, r *http.Request) {
		var o RemoveOrder
		err := readOrder(w, r, &o)
		if err == nil {
			err = named(r.PathValue("vm"), string(o.VM))
		}
		if err == nil {
			err = host.RemoveVM(r.Context(), o)
		}
		answer(w, struct{}{}, err)
	})
	mux.HandleFunc("POST /v1/probe", func(w http.ResponseWriter, r *http.Request) {
		var o ProbeOrder
		err := readOrder(w, r, &o)
		var paths []Path
		if err == nil {
			paths, err = host.Probe(r.Context(), o)
		}
		answer(w, paths, err)
	})
	mux.HandleFunc("POST /v1/images", func(w http.ResponseWriter, r *http.Request) {
		var o PullOrder
		err := readOrder(w, r, &o)
		var c ImageCache
		if err == nil {
			c, err = host.PullImage(r.Context(), o)
		}
		answer(w, c, err)
	})
	mux.HandleFunc("PUT /v1/snapshots/{id}", func(w http.ResponseWriter, r *http.Request) { serveSnapshot(w, r, host) })
	mux.HandleFunc("PUT /v1/moves/{id}", func(w http.ResponseWriter, r *http.Request) {
		var o MoveOrder
		err := readOrder(w, r, &o)
		if err == nil {
			err = named(r.PathValue("id"), string(o.Move))
		}
		if err == nil {
			err = named(string(o.VM), string(o.VM))
		}
		var report MoveReport
		if err == nil {
			report, err = moves.PutMove(r.Context(), o)
		}
		if err == nil && r.URL.Query().Has("follow") {
			follow(w, r, moves, o, report)
			return
		}
		answer(w, report, err)
	})
	mux.HandleFunc("GET /v1/moves/{id}", func(w http.ResponseWriter, r *http.Request) { getMove(w, r, moves) })
	mux.HandleFunc("PUT /v1/capture", func(w http.ResponseWriter, r *http.Request) { serveCount(w, r, counter) })
	mux.HandleFunc("GET /v1/bins", func(w http.ResponseWriter, r *http.Request) { serveBins(w, r, counter) })
	mux.HandleFunc("POST /v1/measurements", func(w http.ResponseWriter, r *http.Request) { serveMeasure(w, r, bencher) })
	mux.HandleFunc("GET /v1/measurements", func(w http.ResponseWriter, r *http.Request) { serveMeasurements(w, r, bencher) })
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) { watch(w, r, moves) })
	return mux
}

func getMove(w http.ResponseWriter, r *http.Request, moves Moves) {
	after, err := strconv.ParseUint(r.FormValue("after"), 10, 64)
	if err != nil && r.FormValue("after") != "" {
		writeError(w, fmt.Errorf("%w: after must be a number", ErrInvalid))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), moveWait)
	defer cancel()
	answer(w, moves.GetMove(ctx, heliotrope.MoveID(r.PathValue("id")), Role(r.FormValue("role")), after), nil)
}

// follow tells what the move of an order is at, and every change of that. What describes the
// VM is told when it changes.
func follow(w http.ResponseWriter, r *http.Request, moves Moves, o MoveOrder, report MoveReport) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	control, lines := http.NewResponseController(w), json.NewEncoder(w)
	for xml := ""; r.Context().Err() == nil; report = moves.GetMove(r.Context(), o.Move, o.Role, report.Rev) {
		line := report
		if line.XML == xml {
			line.XML = ""
		}
		xml = report.XML
		if lines.Encode(line) != nil || control.Flush() != nil {
			return
		}
	}
}

func watch(w http.ResponseWriter, r *http.Request, moves Moves) {
	events := moves.Watch(r.Context())
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	control, lines := http.NewResponseController(w), json.NewEncoder(w)
	if control.Flush() != nil {
		return
	}
	for e := range events {
		if lines.Encode(e) != nil || control.Flush() != nil {
			return
		}
	}
}

func readOrder(w http.ResponseWriter, r *http.Request, order any) error {
	return readJSON(http.MaxBytesReader(w, r.Body, bodyLimit), order)
}

// named checks that the thing in the path is the one in the order. Names become file
// names, so what is no name goes no further.
func named(path, order string) error {
	if path != order || !namePattern.MatchString(order) {
		return fmt.Errorf("%w: %q is not the name in the path, or no name", ErrInvalid, order)
	}
	return nil
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, v)
}
