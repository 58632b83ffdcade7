package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
	"heliotrope/controller/cli/traffictext"
)

// trafficFlags are what all questions about traffic take.
type trafficFlags struct {
	window        time.Duration
	end           string
	network, site string
	vms           []string
	top           int
}

// addTo adds the flags; the commands that take two windows have other flags for their ends.
func (f *trafficFlags) addTo(cmd *cobra.Command, a *app, window time.Duration, oneWindow bool) {
	fl := cmd.Flags()
	fl.DurationVar(&f.window, "window", window, "length of the time that is looked at, 1s to 24h")
	if oneWindow {
		fl.StringVar(&f.end, "end", "now", "end of that time: now, how long ago (10m), or 2026-11-25T12:00:00Z")
	}
	fl.StringVar(&f.network, "network", "", "only traffic of VMs in this network")
	fl.StringVar(&f.site, "site", "", "only traffic of VMs at this site")
	fl.StringSliceVar(&f.vms, "vm", nil, "only traffic of these VMs")
	fl.IntVar(&f.top, "top", api.DefaultTop, "how many are listed, 1 to 1000")
	for flag, fn := range map[string]cobra.CompletionFunc{"vm": a.vmNames(), "site": a.siteNames(), "network": a.networkNames()} {
		if err := cmd.RegisterFlagCompletionFunc(flag, fn); err != nil {
			panic(err) // no such flag: a mistake in this file
		}
	}
}

// query is the flags as the client has it.
func (f *trafficFlags) query() (api.TrafficQuery, error) {
	q := api.TrafficQuery{Window: f.window, Network: heliotrope.NetworkID(f.network), Site: heliotrope.SiteID(f.site), Top: f.top}
	for _, vm := range f.vms {
		q.VMs = append(q.VMs, heliotrope.VMID(vm))
	}
	if f.window < api.MinWindow || f.window > api.MaxWindow {
		return q, usagef("--window %v: use 1s to 24h", f.window)
	}
	if f.top < 1 || f.top > api.PageLimit {
		return q, usagef("--top %d: use 1 to %d", f.top, api.PageLimit)
	}
	var err error
	q.End, err = moment("end", f.end)
	return q, err
}

func moment(flag, s string) (time.Time, error) {
	t, err := api.ParseMoment(s, time.Now())
	if err != nil {
		return t, usagef("--%s: %w: write now, how long ago, such as 10m, or a time like 2026-11-25T12:00:00Z", flag, err)
	}
	return t, nil
}

func (a *app) siteNames() cobra.CompletionFunc {
	return a.names(func(ctx context.Context, c *api.Client) (names []string, err error) {
		sites, err := c.Sites(ctx)
		for _, s := range sites {
			names = append(names, string(s.Name))
		}
		return names, err
	})
}

func (a *app) networkNames() cobra.CompletionFunc {
	return a.names(func(ctx context.Context, c *api.Client) (names []string, err error) {
		networks, err := c.Networks(ctx)
		for _, n := range networks {
			names = append(names, string(n.Name))
		}
		return names, err
	})
}

func (a *app) traffic() *cobra.Command {
	return group("traffic", "Who talks to whom, in which pattern, and what that costs", `  heliotrope traffic report                        the last minute on one page
  heliotrope traffic report --html traffic.html    the same for a browser
  heliotrope traffic top --by vms --window 1h
  heliotrope traffic patterns --explain
  heliotrope traffic diff --before 10m
  heliotrope traffic watch`, a.trafficReport(), a.trafficTop(), a.trafficMatrix(), a.trafficPatterns(), a.trafficDiff(), a.trafficWatch())
}

func (a *app) trafficReport() *cobra.Command {
	var f trafficFlags
	var html string
	cmd := &cobra.Command{
		Use: "report", Short: "Pairs, patterns, sites, costs and how they were counted", Args: args(),
		Example: `  heliotrope traffic report
  heliotrope traffic report --window 1h --end 30m --site eu
  heliotrope traffic report --html traffic.html    a page that needs nothing else`,
	}
	f.addTo(cmd, a, api.DefaultWindow, true)
	cmd.Flags().StringVar(&html, "html", "", "write the report as a page to this file; - is standard output")
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
		q, err := f.query()
		if err != nil {
			return err
		}
		if html != "" {
			return writePage(ctx, c, out, q, html)
		}
		r, err := c.TrafficReport(ctx, q)
		if err != nil {
			return err
		}
		return out.Show(r, func(t *output.Table) { traffictext.Report(t, r) })
	})
	return cmd
}

