package schedbench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/pace"
	"heliotrope/scheduler/replay"
	"heliotrope/topologies/lab/claim"
)

const (
	spotHours    = 8 * 7 * 24 // a price lasts 8 to 10 weeks in the mean (4 in the median): what a move can expect
	spotDiskGB   = 20         // that goes with the memory
	spotBits     = 5e9        // between two regions; the median that Skyplane measured between GCP regions
	spotNotice   = 2 * time.Minute
	spotRevoked  = 0.05 // of all regions, at each date
	spotRegret   = 0.02 // that the policy may cost more than who knew the best place
	farUSDPerGB  = 0.15 // where nobody says what a GB costs: as much as the dearest
	farRTTMs     = 150
	gibPerMemory = 4 // of each vCPU
)

// market is the prices of one machine type over time.
type market struct {
	machine string
	vcpus   float64
	dates   []time.Time
	regions []string
	spot    [][]float64 // date, region: USD per hour; 0: not offered
	demand  [][]float64 // on demand
}

// machines are those of the price list, with their vCPUs.
var machines = []struct {
	name  string
	vcpus float64
}{{"n2-standard-8", 8}, {"c2-standard-8", 8}, {"e2-standard-4", 4}, {"n1-standard-4", 4}, {"n2d-standard-8", 8}}

// markets reads them, or makes some up: prices that stay for weeks and then jump.
func markets(dir string) ([]market, error) {
	if dir != "" {
		all, err := rows(filepath.Join(dir, priceFile))
		if !errors.Is(err, fs.ErrNotExist) {
			return parseMarkets(all, err)
		}
	}
	r := rand.New(rand.NewPCG(1, 9))
	m := market{machine: "invented", vcpus: 8}
	level := make([]float64, 20)
	for k := range level {
		m.regions = append(m.regions, fmt.Sprintf("region-%d", k))
		level[k] = 0.04 + 0.1*r.Float64()
	}
	for i := range 160 {
		m.dates = append(m.dates, time.Date(2023, 5, 8, 0, 0, 0, 0, time.UTC).AddDate(0, 0, 7*i))
		for k := range level {
			if r.IntN(6) == 0 {
				level[k] = max(0.03, level[k]*math.Exp(0.2*r.NormFloat64()))
			}
		}
		m.spot = append(m.spot, slices.Clone(level))
		m.demand = append(m.demand, slices.Repeat([]float64{0.4}, len(level)))
	}
	return []market{m}, nil
}

func parseMarkets(all [][]string, err error) ([]market, error) {
	if err != nil {
		return nil, err
	}
	var list []market
	for _, machine := range machines {
		m := market{machine: machine.name, vcpus: machine.vcpus}
		at := map[string]int{}
		for _, row := range all {
			if row[1] == machine.name && at[row[2]] == 0 {
				m.regions = append(m.regions, row[2])
				at[row[2]] = len(m.regions)
			}
		}
		for _, row := range all {
			if row[1] != machine.name {
				continue
			}
			date, err := time.Parse(time.DateOnly, row[0])
			if err != nil {
				return nil, fmt.Errorf("read prices: %w", err)
			}
			if n := len(m.dates); n == 0 || !date.Equal(m.dates[n-1]) {
				m.dates = append(m.dates, date)
				m.spot, m.demand = append(m.spot, make([]float64, len(m.regions))), append(m.demand, make([]float64, len(m.regions)))
			}
			for column, into := range [][][]float64{m.demand, m.spot} {
				if usd, err := strconv.ParseFloat(row[3+column], 64); err == nil {
					into[len(into)-1][at[row[2]]-1] = usd
				}
			}
		}
		list = append(list, m)
	}
	return list, nil
}

// scenario is a VM of this machine type, at each date with the prices of then.
func (m *market) scenario(w *world, p scheduler.Policy) replay.Scenario {
	memory := m.vcpus * gibPerMemory
	base := scheduler.Snapshot{VMs: []scheduler.VM{{ID: "vm", VCPUs: m.vcpus, MemoryMiB: memory * 1024, CopyBytes: memory*(1<<30) + spotDiskGB*1e9, PauseMs: 500}}}
	for _, a := range m.regions {
		for _, b := range m.regions {
			if a != b {
				usd, ms := w.way(a, b)
				base.Paths = append(base.Paths, scheduler.Path{From: heliotrope.SiteID(a), To: heliotrope.SiteID(b), RTTMs: ms, USDPerGB: usd, BitsPerSecond: spotBits})
			}
		}
	}
	s := replay.Scenario{Policy: p, Billing: hour, End: m.dates[len(m.dates)-1].AddDate(0, 0, 7)}
	for i, date := range m.dates {
		s.Ticks = append(s.Ticks, replay.Tick{At: date, Now: m.priced(base, i, -1)})
	}
	return s
}

