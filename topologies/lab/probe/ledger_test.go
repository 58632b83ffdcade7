package probe

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// traffic is a drawn history: what was sent when, and what came back when.
type traffic struct {
	ledger  ledger
	sent    []int64
	answers map[uint64][]int64 // by number, in order of arrival
	end     int64
}

var histories = rapid.Custom(func(t *rapid.T) traffic {
	h := traffic{ledger: ledger{grace: int64(grace)}, answers: map[uint64][]int64{}}
	type event struct {
		at     int64
		number uint64
		answer bool
	}
	var events []event
	at := int64(1000)
	for number := range rapid.IntRange(1, 80).Draw(t, "probes") {
		at += int64(rapid.IntRange(1, 500).Draw(t, "ms")) * int64(time.Millisecond)
		events = append(events, event{at: at, number: uint64(number)})
		for range rapid.SampledFrom([]int{1, 1, 1, 1, 0, 0, 2, 3}).Draw(t, "copies") {
			late := rapid.SampledFrom([]int{1, 20, 700, 4999, 5001, 9000}).Draw(t, "late")
			events = append(events, event{at + int64(late)*int64(time.Millisecond), uint64(number), true})
		}
	}
	slices.SortStableFunc(events, func(a, b event) int { return int(min(max(a.at-b.at, -1), 1)) })
	for _, e := range events {
		h.end = e.at
		if !e.answer {
			if got := h.ledger.send(e.at, 0); got != e.number {
				t.Fatalf("number %d, want %d", got, e.number)
			}
			h.sent = append(h.sent, e.at)
			continue
		}
		h.ledger.receive(e.number, e.at)
		h.answers[e.number] = append(h.answers[e.number], e.at)
	}
	return h
})

// TestWindowsAddUp compares any window with a plain count, and checks what must always hold.
func TestWindowsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := histories.Draw(t, "history")
		from := rapid.Int64Range(0, h.end).Draw(t, "from")
		to := rapid.Int64Range(from, h.end+1).Draw(t, "to")
		now := h.end + rapid.Int64Range(0, 2*int64(grace)).Draw(t, "later")
		got := h.ledger.window(from, to, now)
		var want tally
		run := 0
		for number, sent := range h.sent {
			if sent < from || sent >= to {
				continue
			}
			want.sent++
			a := h.answers[uint64(number)]
			want.duplicated += max(len(a)-1, 0)
			switch {
			case len(a) > 0 && a[0]-sent <= int64(grace):
				want.answered++
				run = 0
			case now-sent > int64(grace):
				want.lost++
				run++
			default:
				run = 0
			}
			want.run.probes = max(want.run.probes, run)
		}
		if got.sent != want.sent || got.answered != want.answered || got.lost != want.lost ||
			got.duplicated != want.duplicated || got.run.probes != want.run.probes {
			t.Fatalf("got  %+v\nwant %+v", got, want)
		}
		if got.sent != got.answered+got.lost+got.pending || len(got.rtt) != got.answered || !slices.IsSorted(got.rtt) {
			t.Fatalf("does not add up: %+v", got)
		}
		if got.run.probes > got.lost || got.reordered > got.sent || got.run.from > got.run.to {
			t.Fatalf("senseless: %+v", got)
		}
	})
}

// TestHalvesMakeTheWhole splits a window: counts add up, and the longest gap is of a half.
func TestHalvesMakeTheWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := histories.Draw(t, "history")
		now := h.end + int64(grace)
		cut := rapid.Int64Range(0, h.end).Draw(t, "cut")
		whole, left, right := h.ledger.window(0, h.end+1, now), h.ledger.window(0, cut, now), h.ledger.window(cut, h.end+1, now)
		if whole.sent != left.sent+right.sent || whole.lost != left.lost+right.lost || whole.answered != left.answered+right.answered ||
			whole.duplicated != left.duplicated+right.duplicated || whole.reordered != left.reordered+right.reordered {
			t.Fatalf("%+v\nis not %+v\nand %+v", whole, left, right)
		}
		if whole.gap.length() != max(left.gap.length(), right.gap.length()) {
			t.Fatalf("gap %d, of the halves %d and %d", whole.gap.length(), left.gap.length(), right.gap.length())
		}
	})
}

// TestGapHasNoAnswerInside checks the gap against all times of arrival.
func TestGapHasNoAnswerInside(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := histories.Draw(t, "history")
		from := rapid.Int64Range(0, h.end).Draw(t, "from")
		to := rapid.Int64Range(from, h.end).Draw(t, "to")
		now := h.end + rapid.Int64Range(0, int64(grace)).Draw(t, "later")
		gap := h.ledger.window(from, to, now).gap
		ends := []int64{h.sent[0], now}
		for _, a := range h.answers {
			ends = append(ends, a[0])
		}
		slices.Sort(ends)
		var want int64
		for i := 1; i < len(ends); i++ {
			if a, b := ends[i-1], ends[i]; a <= to && b >= from {
				want = max(want, b-a)
			}
			if ends[i] > gap.from && ends[i] < gap.to && gap.length() > 0 {
				t.Fatalf("an answer at %d in the gap %+v", ends[i], gap)
			}
		}
		if gap.length() > want {
			t.Fatalf("gap %d, the longest between answers is %d", gap.length(), want)
		}
	})
}

// TestExcerptTellsTheSame shows that what is computed outside the lock is the same.
func TestExcerptTellsTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := histories.Draw(t, "history")
		from := rapid.Int64Range(0, h.end).Draw(t, "from")
		to := rapid.Int64Range(from, h.end).Draw(t, "to")
		part := h.ledger.excerpt(from, to)
		a, b := h.ledger.window(from, to, h.end), part.window(from, to, h.end)
		if a.sent != b.sent || a.lost != b.lost || a.gap != b.gap || a.run != b.run || !slices.Equal(a.rtt, b.rtt) {
			t.Fatalf("ledger  %+v\nexcerpt %+v", a, b)
		}
	})
}

// TestSettledIsFinal shows that an account that is settled never changes again.
func TestSettledIsFinal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := histories.Draw(t, "history")
		to := rapid.Int64Range(0, h.end).Draw(t, "to")
		if !h.ledger.settled(to, h.end) {
			return
		}
		for _, e := range h.ledger.entries[:h.ledger.after(to)] {
			if e.outcome(h.end, h.ledger.grace) == pending {
				t.Fatal("settled with a probe pending")
			}
		}
	})
}

func TestReorderedAndStray(t *testing.T) {
	l := ledger{grace: int64(grace)}
	for i := range 5 {
		l.send(int64(i), 0)
	}
	for _, number := range []uint64{0, 2, 1, 4, 3, 3, 99} {
		l.receive(number, 10)
	}
	got := l.window(0, 5, 10)
	if got.reordered != 2 || got.duplicated != 1 || got.answered != 5 || l.stray != 1 {
		t.Fatalf("%+v, %d stray", got, l.stray)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	l := ledger{grace: int64(grace)}
	for i := range maxEntries + 10 {
		l.send(int64(i), 0)
	}
	if len(l.entries) > maxEntries || l.first != maxEntries/2 {
		t.Fatalf("%d entries from %d", len(l.entries), l.first)
	}
	last := l.first + uint64(len(l.entries)) - 1
	l.receive(last, maxEntries+20)
	l.receive(3, maxEntries+20)
	if got := l.window(maxEntries+9, maxEntries+10, maxEntries+20); got.answered != 1 || l.stray != 1 {
		t.Fatalf("after forgetting: %+v, %d stray", got, l.stray)
	}
}
