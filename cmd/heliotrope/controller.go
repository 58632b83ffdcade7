package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/viper"

	"heliotrope/controller"
	"heliotrope/internal/feed"
)

// controllerCommand is "heliotrope controller run". Each flag is also HELIOTROPE_FLAG.
func controllerCommand() *cobra.Command {
	v := viper.New()
	v.SetEnvPrefix("heliotrope")
	v.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	v.AutomaticEnv()
	run := &cobra.Command{
		Use: "run", Short: "Run the controller in the foreground", Args: cobra.NoArgs,
		Example: "  heliotrope controller run --agent-listen :7443 --state-dir /var/lib/heliotrope/controller",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := controller.Config{Dir: v.GetString("state-dir"), RunDir: v.GetString("run-dir"),
				AgentListen: v.GetString("agent-listen"), APIListen: v.GetString("api-listen"),
				Etcd: v.GetStringSlice("etcd-endpoints"), CertAddress: v.GetStringSlice("cert-address"), History: v.GetString("traffic-history"),
				Retention: v.GetDuration("traffic-retention"), IPFIX: v.GetString("ipfix"), Prices: v.GetString("prices"), ImageStore: v.GetString("image-store"), ImageSite: v.GetString("image-store-site"), ImageScrub: v.GetDuration("image-scrub"), BFD: v.GetDuration("bfd-interval"), Version: version,
				Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
			if s := v.GetString("bgp-listen"); s != "" {
				var err error
				if cfg.BGPListen, err = netip.ParseAddrPort(s); err != nil {
					return fmt.Errorf("parse --bgp-listen: %w", err)
				}
			}
			return controller.Run(cmd.Context(), cfg)
		},
	}
	f := run.Flags()
	f.String("state-dir", "/var/lib/heliotrope/controller", "what the controller must not lose")
	f.String("run-dir", "/run/heliotrope", "where api.sock is made")
	f.String("agent-listen", ":7443", "address for the hosts' agents")
	f.String("api-listen", "127.0.0.1:7080", "address of the REST API (TLS, bearer token)")
	f.String("bgp-listen", "", "address for routers that dial (default: the controller dials)")
	f.StringSlice("etcd-endpoints", nil, "an etcd cluster to use instead of the built-in store")
	f.Duration("bfd-interval", 300*time.Millisecond, "between two BFD packets of a tunnel; a tunnel is down after three")
	f.String("traffic-history", "", "directory or bucket URL for Parquet files of who talks to whom; off: none (default STATE-DIR/traffic)")
	f.Duration("traffic-retention", 24*time.Hour, "how long traffic's history is kept")
	f.String("prices", "", "what sites cost, read every minute: "+feed.Kinds+" (default: as the topology says)")
	f.String("image-store", "", "store of VM images that the REST API shows and uploads go to: a directory or a bucket's URL (default: none)")
	f.String("image-store-site", "", "site that the image store is at, for what bringing an image to a site takes and costs (default: the controller's)")
	f.Duration("image-scrub", 7*24*time.Hour, "time in which all of the image store is read once, for bits that have turned; 0: only by \"heliotrope image scrub --now\"")
	f.String("ipfix", "", "host:port of an IPFIX collector that is told of traffic, by UDP (default: none)")
	f.StringSlice("cert-address", nil, "further names and addresses by which the controller is reached")
	if err := v.BindPFlags(f); err != nil {
		panic(err) // a flag without a name: a mistake in this file
	}
	cmd := &cobra.Command{Use: "controller", Short: "Run a controller", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(run)
	return cmd
}
