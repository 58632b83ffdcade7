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
	"encoding/json"
	"errors"
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
	Only     []string // parts to run; none: all
	Matrices int      // of grouping
	Seed     uint64
	Out      io.Writer

	began time.Time
}

// part is one question. It prints a table of its own and returns figures for the JSON line.
type part struct {
	name string
	run  func(context.Context, *Bench) ([]claim.Claim, any, error)
}

var parts = []part{
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
	b := &Bench{}
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	cmd := &cobra.Command{
		Use: "bench-traffic", Short: "Hold what is said of traffic against what is true", Args: cobra.NoArgs,
		Long: `Hold what the controller says of traffic against what is true. It exits with 0 when it has
measured; the last line, a JSON object, says whether what is claimed held.`,
		Example: "  heliotrope lab bench-traffic\n  heliotrope lab bench-traffic --only truth,foreign",
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
	cmd.AddCommand(floodCommand())
	cmd.Flags().StringSliceVar(&b.Only, "only", nil, "parts to run: "+strings.Join(names, ", "))
	cmd.Flags().IntVar(&b.Matrices, "matrices", 12000, "matrices to generate for grouping")
	cmd.Flags().Uint64Var(&b.Seed, "seed", 1, "of what is generated")
	return cmd
}

// Run measures part after part. One that cannot be measured fails its claim and the others
// go on.
func (b *Bench) Run(ctx context.Context) error {
	b.began = time.Now()
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
		Claims  []claim.Claim  `json:"claims"`
		Figures map[string]any `json:"figures"`
	}{"traffic", time.Since(b.began).Seconds(), runtime.NumCPU(), claims, figures})
	if err != nil {
		return errors.Join(fmt.Errorf("encode result: %w", err))
	}
	fmt.Fprintln(b.Out, string(line))
	return nil
}

func (b *Bench) say(format string, args ...any) {
	fmt.Fprintf(b.Out, "%6.1fs  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}
