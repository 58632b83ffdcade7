package durable

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
)

// Whatever is ordered, an epoch that has ended is never granted again, nor an older one; and who opens
// the ledger anew finds it as it was.
func TestLedger(t *testing.T) {
	root := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(root, "ledger")
		if err != nil {
			t.Fatal(err)
		}
		l, err := OpenLedger(dir)
		if err != nil {
			t.Fatal(err)
		}
		const vm = heliotrope.VMID("web")
		var highest, term uint64
		held := false
		t.Repeat(map[string]func(*rapid.T){
			"grant": func(t *rapid.T) {
				epoch := rapid.Uint64Range(1, 6).Draw(t, "epoch")
				may := epoch > highest || epoch == highest && held
				if err := l.Grant(vm, epoch); may != (err == nil) || err != nil && !errors.Is(err, agentapi.ErrStale) {
					t.Fatalf("epoch %d after %d (held: %t): %v", epoch, highest, held, err)
				}
				if may {
					highest, held = epoch, true
				}
			},
			"revoke": func(t *rapid.T) {
				if err := l.Revoke(vm); err != nil {
					t.Fatal(err)
				}
				held = false
			},
			"fence": func(t *rapid.T) {
				next := rapid.Uint64Range(1, 6).Draw(t, "term")
				if err := l.Fence(next); (next >= term) != (err == nil) {
					t.Fatalf("term %d after %d: %v", next, term, err)
				}
				term = max(term, next)
			},
			"open": func(t *rapid.T) {
				if l, err = OpenLedger(dir); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				if p := l.Get(vm); p.Epoch != highest || p.Held != held {
					t.Fatalf("%+v, want epoch %d, held %t", p, highest, held)
				}
			},
		})
	})
}

// A ledger that cannot be read is not taken for an empty one.
func TestDamagedLedger(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Grant("web", 3); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "permits", "web.json"), []byte(`{"epoch":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLedger(dir); err == nil {
		t.Error("it was opened")
	}
}