// priced is a snapshot with the prices of a date. Where there is none, and in a region that
// is to be left, a host is drained.
func (m *market) priced(base scheduler.Snapshot, date, leave int) scheduler.Snapshot {
	base.Sites, base.Hosts = nil, nil
	for k, name := range m.regions {
		usd := m.spot[date][k]
		base.Sites = append(base.Sites, scheduler.Site{ID: heliotrope.SiteID(name), USDPerVCPUHour: usd / m.vcpus})
		base.Hosts = append(base.Hosts, scheduler.Host{ID: heliotrope.HostID(name), Site: heliotrope.SiteID(name), VCPUs: m.vcpus, MemoryMiB: m.vcpus * gibPerMemory * 1024,
			Drained: usd == 0 || k == leave})
	}
	return base
}

// way is what a GB and a round trip between two regions of a price list are.
func (w *world) way(a, b string) (usdPerGB, ms float64) {
	find := func(name string) int {
		return slices.IndexFunc(w.regions, func(zone string) bool { return region(zone) == name })
	}
	i, j := find(a), find(b)
	if i < 0 || j < 0 {
		return farUSDPerGB, farRTTMs
	}
	return w.usdPerGB[i][j], w.between(i, j)
}

// chase is how one machine type fared.
type chase struct {
	Machine     string  `json:"machine"`
	Dates       int     `json:"dates"`
	Regions     int     `json:"regions"`
	USD         float64 `json:"usd"`
	Moves       int     `json:"moves"`
	MovesUSD    float64 `json:"moves_usd"`
	TwiceUSD    float64 `json:"paid_twice_usd"`
	Static      string  `json:"best_static"`
	StaticUSD   float64 `json:"best_static_usd"`
	FirstUSD    float64 `json:"cheapest_at_first_usd"` // staying where it was cheapest on the first date
	MedianUSD   float64 `json:"median_static_usd"`
	WorstUSD    float64 `json:"worst_static_usd"`
	DemandUSD   float64 `json:"on_demand_usd"` // at the region where that is cheapest
	OptimumUSD  float64 `json:"optimum_usd"`
	OptimumMove int     `json:"optimum_moves"`

	curves []replay.Curve
}

// spot lets prices change.
func spot(_ context.Context, b *Bench) ([]claim.Claim, any, error) {
	list, err := markets(b.Data)
	if err != nil {
		return nil, nil, err
	}
	p, err := scheduler.Preset("cheapest")
	if err != nil {
		return nil, nil, err
	}
	p.AmortisationHours, p.MinGainUSDPerHour, p.MinMoveGainUSDPerHour = spotHours, 0.001, 0.001
	var figures []chase
	var claims []claim.Claim
	for _, m := range list {
		c, err := b.chase(&m, p)
		if err != nil {
			return claims, figures, fmt.Errorf("%s: %w", m.machine, err)
		}
		figures = append(figures, c)
		b.Say("%s, %d dates, %d regions: USD %.0f with %d moves (%.2f of it copies, %.2f paid twice); best static %s %.0f (%+.2f %%), cheapest at first %.0f, median %.0f, dearest %.0f, on demand %.0f; optimum %.0f with %d moves (%+.2f %%)",
			c.Machine, c.Dates, c.Regions, c.USD, c.Moves, c.MovesUSD, c.TwiceUSD, c.Static, c.StaticUSD, 100*(c.USD/c.StaticUSD-1), c.FirstUSD, c.MedianUSD, c.WorstUSD, c.DemandUSD, c.OptimumUSD, c.OptimumMove, 100*(c.USD/c.OptimumUSD-1))
		claims = append(claims, claim.New(c.Machine+": cost over the best static place's", c.USD/c.StaticUSD, "<=", 1+spotRegret),
			claim.New(c.Machine+": cost over that of staying where it was cheapest at first", c.USD/c.FirstUSD, "<=", 1))
	}
	interrupted, revoked, err := b.revoked(&list[0], p)
	if err != nil {
		return claims, figures, err
	}
	b.Say("%s: %d of its places revoked with %s notice: %d interruptions", list[0].machine, revoked, spotNotice, interrupted)
	claims = append(claims, claim.New("interruptions where revocations are announced 2 minutes before", float64(interrupted), "==", 0),
		claim.New("revocations that it had to get away from", float64(revoked), ">=", 1))
	return claims, map[string]any{"machines": figures, "revoked": revoked, "interruptions": interrupted}, b.draw(figures[0])
}

