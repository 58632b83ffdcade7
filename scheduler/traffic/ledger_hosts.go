package traffic

import (
	"time"

	"heliotrope"
)

const (
	seqsKept    = 4096  // bins of a boot that are told from those that came before
	bootsKept   = 4     // of a host
	secondsKept = 90112 // of which is known whether a bin came; over 25 h, a multiple of 64
)

// host is what is known of the bins of one host.
type host struct {
	boots  []boot // the one that was heard of last is the last
	came   bits   // seconds with a bin
	expect []term
}

// boot is the bins of one run of an agent.
type boot struct {
	id   string
	seqs bits
}

// term is a time in which a host was to count, [from, to) in seconds; to is 0 while it is.
type term struct{ from, to int64 }

// bits are the newest of a growing sequence of numbers: which of them were set.
type bits struct {
	words []uint64
	end   int64 // after the newest
}

func newBits(n int) bits { return bits{words: make([]uint64, n/64)} }

func (b *bits) kept() int64 { return int64(len(b.words)) * 64 }

func (b *bits) at(n int64) (word *uint64, bit uint64) {
	i := n % b.kept()
	return &b.words[i/64], 1 << (i % 64)
}

// set sets n, and says whether it was not set and is not too old to know.
func (b *bits) set(n int64) bool {
	if n < b.end-b.kept() || n < 0 {
		return false
	}
	if n-b.end >= b.kept() {
		clear(b.words)
		b.end = n
	}
	for ; b.end <= n; b.end++ {
		word, bit := b.at(b.end)
		*word &^= bit
	}
	word, bit := b.at(n)
	fresh := *word&bit == 0
	*word |= bit
	return fresh
}

func (b *bits) has(n int64) bool {
	if n >= b.end || n < b.end-b.kept() || n < 0 {
		return false
	}
	word, bit := b.at(n)
	return *word&bit != 0
}

func (l *Ledger) host(id heliotrope.HostID) *host {
	h, ok := l.hosts[id]
	if !ok {
		h = &host{came: newBits(secondsKept)}
		l.hosts[id] = h
	}
	return h
}

// take notes that a bin came; false where it came before, or is so old that nobody knows.
func (h *host) take(id string, seq uint64, second int64) bool {
	i := len(h.boots) - 1
	for i >= 0 && h.boots[i].id != id {
		i--
	}
	if i < 0 {
		h.boots = append(h.boots[max(0, len(h.boots)-bootsKept+1):], boot{id: id, seqs: newBits(seqsKept)})
		i = len(h.boots) - 1
	}
	if !h.boots[i].seqs.set(int64(seq)) {
		return false
	}
	h.came.set(second)
	return true
}

// Expect says that a host is to count from a time on, until to or, where that is zero,
// until it is said again. What it is late with is missing from a Matrix.
func (l *Ledger) Expect(id heliotrope.HostID, from, to time.Time) {
	h := l.host(id)
	t := term{from: from.Unix()}
	if !to.IsZero() {
		t.to = to.Unix()
	}
	var kept []term
	for _, old := range h.expect {
		if old.to == 0 || old.to > t.from {
			old.to = t.from
		}
		if old.from < old.to && old.to > l.newest-secondsKept {
			kept = append(kept, old)
		}
	}
	h.expect = append(kept, t)
}

// Forget says that a host is gone for good: nothing is known of its bins any more.
// What they had stays.
func (l *Ledger) Forget(id heliotrope.HostID) { delete(l.hosts, id) }

// missing returns the share of [from, to) that each host was to count in and did not.
func (l *Ledger) missing(from, to int64) map[heliotrope.HostID]float64 {
	shares := map[heliotrope.HostID]float64{}
	for id, h := range l.hosts {
		var expected, absent int64
		for _, t := range h.expect {
			end := to
			if t.to != 0 {
				end = min(end, t.to)
			}
			for n := max(from, t.from); n < end; n++ {
				expected++
				if !h.came.has(n) {
					absent++
				}
			}
		}
		if absent > 0 {
			shares[id] = float64(absent) / float64(expected)
		}
	}
	return shares
}
