package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/hostagent/agentapi"
)

// lookEvery is how often hosts are held against the policies of images. What the newest version
// is a bucket is asked each time, for money.
const lookEvery = time.Minute

// distribution is what is remembered of what policies had hosts told.
type distribution struct {
	mu      sync.Mutex
	ordered map[order]time.Time
	ways    map[order]how
	full    map[order]string // why there was no room, as of the last round
	trouble string           // of the last round
	counts  map[string]int
	failed  uint64 // orders that a host did not take
	given   uint64
}

// Distribute has hosts get what policies say that they are to have, until ctx ends: only while this
// controller leads.
func (m *Images) Distribute(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		m.round(ctx, time.Now())
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.made:
		case <-tick.C:
		}
	}
}

// look is what policies rest on now, with an error for each image that is not known.
func (m *Images) look(ctx context.Context, p Policies, now time.Time) (s snapshot, term uint64, unknown map[heliotrope.ImageID]error) {
	s, term = m.state(now)
	s.Policies, s.newest = p, map[heliotrope.ImageID]api.Image{}
	unknown = map[heliotrope.ImageID]error{}
	for id := range p.Images {
		i, err := m.Image(ctx, string(id))
		if err != nil {
			unknown[id] = err
			continue
		}
		s.newest[id] = i
	}
	return s, term, unknown
}

// state is what is known of hosts.
func (m *Images) state(now time.Time) (s snapshot, term uint64) {
	s.now = now
	s.hosts, term = m.cfg.Hosts.ImageHosts()
	slices.SortFunc(s.hosts, bySite)
	m.spreads.mu.Lock()
	defer m.spreads.mu.Unlock()
	maps.DeleteFunc(m.spreads.ordered, func(_ order, at time.Time) bool { return now.Sub(at) >= 2*orderAgain })
	maps.DeleteFunc(m.spreads.ways, func(o order, _ how) bool { _, told := m.spreads.ordered[o]; return !told })
	s.ordered, s.ways = maps.Clone(m.spreads.ordered), maps.Clone(m.spreads.ways)
	return s, term
}

