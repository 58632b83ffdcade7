package hostagent

import (
	"context"
	"fmt"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/revocation"
	"log/slog"
	"sync"
	"time"
)

// revocationEvery is how often the cloud is asked whether it takes the host away: as often
// as AWS advises.
const revocationEvery = 5 * time.Second

// revoked knows whether the host is to be taken away.
type revoked struct {
	hub *hub
	log *slog.Logger

	mu     sync.Mutex
	notice *agentapi.Revocation
}

func (r *revoked) now() *agentapi.Revocation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.notice
}

// run asks a source until ctx ends. The controller is told at once.
func (r *revoked) run(ctx context.Context, source string) error {
	s, err := revocation.Open(source)
	if err != nil {
		return fmt.Errorf("watch for revocation: %w", err)
	}
	return revocation.Watch(ctx, s, revocationEvery, func(n *revocation.Notice) {
		var notice *agentapi.Revocation
		what := "no longer revoked"
		if n != nil {
			notice = &agentapi.Revocation{At: n.At, Reason: n.Reason}
			what = "revoked: " + n.Reason
		}
		r.mu.Lock()
		r.notice = notice
		r.mu.Unlock()
		r.log.Warn("host is "+what, "source", source)
		r.hub.tell(agentapi.Event{Kind: "host", At: time.Now(), What: what})
	}, func(err error) { r.log.Warn("cannot ask whether the host is revoked", "source", source, "error", err) })
}
