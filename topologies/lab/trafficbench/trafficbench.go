// Package trafficbench measures what is said of traffic against what is true.
//
// Each part is a question with a known answer:
//
//	truth     light VMs of a lab drive every pattern; the matrix that the controller
//	          answers with is held against the counters of the endpoints themselves, and
//	          what it tells when they turn to another against when they did
//	grouping  thousands of generated matrices of all kinds and sizes, with noise, sampling
//	          and missing hosts; groups and patterns are held against how they were made
//	changes   generated applications that change their pattern, followed over windows
//	scale     10,000 VMs with 20 peers each: ingest, inference, report, memory
//	cost      what counting costs at 10, 100 and 1,000 thousand packets a second, and what
//	          it takes of the VMs' own throughput
//	switch    the same of counting by the switch's flows
//	foreign   the totals of softflowd and nfdump on the same capture
//	apps      real applications, whose tiers the report has to name
//
// All of it runs on one machine, whose cores the measured and the measuring share.
package trafficbench

import (
	"context"

	"github.com/spf13/cobra"

	"heliotrope/topologies/lab/claim"
)

// Bench is the benchmark.
type Bench struct {
	claim.Bench
	Matrices int // of grouping
	Seed     uint64
}

// parts are the questions, in the order in which they are asked.
var parts = []struct {
	name string
	run  func(context.Context, *Bench) ([]claim.Claim, any, error)
}{
	{"grouping", grouping},
	{"changes", changes},
	{"scale", scale},
	{"cost", cost},
	{"switch", switchCost},
	{"foreign", foreign},
	{"truth", truth},
	{"apps", apps},
}

// Command is "heliotrope lab bench-traffic".
func Command() *cobra.Command {
	b := &Bench{Bench: claim.Bench{Name: "traffic"}}
	for _, p := range parts {
		b.Parts = append(b.Parts, claim.Part{Name: p.name, Run: func(ctx context.Context) ([]claim.Claim, any, error) { return p.run(ctx, b) }})
	}
	cmd := &cobra.Command{
		Use: "bench-traffic", Short: "Hold what is said of traffic against what is true", Args: cobra.NoArgs,
		Long: `Hold what the controller says of traffic against what is true. It exits with 0 when it has
measured; the last line, a JSON object, says whether what is claimed held.`,
		Example: "  heliotrope lab bench-traffic\n  heliotrope lab bench-traffic --only truth,foreign",
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.Out = cmd.OutOrStdout()
			cmd.SilenceUsage = true
			return b.Run(cmd.Context(), nil)
		},
	}
	cmd.AddCommand(floodCommand())
	cmd.Flags().StringSliceVar(&b.Only, "only", nil, "parts to run: "+b.Names())
	cmd.Flags().IntVar(&b.Matrices, "matrices", 12000, "matrices to generate for grouping")
	cmd.Flags().Uint64Var(&b.Seed, "seed", 1, "of what is generated")
	return cmd
}
