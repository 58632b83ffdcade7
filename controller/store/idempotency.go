package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	claimFor = 2 * time.Minute // longer than any request lives; a claim whose controller died is free again after this
	keepFor  = 24 * time.Hour  // an answer is given again for this long
)

// record is what is kept for an idempotency key. Done is false while the first request runs.
type record struct {
	Hash   string `json:"hash"`
	Done   bool   `json:"done"`
	Answer []byte `json:"answer,omitempty"`
}

func answerKey(key string) string { return "idempotency/" + key }

// Claim takes an idempotency key for a request whose content has this hash. state is
// "claimed" for the first; later "kept" with its answer, "reused" when the hash is
// another, or "busy" while there is no answer yet.
func (s *Store) Claim(ctx context.Context, key, hash string) (state string, answer []byte, err error) {
	err = s.putFor(ctx, claimFor, RevIs(answerKey(key), 0), answerKey(key), record{Hash: hash})
	if err == nil {
		return "claimed", nil, nil
	}
	if !errors.Is(err, ErrConflict) {
		return "", nil, fmt.Errorf("claim idempotency key: %w", err)
	}
	kv, err := Get[record](ctx, s, answerKey(key))
	switch {
	case errors.Is(err, ErrNotFound): // released just now: the caller tries again
		return "busy", nil, nil
	case err != nil:
		return "", nil, fmt.Errorf("claim idempotency key: %w", err)
	case kv.Value.Hash != hash:
		return "reused", nil, nil
	case !kv.Value.Done:
		return "busy", nil, nil
	}
	return "kept", kv.Value.Answer, nil
}

// Keep stores the answer for a claimed key. It is kept for a day.
func (s *Store) Keep(ctx context.Context, key, hash string, answer []byte) error {
	err := s.putFor(ctx, keepFor, Cond{}, answerKey(key), record{Hash: hash, Done: true, Answer: answer})
	if err != nil {
		return fmt.Errorf("keep answer: %w", err)
	}
	return nil
}

// Release frees a claimed key whose request had no effect.
func (s *Store) Release(ctx context.Context, key, _ string) error {
	_, err := s.Txn(ctx, nil, Delete(answerKey(key)))
	return err
}

// putFor writes a key that goes away by itself after ttl.
func (s *Store) putFor(ctx context.Context, ttl time.Duration, cond Cond, key string, v any) error {
	grantCtx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	lease, err := s.client.Grant(grantCtx, int64(ttl/time.Second))
	if err != nil {
		return fmt.Errorf("grant lease: %w", s.fail(err))
	}
	put := Set(key, v)
	if put.err != nil {
		return put.err
	}
	clientv3.WithLease(lease.ID)(&put.op)
	if _, err = s.Txn(ctx, []Cond{cond}, put); err != nil {
		_, revokeErr := s.client.Revoke(grantCtx, lease.ID)
		return errors.Join(err, s.fail(revokeErr))
	}
	return nil
}
