// Package schedbench measures the scheduler.
//
// Each part is a question with an answer that does not come from the scheduler:
//
//	exact   hundreds of small instances: how far is it from the optimum that CBC proves?
//	medium  200 VMs at 8 sites: how far from the bound and the solution that CBC has?
//	large   1,000 and 10,000 VMs: how long, how much cheaper than METIS and the best mapping
//	        of its parts to sites, and how far above the bound that it certifies?
//	replan  1 % of what is known changed: how long, and how many moves?
//	fuzz    plans of small worlds with every kind of constraint: is any broken at any step?
//
// Prices and distances are real ones where --data has them, else invented; applications and
// their traffic are always generated.
package schedbench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"heliotrope/topologies/lab/claim"
)

// Bench is the benchmark.
type Bench struct {
	Only      []string // parts to run; none: all
	Data      string   // directory of real prices and distances
	Seed      uint64
	Instances int // of exact
	Plans     int // of fuzz
	Out       io.Writer

	world *world
	began time.Time
}

// part is one question. It prints a table of its own and returns figures for the JSON line.
type part struct {
	name string
	run  func(context.Context, *Bench) ([]claim.Claim, any, error)
}

var parts = []part{
	{"exact", exact},
	{"medium", medium},
	{"large", large},
	{"replan", replan},
	{"fuzz", fuzz},
}

// Command is "heliotrope lab bench-sched".
func Command() *cobra.Command {
	b := &Bench{}
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	cmd := &cobra.Command{
		Use: "bench-sched", Short: "Hold the scheduler's plans against proven optima and METIS", Args: cobra.NoArgs,
		Long: `Hold the scheduler's plans against optima that CBC proves, against METIS, and against its own
bound. It exits with 0 when it has measured; the last line, a JSON object, says whether what
is claimed held.`,
		Example: "  heliotrope lab bench-sched\n  heliotrope lab bench-sched --only exact,large --data DIR",
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.Out = cmd.OutOrStdout()
			cmd.SilenceUsage = true
			for _, name := range b.Only {
				if !slices.Contains(names, name) {
					return fmt.Errorf("there is no part %q: there are %s", name, strings.Join(names, ", "))
				}
			}
			return b.Run(cmd.Context())
		},
	}
	cmd.Flags().StringSliceVar(&b.Only, "only", nil, "parts to run: "+strings.Join(names, ", "))
	cmd.Flags().StringVar(&b.Data, "data", "", "directory of "+strings.Join([]string{rttFile, egressFile, priceFile}, ", "))
	cmd.Flags().IntVar(&b.Instances, "instances", 210, "instances of exact")
	cmd.Flags().IntVar(&b.Plans, "plans", 1_000_000, "plans of fuzz")
	cmd.Flags().Uint64Var(&b.Seed, "seed", 1, "of what is generated")
	return cmd
}

// Run measures part after part. One that cannot be measured fails its claim and the others
// go on.
func (b *Bench) Run(ctx context.Context) error {
	b.began = time.Now()
	runtime.GOMAXPROCS(1) // what is claimed is claimed of one core
	var err error
	if b.world, err = worldOf(b.Data); err != nil {
		return err
	}
	if b.world.real {
		b.say("real distances and prices: %d regions", len(b.world.regions))
	} else {
		b.say("no real distances and prices (--data): %d invented regions", len(b.world.regions))
	}
	figures := map[string]any{}
	var claims []claim.Claim
	for _, p := range parts {
		if len(b.Only) > 0 && !slices.Contains(b.Only, p.name) {
			continue
		}
		b.say("%s", p.name)
		began := time.Now()
		made, figure, err := p.run(ctx, b)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		claims, figures[p.name] = append(claims, made...), figure
		if err != nil {
			b.say("%s: %v", p.name, err)
			claims = append(claims, claim.New(p.name+" could be measured", 0, "==", 1))
		}
		b.say("%s took %.0f s", p.name, time.Since(began).Seconds())
	}
	for _, c := range claims {
		if !c.Holds {
			b.say("MISSED: %s: %.4g, must be %s %g", c.Name, c.Value, c.Op, c.Bound)
		}
	}
	line, err := json.Marshal(struct {
		Bench   string         `json:"bench"`
		Seconds float64        `json:"seconds"`
		CPUs    int            `json:"cpus"`
		Real    bool           `json:"real_data"`
		Claims  []claim.Claim  `json:"claims"`
		Figures map[string]any `json:"figures"`
	}{"scheduler", time.Since(b.began).Seconds(), runtime.NumCPU(), b.world.real, claims, figures})
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	fmt.Fprintln(b.Out, string(line))
	return nil
}

func (b *Bench) say(format string, args ...any) {
	fmt.Fprintf(b.Out, "%6.1fs  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}
