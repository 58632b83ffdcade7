package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"heliotrope/controller/api"
	"heliotrope/scheduler"
)

func (a *app) plan() *cobra.Command {
	var q api.PlanQuery
	cmd := &cobra.Command{
		Use: "plan", Short: "Where VMs ought to be, and why; moves nothing", Args: args(),
		Long: `Say which VMs ought to move where, in which order, what that gains in USD an hour, and
how far from the best that is at most. It rests on the topology's prices and distances and on
the traffic that was counted. Nothing is moved.`,
		Example: `  heliotrope plan                          money and distance, by the last ten minutes
  heliotrope plan --policy cheapest --window 24h
  heliotrope plan --max-moves 3 -o json`,
	}
	f := cmd.Flags()
	f.StringVar(&q.Policy, "policy", api.DefaultPolicy, "what matters: "+strings.Join(scheduler.Presets(), ", "))
	f.DurationVar(&q.Window, "window", api.DefaultPlanWindow, "length of the time whose traffic counts, 1s to 24h")
	f.IntVar(&q.MaxMoves, "max-moves", 0, "no more moves than that (default: any number)")
	f.Uint64Var(&q.Seed, "seed", 0, "of the search: the same seed gives the same plan")
	complete(cmd, "policy", scheduler.Presets()...)
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *printer, _ []string) error {
		if _, err := scheduler.Preset(q.Policy); err != nil {
			return usagef("--policy %s: use %s", q.Policy, strings.Join(scheduler.Presets(), ", "))
		}
		if q.Window < api.MinWindow || q.Window > api.MaxWindow {
			return usagef("--window %v: use 1s to 24h", q.Window)
		}
		p, err := c.Plan(ctx, q)
		if err != nil {
			return err
		}
		return out.show(p, func(t *table) { t.line("%s", strings.TrimSuffix(p.String(), "\n")) })
	})
	return cmd
}
