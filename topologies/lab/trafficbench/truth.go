package trafficbench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"text/tabwriter"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/report"
	"heliotrope/scheduler/traffic/synth"
	"heliotrope/topologies/lab/claim"
	"heliotrope/topologies/lab/endpoints"
)

const (
	truthTime = 5 * time.Second
	// sampledTime is longer: the error at 1:N is about 0.8/√samples a pair, and a pair needs a
	// hundred of them to be within 8 %.
	sampledTime = 40 * time.Second
	truthSize   = 12
	truthRate   = 400_000 // bits per second of an edge, mean
	// sampledRate makes a pair's packets in the window many enough for 1:64 to say something.
	sampledRate = 4_000_000
)

// counting says whether every host with VMs has counted so since a time.
func (l light) counting(sources []report.Source, c heliotrope.Capture, since time.Time) bool {
	homes := map[heliotrope.HostID]bool{}
	for _, vm := range l.top.VMs {
		homes[vm.Host] = true
	}
	for _, s := range sources {
		fits := (c.Source == "" || s.Source == traffic.Source(c.Source)) && (c.Sampling == 0 || s.Sampling == uint32(c.Sampling))
		if fits && s.LastBin.After(since) {
			delete(homes, s.Host)
		}
	}
	return len(homes) == 0
}

// truthFigures are one pattern, counted in one way.
type truthFigures struct {
	Way      string       `json:"way"`
	Driven   pattern.Kind `json:"driven"`
	Said     pattern.Kind `json:"said"`
	Pairs    int          `json:"pairs"`
	TrueMB   float64      `json:"true_mb"`
	Error    float64      `json:"error"`   // Σ|counted − true| ÷ Σ true
	Covered  float64      `json:"covered"` // share of the true pairs that lie in their intervals; where all packets are counted, these have no width
	Samples  float64      `json:"samples"` // packets of a pair that were looked at, mean
	Missing  int          `json:"missing"` // true pairs of which nothing was counted
	Surplus  int          `json:"surplus"` // counted pairs of VMs that there were not
	Duration float64      `json:"seconds"`
	Groups   string       `json:"groups"` // what is said of all VMs
	Worst    string       `json:"worst"`  // the pair that is most wrong
}

// way is how packets are counted.
type way struct {
	name     string
	capture  heliotrope.Capture
	kinds    []pattern.Kind
	rate     heliotrope.BitRate
	time     time.Duration
	errBound float64
}

// truth drives every pattern and compares what the controller says with what the endpoints
// counted themselves.
func truth(ctx context.Context, b *Bench) (claims []claim.Claim, figures any, err error) {
	l, err := bringUp(ctx, b, "bench-truth")
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, l.down(ctx)) }()
	fleet, err := endpoints.Start(ctx, l.target, l.vms())
	if err != nil {
		return nil, nil, err
	}
	defer fleet.Close()
	few := []pattern.Kind{pattern.Star, pattern.Ring, pattern.AllToAll, pattern.Stencil2D}
	// An all-to-all of twelve at the rate that 1:64 needs is more than this lab's switches carry.
	sparse := []pattern.Kind{pattern.Star, pattern.MasterWorker, pattern.Ring, pattern.Pipeline, pattern.Tree, pattern.Broadcast, pattern.Stencil1D, pattern.Stencil2D}
	ways := []way{
		{"packets", heliotrope.Capture{Source: "packets", Sampling: 1, Budget: 1}, synth.Kinds, truthRate, truthTime, 0.001},
		{"ebpf", heliotrope.Capture{Source: "ebpf", Sampling: 1, Budget: 1}, few, truthRate, truthTime, 0.001},
		{"counters", heliotrope.Capture{Source: "counters"}, few, truthRate, truthTime, 0.001},
		{"packets 1:64", heliotrope.Capture{Source: "packets", Sampling: 64, Budget: 1}, sparse, sampledRate, sampledTime, 0.08},
	}
	// First, as groups that have turned ten times in a minute are not believed to have settled.
	if err := l.count(ctx, ways[0].capture); err != nil {
		return nil, nil, fmt.Errorf("count by %s: %w", ways[0].name, err)
	}
	claims, turns, err := l.turns(ctx, b, fleet)
	if err != nil {
		return claims, turns, err
	}
	var rows []truthFigures
	w := tabwriter.NewWriter(b.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "counted by\tdriven\tsaid\tpairs\ttrue MB\tsamples/pair\terror\tcovered\tmissing\tsurplus\t")
	for _, way := range ways {
		if err := l.count(ctx, way.capture); err != nil {
			return claims, rows, fmt.Errorf("count by %s: %w", way.name, err)
		}
		var mine []truthFigures
		for i, kind := range way.kinds {
			f, err := l.drive(ctx, fleet, kind, way, b.Seed+uint64(i))
			if err != nil {
				return claims, rows, fmt.Errorf("drive %s, counted by %s: %w", kind, way.name, err)
			}
			mine = append(mine, f)
			covered := "-"
			if way.capture.Sampling > 1 {
				covered = fmt.Sprintf("%.3f", f.Covered)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%.1f\t%.0f\t%.5f\t%s\t%d\t%d\t\n", f.Way, f.Driven, f.Said, f.Pairs, f.TrueMB, f.Samples, f.Error, covered, f.Missing, f.Surplus)
			b.Say("  counted by %s: %s is said to be %s, error %.5f", f.Way, f.Driven, f.Said, f.Error)
			if f.Said != f.Driven || f.Error > way.errBound {
				b.Say("    groups: %s; worst: %s", f.Groups, f.Worst)
			}
		}
		rows = append(rows, mine...)
		claims = append(claims, way.claims(mine)...)
	}
	w.Flush()
	return claims, map[string]any{"patterns": rows, "turns": turns}, nil
}

