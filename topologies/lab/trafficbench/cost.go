package trafficbench

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"heliotrope/hostagent/capture"
	"heliotrope/scheduler/traffic"
	"heliotrope/topologies/lab/claim"
)

const (
	costTime       = 4 * time.Second
	budgetTime     = 15 * time.Second
	throughputTime = 100 * time.Millisecond
	turns          = 600 // with counting, and as many without
	settling       = 8 * time.Second
	costBudget     = 0.05 // of a core, the default
)

// costFigures are one row: what counting packets at a rate took.
type costFigures struct {
	Source   traffic.Source `json:"source"` // empty: what the budget chose
	Ended    traffic.Source `json:"ended_as"`
	Sampling uint32         `json:"sampling"`
	Asked    int            `json:"asked_pps"`
	Offered  float64        `json:"offered_pps"`
	Counted  float64        `json:"counted_share"`
	Dropped  uint64         `json:"dropped"`
	CPU      float64        `json:"cpu_share"`
	PerCore  float64        `json:"packets_per_core_second"`
}

// cost measures what counting takes of a host, and of its VMs' throughput.
func cost(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	var rows []costFigures
	worst := 0.0
	w := tabwriter.NewWriter(b.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "source\tended as\t1 of\tasked/s\toffered/s\tcounted\tdropped\tCPU of a core\tpackets/core s\t")
	for _, source := range []traffic.Source{traffic.SourcePackets, traffic.SourceEBPF, ""} {
		for _, pps := range []int{10_000, 100_000, 1_000_000} {
			took := costTime
			if source == "" { // some seconds pass until the budget is known to be exceeded
				took = budgetTime
			}
			sampling := uint32(1)
			if source == "" {
				sampling = 0
			}
			r, err := capture.Cost(ctx, source, sampling, pps, took)
			if err != nil {
				return nil, rows, err
			}
			f := costFigures{Source: source, Ended: r.Source, Sampling: r.Sampling, Asked: pps, Offered: float64(r.Offered) / r.Took.Seconds(),
				Counted: float64(r.Counted) / float64(max(r.Offered, 1)), Dropped: r.Dropped, CPU: r.CPU.Seconds() / r.Took.Seconds(), PerCore: r.PacketsPerCoreSecond}
			rows = append(rows, f)
			name := string(source)
			if source == "" {
				name, worst = "budget 5 %", max(worst, f.CPU)
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%.0f\t%.4f\t%d\t%.3f\t%.0f\t\n", name, f.Ended, f.Sampling, pps, f.Offered, f.Counted, f.Dropped, f.CPU, f.PerCore)
		}
	}
	w.Flush()
	t, err := capture.Throughput(ctx, "", turns, settling, throughputTime)
	if err != nil {
		return nil, rows, err
	}
	fmt.Fprintf(b.Out, "\nTCP across a counted port: %.0f Mbit/s without counting, %.0f with it (medians of %d); ratio %.3f, of bytes for processor time %.3f\n\n",
		t.Without*8/1e6, t.With*8/1e6, turns, t.Ratio, t.PerCPU)
	return []claim.Claim{
		claim.New("CPU of counting where the budget of 5 % rules, worst share of a core", worst, "<=", costBudget),
		claim.New("throughput of a VM with counting, over that without", t.Ratio, ">=", 0.95),
	}, map[string]any{"rows": rows, "throughput": t}, nil
}
