package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"golang.org/x/sync/errgroup"

	"heliotrope/controller/api"
)

type eventQuery struct {
	LastID int64    `header:"Last-Event-ID" minimum:"0" doc:"Stream: resume after this event."`
	After  int64    `query:"after" default:"-1" minimum:"-1" doc:"Only events with a higher id. Default: for JSON all that are kept, for a stream from now on."`
	Kind   []string `query:"kind,explode" doc:"Only events of these kinds."`
	Limit  int      `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"JSON: the newest so many."`
}

func (q *eventQuery) wants(e api.Event) bool {
	return len(q.Kind) == 0 || e.Kind == "gap" || slices.Contains(q.Kind, e.Kind)
}

func (h *handler) registerEvents(routes huma.API) {
	op := operation("GET", "/v1/events", "events", "What happened: kept events as JSON, or a stream where text/event-stream is accepted", 422)
	schemas := routes.OpenAPI().Components.Schemas
	op.Responses = map[string]*huma.Response{"200": {Description: "Events, oldest first", Content: map[string]*huma.MediaType{
		api.MediaJSON:       {Schema: schemaOf[api.EventPage](schemas)},
		"text/event-stream": {Schema: schemaOf[api.Event](schemas)},
	}}}
	handle(h, routes, op, h.events)
}

func (h *handler) events(ctx context.Context, in *eventQuery) (*huma.StreamResponse, error) {
	limit := in.Limit
	if len(in.Kind) > 0 {
		limit = 10 * api.PageLimit // all that are kept: the filter comes after
	}
	page, err := h.Events.Events(ctx, max(in.After, 0), limit)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		if wantsStream(r) {
			h.stream(w, r, in, page.Revision)
			return
		}
		kept := []api.Event{}
		for _, e := range page.Events {
			if in.wants(e) {
				kept = append(kept, e)
			}
		}
		page.Events = kept[max(0, len(kept)-in.Limit):]
		w.Header().Set("Content-Type", api.MediaJSON)
		_ = json.NewEncoder(w).Encode(page) // the caller is gone
	}}, nil
}

// stream sends events until the caller hangs up or the server ends. It begins with the
// revision from which it goes on, as an id without data: a caller that is cut off before
// the first event resumes there.
func (h *handler) stream(w http.ResponseWriter, r *http.Request, in *eventQuery, now int64) {
	after := in.After
	if in.LastID > 0 {
		after = in.LastID
	}
	if after < 0 {
		after = now
	}
	w.Header().Set("Content-Type", "text/event-stream")
	s := sse{w: w, control: http.NewResponseController(w)}
	if err := s.send("id: %d\nretry: 1000\n\n", max(after, 1)); err != nil {
		return
	}
	g, ctx := errgroup.WithContext(r.Context())
	events := make(chan api.Event)
	g.Go(func() error {
		defer close(events)
		return h.Events.FollowEvents(ctx, after, func(e api.Event) error {
			select {
			case events <- e:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	g.Go(func() error { return h.pump(s, in, events) })
	if err := g.Wait(); err != nil && r.Context().Err() == nil && !errors.Is(err, errGone) {
		h.opts.Log.Warn("event stream ended", "err", err)
	}
}

// errGone says that the caller of a stream hung up.
var errGone = errors.New("caller is gone")

func (h *handler) pump(s sse, in *eventQuery, events <-chan api.Event) error {
	beat := time.NewTicker(h.opts.Heartbeat)
	defer beat.Stop()
	for {
		var err error
		select {
		case e, ok := <-events:
			if !ok {
				return nil
			}
			if in.wants(e) {
				err = s.event(e)
			}
		case <-beat.C:
			err = s.send(":\n\n")
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errGone, err)
		}
	}
}

// sse writes one event stream.
type sse struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func (s sse) send(format string, args ...any) error {
	if err := s.control.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := fmt.Fprintf(s.w, format, args...); err != nil {
		return err
	}
	return s.control.Flush()
}

func (s sse) event(e api.Event) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return s.send("id: %d\nevent: %s\ndata: %s\n\n", e.ID, oneLine(e.Kind), data)
}

// oneLine keeps a word from ending its line of the stream.
func oneLine(s string) string {
	for i, r := range s {
		if r == '\n' || r == '\r' {
			return s[:i]
		}
	}
	return s
}