func (way way) claims(rows []truthFigures) []claim.Claim {
	var wrong, sum, covered, pairs, right float64
	for _, f := range rows {
		wrong, sum = wrong+f.Error*f.TrueMB, sum+f.TrueMB
		covered, pairs = covered+f.Covered*float64(f.Pairs), pairs+float64(f.Pairs)
		if f.Said == f.Driven {
			right++
		}
	}
	claims := []claim.Claim{claim.New("matrix error, counted by "+way.name, wrong/max(sum, 1e-9), "<=", way.errBound)}
	if way.capture.Sampling > 1 {
		claims = append(claims, claim.New("share of pairs within their 95 % intervals, "+way.name, covered/max(pairs, 1), ">=", 0.95))
	}
	if way.name == "packets" {
		claims = append(claims, claim.New("driven patterns that are named rightly, share", right/float64(len(rows)), ">=", 0.9))
	}
	return claims
}

// drive has the fleet talk in a pattern, with noise and skew.
func (l light) drive(ctx context.Context, fleet *endpoints.Fleet, kind pattern.Kind, way way, seed uint64) (truthFigures, error) {
	plan, _, err := endpoints.Pattern{Kind: kind, VMs: l.vms(), Size: truthSize, Rate: way.rate, Skew: 0.4, Noise: 0.02, UDP: 0.5, For: way.time, Seed: seed}.Plan()
	if err != nil {
		return truthFigures{}, err
	}
	truth, err := fleet.Drive(ctx, plan)
	if err != nil {
		return truthFigures{}, err
	}
	m, err := l.counted(ctx, truth.From, truth.To)
	if err != nil {
		return truthFigures{}, err
	}
	f := compare(truth.Sent, m)
	f.Samples /= float64(max(way.capture.Sampling, 1))
	f.Way, f.Driven, f.Said, f.Duration = way.name, kind, pattern.Unknown, truth.To.Sub(truth.From).Seconds()
	groups := pattern.Infer(pattern.FromMatrix(m)).Groups
	if len(groups) > 0 {
		f.Said = groups[0].Kind
	}
	var said []string
	for _, g := range groups {
		said = append(said, fmt.Sprintf("%s of %d (%.2f)", g.Kind, len(g.Members), g.Confidence))
	}
	f.Groups = strings.Join(said, ", ")
	return f, nil
}

// compare holds counted cells between VMs against true ones.
func compare(truth, counted traffic.Matrix) (f truthFigures) {
	type pair [2]traffic.End
	cells := map[pair]traffic.Cell{}
	for _, c := range counted.Cells {
		if c.Src.IsVM() && c.Dst.IsVM() {
			cells[pair{c.Src, c.Dst}] = c
		}
	}
	var wrong, sum float64
	covered, most := 0, 0.0
	for _, t := range truth.Cells {
		c, ok := cells[pair{t.Src, t.Dst}]
		if !ok {
			f.Missing++
			c.High = counted.Unseen
		}
		delete(cells, pair{t.Src, t.Dst})
		off := math.Abs(c.Bytes - t.Bytes)
		wrong, sum = wrong+off, sum+t.Bytes
		if off > most {
			most = off
			f.Worst = fmt.Sprintf("%v to %v, %.0f bytes in %.0f packets were sent, %.0f in %.0f counted", t.Src, t.Dst, t.Bytes, t.Packets, c.Bytes, c.Packets)
		}
		f.Samples += t.Packets / float64(len(truth.Cells))
		if c.Low <= t.Bytes && t.Bytes <= c.High {
			covered++
		}
	}
	for _, c := range cells { // what nobody sent
		wrong += c.Bytes
		f.Surplus++
	}
	f.Pairs, f.TrueMB = len(truth.Cells), sum/1e6
	f.Error, f.Covered = wrong/max(sum, 1), float64(covered)/float64(max(len(truth.Cells), 1))
	return f
}
