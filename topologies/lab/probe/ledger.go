package probe

import (
	"slices"
	"sort"
	"time"
)

const (
	// grace is how long after its probe an answer is still taken as one.
	grace = 5 * time.Second
	// margin is how far outside a window the ends of a gap are looked for.
	margin = time.Minute
	// maxEntries bounds the memory at 64 MB: half an hour of 1,000 probes a second.
	maxEntries = 2 << 20
)

// ledger accounts for numbered probes and their answers. It is pure: times are nanoseconds of
// one clock that never goes back, and are arguments.
type ledger struct {
	grace   int64
	first   uint64 // number of the oldest entry kept
	entries []entry
	highest uint64 // number after the highest that was answered
	stray   uint64 // answers to numbers that were never sent or are forgotten
}

type entry struct {
	sent      int64
	got       int64  // when the first answer came, meaningful if answered
	skipped   uint32 // probes that were due before this one and not sent, for it was too late
	extra     uint16 // further answers
	answered  bool
	overtaken bool // a later probe's answer came first
}

// send opens the next entry and returns its number.
func (l *ledger) send(now int64, skipped int) uint64 {
	if len(l.entries) == maxEntries {
		half := copy(l.entries, l.entries[maxEntries/2:])
		l.entries = l.entries[:half]
		l.first += maxEntries / 2
	}
	l.entries = append(l.entries, entry{sent: now, skipped: uint32(skipped)})
	return l.first + uint64(len(l.entries)) - 1
}

// receive books an answer to number. No answer comes before its probe, whatever the clocks say.
func (l *ledger) receive(number uint64, now int64) {
	if number < l.first || number-l.first >= uint64(len(l.entries)) {
		l.stray++
		return
	}
	e := &l.entries[number-l.first]
	if e.answered {
		if e.extra < 1<<16-1 {
			e.extra++
		}
		return
	}
	e.got, e.answered = max(now, e.sent), true
	e.overtaken = number < l.highest
	l.highest = max(l.highest, number+1)
}

type outcome uint8

const (
	pending outcome = iota
	answered
	lost
)

// outcome is what is known at now. An answer that came after grace does not count.
func (e *entry) outcome(now, grace int64) outcome {
	switch {
	case e.answered && e.got-e.sent <= grace:
		return answered
	case now-e.sent > grace:
		return lost
	}
	return pending
}

// tally is the account of the probes that were sent in a window. Sent is Answered, Lost and
// Pending together.
type tally struct {
	sent, answered, lost, pending  int
	duplicated, reordered, skipped int
	rtt                            []int64 // of the answered, ascending
	gap                            span    // the longest without any answer
	run                            lossRun // the longest row of lost probes
}

type span struct{ from, to int64 }

func (s span) length() int64 { return s.to - s.from }

// lossRun is probes in a row that were lost; from and to are when its first and last were sent.
type lossRun struct {
	probes   int
	from, to int64
}

// after is the index of the first entry sent at t or later.
func (l *ledger) after(t int64) int {
	return sort.Search(len(l.entries), func(i int) bool { return l.entries[i].sent >= t })
}

// excerpt copies what an account of the window from from to to is made of.
func (l *ledger) excerpt(from, to int64) ledger {
	begin, end := l.after(from-int64(margin)), l.after(to+int64(margin))
	return ledger{grace: l.grace, entries: slices.Clone(l.entries[begin:max(begin, end)])}
}

// settled says whether nothing more can change in the account of the time until to: its
// probes are answered or lost, and an answer after to ends its last gap, or none will soon.
func (l *ledger) settled(to, now int64) bool {
	if now-to > l.grace {
		return true
	}
	ended := false
	for _, e := range l.entries[l.after(now-l.grace):] {
		if e.sent < to && !e.answered {
			return false
		}
		ended = ended || e.answered && e.got > to
	}
	return ended
}

// window accounts for the probes sent from from until before to, as known at now.
func (l *ledger) window(from, to, now int64) tally {
	var t tally
	var run lossRun
	for i := l.after(from); i < len(l.entries) && l.entries[i].sent < to; i++ {
		e := &l.entries[i]
		t.sent++
		t.skipped += int(e.skipped)
		t.duplicated += int(e.extra)
		if e.overtaken {
			t.reordered++
		}
		switch e.outcome(now, l.grace) {
		case answered:
			t.answered++
			t.rtt = append(t.rtt, e.got-e.sent)
			run = lossRun{}
		case pending:
			t.pending++
			run = lossRun{}
		case lost:
			t.lost++
			if run.probes == 0 {
				run.from = e.sent
			}
			run.probes++
			run.to = e.sent
			if run.probes > t.run.probes {
				t.run = run
			}
		}
	}
	slices.Sort(t.rtt)
	t.gap = l.longestGap(from, min(to, now), now)
	return t
}

// longestGap is the longest time without an answer that lies at least partly between from and
// to. A gap counts whole, also what of it lies outside (of an excerpt: up to margin); one that
// has not ended ends now.
func (l *ledger) longestGap(from, to, now int64) span {
	if to < from || len(l.entries) == 0 || l.entries[0].sent > to {
		return span{}
	}
	before, after := l.entries[0].sent, now
	var inside []int64
	for i := range l.entries {
		e := &l.entries[i]
		switch {
		case !e.answered:
		case e.got < from:
			before = max(before, e.got)
		case e.got > to:
			after = min(after, e.got)
		default:
			inside = append(inside, e.got)
		}
	}
	slices.Sort(inside)
	var longest span
	last := before
	for _, at := range append(inside, after) {
		if at-last > longest.length() {
			longest = span{last, at}
		}
		last = at
	}
	return longest
}

// quantile is the value that share q of the ascending values do not exceed, 0 of none.
func quantile(values []int64, q float64) int64 {
	if len(values) == 0 {
		return 0
	}
	return values[min(int(q*float64(len(values))), len(values)-1)]
}
