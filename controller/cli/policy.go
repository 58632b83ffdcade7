package cli

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
)

func (a *app) policy() *cobra.Command {
	names := a.names(func(ctx context.Context, c *api.Client) (names []string, err error) {
		all, err := c.Policies(ctx)
		for _, p := range all {
			names = append(names, string(p.Name))
		}
		return names, err
	})
	list := &cobra.Command{
		Use: "list", Short: "List what plans can be made by: the scheduler's policies, and the topology's", Args: args(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			all, err := c.Policies(ctx)
			if err != nil {
				return err
			}
			return out.Show(all, func(t *output.Table) {
				t.Head("POLICY", "BASE", "CLIENTS USD/GB MS", "VMS USD/GB MS", "USD/T CO2", "MOVE PAYS IN H", "LEAST GAIN USD/H", "POOLS")
				for _, p := range all {
					t.Row(p.Name, cmp.Or(string(p.Base), "-"), p.Weights["client_usd_per_gb_ms"], p.Weights["east_west_usd_per_gb_ms"], p.Weights["usd_per_tonne_co2"],
						p.Weights["amortisation_hours"], p.Weights["min_gain_usd_per_hour"], output.Join(p.Pools))
				}
			})
		}),
	}
	show := &cobra.Command{
		Use: "show POLICY", Short: "Show a policy with all its weights", Args: args("POLICY"), ValidArgsFunction: names,
		Long: `Show a policy with all its weights. To have other ones, give the topology a policy of its own:

  policies:
    green: {base: balanced, weights: {usd_per_tonne_co2: 90}}
  pools:
    shop: {policy: green}`,
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			p, err := c.Policy(ctx, heliotrope.PolicyID(args[0]))
			if err != nil {
				return err
			}
			return out.Show(p, func(t *output.Table) {
				t.Row("policy", p.Name)
				t.Row("base", cmp.Or(string(p.Base), "-"))
				for _, w := range slices.Sorted(maps.Keys(p.Weights)) {
					t.Row(w, p.Weights[w])
				}
				t.Row("hosts", p.Hosts)
				t.Row("only what must move", p.Forced)
				t.Row("pools", output.Join(p.Pools))
			})
		}),
	}
	return group("policy", "What matters in a plan, in USD", "  heliotrope policy list\n  heliotrope policy show balanced", list, show)
}
