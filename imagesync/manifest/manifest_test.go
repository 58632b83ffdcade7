package manifest

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func draw(t *rapid.T) *Manifest {
	size := rapid.Int64Range(0, 5*PageSize).Draw(t, "size")
	m := New(size)
	for range rapid.IntRange(0, 50).Draw(t, "chunks") {
		if m.Chunks() > 0 {
			i := rapid.IntRange(0, m.Chunks()-1).Draw(t, "chunk")
			m.Set(i, ID{byte(rapid.IntRange(0, 3).Draw(t, "id"))})
		}
	}
	return m
}

func TestEncodeAndDecode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := draw(t)
		got, err := Decode(m.Encode())
		if err != nil || got.Size() != m.Size() || got.Root() != m.Root() || !maps.Equal(maps.Collect(got.Content()), maps.Collect(m.Content())) {
			t.Fatalf("%+v, %v", got, err)
		}
	})
}

// Two manifests have the same root if and only if they have the same content.
func TestRootsAndChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := draw(t), draw(t)
		changed := map[int]ID{}
		for i := range max(a.Chunks(), b.Chunks()) {
			if i < b.Chunks() && a.At(i) != b.At(i) {
				changed[i] = b.At(i)
			}
		}
		if got := maps.Collect(b.Changed(a)); !maps.Equal(got, changed) {
			t.Fatalf("%v, want %v", got, changed)
		}
		same := a.Size() == b.Size() && len(changed) == 0
		if same != (a.Root() == b.Root()) {
			t.Fatalf("same content: %v, same root: %v", same, a.Root() == b.Root())
		}
		c := a.Clone(b.Size())
		for i := range c.Chunks() {
			if c.At(i) != a.At(i) {
				t.Fatal("a clone has other chunks")
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	m := New(2*PageSize + 100)
	m.Set(3, ID{1})
	m.Set(PageChunks*2, ID{2})
	f.Add(m.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := Decode(b); err == nil {
			again, err := Decode(m.Encode())
			if err != nil || again.Root() != m.Root() {
				t.Fatal("it cannot be read again", err)
			}
		}
	})
}

func TestSignatures(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	v := Version{Image: "debian", Number: 3, Root: ID{1, 2}, Size: 5, Created: time.Unix(1, 0).UTC(), From: "<a> & b"}
	b, err := Sign(v, private)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Verify(b, public); err != nil || got != v {
		t.Errorf("%+v, %v", got, err)
	}
	other, _, _ := ed25519.GenerateKey(nil)
	if _, err := Verify(b, other); !errors.Is(err, ErrSignature) {
		t.Error(err)
	}
	for i := range b {
		bent := bytes.Clone(b)
		bent[i] ^= 1
		if got, err := Verify(bent, public); err == nil && got != v {
			t.Errorf("byte %d: %+v", i, got)
		}
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{"debian": true, "a": true, "Debian-12.5_x": true, "": false, ".": false, "..": false, "a/b": false,
		"-a": false, "ä": false, "a b": false, strings.Repeat("a", 63): true, strings.Repeat("a", 64): false} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	public, private, err := ed25519.GenerateKey(bytes.NewReader(make([]byte, 64)))
	if err != nil {
		f.Fatal(err)
	}
	v := Version{Image: "debian", Number: 3, Root: ID{1, 2}, Size: 5}
	b, err := Sign(v, private)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := Verify(b, public); err == nil && got != v {
			t.Fatalf("%+v was never signed", got)
		}
	})
}
