package store

import (
	"context"
	"errors"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// cluster is an etcd of one member outside of this package's doing, reached over TCP.
func cluster(t *testing.T, dir, address string) *embed.Etcd {
	t.Helper()
	cfg := embeddedConfig(dir)
	listen := url.URL{Scheme: "http", Host: address}
	cfg.ListenClientUrls = []url.URL{listen}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	<-e.Server.ReadyNotify()
	return e
}

// The same operations against an external cluster; while that is away they fail with
// ErrUnavailable in time, and afterwards a watch has missed nothing.
func TestExternal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	e := cluster(t, dir, "127.0.0.1:0")
	address := e.Clients[0].Addr().String()
	s, err := Open(t.Context(), Config{Endpoints: []string{address}, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { // before the cluster, which waits for its clients
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		e.Close()
	}()
	ctx := t.Context()
	must[int64](t)(s.ApplyTopology(ctx, topology("a", "web"), 0))
	rev := must[int64](t)(Put(ctx, s, "w/a", 1, 0))
	watchCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	updates := s.Watch(watchCtx, "w/", rev)
	if u := <-updates; len(u.Changes) != 1 {
		t.Errorf("got %+v", u)
	}
	lead(t, s, func(ctx context.Context, term uint64) {
		must[int64](t)(Put(ctx, s, "w/a", 2, rev, s.Fenced(term)))
	})
	if u := <-updates; len(u.Changes) != 1 || string(u.Changes[0].Value) != "2" {
		t.Errorf("got %+v", u)
	}

	e.Close()
	start := time.Now()
	wantErr(t, s.Ping(ctx), ErrUnavailable)
	_, err = Put(ctx, s, "w/a", 3, Any)
	wantErr(t, err, ErrUnavailable)
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("two calls took %v to fail", took)
	}

	e = cluster(t, dir, address)
	waitFor(t, func() error { return s.Ping(ctx) })
	must[int64](t)(Put(ctx, s, "w/b", 4, Any))
	for u := range updates {
		if last := u.Changes[len(u.Changes)-1]; last.Key == "w/b" {
			break
		}
	}
	cancel()
	for range updates {
	}
}

// A leader that dies without resigning is replaced when its lease has ended, and not before.
func TestLeaseEnds(t *testing.T) {
	e := cluster(t, filepath.Join(t.TempDir(), "etcd"), "127.0.0.1:0")
	defer e.Close()
	conf := Config{Endpoints: []string{e.Clients[0].Addr().String()}}
	first := must[*Store](t)(Open(t.Context(), conf))
	second := must[*Store](t)(Open(t.Context(), conf))
	defer second.Close()

	var died time.Time
	dead := errors.New("dead")
	err := first.Lead(t.Context(), func(_ context.Context, term uint64) error {
		died = time.Now()
		if err := first.Close(); err != nil { // its keep-alives stop, and it cannot resign
			t.Error(err)
		}
		return dead
	})
	if err == nil {
		t.Error("a leader without a store ended well")
	}
	done := errors.New("done")
	err = second.Lead(t.Context(), func(context.Context, uint64) error { return done })
	wantErr(t, err, done)
	took := time.Since(died)
	if took < time.Second || took > 8*time.Second {
		t.Errorf("replaced after %v", took)
	}
	t.Logf("replaced after %v", took)
}

// waitFor asks until there is no error.
func waitFor(t *testing.T, ask func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := ask()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("still: %v", err)
		case <-ticker.C:
		}
	}
}
