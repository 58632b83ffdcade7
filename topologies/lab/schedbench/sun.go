package schedbench

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/forecast"
	"heliotrope/scheduler/pace"
	"heliotrope/scheduler/replay"
	"heliotrope/topologies/lab/claim"
)

// clients are those of one place.
type clients struct {
	region string  // of the world
	ahead  int     // hours of UTC, in winter
	weight float64 // how many they are
}

// offices are three of equal size, a working day apart as far as cities allow.
var offices = []clients{{"gcp:asia-northeast1-a", 9, 1}, {"gcp:europe-west2-a", 0, 1}, {"gcp:us-east4-a", -5, 1}}

// countries are the ten with the most users of the Internet, in millions (CIA World Factbook,
// July 2016), each at the region nearest to most of them.
var countries = []clients{{"gcp:asia-east2-a", 8, 730.7}, {"gcp:asia-south1-a", 5, 374.3}, {"gcp:us-central1-a", -6, 246.8},
	{"gcp:southamerica-east1-a", -3, 122.8}, {"gcp:asia-northeast1-a", 9, 116.6}, {"gcp:europe-north1-a", 3, 108.8},
	{"gcp:us-west4-a", -6, 73.3}, {"gcp:europe-west3-a", 1, 72.3}, {"gcp:asia-southeast2-a", 7, 65.5}, {"gcp:europe-west2-a", 0, 61}}

const (
	accessMs      = 8    // from a client to the nearest region
	peakPerSecond = 300  // requests of all clients together, if all were at their busiest
	unrest        = 0.25 // log-normal, of each hour and place; the real series' is about that
	learnedDays   = 14   // before the replay begins
	sunDays       = 5
	sunMoves      = 6 // a day
)

// scene is one question that follow-the-sun is asked.
type scene struct {
	Name    string `json:"name"`
	clients []clients
	curve   [24]float64 // demand by local hour
	leader  bool        // of replicas at the clients' places; else one VM that can be anywhere
	days    int
}

// sunny is how a policy fared.
type sunny struct {
	MeanMs      float64 `json:"mean_ms"`
	P99Ms       float64 `json:"p99_ms"`
	Nearer      float64 `json:"nearer"` // than the best static place, as a share
	Moves       int     `json:"moves"`
	MostPerDay  int     `json:"most_moves_in_24_hours"`
	MovesUSD    float64 `json:"moves_usd"`
	TwiceUSD    float64 `json:"paid_twice_usd"`
	PauseS      float64 `json:"pause_s"`
	Interrupted int     `json:"interruptions"`
}

// daylight is a scene's answer.
type daylight struct {
	scene
	Days       int     `json:"days"`
	StaticSite string  `json:"best_static"`
	StaticMs   float64 `json:"best_static_mean_ms"`
	StaticP99  float64 `json:"best_static_p99_ms"`
	Optimum    sunny   `json:"clairvoyant"`
	Reactive   sunny   `json:"reactive"`
	Predictive sunny   `json:"predictive"`
}

// sun lets demand go around the earth.
func sun(_ context.Context, b *Bench) ([]claim.Claim, any, error) {
	list, err := requests(b.Data)
	if err != nil {
		return nil, nil, err
	}
	counted, above := dayOf(list)
	var figures []daylight
	var claims []claim.Claim
	for _, s := range []scene{
		{Name: "three offices", clients: offices, curve: replay.OfficeHours, days: 1},
		{Name: "three offices", clients: offices, curve: replay.OfficeHours, days: sunDays},
		{Name: "three offices, requests as counted above their floor", clients: offices, curve: above, days: sunDays},
		{Name: "three offices, requests as counted", clients: offices, curve: counted, days: sunDays},
		{Name: "ten countries, office hours", clients: countries, curve: replay.OfficeHours, days: sunDays},
		{Name: "ten countries, requests as counted", clients: countries, curve: counted, days: sunDays},
		{Name: "leader of three replicas", clients: offices, curve: replay.OfficeHours, leader: true, days: sunDays},
	} {
		d, err := b.follow(s)
		if err != nil {
			return claims, figures, fmt.Errorf("%s: %w", s.Name, err)
		}
		figures = append(figures, d)
		b.Say("%s, %d h: best static %s %.1f ms (p99 %.0f)", d.Name, d.Days*24, d.StaticSite, d.StaticMs, d.StaticP99)
		for i, r := range []sunny{d.Optimum, d.Reactive, d.Predictive} {
			b.Say("  %-11s %.1f ms (p99 %.0f): %.1f %% nearer; %d moves, at most %d in 24 h, USD %.2f and %.2f paid twice, paused %.1f s",
				[]string{"clairvoyant", "reactive", "predictive"}[i], r.MeanMs, r.P99Ms, 100*r.Nearer, r.Moves, r.MostPerDay, r.MovesUSD, r.TwiceUSD, r.PauseS)
		}
	}
	lost, err := b.mislead()
	if err != nil {
		return claims, figures, err
	}
	b.Say("forecasts that are 12 h wrong: USD %.0f more than the reactive policy (%.0f); with a guard at most %.0f in any 24 h, bound %.0f, believed in %d of %d hours",
		lost.Unguarded, lost.Reactive, lost.Most, lost.Bound, lost.Believed, lost.Hours)
	for _, d := range figures[:2] {
		name := fmt.Sprintf("follow the sun, three offices, %d h: ", d.Days*24)
		claims = append(claims, claim.New(name+"clients nearer than from the best static place", d.Reactive.Nearer, ">=", 0.4),
			claim.New(name+"most moves in 24 hours", float64(d.Reactive.MostPerDay), "<=", sunMoves),
			claim.New(name+"clients nearer, with forecasts", d.Predictive.Nearer, ">=", 0.4),
			claim.New(name+"most moves in 24 hours, with forecasts", float64(d.Predictive.MostPerDay), "<=", sunMoves))
	}
	claims = append(claims, claim.New("forecasts 12 h wrong: most lost in 24 hours, over the bound", lost.Most/lost.Bound, "<=", 1),
		claim.New("forecasts 12 h wrong: what they would lose in 5 days without a guard, over the bound", lost.Unguarded/lost.Bound, ">=", 1))
	return claims, map[string]any{"scenes": figures, "misled": lost}, nil
}

