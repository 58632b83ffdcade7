package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
	"heliotrope/controller/cli/traffictext"
)

func (a *app) trafficWatch() *cobra.Command {
	var f trafficFlags
	var interval time.Duration
	var count int
	cmd := &cobra.Command{
		Use: "watch", Short: "The traffic of the last seconds, again and again, until Ctrl-C", Args: args(),
		Long: `The traffic of the last seconds, again and again, until Ctrl-C. A terminal shows it in
place; a pipe gets a line each time, or with -o json an object a line.`,
		Example: `  heliotrope traffic watch
  heliotrope traffic watch --window 5s --vm web
  heliotrope traffic watch --count 60 -o json > minute.jsonl`,
	}
	f.addTo(cmd, a, 10*time.Second, false)
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "time from one look to the next")
	cmd.Flags().IntVar(&count, "count", 0, "how many looks (default: until Ctrl-C)")
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
		q, err := f.query()
		if err != nil {
			return err
		}
		if interval <= 0 || count < 0 {
			return usagef("--interval and --count are positive")
		}
		return watchTraffic(ctx, c, out, q, interval, count)
	})
	return cmd
}

// watchTraffic goes on while the controller is away, unless that is so from the start.
func watchTraffic(ctx context.Context, c *api.Client, out *output.Printer, q api.TrafficQuery, interval time.Duration, count int) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	w := traffictext.Screen{Out: out}
	for look := 1; ; look++ {
		r, err := c.TrafficReport(ctx, q)
		if ctx.Err() != nil { // ^C is how one stops
			return nil
		}
		var p *api.Problem
		wrong := errors.As(err, &p) && p.Status < 500 && p.Status != 429
		switch {
		case err != nil && (look == 1 || wrong):
			return err
		case err != nil:
			fmt.Fprintln(out.Err, "heliotrope:", err)
		default:
			if err := w.Show(r); err != nil {
				return err
			}
		}
		if look == count {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