// chase runs the policy and what it is held against.
func (b *Bench) chase(m *market, p scheduler.Policy) (chase, error) {
	c := chase{Machine: m.machine, Dates: len(m.dates), Regions: len(m.regions), DemandUSD: math.Inf(1)}
	s := m.scenario(b.world, p)
	ours, err := replay.Run(s, replay.Scheduler(p, pace.Pace{}, sunOptions(b)))
	if err != nil {
		return c, err
	}
	c.USD, c.Moves, c.MovesUSD, c.TwiceUSD = ours.USD(), len(ours.Moves), ours.Cost.Moves, ours.TwiceUSD
	var hosts []heliotrope.HostID
	for _, name := range m.regions {
		hosts = append(hosts, heliotrope.HostID(name))
	}
	costs, err := replay.Choices(s, "vm", hosts)
	if err != nil {
		return c, err
	}
	m.closed(costs.Stay)
	static := m.statics(&c, costs.Stay)
	path, usd := replay.Optimum(costs)
	c.OptimumUSD = usd
	for t := range path[1:] {
		if path[t] != path[t+1] {
			c.OptimumMove++
		}
	}
	c.curves = m.curves(ours, costs.Stay, static)
	return c, nil
}

// closed says that nobody can be where nothing is offered.
func (m *market) closed(stay [][]float64) {
	for t, row := range stay {
		for k := range row {
			if m.spot[t][k] == 0 {
				row[k] = math.Inf(1)
			}
		}
	}
}

// statics are the sums of each place that was offered all the time, best first.
func (m *market) statics(c *chase, stay [][]float64) []int {
	sums := map[int]float64{}
	first, least := 0, math.Inf(1)
	for k := range m.regions {
		var sum, demand float64
		for t, row := range stay {
			sum += row[k]
			if m.spot[t][k] > 0 {
				demand += row[k] / m.spot[t][k] * cmp.Or(m.demand[t][k], math.Inf(1))
			}
		}
		if math.IsInf(sum, 1) {
			continue
		}
		sums[k] = sum
		c.DemandUSD = min(c.DemandUSD, demand)
		if m.spot[0][k] < least {
			first, least = k, m.spot[0][k]
		}
	}
	order := slices.SortedFunc(maps.Keys(sums), func(a, b int) int { return cmp.Or(cmp.Compare(sums[a], sums[b]), a-b) })
	c.Static, c.StaticUSD, c.FirstUSD = m.regions[order[0]], sums[order[0]], sums[first]
	c.MedianUSD, c.WorstUSD = sums[order[len(order)/2]], sums[order[len(order)-1]]
	return order
}

// curves are what was paid over time, ours first.
func (m *market) curves(ours replay.Result, stay [][]float64, order []int) []replay.Curve {
	list := []replay.Curve{{Name: "scheduler", Points: ours.Curve, Ours: true}}
	for _, k := range order {
		c := replay.Curve{Name: m.regions[k]}
		sum := 0.0
		for t, row := range stay {
			sum += row[k]
			c.Points = append(c.Points, replay.Point{At: ours.Curve[t].At, USD: sum})
		}
		list = append(list, c)
	}
	return list
}

// revoked plays the prices again, and takes regions away at random. The data knows no
// revocations: these are made up, and announced.
func (b *Bench) revoked(m *market, p scheduler.Policy) (interruptions, revoked int, err error) {
	r := rand.New(rand.NewPCG(b.Seed, 21))
	plain := m.scenario(b.world, p)
	s := plain
	s.Ticks = nil
	for i, t := range plain.Ticks {
		if i > 0 {
			// Only the region that costs the least of those drawn is taken: one at a time.
			leave := -1
			for k := range m.regions {
				if r.Float64() < spotRevoked && m.spot[i-1][k] > 0 && (leave < 0 || m.spot[i-1][k] < m.spot[i-1][leave]) {
					leave = k
				}
			}
			if leave >= 0 {
				s.Ticks = append(s.Ticks, replay.Tick{At: t.At.Add(-spotNotice), Now: m.priced(plain.Ticks[i-1].Now, i-1, leave)})
				t.Gone = []heliotrope.HostID{heliotrope.HostID(m.regions[leave])}
			}
		}
		s.Ticks = append(s.Ticks, t)
	}
	run, err := replay.Run(s, replay.Scheduler(p, pace.Pace{CoolDownPerVM: heliotrope.Duration(24 * hour)}, sunOptions(b)))
	if err != nil {
		return 0, 0, err
	}
	for i, t := range s.Ticks {
		if len(t.Gone) > 0 && i >= 2 && run.Sites[i-2]["vm"] == heliotrope.SiteID(t.Gone[0]) {
			revoked++
		}
	}
	return run.Interruptions, revoked, nil
}

// draw writes the picture, where a file was asked for.
func (b *Bench) draw(c chase) error {
	if b.Picture == "" {
		return nil
	}
	title := fmt.Sprintf("%s at spot prices: what was paid, next to staying at each region", c.Machine)
	if err := os.WriteFile(b.Picture, []byte(replay.Picture(title, c.curves)), 0o644); err != nil {
		return fmt.Errorf("write picture: %w", err)
	}
	return nil
}
