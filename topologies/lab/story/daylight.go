package story

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/topologies/lab"
	"heliotrope/topologies/lab/claim"
	"heliotrope/topologies/lab/probe"
)

// outcome is how long requests took, next to how long the same would have taken with the VM,
// or the leader, at one site all day. Means are of requests, ms.
type outcome struct {
	MeanMS float64 `json:"mean_ms"`
	// StaticMS is by what the same clients measured in the hours of the day in which it was
	// there and did not move; where there were none, by the network alone.
	StaticMS  map[heliotrope.SiteID]float64 `json:"static_ms"`
	NetworkMS map[heliotrope.SiteID]float64 `json:"network_ms"` // by the network alone: less than anybody could answer in
	Best      heliotrope.SiteID             `json:"best_static"`
	Nearer    float64                       `json:"nearer"`    // than with Best, as a share
	HourlyMS  float64                       `json:"hourly_ms"` // at each hour's best site, without any time to notice and to move
}

// daylight is what clients saw of a day, of the VM and of the service.
type daylight struct {
	VM      outcome        `json:"vm"`
	Moves   []passage      `json:"moves"`
	Hours   []hour         `json:"hours"`
	Clients []probe.Report `json:"clients"`

	Service   outcome    `json:"service"`
	Elections []election `json:"elections"`
	Asked     []asked    `json:"asked"` // by each staff
}

// hour is one of the day's.
type hour struct {
	UTC      string              `json:"utc"`
	Sites    []heliotrope.SiteID `json:"sites"` // where the VM was
	Asked    []int               `json:"asked"` // by each office
	EachMS   []float64           `json:"each_ms"`
	Lost     int                 `json:"lost"`
	MeanMS   float64             `json:"mean_ms"`
	WriteMS  float64             `json:"write_ms"` // of the service
	Leads    heliotrope.SiteID   `json:"leads"`    // all the hour; empty: it changed
	Stays    bool                `json:"stays"`    // the VM, all the hour
	answered int
}

// passage is a move and when it was, by the day's clock.
type passage struct {
	UTC  string        `json:"utc"`
	Move api.Migration `json:"move"`
}

// account asks the clients what they saw.
func (s *Sun) account(ctx context.Context) (d daylight, err error) {
	for _, o := range s.offices {
		r, err := o.probe.Settle(ctx, allDay)
		if err != nil {
			return d, fmt.Errorf("%s: %w", o.Name, err)
		}
		d.Clients = append(d.Clients, r)
	}
	moves, err := s.client.Migrations(ctx, s.VM, false)
	if err != nil {
		return d, err
	}
	for _, m := range slices.Backward(moves) { // newest first
		if m.CreatedAt.After(s.dawn) {
			d.Moves = append(d.Moves, passage{s.clockAt(m.CreatedAt), m})
		}
	}
	for h := range dayHours {
		hour, err := s.hour(ctx, d.Moves, h)
		if err != nil {
			return d, err
		}
		d.Hours = append(d.Hours, hour)
	}
	s.reckonVM(&d)
	s.reckonService(&d)
	return d, nil
}

// clockAt is a time of the lab by the day's clock.
func (s *Sun) clockAt(t time.Time) string {
	minutes := int(t.Sub(s.dawn) * dayHours * 60 / s.Day)
	return fmt.Sprintf("%02d:%02d", (firstHour+minutes/60)%dayHours, minutes%60)
}

// hour is the h-th of the day.
func (s *Sun) hour(ctx context.Context, moves []passage, h int) (hour, error) {
	from, to := s.dawn.Add(s.hours(h)), s.dawn.Add(s.hours(h+1))
	all := hour{UTC: clockOf(h), Sites: s.sites(moves, from, to), Leads: s.leads(from, to), Stays: true}
	for _, p := range moves {
		all.Stays = all.Stays && (p.Move.CreatedAt.After(to) || p.Move.FinishedAt.Before(from))
	}
	for _, o := range s.offices {
		r, err := o.probe.Window(ctx, from, to)
		if err != nil {
			return all, fmt.Errorf("%s: %w", o.Name, err)
		}
		all.Asked = append(all.Asked, r.UDP.Sent)
		all.EachMS = append(all.EachMS, r.UDP.RTT.MeanMS)
		all.Lost += r.UDP.Lost
		all.MeanMS += r.UDP.RTT.MeanMS * float64(r.UDP.Answered)
		all.answered += r.UDP.Answered
	}
	all.MeanMS /= float64(max(1, all.answered))
	writes := 0
	for _, f := range s.service.staffs {
		past := f.hours[h+1] // it tells of an hour as the next begins
		all.WriteMS += past.MeanMS * float64(past.Answered)
		writes += past.Answered
	}
	all.WriteMS /= float64(max(1, writes))
	return all, nil
}

