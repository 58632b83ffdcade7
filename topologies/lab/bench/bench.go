// Package bench measures what a fabric of many hosts costs and how quickly it follows.
//
// Each size is a lab of one site without libvirt: as many namespaces as hosts, each with
// its own Open vSwitch and agent, and one controller, all real. The VMs are only in the
// topology: their owners make every host's flows, and nothing of them runs. So a move is
// what changes flow tables and no more: the mover (mover.go), in the controller's process,
// commits a new owner to the same store by the same transaction as a migration does, and
// the controller's own record says when every switch has acknowledged the flows that
// follow. At the end flow tables are read back and compared with what is wanted.
//
// All of it shares one machine. With many hosts the daemons of the hosts, not the
// controller, use most of it: the figures say how much.
package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"heliotrope/topologies/lab/claim"
)

// Fabric is the benchmark.
type Fabric struct {
	Name    string // of the labs, each with its size behind
	Sizes   []int  // numbers of hosts
	Moves   int    // changes of an owner at each size
	Rounds  int    // of the comparison with ovs-ofctl
	Profile string // directory for profiles of the controller; empty: none
	Out     io.Writer

	began time.Time
}

const commandName = "bench-fabric"

// Command is "heliotrope lab bench-fabric".
func Command() *cobra.Command {
	f := &Fabric{}
	cmd := &cobra.Command{
		Use: commandName, Short: "Measure fabrics of 3 to 100 hosts", Args: cobra.NoArgs,
		Long: `Measure, for each number of hosts: how long the full mesh takes, how long one VM's new
place takes to be in all flow tables, and what the controller uses. It exits with 0 when
it has measured; the last line, a JSON object, says whether what is claimed held.`,
		Example: "  heliotrope lab bench-fabric\n  heliotrope lab bench-fabric --hosts 3,10 --profile /tmp",
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.Out = cmd.OutOrStdout()
			cmd.SilenceUsage = true
			return f.Run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&f.Name, "name", "bench", "name of the labs")
	cmd.Flags().IntSliceVar(&f.Sizes, "hosts", []int{3, 10, 30, 60, 100}, "numbers of hosts")
	cmd.Flags().IntVar(&f.Moves, "moves", 120, "changes of an owner at each size")
	cmd.Flags().IntVar(&f.Rounds, "rounds", 7, "of the comparison with ovs-ofctl; 0: leave it out")
	cmd.Flags().StringVar(&f.Profile, "profile", "", "directory for profiles of the controller while owners change")
	var bfd time.Duration
	controller := &cobra.Command{
		Use: "controller", Hidden: true, Args: cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return runController(cmd.Context(), bfd) },
	}
	controller.Flags().DurationVar(&bfd, "bfd", 0, "interval")
	cmd.AddCommand(controller)
	return cmd
}

// Run measures, and prints a table and a line of JSON.
func (f *Fabric) Run(ctx context.Context) error {
	f.began = time.Now()
	var rate Rate
	if f.Rounds > 0 {
		var err error
		if rate, err = f.rate(ctx); err != nil {
			rate.Error = err.Error()
			f.say("flows/s: %v", err)
		}
	}
	var sizes []Size
	for _, n := range f.Sizes {
		sizes = append(sizes, f.measure(ctx, n))
		if ctx.Err() != nil {
			break // what was measured by then is shown
		}
	}
	return errors.Join(f.conclude(rate, sizes), context.Cause(ctx))
}

func (f *Fabric) say(format string, args ...any) {
	fmt.Fprintf(f.Out, "%6.1fs  %s\n", time.Since(f.began).Seconds(), fmt.Sprintf(format, args...))
}

func (f *Fabric) conclude(rate Rate, sizes []Size) error {
	writeTable(f.Out, rate, sizes)
	line, err := json.Marshal(struct {
		Bench   string        `json:"bench"`
		Seconds float64       `json:"seconds"`
		CPUs    int           `json:"cpus"`
		Claims  []claim.Claim `json:"claims"`
		Rate    Rate          `json:"flow_rate"`
		Sizes   []Size        `json:"sizes"`
	}{"fabric", time.Since(f.began).Seconds(), runtime.NumCPU(), claims(rate, sizes), rate, sizes})
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	fmt.Fprintln(f.Out, string(line))
	return nil
}

func writeTable(out io.Writer, rate Rate, sizes []Size) {
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "hosts\ttunnels\tmesh s\tBFD up\tBFD s\tevery ms\tflows/host\tfilled s\tmove p50 ms\tp99 ms\tCPU ms/move\tRSS MiB\tpeak MiB\tidle cores\thosts' idle cores\tMiB/host\t")
	for _, s := range sizes {
		fmt.Fprintf(w, "%d\t%d\t%.1f\t%d\t%.1f\t%.0f\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.0f\t%.0f\t%.2f\t%.2f\t%.0f\t\n", s.Hosts, s.Tunnels, s.Mesh, s.BFDUp, s.BFD, s.BFDms, s.Flows,
			s.Filled, s.MoveP50, s.MoveP99, s.MoveCPU, s.RSSIdle, s.RSSPeak, s.CPUIdle, s.HostIdle, s.HostMemory)
	}
	w.Flush()
	fmt.Fprintf(out, "\none switch, %d flows: %.0f flows/s by us, %.0f by ovs-ofctl --bundle: %.2f times\n\n", rate.Flows, rate.Ours, rate.Ofctl, rate.Ratio)
}

// Bounds of the claims. Those of times are for a machine whose cores are shared by the
// controller and all the hosts.
const (
	ratioBound = 0.8
	moveBound  = 200 // ms, p99
	rssBound   = 512 // MiB
	hostsBound = 30
)

func claims(rate Rate, sizes []Size) []claim.Claim {
	var all []claim.Claim
	if rate.Rounds > 0 || rate.Error != "" {
		all = append(all, claim.New("flows/s of one switch, ours over ovs-ofctl's", rate.Ratio, ">=", ratioBound))
	}
	largest := 0
	for _, s := range sizes {
		if s.Mesh == 0 || s.BFD == 0 || s.Error != "" {
			continue // more than the machine bears: its row says so
		}
		largest = max(largest, s.Hosts)
		named := func(what string) string { return fmt.Sprintf("%s, %d hosts", what, s.Hosts) }
		all = append(all,
			claim.New(named("changes of an owner measured"), float64(s.Moves), ">=", 100),
			claim.New(named("move in all flow tables, p99 ms"), s.MoveP99, "<=", moveBound),
			claim.New(named("flows that are not as wanted"), float64(s.Wrong), "==", 0),
			claim.New(named("controller's RSS at most, MiB"), s.RSSPeak, "<=", rssBound))
	}
	all = append(all, claim.New("hosts of the largest mesh that stood, BFD up on every tunnel", float64(largest), ">=", hostsBound))
	return all
}
