package recent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

type seen struct {
	from, to int64
	s        State
}

func each(t rapid.TB, m *Map) (all []seen) {
	t.Helper()
	if err := m.Each(func(from, to int64, s State) { all = append(all, seen{from, to, s}) }); err != nil {
		t.Fatal(err)
	}
	return all
}

// What was set is there when the file is opened again, in as few runs as it has.
func TestRemembers(t *testing.T) {
	root := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(root, "")
		if err != nil {
			t.Fatal(err)
		}
		blocks := rapid.Int64Range(1, 3*page).Draw(t, "blocks")
		m, err := Open(dir, blocks)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]State, blocks)
		for range rapid.IntRange(0, 20).Draw(t, "sets") {
			from := rapid.Int64Range(0, blocks-1).Draw(t, "from")
			to := rapid.Int64Range(from+1, blocks).Draw(t, "to")
			s := rapid.SampledFrom([]State{Data, Zero}).Draw(t, "state")
			if err := m.Set(from, to, s); err != nil {
				t.Fatal(err)
			}
			for i := from; i < to; i++ {
				want[i] = s
			}
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if m, err = Open(dir, blocks); err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		got, last := make([]State, blocks), int64(-1)
		for _, run := range each(t, m) {
			if run.from < last || run.from >= run.to || run.s == Unknown {
				t.Fatalf("a run of blocks %d to %d that became %d, after %d", run.from, run.to, run.s, last)
			}
			last = run.to
			for i := run.from; i < run.to; i++ {
				got[i] = run.s
			}
		}
		if !slices.Equal(got, want) {
			t.Fatal("it remembers something else")
		}
	})
}

// A file of another boot, of a disk of another size, that was forgotten, or that is none says nothing.
func TestSaysNothing(t *testing.T) {
	id, err := boot()
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(file string) error{
		"another boot": func(file string) error {
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			return os.WriteFile(file, []byte(strings.Replace(string(b), id[:8], "00000000", 1)), 0o600)
		},
		"garbage": func(file string) error { return os.WriteFile(file, []byte(strings.Repeat("x", 9000)), 0o600) },
		"torn":    func(file string) error { return os.Truncate(file, 10) },
		"forgotten": func(file string) error {
			m, err := Open(filepath.Dir(file), 100)
			if err != nil {
				return err
			}
			if err := m.Forget(); err != nil {
				return err
			}
			return m.Set(3, 4, Data) // a writer that goes on
		},
		"another size": nil,
	} {
		t.Run(name, func(t *testing.T) {
			dir, blocks := t.TempDir(), int64(100)
			m, err := Open(dir, blocks)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Set(5, 9, Data); err != nil {
				t.Fatal(err)
			}
			m.Close()
			if spoil == nil {
				blocks = 101
			} else if err := spoil(filepath.Join(dir, File)); err != nil {
				t.Fatal(err)
			}
			for range 2 { // nor when it is opened again
				if m, err = Open(dir, blocks); err != nil {
					t.Fatal(err)
				}
				if all := each(t, m); len(all) > 0 {
					t.Errorf("it says %v", all)
				}
				m.Close()
			}
		})
	}
}

// What nobody has written is refused.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	m, err := Open(dir, 100)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.f.WriteAt([]byte{77}, head+50); err != nil {
		t.Fatal(err)
	}
	m.Close()
	if m, err = Open(dir, 100); err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Each(func(int64, int64, State) {}); err == nil || !strings.Contains(err.Error(), "block 50 became 77") {
		t.Errorf("it says %v", err)
	}
}
