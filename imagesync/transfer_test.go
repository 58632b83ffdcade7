package imagesync

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"heliotrope/imagesync/delta"
	"heliotrope/imagesync/manifest"
)

// rebuilt is an image with the same files elsewhere: runs of blocks in another order.
func rebuilt(m memory, seed uint64) memory {
	const file = 3 * manifest.BlockSize
	r := rand.New(rand.NewPCG(seed, 1))
	out := make(memory, 0, len(m))
	for _, i := range r.Perm(len(m) / file) {
		out = append(out, m[i*file:][:file]...)
	}
	return append(out, m[len(out):]...)
}

func TestPullSendsWhatIsMissing(t *testing.T) {
	from, to := newStand(t), newStand(t)
	one := random(1, 80<<20) // more than a page
	clear(one[5<<20 : 9<<20])
	two := memory(bytes.Clone(one))
	for i := range 100 {
		copy(two[i*700000:], random(uint64(i+10), 1000))
	}
	three := rebuilt(one, 3)
	mustImport(t, from.Store, "debian", one)
	pull := func(ref string) delta.Stats {
		t.Helper()
		v, stats, err := to.Pull(t.Context(), from.Store, ref)
		if err != nil {
			t.Fatal(err)
		}
		if want, _ := from.Version(t.Context(), ref); v.Root != want.Root {
			t.Errorf("%+v, want %+v", v, want)
		}
		return stats
	}
	if s := pull("debian"); s.Bytes < 70<<20 || s.Bytes > 80<<20 {
		t.Errorf("first copy: %+v", s)
	}
	wantContent(t, to.Store, "debian", one)
	mustImport(t, from.Store, "debian", two)
	if s := pull("debian"); s.Data > 200 || s.Bytes > 200*manifest.BlockSize {
		t.Errorf("changed in place: %+v", s)
	}
	wantContent(t, to.open(t), "debian", two)
	mustImport(t, from.Store, "again", three)
	if s := pull("again"); s.Data > 10 || s.Bytes > 200<<10 {
		t.Errorf("made anew: %+v", s)
	}
	wantContent(t, to.open(t), "again", three)
	if s := pull("again"); s.Bytes != 0 {
		t.Errorf("nothing is missing: %+v", s)
	}
	// What it was before is here already, and becomes the newest version again.
	back := mustImport(t, from.Store, "debian", one)
	if s := pull("debian"); s.Bytes != 0 {
		t.Errorf("back as it was: %+v", s)
	}
	if v, err := to.Version(t.Context(), "debian"); err != nil || v.Root != back.Root || v.Number != 3 {
		t.Errorf("%+v, %v", v, err)
	}
	wantContent(t, to.Store, "debian", one)
	wantSound(t, to.open(t))
}

// What repeats itself within an image crosses once.
func TestAnImageOfItself(t *testing.T) {
	from, to := newStand(t), newStand(t)
	part := random(1, 24<<20)
	var content memory
	for range 6 { // across pages
		content = append(content, part...)
	}
	mustImport(t, from.Store, "a", content)
	_, stats, err := to.Pull(t.Context(), from.Store, "a")
	if err != nil || stats.Data != 24<<20/manifest.BlockSize {
		t.Errorf("%+v, %v", stats, err)
	}
	wantContent(t, to.Store, "a", content)
}

// A delta that was changed on the way is refused, and nothing of it is kept.
func TestAWrongDelta(t *testing.T) {
	from, to := newStand(t), newStand(t)
	one := random(1, 2<<20)
	mustImport(t, from.Store, "debian", one)
	if _, _, err := to.Pull(t.Context(), from.Store, "debian"); err != nil {
		t.Fatal(err)
	}
	two := memory(bytes.Clone(one))
	copy(two[1<<20:], random(2, 100<<10))
	v := mustImport(t, from.Store, "debian", two)
	var wire bytes.Buffer
	have, err := to.Version(t.Context(), "debian")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := from.Send(t.Context(), &wire, v, Knows{have.Root}); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		bent := bytes.Clone(wire.Bytes())
		if r.IntN(4) == 0 {
			bent = bent[:r.IntN(len(bent))]
		} else {
			bent[r.IntN(len(bent))] ^= 1 << r.IntN(8)
		}
		if got, _, err := to.Receive(t.Context(), bytes.NewReader(bent), v); err == nil {
			wantContent(t, to.Store, got.Ref(), two) // a bit that means nothing
			t.Logf("a delta that was bent was right all the same")
			if _, err := to.Remove(t.Context(), got.Ref()); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantContent(t, to.open(t), "debian", one)
	if _, _, err := to.Receive(t.Context(), bytes.NewReader(wire.Bytes()), v); err != nil {
		t.Fatal(err)
	}
	wantContent(t, to.open(t), "debian", two)
	wantSound(t, to.open(t))
}
