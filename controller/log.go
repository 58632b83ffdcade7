package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"heliotrope/controller/api"
	"heliotrope/controller/store"
)

// chronicle answers for events.
type chronicle struct{ *Controller }

// Events are the newest that are kept.
func (c chronicle) Events(ctx context.Context, after int64, limit int) (api.EventPage, error) {
	list, rev, err := c.store.Events(ctx, after, limit)
	if err != nil {
		return api.EventPage{}, err
	}
	page := api.EventPage{Events: make([]api.Event, 0, len(list)), Revision: rev}
	for _, e := range list {
		page.Events = append(page.Events, eventView(e))
	}
	return page, nil
}

// FollowEvents sends events as they happen.
func (c chronicle) FollowEvents(ctx context.Context, after int64, send func(api.Event) error) error {
	gone := func(last int64) error {
		return send(api.Event{ID: last, At: time.Now().UTC(), Kind: "gap", Message: "older events are no longer kept"})
	}
	return c.store.FollowEvents(ctx, after, gone, func(e store.Event) error { return send(eventView(e)) })
}

func eventView(e store.Event) api.Event {
	var out api.Event
	if err := json.Unmarshal(e.Value, &out); err != nil {
		out = api.Event{Kind: "controller", Message: fmt.Sprintf("unreadable event: %v", err)}
	}
	out.ID = e.Number
	return out
}
