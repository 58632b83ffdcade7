package store

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	eventsPrefix  = "events/"
	eventsTrimmed = "events-trimmed"
	eventsKept    = 10_000
	trimBatch     = 500
)

// Event is a kept event. Number is the revision that wrote it: unique, growing, never 0.
type Event struct {
	Number int64
	Value  json.RawMessage
}

// AddEvent is an operation that writes an event in the same transaction as what it tells
// of. A transaction can have one: two would share their number.
func AddEvent(v any) Op {
	o := Set(eventsPrefix+rand.Text(), v)
	o.event = true
	return o
}

// AppendEvent writes one event and returns its number.
func (s *Store) AppendEvent(ctx context.Context, v any) (int64, error) {
	return s.Txn(ctx, nil, AddEvent(v))
}

// Events are the newest limit events with a number above after (0: from the oldest kept),
// oldest first, and the revision at which this was so.
func (s *Store) Events(ctx context.Context, after int64, limit int) ([]Event, int64, error) {
	changes, rev, err := s.list(ctx, eventsPrefix, clientv3.WithMinModRev(after+1),
		clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend), clientv3.WithLimit(int64(limit)))
	if err != nil {
		return nil, 0, err
	}
	slices.Reverse(changes)
	events := make([]Event, len(changes))
	for i, c := range changes {
		events[i] = Event{Number: c.Rev, Value: c.Value}
	}
	return events, rev, nil
}

// FollowEvents calls send for each event with a number above after, in order, and for
// those to come, until ctx ends or send fails, and returns the cause. Where events that
// the caller has not seen are no longer kept, it first calls gone with the number of the
// last of them.
func (s *Store) FollowEvents(ctx context.Context, after int64, gone func(last int64) error, send func(Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	updates := s.Watch(ctx, eventsPrefix, 0)
	defer func() {
		cancel()
		for range updates {
		}
	}()
	last := after
	for u := range updates {
		if u.Reset {
			if err := s.tellGap(ctx, &last, gone); err != nil {
				return err
			}
		}
		slices.SortFunc(u.Changes, func(a, b Change) int { return int(a.Rev - b.Rev) })
		for _, c := range u.Changes {
			if c.Deleted || c.Rev <= last {
				continue
			}
			if err := send(Event{Number: c.Rev, Value: c.Value}); err != nil {
				return err
			}
			last = c.Rev
		}
	}
	return context.Cause(ctx)
}

// tellGap calls gone if events after *last were trimmed. A caller that wants all that is
// kept (0) misses nothing by that.
func (s *Store) tellGap(ctx context.Context, last *int64, gone func(int64) error) error {
	kv, err := Get[int64](ctx, s, eventsTrimmed)
	if errors.Is(err, ErrNotFound) || ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	if *last == 0 || kv.Value <= *last {
		return nil
	}
	*last = kv.Value
	return gone(kv.Value)
}

// TrimEvents forgets the oldest events beyond the 10,000 that are kept. The leader calls
// it now and then.
func (s *Store) TrimEvents(ctx context.Context, term uint64) error {
	return s.trimEvents(ctx, term, eventsKept)
}

func (s *Store) trimEvents(ctx context.Context, term uint64, keep int) error {
	resp, err := s.client.Get(ctx, root+eventsPrefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return fmt.Errorf("count events: %w", s.fail(err))
	}
	for surplus := int(resp.Count) - keep; surplus > 0; surplus -= trimBatch {
		n := min(surplus, trimBatch)
		oldest, _, err := s.list(ctx, eventsPrefix, clientv3.WithKeysOnly(), clientv3.WithLimit(int64(n)),
			clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortAscend))
		if err != nil {
			return err
		}
		if len(oldest) == 0 {
			return nil
		}
		ops := []Op{Set(eventsTrimmed, oldest[len(oldest)-1].Rev)}
		for _, c := range oldest {
			ops = append(ops, Delete(c.Key))
		}
		if _, err := s.Txn(ctx, []Cond{s.Fenced(term)}, ops...); err != nil {
			return fmt.Errorf("trim events: %w", err)
		}
	}
	return nil
}

// Trim forgets the oldest keys with the prefix beyond keep, of those that may says may
// go, by the revision that created them.
func Trim[T any](ctx context.Context, s *Store, term uint64, prefix string, keep int, may func(T) bool) error {
	list, _, err := List[T](ctx, s, prefix)
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b KV[T]) int { return int(a.Created - b.Created) })
	surplus := len(list) - keep
	for _, kv := range list {
		if surplus <= 0 {
			return nil
		}
		if !may(kv.Value) {
			continue
		}
		_, err := s.Txn(ctx, []Cond{s.Fenced(term), RevIs(kv.Key, kv.Rev)}, Delete(kv.Key))
		if err != nil {
			return fmt.Errorf("trim %s: %w", prefix, err)
		}
		surplus--
	}
	return nil
}
