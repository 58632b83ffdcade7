package traffic

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"heliotrope"
)

// Why a bin is not taken.
var (
	ErrKnown = errors.New("was counted already")
	ErrLate  = errors.New("is too old")
	ErrEarly = errors.New("is of the future")
)

const (
	// LatestBin is how old a bin may be when it comes.
	LatestBin = time.Hour

	// earliestBin is how far a host's clock may be ahead.
	earliestBin = 10 * time.Second

	sealAfter  = 5   // seconds after its end, a slot is taken to be complete
	sweepEvery = 600 // seconds
)

// Limits bound what a Ledger keeps; 0 is the default.
type Limits struct {
	Ends  int // VMs and prefixes: 100,000
	Keys  int // conversations, each of two ends and a service: 1,000,000, of 40 bytes
	Cells int // counts over all slots: 8,000,000, of 72 bytes
}

func (l *Limits) defaults() {
	for _, d := range []struct {
		at    *int
		value int
	}{{&l.Ends, 100_000}, {&l.Keys, 1_000_000}, {&l.Cells, 8_000_000}} {
		if *d.at <= 0 {
			*d.at = d.value
		}
	}
}

// Stats say what a Ledger holds, and what it did not take or keep.
type Stats struct {
	Bins  uint64 `json:"bins"` // taken
	Known uint64 `json:"known"`
	Late  uint64 `json:"late"`
	Early uint64 `json:"early"`

	Ends  int `json:"ends"`
	Keys  int `json:"keys"`
	Cells int `json:"cells"`

	Coarsened    uint64  `json:"coarsened"`     // slots that went early because Cells was reached; larger slots have what they had
	Evicted      uint64  `json:"evicted"`       // cells that went because of Limits, the smallest of their slot
	EvictedBytes float64 `json:"evicted_bytes"` // that they had
}

// Ledger adds bins up and answers for windows of time up to 24 hours back. It keeps slots
// of 1 s for two minutes, of 10 s for ten, of 1 min for an hour, of 10 min for six, and of
// 1 h for 25. Every count goes into the five slots of its time. Where Limits are reached,
// the oldest small slots go first, and then the smallest cells of the fullest slot; both
// are counted. It is not safe for concurrent use.
type Ledger struct {
	limits Limits
	stats  Stats
	newest int64 // second
	rings  [len(grains)]ring
	hosts  map[heliotrope.HostID]*host

	ends     []End
	vms      map[heliotrope.VMID]uint32
	prefixes map[netip.Prefix]uint32
	keys     []pairKey
	known    map[pairKey]uint32
	buffer   []uint32 // of numbers
}

const noKey = math.MaxUint32

// pairKey is a Key with its ends' numbers.
type pairKey struct {
	src, dst uint32
	service  Service
	reply    bool
}

// NewLedger returns an empty ledger.
func NewLedger(limits Limits) *Ledger {
	limits.defaults()
	l := &Ledger{
		limits: limits, newest: math.MinInt64, hosts: map[heliotrope.HostID]*host{},
		vms: map[heliotrope.VMID]uint32{}, prefixes: map[netip.Prefix]uint32{}, known: map[pairKey]uint32{},
	}
	for i := range l.rings {
		l.rings[i] = ring{grain: grains[i].seconds, since: math.MinInt64, slots: map[int64]*slot{}}
	}
	return l
}

// Stats returns what is held and what was not taken.
func (l *Ledger) Stats() Stats {
	s := l.stats
	s.Ends, s.Keys = len(l.ends), len(l.keys)
	return s
}

// Add takes a bin in at the time now. It returns ErrKnown for one that was taken before,
// ErrLate for one older than LatestBin, and ErrEarly for one of the future; these are
// counted and else have no effect.
func (l *Ledger) Add(b Bin, now time.Time) error {
	second := b.Start.Unix()
	err := l.admit(&b, second, now)
	if err != nil {
		return fmt.Errorf("bin %d of %s: %w", b.Seq, b.Host, err)
	}
	l.stats.Bins++
	l.advance(second)
	slots := [len(grains)]*slot{}
	for i := range l.rings {
		if s := l.rings[i].at(second); s != nil {
			s.shed += b.Shed
			s.sampling = max(s.sampling, b.Sampling)
			slots[i] = s
		}
	}
	keys := l.numbers(b.Counts)
	for _, s := range slots {
		if s == nil {
			continue
		}
		s.open(len(l.keys))
		before := len(s.tallies)
		for i, key := range keys {
			if key != noKey {
				s.tally(key).add(&b.Counts[i], b.Sampling)
			}
		}
		l.stats.Cells += len(s.tallies) - before
	}
	l.shrink()
	return nil
}

// numbers returns the counts' keys; noKey where Limits are reached.
func (l *Ledger) numbers(counts []Count) []uint32 {
	l.buffer = l.buffer[:0]
	for i := range counts {
		key, ok := l.key(&counts[i].Key)
		if !ok {
			key = noKey
			l.stats.Evicted++
			l.stats.EvictedBytes += float64(counts[i].Bytes)
		}
		l.buffer = append(l.buffer, key)
	}
	return l.buffer
}

