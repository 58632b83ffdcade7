package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"heliotrope"
)

// Host is what is kept of a host that joined.
type Host struct {
	Host      heliotrope.HostID `json:"host"`
	Serial    string            `json:"serial"` // of its newest certificate, hex
	JoinedAt  time.Time         `json:"joined_at"`
	RevokedAt time.Time         `json:"revoked_at,omitzero"`
	DrainedAt time.Time         `json:"drained_at,omitzero"`
	DrainedBy time.Time         `json:"drained_by,omitzero"` // when it goes away; zero: it does not by itself
	Reason    string            `json:"drain_reason,omitempty"`
	Noticed   bool              `json:"noticed,omitempty"` // drained by a notice of its cloud, until that is taken back
	SeenAt    time.Time         `json:"seen_at,omitzero"`
	Status    json.RawMessage   `json:"status,omitempty"` // the last that its agent sent
}

// Revoked says whether its certificate is refused.
func (h Host) Revoked() bool { return !h.RevokedAt.IsZero() }

// Drained says whether no VM may be there.
func (h Host) Drained() bool { return !h.DrainedAt.IsZero() }

// HostKey and TokenKey are where these are kept.
func HostKey(h heliotrope.HostID) string { return "hosts/" + string(h) }
func TokenKey(id string) string          { return "tokens/" + id }

// Join writes a token as it is once used and the host that joins with it, at one revision:
// of two that show the same token one wins, the other gets ErrConflict, since the token is
// not at tokenRev any more. A host that was revoked joins anew.
func (s *Store) Join(ctx context.Context, id string, tokenRev int64, used any, h Host) (int64, error) {
	return s.Txn(ctx, []Cond{RevIs(TokenKey(id), tokenRev)}, Set(TokenKey(id), used), Set(HostKey(h.Host), h))
}

// ChangeHost reads a host, lets change alter it, and writes it if it differs, until
// nobody changed it in between. ErrNotFound when it never joined.
func (s *Store) ChangeHost(ctx context.Context, host heliotrope.HostID, change func(*Host), conds ...Cond) (int64, error) {
	for {
		kv, err := Get[Host](ctx, s, HostKey(host))
		if err != nil {
			return 0, err
		}
		h := kv.Value
		change(&h)
		if sameJSON(h, kv.Value) {
			return kv.Rev, nil
		}
		rev, err := Put(ctx, s, HostKey(host), h, kv.Rev, conds...)
		if !errors.Is(err, ErrConflict) {
			return rev, err
		}
	}
}

// Secret is a secret by name. Where there is none, make makes it and it is kept: of two
// controllers that start together, both get the same.
func (s *Store) Secret(ctx context.Context, name string, make func() ([]byte, error)) ([]byte, error) {
	key := "secrets/" + name
	kv, err := Get[[]byte](ctx, s, key)
	if !errors.Is(err, ErrNotFound) {
		return kv.Value, err
	}
	value, err := make()
	if err != nil {
		return nil, fmt.Errorf("make secret %s: %w", name, err)
	}
	_, err = Put(ctx, s, key, value, 0)
	if errors.Is(err, ErrConflict) {
		kv, err = Get[[]byte](ctx, s, key)
		return kv.Value, err
	}
	return value, err
}
