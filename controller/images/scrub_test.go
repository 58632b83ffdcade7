package images

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"heliotrope/controller/api"
	"heliotrope/imagesync"

	"pgregory.net/rapid"
)

const scrubPeriod = 10 * time.Hour

// However a round is looked at, it never reads more than there is nor goes back, keeps its pace, and has
// read all when its time is over and nothing was missed.
func TestScrubShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		period := time.Duration(rapid.Int64Range(int64(time.Hour), int64(30*24*time.Hour)).Draw(t, "period"))
		tick := min(max(period/1000, scrubOften), scrubSeldom)
		st := scrubState{Began: noon, All: rapid.Int64Range(0, 1<<50).Draw(t, "bytes")}
		now, missed := noon, false
		for now.Before(noon.Add(period)) {
			step := tick
			if rapid.IntRange(0, 200).Draw(t, "away") == 0 {
				step *= time.Duration(rapid.IntRange(1, 50).Draw(t, "looks"))
			}
			missed = missed || step > tick
			now = now.Add(step)
			due := st.share(now, period, tick)
			if due < st.Bytes || due > st.All || float64(due-st.Bytes) > catchUp*float64(st.All)*tick.Seconds()/period.Seconds()+1 {
				t.Fatalf("%d of %d bytes after %v are followed by %d", st.Bytes, st.All, now.Sub(noon), due)
			}
			st.Bytes = due
		}
		if !missed && st.Bytes != st.All {
			t.Fatalf("%d of %d bytes in all of the time", st.Bytes, st.All)
		}
	})
}

// A bit that turns is found within a round, told once, and forgotten when it is mended; a restart goes
// on where the round was.
func TestScrub(t *testing.T) {
	r := newRig(t)
	r.term = 1
	for i, image := range []string{"a", "b", "c", "d"} {
		r.send(api.UploadRequest{Image: image}, random(uint64(20+i), size))
	}
	now := noon
	look := func(hurry bool) api.ImageScrub {
		t.Helper()
		if err := r.images.scrubOnce(t.Context(), now, scrubOften, hurry); err != nil {
			t.Fatal(err)
		}
		now = now.Add(scrubOften)
		s, err := r.api.ImageScrub(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	packs, err := filepath.Glob(filepath.Join(r.dir, "store", "packs", "*"))
	if err != nil || len(packs) != 4 {
		t.Fatal(packs, err)
	}
	slices.Sort(packs)
	damage(t, packs[3]) // which comes last
	r.told = nil
	s := look(false)
	for s.Packs < 2 {
		s = look(false)
	}
	if s.ReadBytes >= s.AllBytes || s.Whole || len(s.Damaged) > 0 {
		t.Errorf("half a round: %+v", s)
	}
	r.restart(true)
	if err := r.images.loadScrub(); err != nil {
		t.Fatal(err)
	}
	for s = look(false); s.Packs < 4; s = look(false) {
		if s.Packs < 2 {
			t.Fatalf("it begins anew after a restart: %+v", s)
		}
	}
	if took := now.Sub(noon); !s.Whole || took < scrubPeriod/2 || took > scrubPeriod || len(s.Damaged) != 2 || !slices.ContainsFunc(s.Damaged, func(d api.ImageDamage) bool { return len(d.NeededBy) == 1 }) {
		t.Errorf("after %v: %+v", took, s)
	}
	look(false)
	if len(r.told) != 1 || !strings.Contains(r.told[0], ": version 1 is damaged in the store (chunk ") {
		t.Errorf("told: %q", r.told)
	}
	store, err := r.images.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found, err := store.VerifyKnowing(t.Context(), []string{"packs/" + filepath.Base(packs[3])})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Mend(t.Context(), found, imagesync.MendOptions{}); err != nil {
		t.Fatal(err)
	}
	if s = look(false); len(s.Damaged) != 1 || s.Damaged[0].Why != imagesync.ErrMissing.Error() {
		t.Errorf("when the pack is mended: %+v", s.Damaged)
	}
	for i, image := range []string{"a", "b", "c", "d"} { // one of them has it
		r.send(api.UploadRequest{Image: image}, random(uint64(20+i), size))
	}
	if s = look(false); len(s.Damaged) != 0 || !strings.Contains(r.told[len(r.told)-1], "nothing in the image store is damaged any more") {
		t.Errorf("when all is back: %+v, told %q", s.Damaged, r.told)
	}
	if now.Before(noon.Add(scrubPeriod)) {
		if again := look(false); again.BeganAt != s.BeganAt {
			t.Errorf("a round begins before its time: %+v", again)
		}
	}
	if s = look(true); !s.Whole || s.ReadBytes != s.AllBytes || s.EndedAt.IsZero() {
		t.Errorf("at once: %+v", s)
	}
	r.term = 0
	if _, err := r.api.ScrubImages(t.Context()); err == nil || !strings.Contains(err.Error(), "does not lead") {
		t.Error(err)
	}
}

// damage turns a bit of a chunk.
func damage(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
