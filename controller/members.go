package controller

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/store"
	"heliotrope/hostagent/agentapi"
)

// hostCertificateTTL is how long a host's certificate is good; the agent renews it at half.
const hostCertificateTTL = 24 * time.Hour

// loadCA reads the CA from the store, where the first controller puts it.
func (c *Controller) loadCA(ctx context.Context) error {
	pem, err := c.store.Secret(ctx, "ca", func() ([]byte, error) {
		ca, err := agentapi.NewCA()
		if err != nil {
			return nil, err
		}
		return ca.PEM()
	})
	if err != nil {
		return fmt.Errorf("load CA: %w", err)
	}
	if c.ca, err = agentapi.ParseCA(pem); err != nil {
		return fmt.Errorf("load CA: %w", err)
	}
	name, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("load CA: %w", err)
	}
	c.id, err = c.ca.IssueController(append([]string{"localhost", "127.0.0.1", "::1", name}, c.cfg.CertAddress...)...)
	return err
}

type membership struct{ *Controller }

// CreateToken makes a token for a host of the topology.
func (c membership) CreateToken(ctx context.Context, host heliotrope.HostID) (api.JoinToken, error) {
	if _, ok := c.world.view().topology.Hosts[host]; !ok {
		return api.JoinToken{}, api.NotFound("host", string(host))
	}
	token, record, err := c.ca.NewToken(host, agentapi.TokenTTL)
	if err != nil {
		return api.JoinToken{}, err
	}
	if _, err := store.Put(ctx, c.store, store.TokenKey(record.ID), record, 0); err != nil {
		return api.JoinToken{}, unavailable(err)
	}
	c.event("host", string(host), "join token made", map[string]string{"expires": record.Expires.UTC().Format(time.RFC3339)})
	return api.JoinToken{Host: host, Token: token.String(), ExpiresAt: record.Expires.UTC()}, nil
}

// RevokeHost refuses the host's certificate; its connections end within a second.
func (c membership) RevokeHost(ctx context.Context, host heliotrope.HostID) error {
	_, err := c.store.ChangeHost(ctx, host, func(h *store.Host) {
		if !h.Revoked() {
			h.RevokedAt = time.Now().UTC()
		}
	})
	if errors.Is(err, store.ErrNotFound) {
		return api.NotFound("host", string(host))
	}
	if err == nil {
		c.event("host", string(host), "certificate revoked", nil)
	}
	return unavailable(err)
}

// join answers a host that shows a token, or one that renews its certificate.
func (c *Controller) join(ctx context.Context, req agentapi.JoinRequest) (agentapi.JoinAnswer, error) {
	now := time.Now().UTC()
	if req.Renew != "" {
		cert, err := c.ca.SignHost(req.CSR, req.Renew, hostCertificateTTL)
		return agentapi.JoinAnswer{Host: req.Renew, Certificate: cert}, err
	}
	kv, err := store.Get[agentapi.TokenRecord](ctx, c.store, store.TokenKey(req.TokenID))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return agentapi.JoinAnswer{}, err
	}
	token := kv.Value
	if err := token.Check(req, now); err != nil {
		return agentapi.JoinAnswer{}, err
	}
	cert, err := c.ca.SignHost(req.CSR, token.Host, hostCertificateTTL)
	if err != nil {
		return agentapi.JoinAnswer{}, fmt.Errorf("%w: %w", agentapi.ErrInvalid, err)
	}
	token.UsedAt = now
	if _, err := c.store.Join(ctx, token.ID, kv.Rev, token, store.Host{Host: token.Host, JoinedAt: now}); err != nil {
		if errors.Is(err, store.ErrConflict) {
			err = fmt.Errorf("%w: the join token was used meanwhile", agentapi.ErrRefused)
		}
		return agentapi.JoinAnswer{}, err
	}
	host := token.Host
	c.log.Info("host joined", "host", host, "agent", req.Version)
	c.event("host", string(host), "joined", map[string]string{"agent": req.Version})
	return agentapi.JoinAnswer{Host: host, Certificate: cert}, nil
}

// allowed says whether host has joined and was not revoked since.
func (c *Controller) allowed(host heliotrope.HostID) bool {
	r, ok := c.world.view().members[host]
	return ok && !r.Revoked()
}

// unavailable makes a store's silence a 503.
func unavailable(err error) error {
	if errors.Is(err, store.ErrUnavailable) {
		return api.Unavailable("the store does not answer")
	}
	return err
}
