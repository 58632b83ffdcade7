package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

const (
	leaderPrefix = "leader"
	leaseTTL     = 3 // seconds, after which another controller leads if this one is gone
	// A store inside the process has no other controller to wait for a leader that is gone,
	// so a machine that is out of breath need not change its leader for itself.
	leaseAlone = 60 // seconds
)

// terms are the election keys that this process holds or held, by term.
type terms struct {
	mu   sync.Mutex
	keys map[uint64]string
}

func (t *terms) set(term uint64, key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keys = map[uint64]string{term: key}
}

func (t *terms) key(term uint64) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.keys[term]
}

// Fenced holds while this process leads in the given term. Every write of the loops
// carries it; it fails with ErrStaleTerm.
func (s *Store) Fenced(term uint64) Cond {
	key := s.terms.key(term)
	if key == "" { // never held: a key that no election makes
		key = root + leaderPrefix + "/none"
	}
	return Cond{
		cmps:   []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", int64(term))},
		failed: fmt.Errorf("term %d: %w", term, ErrStaleTerm),
	}
}

func isStale(err error) bool { return errors.Is(err, ErrStaleTerm) }

// Lead stands in the election until ctx ends, and runs fn whenever it wins. fn's context
// ends as soon as the lease is lost; the next term begins only after fn has returned.
// When fn returns while it still leads, Lead resigns and returns fn's error.
func (s *Store) Lead(ctx context.Context, fn func(ctx context.Context, term uint64) error) error {
	for {
		lost, err := s.leadOnce(ctx, fn)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !lost || s.client.Ctx().Err() != nil { // the latter: Close was called
			return err
		}
		s.log.Warn("lost the election", "err", err)
		pause(ctx, 200*time.Millisecond, true)
	}
}

// leadOnce is one term. lost says that the term ended against fn's will, or never began.
func (s *Store) leadOnce(ctx context.Context, fn func(context.Context, uint64) error) (lost bool, err error) {
	session, err := s.session(ctx)
	if err != nil {
		return true, fmt.Errorf("open election session: %w", s.fail(err))
	}
	defer s.closeSession(ctx, session)

	e := concurrency.NewElection(session, root+leaderPrefix)
	leadCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(session.Ctx(), func() { cancel(ErrStaleTerm) })
	defer stop()
	if err := e.Campaign(leadCtx, s.name); err != nil {
		return true, fmt.Errorf("stand in election: %w", s.fail(err))
	}
	term := uint64(e.Rev())
	s.terms.set(term, e.Key())
	s.log.Info("leading", "term", term)
	err = fn(leadCtx, term)
	return errors.Is(context.Cause(leadCtx), ErrStaleTerm), err
}

// session makes a lease that outlives ctx by its closing only, so that resigning works.
func (s *Store) session(ctx context.Context) (*concurrency.Session, error) {
	grantCtx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	lease, err := s.client.Grant(grantCtx, s.lease)
	if err != nil {
		return nil, err
	}
	return concurrency.NewSession(s.client, concurrency.WithLease(lease.ID), concurrency.WithTTL(int(s.lease)),
		concurrency.WithContext(context.WithoutCancel(ctx)))
}

// closeSession revokes the lease, and with it the election key: the next candidate wins at once.
func (s *Store) closeSession(ctx context.Context, session *concurrency.Session) {
	session.Orphan()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseTTL*time.Second)
	defer cancel()
	if _, err := s.client.Revoke(ctx, session.Lease()); err != nil {
		s.log.Debug("could not revoke the election lease; it ends by itself", "err", err)
	}
}

// Leader is the name and term of the present leader; "" and 0 when there is none.
func (s *Store) Leader(ctx context.Context) (string, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	resp, err := s.client.Get(ctx, root+leaderPrefix+"/", clientv3.WithFirstCreate()...)
	if err != nil {
		return "", 0, fmt.Errorf("read leader: %w", s.fail(err))
	}
	if len(resp.Kvs) == 0 {
		return "", 0, nil
	}
	return string(resp.Kvs[0].Value), uint64(resp.Kvs[0].CreateRevision), nil
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "controller"
	}
	return name
}
