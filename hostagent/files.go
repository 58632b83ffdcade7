package hostagent

import (
	"encoding/json"
	"errors"
	"fmt"
	"heliotrope"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"heliotrope/hostagent/agentapi"
)

// writeFile replaces a file as a whole and returns once it is on disk: after a crash
// there is either the old content or the new.
func writeFile(path string, data []byte, mode os.FileMode) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func removeFile(path string) error {
	if err := os.Remove(path); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readAll reads every file *.json of dir into a T, by name without ".json". A file that
// cannot be read is an error: to forget a permit or a move is worse than not to start.
func readAll[T any](dir string) (map[string]T, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read state directory: %w", err)
	}
	all := map[string]T{}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || strings.HasPrefix(name, ".") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read state: %w", err)
		}
		var v T
		if err := json.Unmarshal(data, &v); err != nil {
			return nil, fmt.Errorf("read state %s: %w", e.Name(), err)
		}
		all[name] = v
	}
	return all, nil
}

// permit is the right to run a VM's vCPUs here. One that is not held any more is kept, so
// that a late order of its epoch is known for what it is.
type permit struct {
	Epoch uint64    `json:"epoch"`
	Held  bool      `json:"held"`
	At    time.Time `json:"at"`
}

// ledger is the permits of a host and the newest term it has seen, on disk.
type ledger struct {
	dir string

	mu      sync.Mutex
	term    uint64
	permits map[heliotrope.VMID]permit
}

func openLedger(stateDir string) (*ledger, error) {
	terms, err := readAll[uint64](filepath.Join(stateDir, "term"))
	if err != nil {
		return nil, err
	}
	l := &ledger{dir: stateDir, term: terms["seen"], permits: map[heliotrope.VMID]permit{}}
	permits, err := readAll[permit](filepath.Join(stateDir, "permits"))
	for vm, p := range permits {
		l.permits[heliotrope.VMID(vm)] = p
	}
	return l, err
}

// fence refuses a term that is over, and remembers a new one.
func (l *ledger) fence(term uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case term < l.term:
		return fmt.Errorf("%w: term %d is over, %d has begun", agentapi.ErrStale, term, l.term)
	case term == l.term:
		return nil
	}
	data, err := json.Marshal(term)
	if err == nil {
		err = writeFile(filepath.Join(l.dir, "term", "seen.json"), data, 0o600)
	}
	if err == nil {
		l.term = term
	}
	return err
}

// get returns the newest permit that vm ever had here.
func (l *ledger) get(vm heliotrope.VMID) permit {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.permits[vm]
}

// grant writes a permit down, or refuses an epoch that is over.
func (l *ledger) grant(vm heliotrope.VMID, epoch uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.permits[vm]
	if epoch < p.Epoch || epoch == p.Epoch && !p.Held && p.Epoch > 0 {
		return fmt.Errorf("%w: epoch %d of %s is over here", agentapi.ErrStale, epoch, vm)
	}
	if p.Held && p.Epoch == epoch {
		return nil
	}
	return l.put(vm, permit{Epoch: epoch, Held: true, At: time.Now()})
}

// revoke ends the permit of vm, if it has one.
func (l *ledger) revoke(vm heliotrope.VMID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, ok := l.permits[vm]
	if !ok || !p.Held {
		return nil
	}
	return l.put(vm, permit{Epoch: p.Epoch, At: time.Now()})
}

// forget drops all knowledge of vm: the topology has it no more.
func (l *ledger) forget(vm heliotrope.VMID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := removeFile(l.file(vm)); err != nil {
		return fmt.Errorf("remove permit: %w", err)
	}
	delete(l.permits, vm)
	return nil
}

func (l *ledger) put(vm heliotrope.VMID, p permit) error {
	data, err := json.Marshal(p)
	if err == nil {
		err = writeFile(l.file(vm), data, 0o600)
	}
	if err == nil {
		l.permits[vm] = p
	}
	return err
}

func (l *ledger) file(vm heliotrope.VMID) string {
	return filepath.Join(l.dir, "permits", string(vm)+".json")
}
