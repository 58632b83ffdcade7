package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
)

func (a *app) demand() *cobra.Command {
	return group("demand", "What clients ask that nobody counts, or not yet", "  heliotrope demand list", &cobra.Command{
		Use: "list", Short: "List what the topology says that clients ask, by region, now and at most", Args: args(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			all, err := c.Demand(ctx)
			if err != nil {
				return err
			}
			return out.Show(all, func(t *output.Table) { demandTable(t, all) })
		}),
	})
}

func demandTable(t *output.Table, all []api.Demand) {
	t.Head("REGION", "LOCAL TIME", "VM", "REQUESTS/H", "AT MOST", "BYTES/H", "AT MOST", "RTT")
	for _, d := range all {
		zone := cmp.Or(string(d.Zone), "UTC")
		most := mostAsked(d.Demand, d.LocalTime)
		for _, vm := range slices.Sorted(maps.Keys(most)) {
			now := d.Now[vm]
			t.Row(d.Region, d.Local(d.LocalTime).Format("Mon 15:04 ")+zone, vm, count(now.Requests), count(most[vm].Requests),
				output.Bytes(uint64(now.Bytes)), output.Bytes(uint64(most[vm].Bytes)), roundTrips(d.RTT))
		}
	}
	if len(all) == 0 {
		t.Line("the topology has no section demand")
	}
}

// mostAsked is the most of the week from a time on, hour by hour.
func mostAsked(d heliotrope.Demand, from time.Time) map[heliotrope.VMID]heliotrope.Asked {
	most := map[heliotrope.VMID]heliotrope.Asked{}
	for hour := range 7 * 24 {
		for vm, a := range d.At(from.Add(time.Duration(hour) * time.Hour)) {
			m := most[vm]
			most[vm] = heliotrope.Asked{Requests: max(m.Requests, a.Requests), Bytes: max(m.Bytes, a.Bytes)}
		}
	}
	return most
}

func count(x float64) string {
	if x == 0 {
		return ""
	}
	return fmt.Sprintf("%.6g", x)
}

func roundTrips(rtt map[heliotrope.SiteID]heliotrope.Duration) string {
	var all []string
	for _, site := range slices.Sorted(maps.Keys(rtt)) {
		all = append(all, fmt.Sprintf("%s %s", site, rtt[site]))
	}
	return strings.Join(all, ", ")
}
