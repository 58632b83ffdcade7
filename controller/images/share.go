package images

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/hostagent/agentapi"
)

// How links that images share are divided. What comes over them now is what hosts say of the versions that orders have
// come to them: each is asked every shareEvery while it lacks something, and told in the same call what it may take. That
// is lent, and ends by itself. So what hosts take together is bounded by what this controller knows that
// it has lent, also where a host is cut off: until its part has ended it counts as taken.
const (
	shareEvery = 2 * time.Second
	lent       = 30 * time.Second
	lateness   = 5 * time.Second // of an order that was under way, and of clocks
	tellWithin = 2 * time.Second
	// known is for how long what a host said itself counts for more than what its status says, which is older.
	known = 30 * time.Second
)

// A version that takes nothing of its part for so long, besides the time that its rate needs for some pieces, is
// taken for one that cannot: others have its part, but for a little by which it is seen that it can again.
const (
	patient    = 15 * time.Second
	patientFor = 32 << 20 // bits
	littlePart = 32       // of the narrowest of its links
)

// sharing is what is lent.
type sharing struct {
	kick chan struct{} // of size 1: something may have changed

	mu    sync.Mutex // guards what follows
	term  uint64
	since time.Time // of the term
	all   map[order]*loan
}

// loan is a version that comes to a host over links that images share.
type loan struct {
	order
	site  heliotrope.SiteID
	links map[heliotrope.LinkID]heliotrope.BitRate // that images share, and what they may take of each
	cache agentapi.ImageCache                      // as the host said
	heard time.Time                                // when
	grew  time.Time                                // when more of it had come, or might not
	idle  bool                                     // it takes nothing of its part

	rate  heliotrope.BitRate // most that the host may take, until
	until time.Time
	mute  bool               // it did not answer when it was told
	want  heliotrope.BitRate // that it is to have
	first []string           // those that go before it, where that is nothing
}

// at is the version and the site.
func (l *loan) at() siteRef { return siteRef{l.site, l.ref} }

// siteRef is a version at a site.
type siteRef struct {
	site heliotrope.SiteID
	ref  string
}

// lacks says whether more of it is to come.
func (l *loan) lacks() bool { return l.cache.Here < l.cache.Bytes }

// taken is what the host may take at a time.
func (l *loan) taken(now time.Time) heliotrope.BitRate {
	if now.After(l.until) {
		return 0
	}
	return l.rate
}

// hear takes in what the host says.
func (l *loan) hear(c agentapi.ImageCache, now time.Time) {
	if c.Here > l.cache.Here || l.rate == 0 || !c.Wants {
		l.grew, l.idle = now, false
	}
	if l.rate > 0 && now.Sub(l.grew) > patient+time.Duration(float64(patientFor)/float64(l.rate)*float64(time.Second)) {
		l.idle = true
	}
	l.cache, l.heard = c, now
}

// flow is what it would take.
func (l *loan) flow() flow {
	f := flow{links: slices.Sorted(maps.Keys(l.links)), rank: rank(l.cache.Priority), most: l.cache.Rate}
	if little := leastOf(l.links) / littlePart; l.idle && (f.most == 0 || little < f.most) {
		f.most = max(little, leastPart)
	}
	return f
}

func leastOf(links map[heliotrope.LinkID]heliotrope.BitRate) heliotrope.BitRate {
	return slices.Min(slices.Collect(maps.Values(links)))
}

// rank orders priorities: the higher goes first.
func rank(priority string) int {
	if priority == "" {
		priority = heliotrope.ImageNormal
	}
	return slices.Index(heliotrope.ImagePriorities, priority)
}

// Share divides links that images share among what comes over them, until ctx ends: only while this controller leads.
func (m *Images) Share(ctx context.Context) error {
	tick := time.NewTicker(shareEvery)
	defer tick.Stop()
	for {
		m.share(ctx, time.Now())
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.shares.kick:
		case <-tick.C:
		}
	}
}

