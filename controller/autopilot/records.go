package autopilot

import (
	"context"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/store"
)

// Records keeps plans; Stored does, in a store.
type Records interface {
	All(ctx context.Context) ([]api.Plan, error)
	// Put writes a plan whose record is at p.Revision, and returns the new revision.
	Put(ctx context.Context, term uint64, p api.Plan) (int64, error)
	Delete(ctx context.Context, term uint64, id heliotrope.PlanID) error
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