// misled is what forecasts cost that are wrong.
type misled struct {
	Reactive  float64 `json:"reactive_usd"` // distance at the policy's price included, here and below
	Unguarded float64 `json:"unguarded_more_usd"`
	Guarded   float64 `json:"guarded_more_usd"`
	Most      float64 `json:"most_lost_in_24_hours_usd"`
	Bound     float64 `json:"bound_usd"`
	Believed  int     `json:"hours_believed"`
	Hours     int     `json:"hours"`
}

// mislead gives the predictive policy the forecast of 12 hours later.
func (b *Bench) mislead() (misled, error) {
	const bound, margin = 1000.0, 1.5
	e := b.earth(scene{Name: "misled", clients: offices, curve: replay.OfficeHours, days: sunDays})
	p, err := scheduler.Preset("follow-the-sun")
	if err != nil {
		return misled{}, err
	}
	expected, err := e.expected()
	if err != nil {
		return misled{}, err
	}
	g, err := forecast.NewGuard(bound, 24*hour, 12*hour)
	if err != nil {
		return misled{}, err
	}
	solver := replay.Scheduler(p, pace.Pace{MaxMovesPerDay: 4 * sunMoves}, sunOptions(b))
	wrong := func(t int) scheduler.Snapshot { return expected[min(t+12, len(expected)-1)] }
	worst := e.worstHour(p) * margin
	w, err := replay.Guarded(e.scenario(p), replay.Seeing(e.before, solver), replay.Seeing(wrong, solver), g,
		func(int) (float64, float64) { return worst, worst / 4 }) // on the way back it is at the wrong place for minutes
	if err != nil {
		return misled{}, err
	}
	return misled{w.Reactive.USD(), w.Predictive.USD() - w.Reactive.USD(), w.Real.USD() - w.Reactive.USD(), w.MostLostUSD, bound, w.Believed, e.days * 24}, nil
}

// worstHour is the most that an hour of the past would have cost more at the worst place
// than at the best, and what a move there and its vCPUs cost.
func (e *earth) worstHour(p scheduler.Policy) float64 {
	near, far := make([]float64, len(e.clients)), make([]float64, len(e.clients))
	for i := range near {
		near[i] = math.Inf(1)
		for _, r := range e.base.Reaches {
			if r.Region == regionID(i) {
				near[i], far[i] = min(near[i], r.RTTMs), max(far[i], r.RTTMs)
			}
		}
	}
	var most float64
	for _, row := range e.demands[:learnedDays*24] {
		var usd float64
		for i, perSecond := range row {
			usd += perSecond * 3600 / 1e6 * (far[i] - near[i]) * p.ClientUSDPerMillionRequestsMs
		}
		most = max(most, usd)
	}
	gb, vcpus := e.base.VMs[0].CopyBytes/1e9, e.base.VMs[0].VCPUs
	return most + gb*0.2 + vcpus*0.2
}

// dayOf is the mean day of a series by hour, and what of it is above its lowest hour.
func dayOf(list []sample) (day, above [24]float64) {
	var n [24]float64
	for _, s := range list {
		day[s.at.Hour()] += s.value
		n[s.at.Hour()]++
	}
	for h := range day {
		day[h] /= n[h]
	}
	low := slices.Min(day[:])
	for h := range day {
		above[h] = day[h] - low
	}
	return day, above
}

