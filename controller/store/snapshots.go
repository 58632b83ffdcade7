package store

import (
	"context"
	"encoding/json"
)

const snapshotsPrefix = "snapshots/"

// Snapshots are those of VMs' disks that are under way, or ended lately, as they were kept.
func (s *Store) Snapshots(ctx context.Context) ([]json.RawMessage, error) {
	list, _, err := List[json.RawMessage](ctx, s, snapshotsPrefix)
	if err != nil {
		return nil, err
	}
	all := make([]json.RawMessage, len(list))
	for i, kv := range list {
		all[i] = kv.Value
	}
	return all, nil
}

// SetSnapshot keeps a snapshot as it is now, if the leader of term still leads.
func (s *Store) SetSnapshot(ctx context.Context, term uint64, id string, now any) error {
	_, err := s.Txn(ctx, []Cond{s.Fenced(term)}, Set(snapshotsPrefix+id, now))
	return err
}

// ForgetSnapshot keeps nothing of a snapshot any more, if the leader of term still leads.
func (s *Store) ForgetSnapshot(ctx context.Context, term uint64, id string) error {
	_, err := s.Txn(ctx, []Cond{s.Fenced(term)}, Delete(snapshotsPrefix+id))
	return err
}
