package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/controller"
	"heliotrope/controller/api"
	"heliotrope/controller/store"
)

// Directories of the controller in its node.
const (
	stateDir = "/var/lib/heliotrope/controller"
	runDir   = "/run/heliotrope"
	socket   = "bench.sock" // in runDir
)

// moved is what came of one change of an owner.
type moved struct {
	Commit time.Duration `json:"commit"` // until the store had it
	Tables time.Duration `json:"tables"` // until every switch had acknowledged it, the commit included
}

// moveOrder names a VM's next owner.
type moveOrder struct {
	VM heliotrope.VMID   `json:"vm"`
	To heliotrope.HostID `json:"to"`
}

// runController is the controller of a benchmark: the real one, and beside it a mover that
// changes owners in the same store as a move's commit does.
func runController(ctx context.Context, bfd time.Duration) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s, err := store.Open(ctx, store.Config{Dir: filepath.Join(stateDir, "etcd"), Log: log})
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	defer s.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return controller.Run(ctx, controller.Config{Store: s, BFD: bfd, Log: log}) })
	g.Go(func() error { return serveMover(ctx, s) })
	return g.Wait()
}

// serveMover takes orders, and shows profiles of the process.
func serveMover(ctx context.Context, s *store.Store) error {
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	path := filepath.Join(runDir, socket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old socket: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	client := api.NewUnixClient(filepath.Join(runDir, "api.sock"))
	defer client.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("POST /move", func(w http.ResponseWriter, r *http.Request) {
		var o moveOrder
		err := json.NewDecoder(r.Body).Decode(&o)
		var m moved
		if err == nil {
			m, err = move(r.Context(), s, client, o)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		json.NewEncoder(w).Encode(m) // the caller is gone
	})
	server := &http.Server{Handler: mux, BaseContext: func(net.Listener) context.Context { return ctx }}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}

// move commits a new owner and waits until all switches know of it.
func move(ctx context.Context, s *store.Store, client *api.Client, o moveOrder) (moved, error) {
	kv, err := store.Get[heliotrope.Placement](ctx, s, store.PlacementKey(o.VM))
	if err != nil {
		return moved{}, err
	}
	_, term, err := s.Leader(ctx)
	if err != nil {
		return moved{}, err
	}
	start := time.Now()
	rev, err := s.ChangeOwner(ctx, term, o.VM, kv.Value.Host, o.To, kv.Value.Epoch)
	if err != nil {
		return moved{}, err
	}
	m := moved{Commit: time.Since(start)}
	err = client.AwaitFlows(ctx, rev)
	m.Tables = time.Since(start)
	return m, err
}

// mover gives orders from outside.
type mover struct{ http *http.Client }

func newMover(dir string) mover {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, socket))
	}
	return mover{&http.Client{Transport: &http.Transport{DialContext: dial}}}
}

func (m mover) close() { m.http.CloseIdleConnections() }

func (m mover) ask(ctx context.Context, method, path string, in any) ([]byte, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("encode order: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://bench"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	resp, err := m.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask controller: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(answer)))
	}
	return answer, err
}

func (m mover) move(ctx context.Context, o moveOrder) (moved, error) {
	var out moved
	answer, err := m.ask(ctx, http.MethodPost, "/move", o)
	if err == nil {
		err = json.Unmarshal(answer, &out)
	}
	if err != nil {
		return out, fmt.Errorf("move %s to %s: %w", o.VM, o.To, err)
	}
	return out, nil
}

// profile writes what the controller does in the next seconds, and what memory it holds, to files.
func (m mover) profile(ctx context.Context, dir, name string, seconds int) error {
	for kind, query := range map[string]string{"profile": fmt.Sprintf("?seconds=%d", seconds), "heap": ""} {
		data, err := m.ask(ctx, http.MethodGet, "/debug/pprof/"+kind+query, nil)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name+"."+kind), data, 0o644)
		}
		if err != nil {
			return fmt.Errorf("profile controller: %w", err)
		}
	}
	return nil
}