// sites are where the VM was between two times, in turn.
func (s *Sun) sites(moves []passage, from, to time.Time) (list []heliotrope.SiteID) {
	at := map[heliotrope.HostID]heliotrope.SiteID{}
	for site, host := range s.hosted {
		at[host] = site
	}
	here := at[s.home]
	for _, p := range moves {
		if when := commitTime(p.Move); p.Move.Phase == api.PhaseSucceeded && when.Before(to) {
			if when.After(from) {
				list = append(list, here)
			}
			here = at[p.Move.To]
		}
	}
	return append(list, here)
}

// leads is where the service was led between two times; empty where that changed.
func (s *Sun) leads(from, to time.Time) heliotrope.SiteID {
	s.service.mu.Lock()
	defer s.service.mu.Unlock()
	var at heliotrope.SiteID
	for site, host := range s.hosted {
		if host == s.home {
			at = site
		}
	}
	for _, e := range s.service.elections {
		ends := e.At.Add(time.Duration(e.TookS * float64(time.Second)))
		switch {
		case ends.Before(from):
			at = heliotrope.SiteID(strings.TrimPrefix(string(e.To), replicaPrefix))
		case e.At.Before(to):
			return ""
		}
	}
	return at
}

// population is who asks, how much in each hour, and how long that took on average.
type population struct {
	asked, tookMS []float64
	reach         map[heliotrope.SiteID]float64 // ms to each site, by the network alone
}

// seen is reach, by what was measured in the hours in which it was at a site.
func (p population) seen(at []heliotrope.SiteID) map[heliotrope.SiteID]float64 {
	ms := map[heliotrope.SiteID]float64{}
	for site, network := range p.reach {
		sum, n := 0.0, 0.0
		for h, here := range at {
			if here == site {
				sum, n = sum+p.tookMS[h]*p.asked[h], n+p.asked[h]
			}
		}
		if ms[site] = network; n > 0 {
			ms[site] = sum / n
		}
	}
	return ms
}

// reckon holds what was measured against every place to stay at; at is where it was in each
// hour, empty where that changed.
func reckon(all []population, at, sites []heliotrope.SiteID) outcome {
	o := outcome{StaticMS: map[heliotrope.SiteID]float64{}, NetworkMS: map[heliotrope.SiteID]float64{}}
	asked := 0.0
	for h := range dayHours {
		nearest := math.Inf(1)
		for _, site := range sites {
			static, network := 0.0, 0.0
			for _, p := range all {
				static += p.asked[h] * p.seen(at)[site]
				network += p.asked[h] * p.reach[site]
			}
			o.StaticMS[site] += static
			o.NetworkMS[site] += network
			nearest = min(nearest, network)
		}
		o.HourlyMS += nearest
		for _, p := range all {
			asked += p.asked[h]
			o.MeanMS += p.asked[h] * p.tookMS[h]
		}
	}
	asked = max(1, asked)
	o.HourlyMS, o.MeanMS = o.HourlyMS/asked, o.MeanMS/asked
	for _, site := range sites {
		o.StaticMS[site] /= asked
		o.NetworkMS[site] /= asked
		if o.Best == "" || o.StaticMS[site] < o.StaticMS[o.Best] {
			o.Best = site
		}
	}
	o.Nearer = 1 - o.MeanMS/o.StaticMS[o.Best]
	return o
}

func (s *Sun) reckonVM(d *daylight) {
	all, at := make([]population, len(s.offices)), make([]heliotrope.SiteID, dayHours)
	for h, hour := range d.Hours {
		if hour.Stays {
			at[h] = hour.Sites[0]
		}
		for i, o := range s.offices {
			all[i].reach = o.reach
			all[i].asked, all[i].tookMS = append(all[i].asked, float64(hour.Asked[i])), append(all[i].tookMS, hour.EachMS[i])
		}
	}
	d.VM = reckon(all, at, slices.Sorted(maps.Keys(s.hosted)))
}

