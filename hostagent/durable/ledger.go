package durable

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
)

// Permit is the right to run a VM's vCPUs here. One that is not held any more is kept, so
// that a late order of its epoch is known for what it is.
type Permit struct {
	Epoch uint64    `json:"epoch"`
	Held  bool      `json:"held"`
	At    time.Time `json:"at"`
}

// Ledger is the permits of a host and the newest term it has seen, on disk.
type Ledger struct {
	dir string

	mu      sync.Mutex
	term    uint64
	permits map[heliotrope.VMID]Permit
}

// OpenLedger reads the ledger in an agent's state directory. One that cannot be read is an error:
// a permit that is forgotten could be given twice.
func OpenLedger(stateDir string) (*Ledger, error) {
	terms, err := ReadAll[uint64](filepath.Join(stateDir, "term"))
	if err != nil {
		return nil, err
	}
	l := &Ledger{dir: stateDir, term: terms["seen"], permits: map[heliotrope.VMID]Permit{}}
	permits, err := ReadAll[Permit](filepath.Join(stateDir, "permits"))
	for vm, p := range permits {
		l.permits[heliotrope.VMID(vm)] = p
	}
	return l, err
}

// Fence refuses a term that is over, and remembers a new one.
func (l *Ledger) Fence(term uint64) error {
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
		err = WriteFile(filepath.Join(l.dir, "term", "seen.json"), data, 0o600)
	}
	if err == nil {
		l.term = term
	}
	return err
}

// Get returns the newest Permit that vm ever had here.
func (l *Ledger) Get(vm heliotrope.VMID) Permit {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.permits[vm]
}

// Grant writes a Permit down, or refuses an epoch that is over.
func (l *Ledger) Grant(vm heliotrope.VMID, epoch uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.permits[vm]
	if epoch < p.Epoch || epoch == p.Epoch && !p.Held && p.Epoch > 0 {
		return fmt.Errorf("%w: epoch %d of %s is over here", agentapi.ErrStale, epoch, vm)
	}
	if p.Held && p.Epoch == epoch {
		return nil
	}
	return l.put(vm, Permit{Epoch: epoch, Held: true, At: time.Now()})
}

// Revoke ends the Permit of vm, if it has one.
func (l *Ledger) Revoke(vm heliotrope.VMID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, ok := l.permits[vm]
	if !ok || !p.Held {
		return nil
	}
	return l.put(vm, Permit{Epoch: p.Epoch, At: time.Now()})
}

// Forget drops all knowledge of vm: the topology has it no more.
func (l *Ledger) Forget(vm heliotrope.VMID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := RemoveFile(l.file(vm)); err != nil {
		return fmt.Errorf("remove Permit: %w", err)
	}
	delete(l.permits, vm)
	return nil
}

func (l *Ledger) put(vm heliotrope.VMID, p Permit) error {
	data, err := json.Marshal(p)
	if err == nil {
		err = WriteFile(l.file(vm), data, 0o600)
	}
	if err == nil {
		l.permits[vm] = p
	}
	return err
}

func (l *Ledger) file(vm heliotrope.VMID) string {
	return filepath.Join(l.dir, "permits", string(vm)+".json")
}