func (l *Ledger) admit(b *Bin, second int64, now time.Time) error {
	switch {
	case b.Start.After(now.Add(earliestBin)):
		l.stats.Early++
		return ErrEarly
	case b.Start.Before(now.Add(-LatestBin)):
		l.stats.Late++
		return ErrLate
	}
	if !l.host(b.Host).take(b.Boot, b.Seq, second) {
		l.stats.Known++
		return ErrKnown
	}
	return nil
}

// advance moves the rings to a new second, and drops what is older than they keep.
func (l *Ledger) advance(second int64) {
	if second <= l.newest {
		return
	}
	before := max(l.newest, second-grains[len(grains)-1].seconds) - sealAfter
	done := second - sealAfter
	if second/sweepEvery != l.newest/sweepEvery {
		l.sweep()
	}
	l.newest = second
	for i := range l.rings {
		r, g := &l.rings[i], grains[i]
		start := second - second%g.seconds
		l.stats.Cells -= r.drop(start - (g.slots-1)*g.seconds)
		if done/g.seconds != before/g.seconds {
			for at, s := range r.slots {
				if at+g.seconds <= done && s.places != nil {
					s.seal()
					r.usual = len(s.tallies)
				}
			}
		}
	}
}

// shrink keeps to Limits.Cells. What is dropped of a ring is still in the coarser ones.
func (l *Ledger) shrink() {
	for l.stats.Cells > l.limits.Cells {
		if !l.coarsen() {
			l.evict()
		}
	}
}

func (l *Ledger) coarsen() bool {
	for i := range l.rings {
		r, g := &l.rings[i], grains[i]
		last := l.newest - l.newest%g.seconds - (g.least-1)*g.seconds // that has to stay
		for start := r.since; start < last; start += g.seconds {
			if s, ok := r.slots[start]; ok && len(s.tallies) > 0 {
				l.stats.Cells -= r.drop(start + g.seconds)
				l.stats.Coarsened++
				return true
			}
		}
	}
	return false
}

func (l *Ledger) evict() {
	var fullest *slot
	for i := range l.rings {
		for _, s := range l.rings[i].slots {
			if fullest == nil || len(s.tallies) > len(fullest.tallies) {
				fullest = s
			}
		}
	}
	n, bytes := fullest.smallest()
	l.stats.Cells -= n
	l.stats.Evicted += uint64(n)
	l.stats.EvictedBytes += bytes
}

// key returns the number of a conversation; false where Limits are reached.
func (l *Ledger) key(k *Key) (uint32, bool) {
	src, ok1 := l.end(k.Src)
	dst, ok2 := l.end(k.Dst)
	if !ok1 || !ok2 {
		return 0, false
	}
	p := pairKey{src, dst, k.Service, k.Reply}
	n, ok := l.known[p]
	if ok {
		return n, true
	}
	if len(l.keys) >= l.limits.Keys {
		return 0, false
	}
	n = uint32(len(l.keys))
	l.keys = append(l.keys, p)
	l.known[p] = n
	return n, true
}

func (l *Ledger) end(e End) (uint32, bool) {
	var n uint32
	var ok bool
	if e.VM != "" {
		n, ok = l.vms[e.VM]
	} else {
		n, ok = l.prefixes[e.Prefix]
	}
	if ok {
		return n, true
	}
	if len(l.ends) >= l.limits.Ends {
		return 0, false
	}
	n = uint32(len(l.ends))
	l.ends = append(l.ends, e)
	if e.VM != "" {
		l.vms[e.VM] = n
	} else {
		l.prefixes[e.Prefix] = n
	}
	return n, true
}

// sweep forgets the conversations and ends that no slot has any more, where it gets narrow.
func (l *Ledger) sweep() {
	if len(l.keys) < l.limits.Keys*3/4 && len(l.ends) < l.limits.Ends*3/4 {
		return
	}
	live := make([]bool, len(l.keys))
	for i := range l.rings {
		for _, s := range l.rings[i].slots {
			for _, t := range s.tallies {
				live[t.key] = true
			}
		}
	}
	old := *l
	l.ends, l.keys = nil, nil
	l.vms, l.prefixes, l.known = map[heliotrope.VMID]uint32{}, map[netip.Prefix]uint32{}, map[pairKey]uint32{}
	renamed := make([]uint32, len(old.keys))
	for n, p := range old.keys {
		if live[n] {
			renamed[n], _ = l.key(&Key{old.ends[p.src], old.ends[p.dst], p.service, p.reply})
		}
	}
	for i := range l.rings {
		for _, s := range l.rings[i].slots {
			s.places = nil
			for j := range s.tallies {
				s.tallies[j].key = renamed[s.tallies[j].key]
			}
		}
	}
}