// earth is what does not change in a scene.
type earth struct {
	scene
	w       *world
	at      []int // region of each client
	first   time.Time
	demands [][]float64 // hour, client: requests per second, from learnedDays before the first tick
	base    scheduler.Snapshot
}

func (b *Bench) earth(s scene) *earth {
	e := &earth{scene: s, w: b.world, first: time.Date(2026, 1, 12, 0, 0, 0, 0, time.UTC)} // a Monday
	for _, c := range s.clients {
		e.at = append(e.at, slices.Index(e.w.regions, c.region))
	}
	if slices.Contains(e.at, -1) {
		e.at = e.w.spread(len(s.clients))
	}
	e.draw(rand.New(rand.NewPCG(b.Seed, 17)))
	e.lay()
	return e
}

// spread picks regions of an invented world that are far from each other.
func (w *world) spread(n int) []int {
	picked := []int{0}
	for len(picked) < n {
		best, far := 0, -1.0
		for k := range w.regions {
			near := math.Inf(1)
			for _, p := range picked {
				near = min(near, w.rttMs[k][p])
			}
			if near > far {
				best, far = k, near
			}
		}
		picked = append(picked, best)
	}
	return picked
}

// draw makes the demand: the curve by local hour, with noise.
func (e *earth) draw(r *rand.Rand) {
	var weights float64
	for _, c := range e.clients {
		weights += c.weight
	}
	top := slices.Max(e.curve[:])
	for h := range (learnedDays + e.days) * 24 {
		var row []float64
		for _, c := range e.clients {
			rate := peakPerSecond * c.weight / weights * e.curve[(h+c.ahead+24)%24] / top
			row = append(row, rate*math.Exp(unrest*r.NormFloat64()))
		}
		e.demands = append(e.demands, row)
	}
}

// lay lays out sites, ways and clients. The leader of replicas answers once the nearest
// other replica has too.
func (e *earth) lay() {
	vm := scheduler.VM{ID: "service", VCPUs: 8, MemoryMiB: 16 << 10, CopyBytes: 16 << 30, PauseMs: 500}
	if e.leader {
		vm.CopyBytes, vm.PauseMs = 0, 2000 // an election; the state is there already
	}
	e.base.VMs = []scheduler.VM{vm}
	for k, name := range e.w.regions {
		if e.leader && !slices.Contains(e.at, k) {
			continue
		}
		id := heliotrope.SiteID(name)
		usd := e.w.usdPerVC[k]
		e.base.Sites = append(e.base.Sites, scheduler.Site{ID: id, USDPerVCPUHour: usd * 0.6, USDPerGiBHour: usd * 0.1, LANRTTMs: 0.3})
		e.base.Hosts = append(e.base.Hosts, scheduler.Host{ID: heliotrope.HostID(name), Site: id, VCPUs: 16, MemoryMiB: 32 << 10})
		answer := 0.0
		if e.leader {
			answer = math.Inf(1)
			for _, other := range e.at {
				if other != k {
					answer = min(answer, e.w.between(k, other))
				}
			}
		}
		for i, c := range e.at {
			e.base.Reaches = append(e.base.Reaches, scheduler.Reach{Region: regionID(i), Site: id, RTTMs: e.w.between(k, c) + accessMs + answer})
		}
		for l, other := range e.w.regions {
			if k != l && (!e.leader || slices.Contains(e.at, l)) {
				e.base.Paths = append(e.base.Paths, scheduler.Path{From: id, To: heliotrope.SiteID(other), RTTMs: e.w.rttMs[k][l], USDPerGB: e.w.usdPerGB[k][l]})
			}
		}
	}
}

// between is the round trip of two regions, the mean of both ways.
func (w *world) between(a, b int) float64 { return (w.rttMs[a][b] + w.rttMs[b][a]) / 2 }

func regionID(client int) scheduler.RegionID {
	return scheduler.RegionID(fmt.Sprintf("clients-%d", client))
}

// asked is the snapshot of demands.
func (e *earth) asked(perSecond []float64) scheduler.Snapshot {
	s := e.base
	for i, v := range perSecond {
		s.Demands = append(s.Demands, scheduler.Demand{VM: "service", Region: regionID(i), RequestsPerSecond: v})
	}
	return s
}

// hourOf is the demand of a tick.
func (e *earth) hourOf(tick int) []float64 { return e.demands[learnedDays*24+tick] }

// before is what was counted in the hour before a tick: all that a reactive policy knows.
func (e *earth) before(tick int) scheduler.Snapshot { return e.asked(e.demands[learnedDays*24+tick-1]) }

