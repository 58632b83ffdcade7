// Command heliotrope-agent is the agent of one host: see package hostagent.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"heliotrope/hostagent"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/viper"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "heliotrope-agent:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	c, v := hostagent.Default(), viper.New()
	c.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	c.Flags(flags)
	root := &cobra.Command{
		Use: "heliotrope-agent", Short: "Run this host's VMs for a Heliotrope controller", SilenceErrors: true, SilenceUsage: true,
		Long:              "Run this host's VMs for a Heliotrope controller.\n\nEach flag may also be a line of the configuration file, or HELIOTROPE_<FLAG> in the environment.",
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return settle(v, cmd.Flags()) },
	}
	root.PersistentFlags().AddGoFlagSet(flags)
	root.PersistentFlags().String("config", "/etc/heliotrope/agent.yaml", "configuration file")
	join := &cobra.Command{
		Use: "join --controller HOST:PORT --token TOKEN", Short: "Make this machine the host that the token was made for", Args: cobra.NoArgs,
		Example: "  heliotrope-agent join --controller 192.0.2.1:7443 --token HT10…",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return hostagent.Join(cmd.Context(), c, v.GetString("token"))
		},
	}
	join.Flags().String("token", "", "what the controller printed when it made the token")
	root.AddCommand(join,
		&cobra.Command{Use: "run", Short: "Run the agent", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return hostagent.Run(cmd.Context(), c) }},
		&cobra.Command{Use: "bench", Short: "Measure how fast this host is, and print it as JSON", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return hostagent.Measure(cmd.Context(), c, cmd.OutOrStdout())
			}},
		&cobra.Command{Use: "version", Short: "Print the agent's version", Args: cobra.NoArgs,
			Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), hostagent.Version) }})
	return root
}
