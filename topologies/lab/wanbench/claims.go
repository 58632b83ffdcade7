package wanbench

import (
	"fmt"
	"slices"

	"heliotrope/topologies/lab/claim"
)

// Bounds of the figures, by guest.
var (
	wireBounds  = map[string]float64{"idle": 0.40, "db": 0.26, "churn": 0.36, "cache": 0.36, four: 0.14}
	totalBounds = map[string]float64{"idle": 0.41, "db": 0.36, "churn": 0.36, "cache": 0.36}
	pauseBounds = map[int]float64{465: 60, 100: 200} // milliseconds, beside the round trip
)

const (
	wirePlace   = 465 // Mbit/s at which bytes are compared
	slowPlace   = 100
	zstdBound   = 0.40
	boundLink   = 1.15
	pauseMargin = 30 // milliseconds more than the best of QEMU's own, of guests that hardly write
	codecRate   = 300
	backBound   = 0.10
	siteTotal   = 0.12
	fourSite    = 0.06
)

// has is what the sites have, by mode.
var has = map[string]string{oursSite: "what the site has", oursImage: "the image"}

// claims are those that what was measured can tell of.
func (s summary) claims() (all []claim.Claim) {
	for _, guest := range append(slices.Clip(works), four) {
		for c, m := range s {
			switch {
			case c.guest != guest:
			case guest == four:
				all = append(all, s.together(c, m)...)
			case c.mode == ours.name:
				all = append(all, s.of(c, m)...)
			case c.mode == oursImage || c.mode == oursSite || c.mode == oursBack:
				all = append(all, s.kept(c, m)...)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b claim.Claim) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return all
}

// together are the claims about four that move at once.
func (s summary) together(c cell, m moved) (all []claim.Claim) {
	plain, ok := s[cell{c.guest, "plain", c.link}]
	if !ok || c.link.Mbits != wirePlace || c.link.RTT != 0 {
		return nil
	}
	over := float64(m.Wire) / float64(plain.Wire)
	switch c.mode {
	case ours.name:
		all = append(all, claim.New(fmt.Sprintf("%s, %s: WAN bytes over plain", c.guest, c.link), over, "<=", wireBounds[four]))
	case oursSite, oursImage:
		all = append(all, claim.New(fmt.Sprintf("%s, %s: WAN bytes over plain, with %s", c.guest, c.link, has[c.mode]), over, "<=", fourSite))
	}
	return all
}

// kept are the claims about a move where the sites have something of before, or the image.
func (s summary) kept(c cell, m moved) (all []claim.Claim) {
	if bound, ok := pauseBounds[c.link.Mbits]; ok {
		all = append(all, claim.New(fmt.Sprintf("%s, %s, %s: pause, ms", c.guest, c.link, c.mode), m.Pause, "<=", bound+float64(c.link.RTT.Milliseconds())))
	}
	plain, ok := s[cell{c.guest, "plain", c.link}]
	if !ok {
		return all
	}
	if c.mode == oursBack && c.link.Mbits == wirePlace && c.link.RTT == 0 {
		all = append(all, claim.New(fmt.Sprintf("%s, %s: WAN bytes of the way back over plain", c.guest, c.link), float64(m.Wire)/float64(plain.Wire), "<=", backBound))
	}
	if (c.mode == oursSite || c.mode == oursImage) && c.guest == "idle" && c.link.Mbits == slowPlace {
		all = append(all, claim.New(fmt.Sprintf("%s, %s: total time over plain, with %s", c.guest, c.link, has[c.mode]), m.Total/plain.Total, "<=", siteTotal))
	}
	return all
}

// of are the claims about one kind of our moves.
func (s summary) of(c cell, m moved) (all []claim.Claim) {
	other := func(mode string) (moved, bool) { r, ok := s[cell{c.guest, mode, c.link}]; return r, ok }
	say := func(what string, value, bound float64) {
		all = append(all, claim.New(fmt.Sprintf("%s, %s: %s", c.guest, c.link, what), value, "<=", bound))
	}
	rtt := float64(c.link.RTT.Milliseconds())
	if plain, ok := other("plain"); ok {
		if c.link.Mbits == wirePlace && c.link.RTT == 0 {
			say("WAN bytes over plain", float64(m.Wire)/float64(plain.Wire), wireBounds[c.guest])
		}
		if c.link.Mbits == slowPlace {
			say("total time over plain", m.Total/plain.Total, totalBounds[c.guest])
		}
	}
	if zstd, ok := other("multifd+zstd"); ok && c.guest == "db" && c.link.Mbits == slowPlace {
		say("WAN bytes over multifd+zstd", float64(m.Wire)/float64(zstd.Wire), zstdBound)
	}
	if c.link.Mbits == slowPlace {
		say("total time over that of its bytes on the link", m.Total/(float64(m.Wire)/c.link.rate()), boundLink)
	}
	if bound, ok := pauseBounds[c.link.Mbits]; ok {
		say("pause, ms", m.Pause, bound+rtt)
	}
	best, found := 0.0, false
	for _, mode := range []string{"plain", "xbzrle", "auto-converge", "multifd+zstd"} {
		if r, ok := other(mode); ok && (!found || r.Pause < best) {
			best, found = r.Pause, true
		}
	}
	if found && (c.guest == "db" || c.guest == "churn") {
		say("pause over the best of QEMU's pre-copy", m.Pause/best, 1)
	} else if found {
		say("pause beyond the best of QEMU's pre-copy, ms", m.Pause-best, pauseMargin)
	}
	if m.Relay > 0 {
		all = append(all, claim.New(fmt.Sprintf("%s, %s: stream through the source's relay, MB a core second", c.guest, c.link), float64(m.Stream)/1e6/m.Relay, ">=", codecRate))
	}
	return all
}
