package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
	"heliotrope/scheduler/traffic/report"
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
	w := trafficWatch{out: out}
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
			if err := w.update(r); err != nil {
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

// trafficWatch draws one report over the other on a screen; elsewhere each is a line.
type trafficWatch struct {
	out   *output.Printer
	drawn bool
}

func (w *trafficWatch) update(r report.Report) error {
	switch {
	case w.out.Format == "json":
		data, err := json.Marshal(r)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w.out.Out, "%s\n", data)
		return err
	case w.out.Format == "yaml":
		data, err := output.YAML(r)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w.out.Out, "---\n%s", data)
		return err
	case w.out.Screen:
		return w.draw(r)
	}
	_, err := fmt.Fprintln(w.out.Out, lineOf(r))
	return err
}

// draw clears the screen once, and then only what is left of the last report: nothing flickers.
func (w *trafficWatch) draw(r report.Report) error {
	var t output.Table
	t.Line("%s", windowText(r.From, r.To, r.Total))
	section(&t, len(r.Pairs), func() { pairsTable(&t, r.Pairs) })
	section(&t, len(r.Groups), func() { groupsTable(&t, r.Groups) })
	notes(&t, r.Notes)
	var text, screen bytes.Buffer
	if err := t.Write(&text); err != nil {
		return err
	}
	if !w.drawn {
		screen.WriteString("\x1b[2J")
	}
	w.drawn = true
	screen.WriteString("\x1b[H")
	rows, columns := screenSize(w.out.Out)
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	for _, l := range lines[:min(len(lines), rows-1)] {
		runes := []rune(l)
		screen.WriteString(string(runes[:min(len(runes), columns)]) + "\x1b[K\n")
	}
	screen.WriteString("\x1b[J")
	_, err := w.out.Out.Write(screen.Bytes())
	return err
}

// screenSize is that of the terminal, or what every terminal has.
func screenSize(w io.Writer) (rows, columns int) {
	if f, ok := w.(*os.File); ok {
		if s, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && s.Row > 1 && s.Col > 0 {
			return int(s.Row), int(s.Col)
		}
	}
	return 24, 80
}

// lineOf is a report in one line: the total, the largest pairs, the largest groups.
func lineOf(r report.Report) string {
	parts := []string{fmt.Sprintf("%s  %s, %s packets/s, %s", output.Cell(r.To), rateText(r.Total.BytesPerSecond), countText(r.Total.PacketsPerSecond), output.Plural(r.Total.VMs, "VM"))}
	for _, p := range r.Pairs[:min(3, len(r.Pairs))] {
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("%s→%s %s %s", p.Src, p.Dst, rateText(p.Rate), serviceText(p.Service, p.Reply))))
	}
	for _, g := range r.Groups[:min(2, len(r.Groups))] {
		parts = append(parts, fmt.Sprintf("%s %s", g.ID, patternText(g.Group)))
	}
	return strings.Join(parts, "; ")
}
