// Package schedbench measures the scheduler.
//
// Each part is a question with an answer that does not come from the scheduler:
//
//	exact     hundreds of small instances: how far is it from the optimum that CBC proves?
//	medium    200 VMs at 8 sites: how far from the bound and the solution that CBC has?
//	large     1,000 and 10,000 VMs: how long, how much cheaper than METIS and the best mapping
//	          of its parts to sites, and how far above the bound that it certifies?
//	replan    1 % of what is known changed: how long, and how many moves?
//	inferred  traffic that was sampled, not known: how much more do its placements cost?
//	forecast  a request series: how far off, next to naive forecasts, and are intervals right?
//	sun       clients around the earth: how near, next to the best place and to who knows the
//	          future, and what do wrong forecasts cost?
//	spot      three years of prices: what is paid, next to each region, the best of them, and to
//	          who knows the future; is anything interrupted?
//	roadef    the ROADEF/EURO challenge 2012, machine reassignment: how far above the best known costs?
//	fuzz      plans of small worlds with every kind of constraint: is any broken at any step?
//
// Prices, distances and the request series are real ones where --data has them, else
// invented; the challenge's instances are its own, or nothing is said of them; applications and
// their traffic are always generated.
package schedbench

import (
	"context"
	"fmt"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"heliotrope/topologies/lab/claim"
)

// Bench is the benchmark.
type Bench struct {
	claim.Bench
	Data      string // directory of real prices and distances
	Seed      uint64
	Instances int    // proven ones of exact
	Plans     int    // of fuzz
	Seconds   int    // of the processor, for each instance of roadef
	Picture   string // file for what spot prices came to; none: it is not drawn

	world *world
}

// parts are the questions, in the order in which they are asked.
var parts = []struct {
	name string
	run  func(context.Context, *Bench) ([]claim.Claim, any, error)
}{
	{"exact", exact},
	{"medium", medium},
	{"large", large},
	{"replan", replan},
	{"inferred", inferred},
	{"forecast", forecasts},
	{"sun", sun},
	{"spot", spot},
	{"roadef", roadef},
	{"fuzz", fuzz},
}

// Command is "heliotrope lab bench-sched".
func Command() *cobra.Command {
	b := &Bench{Bench: claim.Bench{Name: "scheduler"}}
	for _, p := range parts {
		b.Parts = append(b.Parts, claim.Part{Name: p.name, Run: func(ctx context.Context) ([]claim.Claim, any, error) { return p.run(ctx, b) }})
	}
	cmd := &cobra.Command{
		Use: "bench-sched", Short: "Hold the scheduler's plans against proven optima, METIS and the future", Args: cobra.NoArgs,
		Long: `Hold the scheduler's plans against optima that CBC proves, against METIS, against its own
bound, and over time against who knew the future. It exits with 0 when it has measured; the last line, a JSON object, says whether what
is claimed held.`,
		Example: "  heliotrope lab bench-sched\n  heliotrope lab bench-sched --only exact,large --data DIR",
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.Out = cmd.OutOrStdout()
			cmd.SilenceUsage = true
			return b.Run(cmd.Context())
		},
	}
	cmd.Flags().StringSliceVar(&b.Only, "only", nil, "parts to run: "+b.Names())
	cmd.Flags().StringVar(&b.Data, "data", "", "directory of "+strings.Join([]string{rttFile, egressFile, priceFile, requestFile, roadefDir}, ", "))
	cmd.Flags().IntVar(&b.Instances, "instances", 200, "proven optima of exact")
	cmd.Flags().IntVar(&b.Plans, "plans", 1_000_000, "plans of fuzz")
	cmd.Flags().IntVar(&b.Seconds, "seconds", 300, "CPU seconds for each instance of roadef")
	cmd.Flags().StringVar(&b.Picture, "picture", "", "SVG file for what was paid at spot prices")
	cmd.Flags().Uint64Var(&b.Seed, "seed", 1, "of what is generated")
	return cmd
}

// Run measures on one core, with the world that there is data of.
func (b *Bench) Run(ctx context.Context) (err error) {
	runtime.GOMAXPROCS(1) // what is claimed is claimed of one core
	if b.world, err = worldOf(b.Data); err != nil {
		return err
	}
	if b.world.real {
		fmt.Fprintf(b.Out, "real distances and prices: %d regions\n", len(b.world.regions))
	} else {
		fmt.Fprintf(b.Out, "no real distances and prices (--data): %d invented regions\n", len(b.world.regions))
	}
	return b.Bench.Run(ctx, map[string]any{"real_data": b.world.real})
}
