package spread

import (
	"time"

	"heliotrope"
)

// Progress is how far a host is with a content, or a site with all of its hosts.
type Progress struct {
	Pieces, AllPieces int
	Bytes, AllBytes   int64
	Rate              float64           // bytes a second, over the last seconds
	From              heliotrope.HostID // who feeds it; empty when nobody does, and of a site
	Feeders           int               // sessions with feeders that there were, one if nothing happens
	Sent              int64             // bytes of pieces that were sent to others, those in vain included
	Wrong             int               // pieces that came and were not what they should be
	LastError         error             // of a feeder; there may be another by now
}

// Done says that all is there.
func (p Progress) Done() bool { return p.Pieces == p.AllPieces }

// ETA is how long the rest takes at this rate; false where there is none.
func (p Progress) ETA() (time.Duration, bool) {
	switch {
	case p.Done():
		return 0, true
	case p.Rate <= 0:
		return 0, false
	}
	return time.Duration(float64(p.AllBytes-p.Bytes) / p.Rate * float64(time.Second)), true
}

// Progress is how far this host is.
func (s *Share) Progress() Progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Progress{Pieces: s.pieces, AllPieces: s.outline.Len(), Bytes: s.bytes, AllBytes: s.outline.Bytes(), Rate: s.pace.rate(time.Now(), s.bytes),
		From: s.feeder, Feeders: int(s.session), Sent: s.sent, Wrong: s.wrong, LastError: s.lastError}
}

// BySite adds up how far the hosts are, by site. Hosts of the plan that nothing is known of
// have nothing. A site's rate is all hosts' together; its ETA is that of the chain's end if rates are equal.
func BySite(plan []Hop, hosts map[heliotrope.HostID]Progress, o *Outline) map[heliotrope.SiteID]Progress {
	sites := map[heliotrope.SiteID]Progress{}
	for _, h := range plan {
		p, ok := hosts[h.Host]
		if !ok {
			p = Progress{AllPieces: o.Len(), AllBytes: o.Bytes()}
		}
		s := sites[h.Site]
		s.Pieces, s.AllPieces = s.Pieces+p.Pieces, s.AllPieces+p.AllPieces
		s.Bytes, s.AllBytes = s.Bytes+p.Bytes, s.AllBytes+p.AllBytes
		s.Rate, s.Sent, s.Wrong = s.Rate+p.Rate, s.Sent+p.Sent, s.Wrong+p.Wrong
		s.Feeders += p.Feeders
		if p.LastError != nil {
			s.LastError = p.LastError
		}
		sites[h.Site] = s
	}
	return sites
}

// pace remembers when how much was there, to tell a rate.
type pace struct{ marks []mark }

type mark struct {
	at    time.Time
	bytes int64
}

const (
	paceWindow = 10 * time.Second
	paceMarks  = 64 // at most: those of a fast transfer are thinned
)

// start forgets what was before a pause.
func (p *pace) start(now time.Time, bytes int64) { p.marks = append(p.marks[:0], mark{now, bytes}) }

func (p *pace) add(now time.Time, bytes int64) {
	if n := len(p.marks); n > 1 && now.Sub(p.marks[n-2].at) < paceWindow/paceMarks {
		p.marks[n-1] = mark{now, bytes}
	} else {
		p.marks = append(p.marks, mark{now, bytes})
	}
	for len(p.marks) > 2 && now.Sub(p.marks[1].at) >= paceWindow {
		p.marks = p.marks[1:]
	}
}

// rate is that of the window up to now.
func (p *pace) rate(now time.Time, bytes int64) float64 {
	if len(p.marks) == 0 {
		return 0
	}
	first := p.marks[0]
	for _, m := range p.marks[1:] {
		if now.Sub(m.at) < paceWindow {
			break
		}
		first = m
	}
	took := now.Sub(first.at).Seconds()
	if took <= 0 {
		return 0
	}
	return float64(bytes-first.bytes) / took
}
