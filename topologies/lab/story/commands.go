package story

import (
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/topologies/lab/probe"
)

// Commands are what "heliotrope lab" can tell: the demo, and the probe that it uses.
func Commands() []*cobra.Command {
	return []*cobra.Command{demoCommand(), probeCommand(), echoCommand()}
}

func demoCommand() *cobra.Command {
	d := &Demo{Route: []heliotrope.HostID{"eu-1", "asia-1", "eu-1", "us-1"}, VM: "web"}
	cmd := &cobra.Command{
		Use: "demo", Short: "Move a VM around the world while a client talks to it", Args: cobra.NoArgs,
		Example: "  heliotrope lab demo\n  heliotrope lab demo --keep   # and look around: heliotrope vm list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.Out = cmd.OutOrStdout()
			cmd.SilenceUsage = true
			if lab := cmd.Flag("lab"); lab != nil && lab.Changed {
				d.Name = lab.Value.String()
			}
			return d.Run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&d.Name, "name", "demo", "name of the lab")
	cmd.Flags().BoolVar(&d.Keep, "keep", false, "leave the lab running")
	cmd.Flags().IntVar(&d.Rate, "rate", 100, "probes a second")
	return cmd
}

func echoCommand() *cobra.Command {
	return &cobra.Command{
		Use: "echo ADDRESS:PORT", Short: "Serve a TCP echo", Args: cobra.ExactArgs(1), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error { return probe.Echo(cmd.Context(), args[0]) },
	}
}

func probeCommand() *cobra.Command {
	var target, socket string
	var rate int
	cmd := &cobra.Command{
		Use: "probe", Short: "Probe a guest from here", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			addr, err := netip.ParseAddr(target)
			if err != nil {
				return fmt.Errorf("parse --target: %w", err)
			}
			_, err = probe.Run(cmd.Context(), probe.Config{Target: netip.AddrPortFrom(addr, 0), Rate: rate, Socket: socket})
			return err
		},
	}
	cmd.Flags().StringVar(&target, "target", "", "address of the guest")
	cmd.Flags().StringVar(&socket, "socket", "", "control socket")
	cmd.Flags().IntVar(&rate, "rate", 100, "probes a second")
	return cmd
}
