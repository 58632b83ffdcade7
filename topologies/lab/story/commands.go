package story

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/topologies/lab/probe"
)

// Commands are what "heliotrope lab" can tell: the demo, a day around the earth, and the probe
// that both use.
func Commands() []*cobra.Command {
	return []*cobra.Command{demoCommand(), sunCommand(), probeCommand(), askCommand(), echoCommand()}
}

func demoCommand() *cobra.Command {
	d := &Demo{stage: stage{VM: "web", store: true}, Route: []heliotrope.HostID{"eu-1", "asia-1", "eu-1", "us-1"}}
	cmd := &cobra.Command{
		Use: "demo", Short: "Move a VM around the world while a client talks to it", Args: cobra.NoArgs,
		Example: "  heliotrope lab demo\n  heliotrope lab demo --keep   # and look around: heliotrope vm list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.open(cmd)
			return d.Run(cmd.Context())
		},
	}
	d.flags(cmd, "demo")
	cmd.Flags().IntVar(&d.Rate, "rate", 100, "probes a second")
	return cmd
}

// flags are those of every story.
func (s *stage) flags(cmd *cobra.Command, name string) {
	cmd.Flags().StringVar(&s.Name, "name", name, "name of the lab")
	cmd.Flags().BoolVar(&s.Keep, "keep", false, "leave the lab running")
}

// open takes in what the command line says.
func (s *stage) open(cmd *cobra.Command) {
	s.Out = cmd.OutOrStdout()
	cmd.SilenceUsage = true
	if lab := cmd.Flag("lab"); lab != nil && lab.Changed {
		s.Name = lab.Value.String()
	}
}

func sunCommand() *cobra.Command {
	s := &Sun{stage: stage{VM: "web"}}
	cmd := &cobra.Command{
		Use: "sun", Short: "Have a VM follow its clients around the earth, a day in minutes", Args: cobra.NoArgs,
		Long: `Bring three offices on three continents up, let a day of their people's requests pass in
minutes, and have the autopilot move the VM that they use after them.`,
		Example: "  heliotrope lab sun\n  heliotrope lab sun --still virginia-1   # the VM stays there, to compare",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s.open(cmd)
			return s.Run(cmd.Context())
		},
	}
	s.flags(cmd, "sun")
	cmd.Flags().DurationVar(&s.Day, "day", 8*time.Minute, "how long 24 hours last")
	cmd.Flags().IntVar(&s.Peak, "peak", 30, "requests a second of an office at its busiest")
	cmd.Flags().StringVar((*string)(&s.Still), "still", "", "host at which the VM stays, without an autopilot")
	return cmd
}

func echoCommand() *cobra.Command {
	return &cobra.Command{
		Use: "echo ADDRESS:PORT", Short: "Serve a TCP echo", Args: cobra.ExactArgs(1), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error { return probe.Echo(cmd.Context(), args[0]) },
	}
}

func askCommand() *cobra.Command {
	var server string
	cmd := &cobra.Command{
		Use: "ask", Short: "Write to an etcd replica, as often as standard input says", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(cmd.Context(), server, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&server, "server", "", "URL of the replica")
	return cmd
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
