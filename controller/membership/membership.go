// Package membership lets hosts in and throws them out.
//
// A host shows a token once, which an engineer made for it, and gets a certificate for a
// day that it renews with itself. Who is in is kept in the store; a host that is revoked is
// refused from then on, whatever it shows. The authority that signs is in the store too,
// where the first controller puts it.
package membership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/store"
	"heliotrope/hostagent/agentapi"
)

// certificateTTL is how long a host's certificate is good; the agent renews it at half.
const certificateTTL = 24 * time.Hour

// World is what must be known of the rest.
type World interface {
	// Known says whether a host is in the topology.
	Known(h heliotrope.HostID) bool
	// Event records what happened to a host.
	Event(h heliotrope.HostID, message string, fields map[string]string)
}

// Membership is the door. Make it with Open.
type Membership struct {
	*agentapi.Identity // the controller's own

	world World
	store *store.Store
	log   *slog.Logger
	ca    *agentapi.CA
}

// Open reads the authority from the store and issues the controller's own certificate,
// which is good for the names and addresses given and those of this machine.
func Open(ctx context.Context, s *store.Store, world World, names []string, log *slog.Logger) (*Membership, error) {
	m := &Membership{store: s, world: world, log: log}
	pem, err := s.Secret(ctx, "ca", func() ([]byte, error) {
		ca, err := agentapi.NewCA()
		if err != nil {
			return nil, err
		}
		return ca.PEM()
	})
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	if m.ca, err = agentapi.ParseCA(pem); err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	name, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	m.Identity, err = m.ca.IssueController(append([]string{"localhost", "127.0.0.1", "::1", name}, names...)...)
	return m, err
}

// CertPEM is the authority's certificate.
func (m *Membership) CertPEM() []byte { return m.ca.CertPEM() }

// CreateToken makes a token for a host of the topology.
func (m *Membership) CreateToken(ctx context.Context, host heliotrope.HostID) (api.JoinToken, error) {
	if !m.world.Known(host) {
		return api.JoinToken{}, api.NotFound("host", string(host))
	}
	token, record, err := m.ca.NewToken(host, agentapi.TokenTTL)
	if err != nil {
		return api.JoinToken{}, err
	}
	if _, err := store.Put(ctx, m.store, store.TokenKey(record.ID), record, 0); err != nil {
		return api.JoinToken{}, err
	}
	m.world.Event(host, "join token made", map[string]string{"expires": record.Expires.UTC().Format(time.RFC3339)})
	return api.JoinToken{Host: host, Token: token.String(), ExpiresAt: record.Expires.UTC()}, nil
}

// RevokeHost refuses the host's certificate; its connections end within a second.
func (m *Membership) RevokeHost(ctx context.Context, host heliotrope.HostID) error {
	return m.change(ctx, host, func(h *store.Host) string {
		if h.Revoked() {
			return ""
		}
		h.RevokedAt = time.Now().UTC()
		return "certificate revoked"
	})
}

// DrainHost lets no VM come to the host, and has those that are there leave. That its time
// is told again changes only what is told.
func (m *Membership) DrainHost(ctx context.Context, host heliotrope.HostID, r api.DrainRequest) error {
	now := time.Now().UTC()
	return m.change(ctx, host, func(h *store.Host) string {
		was := *h
		h.Reason = r.Reason
		if !h.Drained() {
			h.DrainedAt = now
		}
		if r.DeadlineS > 0 {
			h.DrainedBy = now.Add(time.Duration(r.DeadlineS * float64(time.Second)))
		}
		if was.Drained() {
			return ""
		}
		return strings.TrimSuffix("is drained: "+r.Reason, ": ")
	})
}

// Heed drains a host that its cloud takes away, and undrains it when the notice is taken
// back, as it is once the machine has come up elsewhere; nil is no notice. What an engineer
// has drained stays so.
func (m *Membership) Heed(ctx context.Context, host heliotrope.HostID, notice *agentapi.Revocation) error {
	if notice == nil {
		return m.UndrainHost(ctx, host)
	}
	return m.change(ctx, host, func(h *store.Host) string {
		if h.Drained() {
			return ""
		}
		h.DrainedAt, h.DrainedBy, h.Reason, h.Noticed = time.Now().UTC(), notice.At, notice.Reason, true
		return strings.TrimSuffix("is taken away and drained: "+notice.Reason, ": ")
	})
}

// UndrainHost lets VMs come again.
func (m *Membership) UndrainHost(ctx context.Context, host heliotrope.HostID) error {
	return m.change(ctx, host, func(h *store.Host) string {
		was := h.Drained()
		h.DrainedAt, h.DrainedBy, h.Reason, h.Noticed = time.Time{}, time.Time{}, "", false
		if !was {
			return ""
		}
		return "is no longer drained"
	})
}

// change edits a host's record, and tells what edit returns.
func (m *Membership) change(ctx context.Context, host heliotrope.HostID, edit func(*store.Host) string) error {
	var what string
	_, err := m.store.ChangeHost(ctx, host, func(h *store.Host) { what = edit(h) })
	if errors.Is(err, store.ErrNotFound) {
		return api.NotFound("host", string(host))
	}
	if err == nil && what != "" {
		m.world.Event(host, what, nil)
	}
	return err
}

// Join answers a host that shows a token, or one that renews its certificate.
func (m *Membership) Join(ctx context.Context, req agentapi.JoinRequest) (agentapi.JoinAnswer, error) {
	now := time.Now().UTC()
	if req.Renew != "" {
		cert, err := m.ca.SignHost(req.CSR, req.Renew, certificateTTL)
		return agentapi.JoinAnswer{Host: req.Renew, Certificate: cert}, err
	}
	kv, err := store.Get[agentapi.TokenRecord](ctx, m.store, store.TokenKey(req.TokenID))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return agentapi.JoinAnswer{}, err
	}
	token := kv.Value
	if err := token.Check(req, now); err != nil {
		return agentapi.JoinAnswer{}, err
	}
	cert, err := m.ca.SignHost(req.CSR, token.Host, certificateTTL)
	if err != nil {
		return agentapi.JoinAnswer{}, fmt.Errorf("%w: %w", agentapi.ErrInvalid, err)
	}
	token.UsedAt = now
	if _, err := m.store.Join(ctx, token.ID, kv.Rev, token, store.Host{Host: token.Host, JoinedAt: now}); err != nil {
		if errors.Is(err, store.ErrConflict) {
			err = fmt.Errorf("%w: the join token was used meanwhile", agentapi.ErrRefused)
		}
		return agentapi.JoinAnswer{}, err
	}
	m.log.Info("host joined", "host", token.Host, "agent", req.Version)
	m.world.Event(token.Host, "joined", map[string]string{"agent": req.Version})
	return agentapi.JoinAnswer{Host: token.Host, Certificate: cert}, nil
}