func (s *Sun) reckonService(d *daylight) {
	var at []heliotrope.SiteID
	for _, hour := range d.Hours {
		at = append(at, hour.Leads)
	}
	var all []population
	for _, f := range s.service.staffs {
		p := population{reach: f.reach}
		var day asked
		for _, h := range f.hours[1:] { // before the first there was none
			n := float64(h.Answered)
			p.asked, p.tookMS = append(p.asked, n), append(p.tookMS, h.MeanMS)
			day.MeanMS += n * h.MeanMS
			day.Answered, day.Failed, day.Again, day.MaxMS = day.Answered+h.Answered, day.Failed+h.Failed, day.Again+h.Again, max(day.MaxMS, h.MaxMS)
		}
		day.MeanMS /= max(1, float64(day.Answered))
		all = append(all, p)
		d.Asked = append(d.Asked, day)
	}
	d.Service = reckon(all, at, slices.Sorted(maps.Keys(s.hosted)))
	s.service.mu.Lock()
	defer s.service.mu.Unlock()
	d.Elections = slices.Clone(s.service.elections)
	for i := range d.Elections {
		d.Elections[i].UTC = s.clockAt(d.Elections[i].At)
	}
}

// conclude prints the tables, says what did not hold, and prints the JSON line. That the day came
// to its end is all that is no error: what holds depends on the machine too.
func (s *Sun) conclude(ctx context.Context, d daylight) error {
	s.tellHours(d)
	s.tellMoves(d)
	s.tellPlaces(d)
	if status, err := lab.Read(ctx, s.target); err == nil && status.Drops() != "" {
		fmt.Fprintln(s.Out, status.Drops()) // a loss may be the lab's own
	}
	claims := s.claims(d)
	line, err := json.Marshal(struct {
		Bench   string        `json:"bench"`
		Seconds float64       `json:"seconds"`
		Claims  []claim.Claim `json:"claims"`
		Day     daylight      `json:"day"`
	}{"sun", time.Since(s.started).Seconds(), claims, d})
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	if err := claim.Failed(claims); err != nil {
		fmt.Fprintf(s.Out, "MISSED: %v\n", err)
	}
	fmt.Fprintln(s.Out, string(line))
	return nil
}

func (s *Sun) table(print func(w io.Writer)) {
	fmt.Fprintln(s.Out)
	w := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
	print(w)
	w.Flush()
}

// tellHours prints who asked how much, hour by hour, and how long that took.
func (s *Sun) tellHours(d daylight) {
	s.table(func(w io.Writer) {
		fmt.Fprint(w, "UTC\t")
		for _, o := range s.offices {
			fmt.Fprintf(w, "%s\t", o.Name)
		}
		fmt.Fprintf(w, "mean ms\tlost\twrite ms\t%s at\t\n", s.VM)
		for _, h := range d.Hours {
			fmt.Fprintf(w, "%s\t", h.UTC)
			for _, n := range h.Asked {
				fmt.Fprintf(w, "%d\t", n)
			}
			var sites []string
			for _, site := range h.Sites {
				sites = append(sites, string(site))
			}
			fmt.Fprintf(w, "%.1f\t%d\t%.0f\t%s\t\n", h.MeanMS, h.Lost, h.WriteMS, strings.Join(sites, " → "))
		}
	})
}

func (s *Sun) tellMoves(d daylight) {
	if len(d.Moves) == 0 {
		return
	}
	s.table(func(w io.Writer) {
		fmt.Fprintln(w, "UTC\tmove\tended as\ttook s\tpause ms\tMB\tphases\t")
		for _, p := range d.Moves {
			var phases []string
			for _, x := range p.Move.Phases {
				if x.TookS >= 0.05 {
					phases = append(phases, fmt.Sprintf("%s %.1f", x.Phase, x.TookS))
				}
			}
			fmt.Fprintf(w, "%s\t%s → %s\t%s\t%.1f\t%.0f\t%.1f\t%s\t\n", p.UTC, p.Move.From, p.Move.To, p.Move.Phase,
				p.Move.FinishedAt.Sub(p.Move.CreatedAt).Seconds(), p.Move.Measured.PauseMs, float64(p.Move.Measured.Bytes)/1e6, strings.Join(phases, ", "))
		}
	})
}