// round tells hosts what they are to be told now.
func (m *Images) round(ctx context.Context, now time.Time) {
	p := m.cfg.Hosts.ImagePolicies()
	maps.DeleteFunc(p.Images, func(_ heliotrope.ImageID, p heliotrope.ImagePolicy) bool { return onDemand(p) })
	if len(p.Images) == 0 {
		if s, term := m.state(now); term != 0 {
			m.tellFull(s.hosts, nil)
		}
		m.noted(nil, nil)
		return
	}
	s, term, unknown := m.look(ctx, p, now)
	if term == 0 {
		m.noted(nil, nil)
		return
	}
	needs := s.needs()
	m.tellFull(s.hosts, needs)
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(unknown)) {
		errs = append(errs, fmt.Errorf("image %s: %w", id, unknown[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(p.Images)) {
		var due []need
		for _, n := range needs {
			if n.image == id && n.due(now) {
				due = append(due, n)
			}
		}
		if len(due) > 0 {
			errs = append(errs, m.tell(ctx, s, id, due, term))
		}
	}
	if ctx.Err() == nil {
		m.noted(needs, errors.Join(errs...))
	}
}

func onDemand(p heliotrope.ImagePolicy) bool {
	return p.Policy == "" || p.Policy == heliotrope.ImageOnDemand
}

// tellFull tells, once, of versions that do not come to a host for lack of room: by what hosts say, and what policies
// would give them.
func (m *Images) tellFull(hosts []Host, needs []need) {
	now := map[order]string{}
	for _, h := range hosts {
		if h.Agent == nil || h.Images == nil {
			continue
		}
		for _, c := range h.Images.Caches {
			if c.Full && c.Here < c.Bytes {
				now[order{h.ID, c.Image}] = c.Note
			}
		}
	}
	for _, n := range needs {
		if n.place.State == api.PlaceFull {
			now[order{n.host.ID, n.ref}] = n.place.Note
		}
	}
	d := &m.spreads
	d.mu.Lock()
	before := d.full
	d.full = now
	d.mu.Unlock()
	for _, o := range slices.SortedFunc(maps.Keys(now), order.compare) {
		if _, known := before[o]; !known {
			image, version, _ := strings.Cut(o.ref, "@")
			m.cfg.Tell(image, fmt.Sprintf("version %s does not come to %s: %s", version, o.host, now[o]))
		}
	}
}

// noted keeps what a round found for who asks, and logs trouble that is new.
func (m *Images) noted(needs []need, err error) {
	d := &m.spreads
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counts = map[string]int{api.PlaceAbsent: 0, api.PlaceComing: 0, api.PlaceWaits: 0, api.PlaceHere: 0, api.PlaceFull: 0, api.PlaceAway: 0, api.PlaceNoStore: 0}
	for _, n := range needs {
		d.counts[n.place.State]++
	}
	trouble := ""
	if err != nil {
		trouble = err.Error()
	}
	if trouble != "" && trouble != d.trouble {
		m.cfg.Log.Warn("images do not get where policies want them", "error", trouble)
	}
	d.trouble = trouble
}

// tell tells hosts to get the newest version of an image.
func (m *Images) tell(ctx context.Context, s snapshot, id heliotrope.ImageID, due []need, term uint64) error {
	i, hosts := s.newest[id], make([]Host, len(due))
	fresh, sites := 0, map[string]bool{}
	for k, n := range due {
		hosts[k] = n.host
		if !n.told && n.place.State == api.PlaceAbsent {
			fresh++
			sites[string(n.host.Site)] = true
		}
	}
	costs := ""
	if fresh > 0 {
		places, err := m.foresee(ctx, s, i, hosts, howOf(s.Images[id]))
		if err != nil {
			return err
		}
		costs = sumOf(places)
	}
	places := m.order(ctx, s, i, hosts, term, howOf(s.Images[id]), orderAgain)
	var errs []error
	m.spreads.mu.Lock()
	for _, p := range places {
		m.spreads.given++
		if p.State == api.PlaceFailed {
			m.spreads.failed++
			errs = append(errs, fmt.Errorf("image %s at %s: %s", i.Ref(), p.Host, p.Note))
		}
	}
	m.spreads.mu.Unlock()
	if fresh > 0 {
		m.cfg.Tell(i.Image, fmt.Sprintf("version %d comes to %d hosts of %s by its policy (%s): %s", i.Version, fresh,
			strings.Join(slices.Sorted(maps.Keys(sites)), ", "), s.Images[id].Policy, costs))
	}
	return errors.Join(errs...)
}

// sumOf says in words what places lack.
func sumOf(places []api.ImagePlace) string {
	var bytes int64
	var usd float64
	for _, p := range places {
		bytes, usd = bytes+p.WireBytes, usd+p.CostUSD
	}
	return fmt.Sprintf("%.1f MB from the store, %.4f USD", float64(bytes)/1e6, usd)
}

// pullsAtOnce bounds the orders that are under way; each is answered before anything has come.
const pullsAtOnce = 32

// how a version is to cross a WAN: in which times, how much of it a second to each site, and who goes first where
// images share a link.
type how struct {
	windows  []heliotrope.Hours
	rate     heliotrope.BitRate
	priority string
}

func howOf(p heliotrope.ImagePolicy) how { return how{p.Windows, p.Rate, p.Priority} }

func (w how) equal(o how) bool {
	return w.rate == o.rate && rank(w.priority) == rank(o.priority) && reflect.DeepEqual(w.windows, o.windows)
}

// order has a version come to hosts that can have it and lack something of it, along a chain at each site
// (chains), and says how all are. Policies let them be for so long. Who could never keep it is not told.
func (m *Images) order(ctx context.Context, s snapshot, i api.Image, hosts []Host, term uint64, way how, letBe time.Duration) []api.ImagePlace {
	chains := s.chains(i, hosts)
	asked, places := slices.Clone(hosts), make([]api.ImagePlace, len(hosts))
	for _, chain := range chains {
		for _, h := range chain {
			if !slices.ContainsFunc(hosts, h.is) {
				asked = append(asked, h)
			}
		}
	}
	single := map[heliotrope.SiteID]int{}
	for _, h := range hosts {
		if h.Agent != nil && !slices.ContainsFunc(chains[h.Site], h.is) && place(h, i).State != api.PlaceHere {
			single[h.Site]++
		}
	}
	var all sync.WaitGroup
	slots := make(chan struct{}, pullsAtOnce)
	for k, h := range asked {
		at, chain := place(h, i), chains[h.Site]
		if k < len(places) {
			places[k] = at
		}
		if !slices.ContainsFunc(chain, h.is) {
			chain = nil
		}
		o := agentapi.PullOrder{Term: term, Image: i.Ref(), Windows: way.windows, Rate: way.rate, Priority: way.priority, Shared: len(h.Shared) > 0, Chain: peersOf(chain),
			Lend: k >= len(hosts) || at.State == api.PlaceHere}
		if !o.Lend && h.Agent != nil && !fits(h, i, i.ContentBytes) {
			places[k] = noRoom(at, h)
			continue
		}
		if h.Agent == nil || o.Lend && chain == nil {
			continue
		}
		if h.Local || o.Lend {
			o.Windows, o.Rate, o.Shared = nil, 0, false
		}
		if chain == nil { // those of its site that have none share the line
			o.Rate /= heliotrope.BitRate(max(1, single[h.Site]))
		}
		if !o.Lend {
			m.spreads.note(order{h.ID, i.Ref()}, s.now.Add(letBe-orderAgain), way)
		}
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			c, err := h.Agent.PullImage(ctx, o)
			if err == nil {
				m.shares.ordered(h, c, term)
			}
			switch {
			case k >= len(places):
				if err != nil {
					m.cfg.Log.Warn("a host does not pass an image on", "host", h.ID, "image", i.Ref(), "err", err)
				}
			case err == nil:
				places[k] = told(places[k], c)
			case errors.Is(err, agentapi.ErrInvalid) && h.Images == nil:
				places[k].State = api.PlaceNoStore
			default:
				places[k].State, places[k].Note = api.PlaceFailed, err.Error()
				m.spreads.note(order{h.ID, i.Ref()}, s.now, way) // and is told again before long
			}
		})
	}
	all.Wait()
	kicked(m.shares.kick)
	return places
}

