package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

const childDir = "HELIOTROPE_STORE_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(child(dir))
	}
	os.Exit(m.Run())
}

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Dir: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func fresh(t *testing.T) *Store { return open(t, t.TempDir()) }

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

// child writes until it is killed, and says what was acknowledged.
func child(dir string) int {
	ctx := context.Background()
	s, err := Open(ctx, Config{Dir: dir})
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	start := must2(s.list(ctx, "n/"))
	for n := start; ; n++ {
		rev, err := s.Txn(ctx, []Cond{RevIs(fmt.Sprintf("n/%08d", n), 0)},
			Set(fmt.Sprintf("n/%08d", n), n), Set("last", n), AddEvent(map[string]int{"n": n}))
		if err != nil {
			fmt.Println("error", err)
			return 1
		}
		fmt.Println("ack", n, rev)
	}
}

func must2(c []Change, _ int64, err error) int {
	if err != nil {
		panic(err)
	}
	return len(c)
}

// Every acknowledged write is there after kill -9 at any moment, whole, at the revision
// that was acknowledged, and a new leader need not wait for the dead one's lease.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	acked := map[int]int64{}
	for range 20 {
		writeUntilKilled(t, dir, acked)
		verify(t, dir, acked)
	}
	if len(acked) < 100 {
		t.Errorf("only %d writes were acknowledged in 20 runs", len(acked))
	}
	t.Logf("%d acknowledged writes, 20 kills, all there", len(acked))
}

func writeUntilKilled(t *testing.T, dir string, acked map[int]int64) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	out := must[interface{ Read([]byte) (int, error) }](t)(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var timer *time.Timer
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) != 3 || f[0] != "ack" {
			t.Fatalf("child says %q", lines.Text())
		}
		if timer == nil { // a random moment after the first write
			timer = time.AfterFunc(rand.N(60*time.Millisecond), func() { _ = cmd.Process.Kill() })
			defer timer.Stop()
		}
		acked[must[int](t)(strconv.Atoi(f[1]))] = must[int64](t)(strconv.ParseInt(f[2], 10, 64))
	}
	if err := cmd.Wait(); err == nil || timer == nil {
		t.Fatalf("child ended by itself: %v", err)
	}
}

