package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
	"heliotrope/scheduler/perf"
)

// patience is how long a command may say nothing.
const patience = 2 * time.Second

func (a *app) siteBench() *cobra.Command {
	var host string
	var run bool
	cmd := &cobra.Command{
		Use: "bench", Short: "Show how fast hosts are, and which are not like the others", Args: args(),
		Long: `Show what was measured of the hosts: for each class of hosts (provider, instance type,
site) and metric the distribution with a histogram; for each host what a vCPU of it is worth,
in vCPUs of the median host; and hosts that are not like their class, or not like they were.
Hosts are measured after their agent's start and about once a day.`,
		Example: `  heliotrope site bench
  heliotrope site bench --host eu-1 -o json
  heliotrope site bench --run                  measure all hosts now, those of a site in turn
  heliotrope site bench --run --host eu-1`,
	}
	cmd.Flags().StringVar(&host, "host", "", "only this host, with its class")
	cmd.Flags().BoolVar(&run, "run", false, "measure first; takes some seconds a host")
	if err := cmd.RegisterFlagCompletionFunc("host", a.hostNames()); err != nil {
		panic(err) // no such flag: a mistake in this file
	}
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
		var failed error
		if run {
			var err error
			if failed, err = measure(ctx, c, out.Err, heliotrope.HostID(host)); err != nil {
				return err
			}
		}
		r, err := c.Benchmarks(ctx, heliotrope.HostID(host))
		if err != nil {
			return err
		}
		return errors.Join(out.Show(r, func(t *output.Table) { benchTable(t, r) }), failed)
	})
	return cmd
}

// measure has one host measured, or all: those of a site in turn, since they may share a
// machine or a disk, and the sites side by side. It says how far it is when that takes long.
// That some of all could not be measured is failed; the others were.
func measure(ctx context.Context, c *api.Client, progress io.Writer, host heliotrope.HostID) (failed, err error) {
	bySite := map[heliotrope.SiteID][]heliotrope.HostID{"": {host}}
	total := 1
	if host == "" {
		hosts, err := c.Hosts(ctx)
		if err != nil {
			return nil, err
		}
		clear(bySite)
		total = 0
		for _, h := range hosts {
			if h.Site != "" { // else it has joined and is in no topology any more
				bySite[h.Site] = append(bySite[h.Site], h.Name)
				total++
			}
		}
	}
	done := make(chan error, total)
	var sites sync.WaitGroup
	defer sites.Wait()
	for _, hosts := range bySite {
		sites.Go(func() {
			for _, h := range hosts {
				_, err := c.MeasureHost(ctx, h)
				if err != nil && host == "" {
					err = fmt.Errorf("%s is not measured: %w", h, err)
				}
				done <- err
			}
		})
	}
	tick := time.NewTicker(patience)
	defer tick.Stop()
	var problems []error
	for n := 0; n < total; {
		select {
		case err := <-done:
			n++
			if err != nil {
				problems = append(problems, err)
			}
		case <-tick.C:
			fmt.Fprintf(progress, "measured %d of %d hosts\n", n, total)
		}
	}
	if host != "" {
		return nil, errors.Join(problems...)
	}
	slices.SortFunc(problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(problems...), nil
}

func benchTable(t *output.Table, r perf.Report) {
	if len(r.Classes) == 0 {
		t.Line("no host was measured yet; measure now: heliotrope site bench --run")
		return
	}
	for _, c := range r.Classes {
		t.Line("%s (%s measured)", c.Class, output.Plural(c.Hosts, "host"))
		t.Head("METRIC", "N", "P10", "MEDIAN", "P90", "HISTOGRAM", "FROM", "TO")
		for _, d := range c.Metrics {
			b := d.Histogram.Bounds
			t.Row(d.Metric.Name(), d.Count, d.Metric.Text(d.P10), d.Metric.Text(d.Median), d.Metric.Text(d.P90), bars(d.Histogram.Counts),
				d.Metric.Text(b[0]), d.Metric.Text(b[len(b)-1]))
		}
		t.Line("")
	}
	t.Head("HOST", "CLASS", "N", "NEWEST", "A VCPU IS WORTH", "ONE THREAD", "OF ALL VCPUS", "NOT MEASURED")
	for _, h := range r.Hosts {
		t.Row(h.Host, h.Class, h.Measurements, h.MeasuredAt, fmt.Sprintf("%.2f", h.VCPUSpeed), value(h, perf.CPUSingle), value(h, perf.CPUAll), missing(h))
	}
	t.Line("")
	if len(r.Anomalies) == 0 {
		t.Line("no anomalies")
	}
	for _, a := range r.Anomalies {
		t.Line("%s: %s", a.Host, a.What)
	}
}

func value(h perf.HostModel, m perf.Metric) string {
	if v, ok := h.Values[m]; ok {
		return m.Text(v)
	}
	return ""
}

// missing names what the newest measurement lacks; metrics that lack for one reason share it.
func missing(h perf.HostModel) string {
	var said []string
	for _, m := range perf.Metrics() {
		why, ok := h.Missing[m]
		if i := slices.IndexFunc(said, func(s string) bool { return strings.HasSuffix(s, ": "+why) }); ok && i < 0 {
			said = append(said, m.Name()+": "+why)
		} else if ok {
			said[i] = m.Name() + ", " + said[i]
		}
	}
	return strings.Join(said, "; ")
}

// bars draws a histogram in one line: the fullest bucket is a full block, an empty one a dot.
func bars(counts []int) string {
	const steps = "▁▂▃▄▅▆▇█"
	blocks, most := []rune(steps), slices.Max(counts)
	var b strings.Builder
	for _, n := range counts {
		if n == 0 {
			b.WriteRune('·')
			continue
		}
		b.WriteRune(blocks[(n*len(blocks)-1)/most])
	}
	return b.String()
}
