package endpoints

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/topologies/lab"
)

const (
	commandName  = "traffic"
	endpointName = "endpoint"
)

// Command is "heliotrope lab traffic" with its hidden part, which is an endpoint.
func Command() *cobra.Command {
	var p Pattern
	var kind, rate, output string
	var vms []string
	cmd := &cobra.Command{
		Use: commandName, Short: "Have light VMs talk to each other in a pattern",
		Long: `Have the VMs of a light lab talk to each other in a pattern, over TCP and UDP with real
payload, and print what each sent to each other.`,
		Example: "  heliotrope lab traffic --pattern ring --size 8 --rate 2Mbit --for 10s\n  heliotrope lab traffic --pattern star --skew 0.5 --noise 0.1 --udp 0.3 -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p.Kind = pattern.Kind(kind)
			if err := p.Rate.UnmarshalText([]byte(rate)); err != nil {
				return err
			}
			// The flags of the command lab, which this one is below.
			var t lab.Target
			t.Name, _ = cmd.Flags().GetString("lab")
			t.Dir, _ = cmd.Flags().GetString("dir")
			if err := t.Choose(cmd.Context()); err != nil {
				return err
			}
			return drive(cmd, t, vms, p, output)
		},
	}
	f := cmd.Flags()
	f.StringVar(&kind, "pattern", string(pattern.Ring), "which pattern")
	f.IntVar(&p.Size, "size", 0, "about how many VMs talk in it (default: all)")
	f.StringVar(&rate, "rate", "1Mbit", "mean rate of one direction between two VMs")
	f.Float64Var(&p.Skew, "skew", 0, "how unequal the rates are: σ of their logarithms")
	f.Float64Var(&p.Noise, "noise", 0, "background between random pairs, as a share of the pattern's bytes")
	f.Float64Var(&p.UDP, "udp", 0, "share of the conversations that are over UDP")
	f.DurationVar(&p.For, "for", 10*time.Second, "how long")
	f.Uint64Var(&p.Seed, "seed", 1, "of what is drawn at random")
	f.StringSliceVar(&vms, "vms", nil, "which VMs (default: all)")
	f.StringVarP(&output, "output", "o", "table", "table or json")
	cmd.AddCommand(&cobra.Command{
		Use: endpointName, Hidden: true, Args: cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return runEndpoint(cmd.Context(), os.Stdin, os.Stdout) },
	})
	return cmd
}

// drive starts a fleet for one plan and prints the truth.
func drive(cmd *cobra.Command, t lab.Target, names []string, p Pattern, output string) (err error) {
	var vms []heliotrope.VMID
	for _, name := range names {
		vms = append(vms, heliotrope.VMID(name))
	}
	places, err := Places(cmd.Context(), t, vms)
	if err != nil {
		return err
	}
	for _, at := range places {
		p.VMs = append(p.VMs, at.VM)
	}
	plan, members, err := p.Plan()
	if err != nil {
		return err
	}
	fleet, err := StartAt(cmd.Context(), places)
	if err != nil {
		return err
	}
	truth, err := fleet.Drive(cmd.Context(), plan)
	fleet.Close() // its endpoints end with this process anyway
	if err != nil {
		return err
	}
	switch output {
	case "table":
		return truth.writeTable(cmd.OutOrStdout())
	case "json":
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		return enc.Encode(struct {
			Pattern pattern.Kind      `json:"pattern"`
			Members []heliotrope.VMID `json:"members"`
			Truth
		}{p.Kind, members, truth})
	}
	return fmt.Errorf("output %q: want table or json", output)
}

func (t Truth) writeTable(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FROM\tTO\tPACKETS\tBYTES\tMBIT/S")
	for _, c := range t.Sent.Cells {
		fmt.Fprintf(w, "%s\t%s\t%.0f\t%.0f\t%.3f\n", c.Src, c.Dst, c.Packets, c.Bytes, c.Bytes*8e-6/t.To.Sub(t.From).Seconds())
	}
	return w.Flush()
}