func verify(t *testing.T, dir string, acked map[int]int64) {
	t.Helper()
	s, err := Open(t.Context(), Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	list, _, err := List[int](t.Context(), s, "n/")
	if err != nil {
		t.Fatal(err)
	}
	have := map[int]int64{}
	for _, kv := range list {
		have[kv.Value] = kv.Rev
	}
	for n, rev := range acked {
		if have[n] != rev {
			t.Fatalf("write %d was acknowledged at revision %d; it is now at %d", n, rev, have[n])
		}
	}
	last := must[KV[int]](t)(Get[int](t.Context(), s, "last"))
	events, _, err := s.Events(t.Context(), 0, 1_000_000)
	if err != nil || len(events) != len(list) || last.Value != len(list)-1 {
		t.Fatalf("half a transaction: %d keys, %d events, last %d, %v", len(list), len(events), last.Value, err)
	}
}

func TestGetPut(t *testing.T) {
	s, ctx := fresh(t), t.Context()
	_, err := Get[string](ctx, s, "a/b")
	wantErr(t, err, ErrNotFound)
	rev := must[int64](t)(Put(ctx, s, "a/b", "one", 0))
	_, err = Put(ctx, s, "a/b", "two", 0)
	wantErr(t, err, ErrConflict)
	_, err = Put(ctx, s, "a/b", "two", rev+1)
	wantErr(t, err, ErrConflict)
	rev2 := must[int64](t)(Put(ctx, s, "a/b", "two", rev))
	must[int64](t)(Put(ctx, s, "a/c", "three", Any))
	kv := must[KV[string]](t)(Get[string](ctx, s, "a/b"))
	if kv.Value != "two" || kv.Rev != rev2 || kv.Created != rev || kv.Name() != "b" {
		t.Errorf("got %+v", kv)
	}
	list, _, err := List[string](ctx, s, "a/")
	if err != nil || len(list) != 2 || list[1].Value != "three" {
		t.Errorf("got %+v, %v", list, err)
	}
	_, err = Get[int](ctx, s, "a/b")
	if err == nil {
		t.Error("a string was read as a number")
	}
}

func TestLargeTxn(t *testing.T) {
	s, ctx := fresh(t), t.Context()
	ops := make([]Op, maxTxnOps)
	for i := range ops {
		ops[i] = Set(fmt.Sprintf("big/%05d", i), i)
	}
	must[int64](t)(s.Txn(ctx, nil, ops...))
	_, err := s.Txn(ctx, nil, append(ops, Set("one-more", 1))...)
	wantErr(t, err, ErrTooLarge)
	must[int64](t)(Put(ctx, s, "blob", strings.Repeat("x", 7<<20), Any))
	_, err = s.Txn(ctx, nil, AddEvent(1), AddEvent(2))
	if err == nil {
		t.Error("two events in one transaction")
	}
}

// Many writers of one counter lose no update.
func TestConcurrentPut(t *testing.T) {
	s, ctx := fresh(t), t.Context()
	must[int64](t)(Put(ctx, s, "counter", 0, 0))
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			for done := 0; done < 25; {
				kv, err := Get[int](ctx, s, "counter")
				if err != nil {
					return err
				}
				_, err = Put(ctx, s, "counter", kv.Value+1, kv.Rev)
				switch {
				case err == nil:
					done++
				case !errors.Is(err, ErrConflict):
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if kv := must[KV[int]](t)(Get[int](ctx, s, "counter")); kv.Value != 200 {
		t.Errorf("counter is %d, want 200", kv.Value)
	}
}

// A directory is for one process: the second waits, and gives up with its context.
func TestTwoProcesses(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	info := must[os.FileInfo](t)(os.Stat(filepath.Join(dir, "etcd")))
	if info.Mode().Perm() != 0o700 {
		t.Errorf("data directory has mode %v", info.Mode())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if s, err := Open(ctx, Config{Dir: dir}); err == nil {
		t.Error("opened twice", s.Close())
	}
}

func TestOpenWrong(t *testing.T) {
	if _, err := Open(t.Context(), Config{}); err == nil {
		t.Error("opened nowhere")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: file}); err == nil {
		t.Error("opened a file")
	}
	s, err := Open(t.Context(), Config{Endpoints: []string{"http://127.0.0.1:1"}, Timeout: 200 * time.Millisecond})
	if err == nil {
		t.Error("opened a dead endpoint", s.Close())
	}
	wantErr(t, err, ErrUnavailable)
}

func TestWatch(t *testing.T) {
	s := fresh(t)
	must[int64](t)(Put(t.Context(), s, "w/a", 1, Any))
	ctx, cancel := context.WithCancel(t.Context())
	updates := s.Watch(ctx, "w/", 0)
	first := <-updates
	if !first.Reset || len(first.Changes) != 1 {
		t.Fatalf("first update is %+v", first)
	}
	rev := must[int64](t)(s.Txn(t.Context(), nil, Set("w/b", 2), Delete("w/a"), Set("other", 3)))
	second := <-updates
	if second.Reset || second.Rev != rev || len(second.Changes) != 2 {
		t.Fatalf("second update is %+v", second)
	}
	cancel()
	for range updates {
	}
}

// A watch from a revision that is compacted away reports the complete state instead.
func TestWatchCompacted(t *testing.T) {
	s, ctx := fresh(t), t.Context()
	from := must[int64](t)(Put(ctx, s, "w/a", 0, Any))
	var last int64
	for i := range 10 {
		last = must[int64](t)(Put(ctx, s, "w/a", i, Any))
	}
	if _, err := s.client.Compact(ctx, last); err != nil {
		t.Fatal(err)
	}
	watchCtx, cancel := context.WithCancel(ctx)
	updates := s.Watch(watchCtx, "w/", from)
	u := <-updates
	if !u.Reset || len(u.Changes) != 1 || u.Changes[0].Rev != last {
		t.Errorf("got %+v, want a reset", u)
	}
	cancel()
	for range updates {
	}
}

// Two candidates: one leads at a time, terms grow, and a replaced leader's writes fail.
func TestLead(t *testing.T) {
	s := fresh(t)
	other := &Store{client: s.client, name: "other", timeout: s.timeout, log: s.log}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	var terms []uint64
	enough := errors.New("enough")
	term := func(s *Store, quit bool) func(context.Context, uint64) error {
		return func(ctx context.Context, term uint64) error {
			mu.Lock()
			defer mu.Unlock()
			terms = append(terms, term)
			if _, err := Put(ctx, s, "led", term, Any, s.Fenced(term)); err != nil {
				return fmt.Errorf("leader's write: %w", err)
			}
			if quit {
				return enough
			}
			if _, err := s.client.Revoke(ctx, leaseOf(t, s)); err != nil { // as when asleep too long
				return err
			}
			_, err := Put(ctx, s, "led", term, Any, s.Fenced(term))
			if !errors.Is(err, ErrStaleTerm) {
				return fmt.Errorf("write without lease: %w", err)
			}
			<-ctx.Done()
			return nil
		}
	}
	lost, err := s.leadOnce(ctx, term(s, false))
	if !lost || err != nil {
		t.Fatalf("lost %v, error %v", lost, err)
	}
	wantErr(t, other.Lead(ctx, term(other, true)), enough)
	if len(terms) != 2 || terms[1] <= terms[0] {
		t.Errorf("terms %v do not grow", terms)
	}
	_, err = Put(ctx, s, "led", 0, Any, s.Fenced(terms[0]))
	wantErr(t, err, ErrStaleTerm)
	_, err = Put(ctx, s, "led", 0, 999_999, s.Fenced(12345), RevIs("x", 5))
	wantErr(t, err, ErrStaleTerm)
	if name, term, err := s.Leader(ctx); name != "" || term != 0 || err != nil {
		t.Errorf("after both resigned the leader is %q in %d, %v", name, term, err)
	}
}

// Lead waits its turn behind a leader, and wins as soon as that one resigns.
func TestLeadHandover(t *testing.T) {
	s := fresh(t)
	other := &Store{client: s.client, name: "other", timeout: s.timeout, log: s.log}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	leading, resign, second := make(chan struct{}), make(chan struct{}), make(chan string, 1)
	var g errgroup.Group
	g.Go(func() error {
		return s.Lead(ctx, func(context.Context, uint64) error { close(leading); <-resign; return nil })
	})
	<-leading
	g.Go(func() error {
		return other.Lead(ctx, func(ctx context.Context, _ uint64) error {
			name, _, err := other.Leader(ctx)
			second <- name
			return err
		})
	})
	close(resign)
	if name := <-second; name != "other" {
		t.Errorf("leader is %q", name)
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func leaseOf(t *testing.T, s *Store) clientv3.LeaseID {
	t.Helper()
	resp := must[*clientv3.GetResponse](t)(s.client.Get(t.Context(), root+leaderPrefix, clientv3.WithFirstCreate()...))
	return clientv3.LeaseID(resp.Kvs[0].Lease)
}