// writePage leaves a file that is there alone when the controller does not answer.
func writePage(ctx context.Context, c *api.Client, out *output.Printer, q api.TrafficQuery, file string) error {
	var page bytes.Buffer
	if err := c.WriteTrafficPage(ctx, q, &page); err != nil {
		return err
	}
	if file == "-" {
		_, err := page.WriteTo(out.Out)
		return err
	}
	if err := os.WriteFile(file, page.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return out.Show(map[string]string{"written": file}, func(t *output.Table) { t.Line("%s is written: open it in a browser", file) })
}

func (a *app) trafficTop() *cobra.Command {
	var f trafficFlags
	var by string
	cmd := &cobra.Command{
		Use: "top", Short: "List the pairs, VMs or services with most traffic", Args: args(), Annotations: map[string]string{hasCSV: ""},
		Example: `  heliotrope traffic top
  heliotrope traffic top --by vms --window 1h
  heliotrope traffic top --by services --site eu -o csv`,
	}
	f.addTo(cmd, a, api.DefaultWindow, true)
	cmd.Flags().StringVar(&by, "by", "pairs", "what is listed: pairs, vms or services")
	complete(cmd, "by", "pairs", "vms", "services")
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
		q, err := f.query()
		if err != nil {
			return err
		}
		if by != "pairs" && by != "vms" && by != "services" {
			return usagef("--by %s: there are pairs, vms and services", by)
		}
		top, err := c.TrafficTop(ctx, q, by)
		if err != nil {
			return err
		}
		if out.Format == "csv" {
			return out.CSV(traffictext.TopRecords(top, by))
		}
		return out.Show(top, func(t *output.Table) { traffictext.Top(t, top, by) })
	})
	return cmd
}

func (a *app) trafficMatrix() *cobra.Command {
	var f trafficFlags
	cmd := &cobra.Command{
		Use: "matrix", Short: "All that was counted, a cell for each two ends", Args: args(), Annotations: map[string]string{hasCSV: ""},
		Example: "  heliotrope traffic matrix --window 10m\n  heliotrope traffic matrix --window 24h -o csv > day.csv",
	}
	f.addTo(cmd, a, api.DefaultWindow, true)
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
		q, err := f.query()
		if err != nil {
			return err
		}
		if out.Format == "csv" {
			return c.WriteTrafficCSV(ctx, q, out.Out)
		}
		m, err := c.TrafficMatrix(ctx, q)
		if err != nil {
			return err
		}
		return out.Show(m, func(t *output.Table) { traffictext.Matrix(t, m, q.Top) })
	})
	return cmd
}

func (a *app) trafficPatterns() *cobra.Command {
	var f trafficFlags
	var explain bool
	cmd := &cobra.Command{
		Use: "patterns", Short: "VMs that belong together, and how they talk", Args: args(), Annotations: map[string]string{hasCSV: ""},
		Long: `VMs that belong together, and how they talk. The percentage is how sure that is: of groups
told as surely, that share is right. With --explain each group says why, and what its VMs do.`,
		Example: "  heliotrope traffic patterns\n  heliotrope traffic patterns --explain --window 10m",
	}
	f.addTo(cmd, a, api.DefaultWindow, true)
	cmd.Flags().BoolVar(&explain, "explain", false, "say why, who does what, and what was before")
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
		q, err := f.query()
		if err != nil {
			return err
		}
		p, err := c.TrafficPatterns(ctx, q)
		if err != nil {
			return err
		}
		if out.Format == "csv" {
			return out.CSV(traffictext.GroupRecords(p.Groups))
		}
		return out.Show(p, func(t *output.Table) { traffictext.Patterns(t, p, explain) })
	})
	return cmd
}

func (a *app) trafficDiff() *cobra.Command {
	var f trafficFlags
	var before, after string
	cmd := &cobra.Command{
		Use: "diff", Short: "What changed from one time to another", Args: args(), Annotations: map[string]string{hasCSV: ""},
		Long: `What changed from one time to another: rates of pairs, the largest changes first, and groups
that came, went or do something else. Changes that may be none, since packets were sampled,
are left out.`,
		Example: `  heliotrope traffic diff --before 10m                          ten minutes ago, and now
  heliotrope traffic diff --before 24h --after now --window 1h  yesterday's hour, and the last`,
	}
	f.addTo(cmd, a, api.DefaultWindow, false)
	cmd.Flags().StringVar(&before, "before", "10m", "end of the first window: how long ago, or 2026-11-25T12:00:00Z")
	cmd.Flags().StringVar(&after, "after", "now", "end of the second window: now, how long ago, or a time")
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
		q, err := f.query()
		if err != nil {
			return err
		}
		first := q
		if first.End, err = moment("before", before); err != nil {
			return err
		}
		if q.End, err = moment("after", after); err != nil {
			return err
		}
		d, err := c.TrafficDiff(ctx, first, q)
		if err != nil {
			return err
		}
		if out.Format == "csv" {
			return out.CSV(traffictext.DiffRecords(d))
		}
		return out.Show(d, func(t *output.Table) { traffictext.Diff(t, d) })
	})
	return cmd
}
