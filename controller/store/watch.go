package store

import (
	"context"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Change is one key as it now is.
type Change struct {
	Key     string
	Value   []byte // JSON; nil when Deleted
	Rev     int64
	Created int64
	Deleted bool
}

// Update is what a watch saw: the changes of one or more whole transactions, or with
// Reset the complete state, which replaces all that was known before.
type Update struct {
	Rev     int64
	Reset   bool
	Changes []Change
}

func change(kv *mvccpb.KeyValue) Change {
	return Change{Key: strings.TrimPrefix(string(kv.Key), root), Value: kv.Value, Rev: kv.ModRevision, Created: kv.CreateRevision}
}

// Watch reports all changes of keys with the prefix from revision from on, in order,
// until ctx ends; then the channel is closed. With from 0 it begins with the complete
// state. Where revisions that it needs were compacted away, or the store was gone, it
// reports the complete state again, so that a slow or cut-off reader is never wrong for
// long. The reader must read until the channel is closed.
func (s *Store) Watch(ctx context.Context, prefix string, from int64) <-chan Update {
	out := make(chan Update)
	go func() {
		defer close(out)
		for ctx.Err() == nil {
			if from == 0 {
				from = s.resync(ctx, prefix, out)
			}
			if from != 0 {
				from = s.follow(ctx, prefix, from, out)
			}
			pause(ctx, 100*time.Millisecond, from == 0)
		}
	}()
	return out
}

// resync sends the complete state and returns the revision to go on from, or 0 to try again.
func (s *Store) resync(ctx context.Context, prefix string, out chan<- Update) int64 {
	changes, rev, err := s.list(ctx, prefix)
	if err != nil || !send(ctx, out, Update{Rev: rev, Reset: true, Changes: changes}) {
		return 0
	}
	return rev + 1
}

// follow sends changes until the watch breaks, and returns where to go on: 0 for a resync.
func (s *Store) follow(ctx context.Context, prefix string, from int64, out chan<- Update) int64 {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for resp := range s.client.Watch(clientv3.WithRequireLeader(ctx), root+prefix, clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if resp.CompactRevision != 0 {
			return 0
		}
		if resp.Err() != nil {
			return from
		}
		if len(resp.Events) == 0 {
			continue
		}
		u := Update{Rev: resp.Header.Revision}
		for _, ev := range resp.Events {
			c := change(ev.Kv)
			c.Deleted = ev.Type == clientv3.EventTypeDelete
			u.Changes = append(u.Changes, c)
		}
		if !send(ctx, out, u) {
			return from
		}
		from = u.Changes[len(u.Changes)-1].Rev + 1
	}
	return from
}

func send(ctx context.Context, out chan<- Update, u Update) bool {
	select {
	case out <- u:
		return true
	case <-ctx.Done():
		return false
	}
}

func pause(ctx context.Context, d time.Duration, needed bool) {
	if !needed {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
