package share

import (
	"context"
	"heliotrope/migration/wan"
	"time"
)

// VMs of one image that leave different hosts at the same time come by the same pages at the same time. A stream
// refers across hosts to what is on the wire only, and what its neighbour has in hand but not sent yet it would send
// as well. So of two hosts one leads, and streams of the other fall behind its own, by as much as they know
// themselves ahead of what they were told, and a little more, and follow from there. Where they share a way that costs
// nothing: all that they would have sent crosses anyway. Where they do not, it costs time, but none makes slower than
// all streams of the group on one way would: of n, a stream waits for no more than (n-1)/n of its time.
const (
	lead    = 2 * wan.BatchBytes / pageBytes // pages that a follower stays behind
	silence = time.Second                    // of a leader, after which it goes on by itself
	// longest is how long it waits at once: a copy that stands still for half a minute is given up.
	longest = 5 * time.Second
)

// following is how a stream follows those of another host.
type following struct {
	leader *Link  // that it waits for; nil: for nobody
	until  uint64 // so many of its pages were told

	began  time.Time
	waited time.Duration // in all
}

// fallBehind has a stream wait for the other host of a link to tell of so many pages, if it may name them: a disk's may not,
// nor one to an older destination.
func (m *Sending) fallBehind(l *Link, until uint64) {
	if l.leads && m.near && !m.late && !l.still {
		m.follow.leader, m.follow.until = l, until
	}
}

// stayBehind has a stream wait for one that it has found a page of, unless that is far ahead.
func (m *Sending) stayBehind(c carriedPage) {
	if l := c.by.far; l != nil && l.total-c.pos < lead {
		m.fallBehind(l, c.pos+lead)
	}
}

// Wait lets a stream fall behind one that it would go abreast with. One at a time may call it.
func (m *Sending) Wait(ctx context.Context) {
	if m == nil {
		return
	}
	for begun := time.Now(); ; {
		grown, told := m.waiting(time.Now(), begun)
		if grown == nil {
			return
		}
		timer := time.NewTimer(silence)
		select {
		case <-grown:
		case <-timer.C:
			m.giveUp(told)
		case <-ctx.Done():
		}
		if timer.Stop(); ctx.Err() != nil {
			return
		}
	}
}

// waiting is what to wait for, or nil, and how much was told.
func (m *Sending) waiting(now, begun time.Time) (grown <-chan struct{}, told uint64) {
	m.to.mu.Lock()
	defer m.to.mu.Unlock()
	f := &m.follow
	if f.began.IsZero() {
		f.began = now
	}
	l := f.leader
	if l == nil {
		return nil, 0
	}
	n := time.Duration(len(m.to.far))
	for one := range m.to.streams {
		if one.near {
			n++
		}
	}
	waited := f.waited + now.Sub(begun)
	if l.still || m.late || l.total >= f.until || now.Sub(begun) >= longest || waited-silence > now.Sub(f.began)*(n-1)/n {
		f.leader, f.waited = nil, waited
		return nil, 0
	}
	return m.to.grown, l.total
}

// giveUp has nobody wait for a leader that has told nothing since.
func (m *Sending) giveUp(told uint64) {
	m.to.mu.Lock()
	defer m.to.mu.Unlock()
	if l := m.follow.leader; l != nil && l.total == told {
		l.still = true
	}
}