// kicked wakes who waits at a channel of size 1.
func kicked(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// share is one round: first who is to take less is told so, and all are asked; then those are told that may take more.
func (m *Images) share(ctx context.Context, now time.Time) {
	hosts, term := m.cfg.Hosts.ImageHosts()
	sh := &m.shares
	by := map[heliotrope.HostID]Host{}
	for _, h := range hosts {
		by[h.ID] = h
	}
	sh.look(by, term, now)
	if term == 0 {
		return
	}
	m.lend(ctx, by, term, sh.plan(by, now), false)
	m.lend(ctx, by, term, sh.grow(sh.plan(by, now), now), true)
}

// look takes in what hosts' statuses say, and forgets what has come.
func (sh *sharing) look(hosts map[heliotrope.HostID]Host, term uint64, now time.Time) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if term != sh.term {
		sh.term, sh.since, sh.all = term, now, map[order]*loan{}
	}
	maps.DeleteFunc(sh.all, func(_ order, l *loan) bool {
		return now.Sub(l.heard) > known && now.After(l.until) || len(l.links) == 0 && !l.cache.Shared
	})
	for id, h := range hosts {
		if h.Agent == nil || h.Images == nil {
			continue
		}
		for _, c := range h.Images.Caches {
			if sh.all[order{id, c.Image}] == nil {
				sh.hear(h, c, now)
			}
		}
	}
	for _, l := range sh.all {
		if h, there := hosts[l.host]; there {
			l.site, l.links = h.Site, h.Shared
		}
	}
}

// hear takes in what a host says of a version. The lock is held.
func (sh *sharing) hear(h Host, c agentapi.ImageCache, now time.Time) {
	o := order{h.ID, c.Image}
	l := sh.all[o]
	if l == nil {
		if !c.Pushed || c.Here >= c.Bytes || !c.Shared && len(h.Shared) == 0 {
			return
		}
		l = &loan{order: o, site: h.Site, links: h.Shared, grew: now}
		if sh.all[o] = l; c.Part > 0 { // another controller's
			l.rate, l.until = c.Part, now.Add(lent+lateness)
		}
	}
	l.hear(c, now)
}

// ordered takes in what a host said to an order.
func (sh *sharing) ordered(h Host, c agentapi.ImageCache, term uint64) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.term == term {
		sh.hear(h, c, time.Now())
	}
}

// plan says what each version is to have, and returns those that hosts are to be told of.
func (sh *sharing) plan(hosts map[heliotrope.HostID]Host, now time.Time) (tell []*loan) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	left, unsure := map[heliotrope.LinkID]heliotrope.BitRate{}, map[heliotrope.LinkID]bool{}
	for _, h := range hosts {
		for l, rate := range h.Shared {
			left[l] = rate
			// What hosts have been lent that do not talk is not known to who has just begun to lead.
			unsure[l] = unsure[l] || h.Agent == nil && now.Sub(sh.since) < lent+lateness
		}
	}
	var takers []*loan
	var flows []flow
	for _, o := range slices.SortedFunc(maps.Keys(sh.all), order.compare) {
		l := sh.all[o]
		l.want, l.first = 0, nil
		away := hosts[l.host].Agent == nil
		if away || l.mute { // it may take what it had
			for link := range l.links {
				left[link] -= min(left[link], l.taken(now))
			}
		}
		if away || !l.lacks() && l.taken(now) == 0 {
			continue
		}
		tell = append(tell, l)
		if l.cache.Wants && l.lacks() && len(l.links) > 0 && !l.mute {
			takers, flows = append(takers, l), append(flows, l.flow())
		}
	}
	for k, rate := range divide(left, flows) {
		l := takers[k]
		if l.want = rate; slices.ContainsFunc(flows[k].links, func(link heliotrope.LinkID) bool { return unsure[link] }) {
			l.want = min(rate, l.taken(now))
		}
	}
	first := map[siteRef][]string{}
	for _, l := range takers {
		if l.want == 0 {
			first[l.at()] = before(l, takers)
		}
	}
	for _, l := range tell { // also those behind it
		l.first = first[l.at()]
	}
	return tell
}

// grow returns those that are to have more, and bounds that to what nobody may take of their links: what is to have
// less was perhaps not told yet.
func (sh *sharing) grow(all []*loan, now time.Time) (more []*loan) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	free, again := map[heliotrope.LinkID]heliotrope.BitRate{}, false
	for _, l := range all {
		maps.Copy(free, l.links)
		again = again || l.want < l.taken(now) && !l.mute
	}
	for _, l := range sh.all {
		for link := range l.links {
			free[link] -= min(free[link], l.taken(now))
		}
	}
	for _, l := range all {
		for link := range l.links {
			l.want = min(l.want, l.taken(now)+free[link])
		}
		if l.want <= l.taken(now) {
			continue
		}
		for link := range l.links {
			free[link] -= l.want - l.taken(now)
		}
		more = append(more, l)
	}
	if again {
		kicked(sh.kick)
	}
	return more
}

// before are the versions that have of a loan's links what it might have.
func before(l *loan, takers []*loan) (refs []string) {
	for _, o := range takers {
		shares := slices.ContainsFunc(slices.Collect(maps.Keys(l.links)), func(link heliotrope.LinkID) bool { _, ok := o.links[link]; return ok })
		if o.want > 0 && shares && rank(o.cache.Priority) > rank(l.cache.Priority) && !slices.Contains(refs, o.ref) {
			refs = append(refs, o.ref)
		}
	}
	return refs
}