// tellPlaces prints what each way to place the VM, and the leader, comes to.
func (s *Sun) tellPlaces(d daylight) {
	for _, x := range []struct {
		what, moves string
		o           outcome
	}{
		{string(s.VM), fmt.Sprintf("%d moves", len(d.Moves)), d.VM},
		{"the leader", fmt.Sprintf("%d elections", len(d.Elections)), d.Service},
	} {
		s.table(func(w io.Writer) {
			fmt.Fprintf(w, "%s\tmean ms\tnearer than from %s\t\n", x.what, x.o.Best)
			row := func(how string, ms float64) {
				fmt.Fprintf(w, "%s\t%.1f\t%.0f %%\t\n", how, ms, 100*(1-ms/x.o.StaticMS[x.o.Best]))
			}
			for _, site := range slices.Sorted(maps.Keys(x.o.StaticMS)) {
				row("at "+string(site)+", as measured while it was there", x.o.StaticMS[site])
			}
			row("at "+string(x.o.Best)+", by the network alone", x.o.NetworkMS[x.o.Best])
			row("at each hour's best site, likewise", x.o.HourlyMS)
			row("as it was, "+x.moves+", measured", x.o.MeanMS)
		})
	}
	fmt.Fprintln(s.Out)
	for i, o := range s.offices {
		r := d.Clients[i]
		fmt.Fprintf(s.Out, "%s: %d requests, %d lost, %d answered twice, %d skipped; median %.1f ms, p99 %.1f; longest gap %.0f ms; connection %s\n", o.Name, r.UDP.Sent, r.UDP.Lost,
			r.UDP.Duplicated, r.UDP.Skipped, r.UDP.RTT.MedianMS, r.UDP.RTT.P99MS, r.UDP.LongestGap.MS, map[bool]string{true: "alive", false: "broken " + r.TCP.Error}[alive(r)])
	}
	for i, f := range s.service.staffs {
		a := d.Asked[i]
		fmt.Fprintf(s.Out, "%s: %d writes answered, %d not, %d asked again; mean %.1f ms, longest %.0f\n", staffOf(f.site), a.Answered, a.Failed, a.Again, a.MeanMS, a.MaxMS)
	}
	for _, e := range d.Elections {
		fmt.Fprintf(s.Out, "%s UTC: %s leads in place of %s, after %.1f s: %s\n", e.UTC, e.To, e.Leads, e.TookS, e.Says)
	}
	fmt.Fprintln(s.Out)
}

func alive(r probe.Report) bool { return r.TCP.Connected && !r.TCP.Broken }

// claims are what had to hold.
func (s *Sun) claims(d daylight) []claim.Claim {
	var lost, twice, living, done, failed float64
	for _, a := range d.Asked {
		failed += float64(a.Failed)
	}
	for _, r := range d.Clients {
		lost += float64(r.UDP.Lost)
		twice += float64(r.UDP.Duplicated)
		if alive(r) {
			living++
		}
	}
	for _, p := range d.Moves {
		if p.Move.Phase == api.PhaseSucceeded {
			done++
		}
	}
	claims := []claim.Claim{
		claim.New("requests lost", lost, "==", 0),
		claim.New("requests answered twice", twice, "==", 0),
		claim.New("connections that lasted all day", living, "==", float64(len(s.offices))),
		claim.New("writes not answered", failed, "==", 0),
		claim.New("moves that succeeded", done, "==", float64(len(d.Moves))),
	}
	if s.Still != "" {
		return append(claims, claim.New("moves", float64(len(d.Moves)), "==", 0))
	}
	return append(claims, claim.New("moves", float64(len(d.Moves)), "<=", movesADay),
		claim.New("clients nearer than from the best static place", d.VM.Nearer, ">=", 0.4),
		claim.New("elections", float64(len(d.Elections)), "<=", movesADay),
		// Little can be gained: every write goes to another continent and back, wherever the leader is.
		claim.New("writes answered sooner than with the best static leader", d.Service.Nearer, ">=", 0))
}
