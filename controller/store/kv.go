package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// KV is a stored value with its key (without the package's root) and revisions.
type KV[T any] struct {
	Key     string
	Value   T
	Rev     int64 // of its last change
	Created int64 // revision that created it
}

// Name is the last part of the key.
func (kv KV[T]) Name() string { return kv.Key[strings.LastIndexByte(kv.Key, '/')+1:] }

// Any as expected revision of Put and RevIs accepts every one, also none.
const Any int64 = -1

// Get reads one key; ErrNotFound when it is not there.
func Get[T any](ctx context.Context, s *Store, key string) (KV[T], error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	resp, err := s.client.Get(ctx, root+key)
	if err != nil {
		return KV[T]{}, fmt.Errorf("read %s: %w", key, s.fail(err))
	}
	if len(resp.Kvs) == 0 {
		return KV[T]{}, fmt.Errorf("read %s: %w", key, ErrNotFound)
	}
	return decode[T](change(resp.Kvs[0]))
}

// List reads all keys with the prefix, ordered by key, and the revision at which that
// was the state: watch from there plus one to miss nothing.
func List[T any](ctx context.Context, s *Store, prefix string) ([]KV[T], int64, error) {
	changes, rev, err := s.list(ctx, prefix)
	if err != nil {
		return nil, 0, err
	}
	all := make([]KV[T], 0, len(changes))
	for _, c := range changes {
		kv, err := decode[T](c)
		if err != nil {
			return nil, 0, err
		}
		all = append(all, kv)
	}
	return all, rev, nil
}

func (s *Store) list(ctx context.Context, prefix string, opts ...clientv3.OpOption) ([]Change, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	resp, err := s.client.Get(ctx, root+prefix, append(opts, clientv3.WithPrefix())...)
	if err != nil {
		return nil, 0, fmt.Errorf("list %s: %w", prefix, s.fail(err))
	}
	changes := make([]Change, len(resp.Kvs))
	for i, kv := range resp.Kvs {
		changes[i] = change(kv)
	}
	return changes, resp.Header.Revision, nil
}

func decode[T any](c Change) (KV[T], error) {
	kv := KV[T]{Key: c.Key, Rev: c.Rev, Created: c.Created}
	if err := json.Unmarshal(c.Value, &kv.Value); err != nil {
		return kv, fmt.Errorf("decode %s: %w", c.Key, err)
	}
	return kv, nil
}

// Put writes one key if its revision is ifRev (0: it is not there; Any) and the other
// conditions hold, and returns its new revision.
func Put[T any](ctx context.Context, s *Store, key string, v T, ifRev int64, conds ...Cond) (int64, error) {
	return s.Txn(ctx, append([]Cond{RevIs(key, ifRev)}, conds...), Set(key, v))
}

// Op is one write of a transaction: Set or Delete.
type Op struct {
	op    clientv3.Op
	event bool
	err   error
}

// Set writes v as JSON under key.
func Set(key string, v any) Op {
	data, err := json.Marshal(v)
	if err != nil {
		return Op{err: fmt.Errorf("encode %s: %w", key, err)}
	}
	return Op{op: clientv3.OpPut(root+key, string(data))}
}

// Delete removes key; it is no error when it is not there.
func Delete(key string) Op { return Op{op: clientv3.OpDelete(root + key)} }

// Cond is what must hold for a transaction to take place: RevIs, Exists or Store.Fenced.
type Cond struct {
	cmps   []clientv3.Cmp
	failed error
}

// RevIs holds while key's last change has revision rev; 0 means that the key is not there.
func RevIs(key string, rev int64) Cond {
	if rev == Any {
		return Cond{}
	}
	return Cond{
		cmps:   []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(root+key), "=", rev)},
		failed: fmt.Errorf("%s: %w", key, ErrConflict),
	}
}

// Exists holds while key is there.
func Exists(key string) Cond {
	return Cond{
		cmps:   []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(root+key), ">", 0)},
		failed: fmt.Errorf("%s: %w", key, ErrNotFound),
	}
}

// Or gives the condition another error to fail with.
func (c Cond) Or(err error) Cond {
	c.failed = err
	return c
}

// Txn does all ops at one revision, which it returns, if all conds hold; else nothing,
// and it fails with the error of the first condition that does not hold.
func (s *Store) Txn(ctx context.Context, conds []Cond, ops ...Op) (int64, error) {
	puts, err := gather(ops)
	if err != nil {
		return 0, err
	}
	var cmps []clientv3.Cmp
	for _, c := range conds {
		cmps = append(cmps, c.cmps...)
	}
	if max(len(cmps), len(puts)) > maxTxnOps {
		return 0, fmt.Errorf("write %d keys: %w", len(puts), ErrTooLarge)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	resp, err := s.client.Txn(ctx).If(cmps...).Then(puts...).Commit()
	if err != nil {
		return 0, fmt.Errorf("write: %w", s.fail(err))
	}
	if resp.Succeeded {
		return resp.Header.Revision, nil
	}
	return 0, s.whyNot(ctx, conds)
}

func gather(ops []Op) ([]clientv3.Op, error) {
	var puts []clientv3.Op
	events := 0
	for _, o := range ops {
		if o.err != nil {
			return nil, o.err
		}
		if o.event {
			events++
		}
		puts = append(puts, o.op)
	}
	if events > 1 {
		return nil, fmt.Errorf("write: %d events in one transaction would share a number", events)
	}
	return puts, nil
}

// whyNot asks which condition failed, the fence first: to a leader that was replaced
// nothing else matters. Where all hold by now, it was a conflict all the same.
func (s *Store) whyNot(ctx context.Context, conds []Cond) error {
	var first error
	for _, c := range conds {
		if len(c.cmps) == 0 {
			continue
		}
		resp, err := s.client.Txn(ctx).If(c.cmps...).Commit()
		if err != nil {
			return fmt.Errorf("write: %w", s.fail(err))
		}
		if resp.Succeeded {
			continue
		}
		if first == nil || isStale(c.failed) {
			first = c.failed
		}
	}
	if first == nil {
		first = ErrConflict
	}
	return fmt.Errorf("write: %w", first)
}
