package bgp

import (
	"context"
	"log/slog"
	"sync/atomic"
)

type closedFlag = atomic.Bool

// quiet hands GoBGP's log on, its chatter as debug messages, and nothing once closed.
type quiet struct {
	slog.Handler
	closed *closedFlag
}

func muted(l slog.Level) slog.Level {
	if l < slog.LevelWarn {
		return slog.LevelDebug
	}
	return l
}

func (q *quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return !q.closed.Load() && q.Handler.Enabled(ctx, muted(l))
}

func (q *quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = muted(r.Level)
	return q.Handler.Handle(ctx, r)
}

func (q *quiet) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &quiet{q.Handler.WithAttrs(attrs), q.closed}
}

func (q *quiet) WithGroup(name string) slog.Handler {
	return &quiet{q.Handler.WithGroup(name), q.closed}
}