func (d *distribution) note(o order, at time.Time, way how) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ordered[o], d.ways[o] = at, way
}

// Distribution is what the last round found, by a place's state, and how many orders were given and
// not taken.
func (m *Images) Distribution() (hosts map[string]int, given, failed uint64) {
	m.spreads.mu.Lock()
	defer m.spreads.mu.Unlock()
	return maps.Clone(m.spreads.counts), m.spreads.given, m.spreads.failed
}

// ImagePolicies says what policies would have come, or what one would that is not in force.
func (m *Images) ImagePolicies(ctx context.Context, q api.ImagePolicyQuery) ([]api.ImagePolicy, error) {
	p := m.cfg.Hosts.ImagePolicies()
	show, err := m.asked(q, p)
	if err != nil {
		return nil, err
	}
	s, term, unknown := m.look(ctx, p, time.Now())
	if term == 0 {
		return nil, api.Unavailable("another controller leads, and knows the hosts")
	}
	needs := s.needs()
	all := []api.ImagePolicy{}
	for _, id := range show {
		policy := p.Images[id]
		one := api.ImagePolicy{Image: id, Policy: policy.Policy, Priority: cmp.Or(policy.Priority, heliotrope.ImageNormal), Sites: policy.Sites, Version: s.newest[id].Version, Comes: []api.ImageComes{}}
		one.Open, one.Until = policy.Open(s.now)
		switch {
		case onDemand(policy):
			one.Policy, one.Note = heliotrope.ImageOnDemand, "it comes as VMs read it"
		case unknown[id] != nil:
			one.Note = inALine(unknown[id])
		default:
			one.Comes, err = m.comes(ctx, s, id, needs)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

// Foretell says of some images what would come if these policies were in force, for who is about to say so.
func (m *Images) Foretell(ctx context.Context, policies map[heliotrope.ImageID]heliotrope.ImagePolicy, of []heliotrope.ImageID) (all []string) {
	p := m.cfg.Hosts.ImagePolicies()
	p.Images = policies
	s, term, unknown := m.look(ctx, p, time.Now())
	if term == 0 {
		return nil
	}
	needs := s.needs()
	for _, id := range of {
		policy, there := policies[id]
		if !there || onDemand(policy) {
			continue
		}
		comes, err := m.comes(ctx, s, id, needs)
		if unknown[id] != nil {
			err = unknown[id]
		}
		if err != nil {
			all = append(all, fmt.Sprintf("what would come of image %s is not known: %v", id, err))
			continue
		}
		hosts, bytes, usd, at := 0, int64(0), 0.0, ""
		for _, c := range comes {
			hosts, bytes, usd = hosts+c.Hosts-c.Here-c.Away-c.Full, bytes+c.WireBytes, usd+c.CostUSD
		}
		if open, until := policy.Open(s.now); !open {
			at = "; " + opens(until)
		}
		if hosts > 0 {
			all = append(all, fmt.Sprintf("image %s comes to %d hosts: %.1f MB from the store, %.4f USD%s", s.newest[id].Ref(), hosts, float64(bytes)/1e6, usd, at))
		}
	}
	return all
}

// inALine is what is wrong without how to mend it, for a table.
func inALine(err error) string {
	if p := new(api.Problem); errors.As(err, &p) && p.Detail != "" {
		return p.Detail
	}
	return err.Error()
}

// asked are the images that a query is about. A policy that it tries stands in for the image's own.
func (m *Images) asked(q api.ImagePolicyQuery, p Policies) ([]heliotrope.ImageID, error) {
	const cannot = "the policies cannot be shown"
	if q.Image == "" && (q.Policy != "" || len(q.Sites) > 0) {
		return nil, api.Invalid(cannot, api.FieldProblem{Pointer: "query.image", Detail: "is missing: a policy is tried for one image"})
	}
	if q.Policy == "" && len(q.Sites) > 0 {
		return nil, api.Invalid(cannot, api.FieldProblem{Pointer: "query.policy", Detail: "is missing: sites go with a policy that is tried"})
	}
	if q.Policy == "" && q.Priority != "" {
		return nil, api.Invalid(cannot, api.FieldProblem{Pointer: "query.policy", Detail: "is missing: a priority goes with a policy that is tried"})
	}
	if q.Policy != "" {
		if _, _, _, err := m.hosts(q.Sites, "query.site"); err != nil {
			return nil, err
		}
		p.Images[q.Image] = heliotrope.ImagePolicy{Policy: q.Policy, Sites: q.Sites, Rate: p.Images[q.Image].Rate, Windows: p.Images[q.Image].Windows,
			Priority: cmp.Or(q.Priority, p.Images[q.Image].Priority)}
	}
	if q.Image == "" {
		return slices.Sorted(maps.Keys(p.Images)), nil
	}
	if _, there := p.Images[q.Image]; !there {
		no := api.NotFound("policy of image", string(q.Image))
		no.Hint = "the topology's images has those that there are; add ?policy=everywhere to see what one would do"
		return nil, no
	}
	return []heliotrope.ImageID{q.Image}, nil
}

// comes sums up by site what an image's needs are.
func (m *Images) comes(ctx context.Context, s snapshot, id heliotrope.ImageID, needs []need) ([]api.ImageComes, error) {
	all := []api.ImageComes{}
	var lacking []Host
	for _, n := range needs {
		if n.image != id {
			continue
		}
		if len(all) == 0 || all[len(all)-1].Site != n.host.Site {
			all = append(all, api.ImageComes{Site: n.host.Site, Why: n.why})
		}
		c := &all[len(all)-1]
		c.Hosts++
		switch {
		case n.place.State == api.PlaceHere:
			c.Here++
		case n.place.State == api.PlaceFull:
			c.Full++
		case !n.lacks():
			c.Away++
		default:
			lacking = append(lacking, n.host)
			if n.told {
				c.Coming++
			} else if c.At.IsZero() || n.at.Before(c.At) {
				c.At = n.at
			}
		}
	}
	places, err := m.foresee(ctx, s, s.newest[id], lacking, howOf(s.Images[id]))
	if err != nil {
		return nil, err
	}
	for _, p := range places {
		k := slices.IndexFunc(all, func(c api.ImageComes) bool { return c.Site == p.Site })
		c := &all[k]
		c.MissingBytes, c.WireBytes, c.CostUSD = c.MissingBytes+p.MissingBytes, c.WireBytes+p.WireBytes, c.CostUSD+p.CostUSD
		c.ETAS = max(c.ETAS, p.ETAS)
	}
	return all, nil
}