// expected is what forecasts say at each tick of the hours that follow: until the decision
// after the next one.
func (e *earth) expected() ([]scheduler.Snapshot, error) {
	var all []*forecast.Series
	for range e.clients {
		s, err := forecast.New(hour, coverage)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	var list []scheduler.Snapshot
	for h := range e.demands {
		now := e.first.Add(time.Duration(h-learnedDays*24) * hour)
		if h >= learnedDays*24 {
			var mean []float64
			for _, s := range all {
				s.Advance(now)
				v, _ := s.Mean(now, 2*hour)
				mean = append(mean, v)
			}
			list = append(list, e.asked(mean))
		}
		for i, s := range all {
			s.Observe(now, e.demands[h][i])
		}
	}
	return list, nil
}

// scenario has a tick an hour.
func (e *earth) scenario(p scheduler.Policy) replay.Scenario {
	s := replay.Scenario{Policy: p, Billing: hour, End: e.first.Add(time.Duration(e.days*24) * hour)}
	for t := range e.days * 24 {
		s.Ticks = append(s.Ticks, replay.Tick{At: e.first.Add(time.Duration(t) * hour), Now: e.asked(e.hourOf(t))})
	}
	return s
}

// follow answers a scene.
func (b *Bench) follow(s scene) (daylight, error) {
	d := daylight{scene: s, Days: s.days}
	e := b.earth(s)
	p, err := scheduler.Preset("follow-the-sun")
	if err != nil {
		return d, err
	}
	best, path, err := e.bounds()
	if err != nil {
		return d, err
	}
	sc := e.scenario(p)
	static, err := replay.Run(e.startAt(sc, best), replay.Still)
	if err != nil {
		return d, err
	}
	d.StaticSite, d.StaticMs, d.StaticP99 = string(e.base.Sites[best].ID), static.Reached.MeanMs(), static.Reached.QuantileMs(0.99)
	sites := make([]heliotrope.SiteID, len(path))
	for t, k := range path {
		sites[t] = e.base.Sites[k].ID
	}
	expected, err := e.expected()
	if err != nil {
		return d, err
	}
	solver := replay.Scheduler(p, pace.Pace{MaxMovesPerDay: sunMoves, CoolDownPerVM: heliotrope.Duration(hour)}, sunOptions(b))
	for _, x := range []struct {
		into   *sunny
		decide replay.Decide
	}{
		{&d.Optimum, replay.Follow("service", sites)},
		{&d.Reactive, replay.Seeing(e.before, solver)},
		{&d.Predictive, replay.Seeing(func(t int) scheduler.Snapshot { return expected[t] }, solver)},
	} {
		r, err := replay.Run(sc, x.decide)
		if err != nil {
			return d, err
		}
		*x.into = sunny{r.Reached.MeanMs(), r.Reached.QuantileMs(0.99), 1 - r.Reached.MeanMs()/d.StaticMs, len(r.Moves), r.MostMovesPerDay(),
			r.Cost.Moves, r.TwiceUSD, r.Paused.Seconds(), r.Interruptions}
	}
	return d, nil
}

// sunOptions are enough of a search for one VM.
func sunOptions(b *Bench) scheduler.Options {
	return scheduler.Options{Seed: b.Seed, Iterations: 4096, Passes: 10}
}

// startAt begins a scenario with the VM at a site.
func (e *earth) startAt(s replay.Scenario, k int) replay.Scenario {
	s.Ticks = slices.Clone(s.Ticks)
	s.Ticks[0].Now.VMs = slices.Clone(s.Ticks[0].Now.VMs)
	s.Ticks[0].Now.VMs[0].Host = e.base.Hosts[k].ID
	return s
}

// bounds are the best static place, of all, and the clairvoyant's way with as many moves a
// day as we may have, by nothing but distance.
func (e *earth) bounds() (int, []int, error) {
	free := *e
	free.base.Sites = slices.Clone(e.base.Sites)
	for k := range free.base.Sites {
		free.base.Sites[k].USDPerVCPUHour, free.base.Sites[k].USDPerGiBHour = 0, 0
	}
	free.base.Paths = slices.Clone(e.base.Paths)
	for i := range free.base.Paths {
		free.base.Paths[i].USDPerGB = 0
	}
	var hosts []heliotrope.HostID
	for _, h := range e.base.Hosts {
		hosts = append(hosts, h.ID)
	}
	c, err := replay.Choices(free.scenario(scheduler.Policy{ClientUSDPerMillionRequestsMs: 1}), "service", hosts)
	if err != nil {
		return 0, nil, err
	}
	best, least := 0, math.Inf(1)
	for k := range hosts {
		var sum float64
		for _, row := range c.Stay {
			sum += row[k]
		}
		if sum < least {
			best, least = k, sum
		}
	}
	c.Most = sunMoves
	path, _ := replay.Optimum(c)
	return best, path, nil
}
