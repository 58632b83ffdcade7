package store

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
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
	SeenAt    time.Time         `json:"seen_at,omitzero"`
	Status    json.RawMessage   `json:"status,omitempty"` // the last that its agent sent
}

// Revoked says whether its certificate is refused.
func (h Host) Revoked() bool { return !h.RevokedAt.IsZero() }

// Token lets a host join once.
type Token struct {
	ID        string            `json:"id"`
	Host      heliotrope.HostID `json:"host"`
	Hash      []byte            `json:"hash"` // SHA-256 of the secret
	ExpiresAt time.Time         `json:"expires_at"`
	UsedAt    time.Time         `json:"used_at,omitzero"`
}

// ErrToken says that a token is unknown, used, expired, or its secret wrong; which one is
// not told to whoever shows it.
var ErrToken = errors.New("token is not valid")

// HostKey and TokenKey are where these are kept.
func HostKey(h heliotrope.HostID) string { return "hosts/" + string(h) }
func TokenKey(id string) string          { return "tokens/" + id }

// CreateToken keeps a token that lets host join once until expires; only the secret's
// hash is kept.
func (s *Store) CreateToken(ctx context.Context, id string, host heliotrope.HostID, secret []byte, expires time.Time) error {
	sum := sha256.Sum256(secret)
	_, err := Put(ctx, s, TokenKey(id), Token{ID: id, Host: host, Hash: sum[:], ExpiresAt: expires}, 0)
	return err
}

// Token is the valid token id if secret is its secret; ErrToken otherwise.
func (s *Store) Token(ctx context.Context, id string, secret []byte, now time.Time) (KV[Token], error) {
	kv, err := Get[Token](ctx, s, TokenKey(id))
	if errors.Is(err, ErrNotFound) {
		return kv, ErrToken
	}
	if err != nil {
		return kv, err
	}
	sum := sha256.Sum256(secret)
	right := subtle.ConstantTimeCompare(sum[:], kv.Value.Hash) == 1
	if !right || !kv.Value.UsedAt.IsZero() || now.After(kv.Value.ExpiresAt) {
		return KV[Token]{}, ErrToken
	}
	return kv, nil
}

// Join uses up a token and writes the host that joins, at one revision: of two that show
// the same token one wins, the other gets ErrToken. A host that was revoked joins anew.
func (s *Store) Join(ctx context.Context, token KV[Token], h Host, ops ...Op) (int64, error) {
	used := token.Value
	used.UsedAt = h.JoinedAt
	conds := []Cond{RevIs(token.Key, token.Rev).Or(ErrToken)}
	return s.Txn(ctx, conds, append([]Op{Set(token.Key, used), Set(HostKey(h.Host), h)}, ops...)...)
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
