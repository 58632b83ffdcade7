package autopilot

import (
	"context"
	"errors"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/store"
	"heliotrope/scheduler/ahead"
)

// Records keeps plans; Stored does, in a store.
type Records interface {
	All(ctx context.Context) ([]api.Plan, error)
	// Put writes a plan whose record is at p.Revision, and returns the new revision.
	Put(ctx context.Context, term uint64, p api.Plan) (int64, error)
	Delete(ctx context.Context, term uint64, id heliotrope.PlanID) error
	// Books are those that were kept of a pool, or nil.
	Books(ctx context.Context, id heliotrope.PoolID) (*ahead.Books, error)
	KeepBooks(ctx context.Context, term uint64, id heliotrope.PoolID, b *ahead.Books) error
}

type stored struct{ *store.Store }

// Stored keeps plans in s. What an older term writes fails with store.ErrStaleTerm.
func Stored(s *store.Store) Records { return stored{s} }

const prefix = "plans/"

func (s stored) All(ctx context.Context) ([]api.Plan, error) {
	list, _, err := store.List[api.Plan](ctx, s.Store, prefix)
	all := make([]api.Plan, len(list))
	for i, kv := range list {
		all[i] = kv.Value
		all[i].Revision = kv.Rev
	}
	return all, err
}

func (s stored) Put(ctx context.Context, term uint64, p api.Plan) (int64, error) {
	return store.Put(ctx, s.Store, prefix+string(p.ID), p, p.Revision, s.Fenced(term))
}

func (s stored) Delete(ctx context.Context, term uint64, id heliotrope.PlanID) error {
	_, err := s.Txn(ctx, []store.Cond{s.Fenced(term)}, store.Delete(prefix+string(id)))
	return err
}

const books = "forecasts/"

func (s stored) Books(ctx context.Context, id heliotrope.PoolID) (*ahead.Books, error) {
	kv, err := store.Get[ahead.Books](ctx, s.Store, books+string(id))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return &kv.Value, err
}

func (s stored) KeepBooks(ctx context.Context, term uint64, id heliotrope.PoolID, b *ahead.Books) error {
	_, err := store.Put(ctx, s.Store, books+string(id), b, store.Any, s.Fenced(term))
	return err
}