// lend tells hosts what they are to have: no more than they may take already, or (more) what that is.
func (m *Images) lend(ctx context.Context, hosts map[heliotrope.HostID]Host, term uint64, tell []*loan, more bool) {
	sh := &m.shares
	var all sync.WaitGroup
	slots := make(chan struct{}, pullsAtOnce)
	sh.mu.Lock()
	held := map[siteRef]bool{}
	for _, l := range tell {
		if was, there := held[l.at()]; l.cache.Wants {
			held[l.at()] = l.want == 0 && (was || !there)
		}
	}
	for _, l := range tell {
		now := time.Now()
		part := agentapi.ImagePart{Shared: len(l.links) > 0, Rate: l.want, For: heliotrope.Duration(lent), Held: held[l.at()]}
		if !more {
			part.Rate = min(part.Rate, l.taken(now))
		}
		l.rate, l.until = max(part.Rate, l.taken(now)), now.Add(tellWithin+lent+lateness) // as long as it has not answered
		o := agentapi.PullOrder{Term: term, Image: l.ref, Part: &part}
		agent := hosts[l.host].Agent
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, tellWithin)
			defer cancel()
			c, err := agent.PullImage(ctx, o)
			sh.mu.Lock()
			defer sh.mu.Unlock()
			if l.mute = err != nil; l.mute {
				m.cfg.Log.Debug("a host does not say how an image comes", "host", l.host, "image", l.ref, "error", err)
				return
			}
			l.rate, l.until = part.Rate, time.Now().Add(lent+lateness)
			l.hear(c, time.Now())
		})
	}
	sh.mu.Unlock()
	all.Wait()
}

// explain says of places how they share a link; what hosts said of that is newer than their statuses.
func (m *Images) explain(ref string, places []api.ImagePlace) {
	sh := &m.shares
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for k, p := range places {
		l := sh.all[order{p.Host, ref}]
		if l == nil || l.cache.Bytes == 0 || len(l.links) == 0 || p.State != api.PlaceAbsent && p.State != api.PlaceComing && p.State != api.PlaceWaits {
			continue
		}
		places[k] = told(p, l.cache)
		if p, places[k].Disks = places[k], p.Disks; p.State != api.PlaceComing && p.State != api.PlaceWaits {
			continue
		}
		links := namesOf(l.links)
		switch {
		case l.cache.Wants && l.want > 0 && l.idle:
			places[k].State, places[k].Note = api.PlaceComing, cmp.Or(l.cache.Note, "nothing of it comes")+"; others have its part of "+links
		case l.cache.Wants && l.want > 0:
			if p.Note == "" || p.State == api.PlaceWaits {
				places[k].State, places[k].Note = api.PlaceComing, fmt.Sprintf("takes up to %v of %s", l.want/1000*1000, links)
			}
		case len(l.first) == 1:
			places[k].State, places[k].Note = api.PlaceWaits, l.first[0]+" goes first over "+links
		case len(l.first) > 1:
			places[k].State, places[k].Note = api.PlaceWaits, strings.Join(l.first, ", ")+" go first over "+links
		}
	}
}

func namesOf(links map[heliotrope.LinkID]heliotrope.BitRate) string {
	var all []string
	for _, l := range slices.Sorted(maps.Keys(links)) {
		all = append(all, string(l))
	}
	return strings.Join(all, ", ")
}

// foretold says after how many seconds versions would be at these hosts that lack so many bits of one, beside
// all else that comes over the links that images share now.
func (m *Images) foretold(hosts []Host, to []Host, ref string, flows []flow, lack []float64) []float64 {
	links := map[heliotrope.LinkID]heliotrope.BitRate{}
	for _, h := range hosts {
		maps.Copy(links, h.Shared)
	}
	n := len(flows)
	sh := &m.shares
	sh.mu.Lock()
	for _, o := range slices.SortedFunc(maps.Keys(sh.all), order.compare) {
		same := o.ref == ref && slices.ContainsFunc(to, func(h Host) bool { return h.ID == o.host })
		if l := sh.all[o]; !same && l.cache.Wants && l.lacks() && !l.idle && len(l.links) > 0 {
			flows, lack = append(flows, l.flow()), append(lack, float64(l.cache.Bytes-l.cache.Here)*8)
		}
	}
	sh.mu.Unlock()
	return ends(links, flows, lack)[:n]
}
