package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
	"heliotrope/controller/cli/traffictext"
)

func (a *app) stub() *cobra.Command {
	names := a.names(func(ctx context.Context, c *api.Client) (names []string, err error) {
		all, err := c.Stubs(ctx)
		for _, s := range all {
			names = append(names, string(s.Name))
		}
		return names, err
	})
	list := &cobra.Command{
		Use: "list", Short: "List all stubs, and who uses them", Args: args(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			all, err := c.Stubs(ctx)
			if err != nil {
				return err
			}
			return out.Show(all, func(t *output.Table) {
				t.Head("STUB", "SITE", "HOST", "NETWORK", "ADDRESS", "ACCESS", "USED BY")
				for _, s := range all {
					var vms []string
					for _, u := range s.Uses {
						vms = append(vms, fmt.Sprintf("%s (%s)", u.VM, u.State))
					}
					t.Row(s.Name, s.Site, s.Host, s.Network, s.Address, s.Access, output.Join(vms))
				}
			})
		}),
	}
	show := &cobra.Command{
		Use: "show STUB", Short: "Show a stub, and what becomes of each VM's use of it and why", Args: args("STUB"), ValidArgsFunction: names,
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			s, err := c.Stub(ctx, heliotrope.StubID(args[0]))
			if err != nil {
				return err
			}
			return out.Show(s, func(t *output.Table) { showStub(t, s) })
		}),
	}
	return group("stub", "Resources bound to a place, and the VMs that use them", "  heliotrope stub list\n  heliotrope stub show scanner", list, show)
}

func showStub(t *output.Table, s api.Stub) {
	t.Row("stub", s.Name)
	t.Row("description", s.Description)
	t.Row("at", fmt.Sprintf("%s, port %s of %s", s.Site, s.Port, s.Host))
	t.Row("address", fmt.Sprintf("%s (%s) in network %s", s.Address, s.MAC, s.Network))
	t.Row("access", s.Access)
	if len(s.Uses) == 0 {
		t.Line("")
		t.Line("No VM has used it lately.")
		return
	}
	t.Line("")
	t.Head("VM", "SITE", "STATE", "SINCE", "LAST", "BYTES/S", "USD/H", "SPENT USD", "MOVE USD", "BREAK-EVEN")
	for _, u := range s.Uses {
		even := "-"
		if u.BreakEvenBytesPerHour > 0 {
			even = traffictext.Rate(u.BreakEvenBytesPerHour / 3600)
		}
		t.Row(u.VM, u.Site, u.State, u.Since, u.Last, traffictext.Rate(u.BytesPerSecond), usdText(u.GainUSDPerHour), usdText(u.SpentUSD), usdText(u.MoveUSD), even)
	}
	t.Line("")
	for _, u := range s.Uses {
		t.Line("%s: %s", u.VM, u.Says)
	}
}
