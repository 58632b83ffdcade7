package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
	"heliotrope/controller/webreport"
	"heliotrope/migration"
)

type migrateFlags struct {
	to                  string
	wait, dryRun, check bool
	maxDowntime         time.Duration
	maxSlowdown         int
	deadline            time.Duration
	key                 string
}

func (a *app) vmMigrate() *cobra.Command {
	var f migrateFlags
	cmd := &cobra.Command{
		Use: "migrate VM --to HOST|SITE", Short: "Move a running VM", Args: args("VM"), ValidArgsFunction: a.vmNames(),
		Long: `Move a running VM to another host, or to the roomiest host of a site. Its addresses and
open connections go with it. Without --wait the command returns when the move has begun.`,
		Example: `  heliotrope vm migrate web --to eu --check          would it work? (exit code 1: no)
  heliotrope vm migrate web --to eu --wait           move it, and watch it go
  heliotrope vm migrate web --to asia-1 --max-downtime 100ms --wait -o json`,
	}
	fl := cmd.Flags()
	fl.StringVar(&f.to, "to", "", "host, or site")
	fl.BoolVarP(&f.wait, "wait", "w", false, "watch it until it has ended")
	fl.BoolVar(&f.dryRun, "dry-run", false, "say what it would be like, move nothing")
	fl.BoolVar(&f.check, "check", false, "as --dry-run, and exit with 1 if it would not work")
	fl.DurationVar(&f.maxDowntime, "max-downtime", 0, "longest pause that the hypervisor may plan (default 300ms)")
	fl.IntVar(&f.maxSlowdown, "max-slowdown", migration.DefaultMaxSlowdown, "percent of its processors' time that the VM may lose if it would not come to an end otherwise; 0: none")
	fl.DurationVar(&f.deadline, "deadline", 0, "it has ended by then, rolled back if need be (default 10m)")
	fl.StringVar(&f.key, "idempotency-key", "", "same key: same migration (default: a random one)")
	if err := cmd.RegisterFlagCompletionFunc("to", a.targets()); err != nil {
		panic(err) // no such flag: a mistake in this file
	}
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
		if f.to == "" {
			return usagef("say where to: --to HOST or --to SITE")
		}
		r := api.MigrationRequest{VM: heliotrope.VMID(args[0]), To: f.to, MaxDowntimeMs: int(f.maxDowntime.Milliseconds()), MaxSlowdown: &f.maxSlowdown, DeadlineS: int(f.deadline.Seconds())}
		if f.dryRun || f.check {
			return preview(ctx, c, out, r, f.check)
		}
		return migrate(ctx, c, out, r, f)
	})
	return cmd
}

// targets offers hosts and sites.
func (a *app) targets() cobra.CompletionFunc {
	return a.names(func(ctx context.Context, c *api.Client) (names []string, err error) {
		sites, err := c.Sites(ctx)
		for _, s := range sites {
			names = append(names, string(s.Name))
			for _, h := range s.Hosts {
				names = append(names, string(h))
			}
		}
		return names, err
	})
}

func preview(ctx context.Context, c *api.Client, out *output.Printer, r api.MigrationRequest, check bool) error {
	p, err := c.PreviewMigration(ctx, r)
	if err != nil {
		return err
	}
	err = out.Show(p, func(t *output.Table) {
		t.Line("%s would go from %s to %s", p.VM, p.From, p.To)
		for _, c := range p.Checks {
			t.Row(map[bool]string{true: "ok", false: "FAIL"}[c.OK], c.Name, c.Detail)
		}
		t.Row("takes", output.Seconds(p.ETAS))
		t.Row("pause", output.Milliseconds(p.PauseMs))
		t.Row("bytes", output.Bytes(p.Bytes))
		if p.DiskBytes > 0 {
			t.Row("of the disk", output.Bytes(p.DiskBytes)+" at most")
		}
		if p.ImageBytes > 0 {
			t.Row("of the image", output.Bytes(p.ImageBytes)+", later, from the store")
		}
		if p.CostUSD > 0 {
			t.Row("costs", fmt.Sprintf("%.4f USD", p.CostUSD))
		}
	})
	if err == nil && check && !p.OK {
		return silentError{errors.New("it would not work")}
	}
	return err
}

func migrate(ctx context.Context, c *api.Client, out *output.Printer, r api.MigrationRequest, f migrateFlags) error {
	if f.key == "" {
		f.key = rand.Text()
	}
	m, err := start(ctx, c, r, f.key)
	if err != nil {
		return err
	}
	if !f.wait {
		return out.Show(m, func(t *output.Table) {
			t.Line("%s has begun: %s from %s to %s", m.ID, m.VM, m.From, m.To)
			t.Line("watch it: heliotrope migration watch %s", m.ID)
		})
	}
	return watch(ctx, c, out, m.ID)
}

// start asks again, with the same key, while the controller is away for a moment.
func start(ctx context.Context, c *api.Client, r api.MigrationRequest, key string) (api.Migration, error) {
	for try := 0; ; try++ {
		m, err := c.StartMigration(ctx, r, key)
		var p *api.Problem
		away := err != nil && (!errors.As(err, &p) || p.Status == 503 || p.Type == api.TypeKeyBusy)
		if !away || try == 3 || ctx.Err() != nil {
			return m, err
		}
		timer := time.NewTimer(time.Second)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// watch shows a migration until it has ended, and fails if it did not succeed.
func watch(ctx context.Context, c *api.Client, out *output.Printer, id heliotrope.MoveID) error {
	bar := newProgress(out)
	m, err := c.WatchMigration(ctx, id, bar.update)
	bar.end()
	if ctx.Err() != nil {
		return fmt.Errorf("no longer watching; the migration goes on: heliotrope migration watch %s", id)
	}
	if err != nil {
		return err
	}
	err = out.Show(m, func(t *output.Table) { migrationTable(t, m) })
	if err == nil && m.Phase != api.PhaseSucceeded {
		return silentError{fmt.Errorf("the migration ended as %s", m.Phase)}
	}
	return err
}

func migrationTable(t *output.Table, m api.Migration) {
	t.Row("migration", m.ID)
	t.Row("VM", m.VM)
	t.Row("from", m.From)
	t.Row("to", m.To)
	t.Row("phase", m.Phase)
	if m.Error != "" {
		t.Row("error", m.Error)
	}
	for _, w := range m.Warnings {
		t.Row("warning", w)
	}
	if !m.Ended() {
		t.Row("progress", output.Percent(m.Progress))
		t.Row("ends in", output.Seconds(m.ETAS))
	}
	d := m.Measured
	t.Row("began", m.CreatedAt)
	t.Row("took", output.Seconds(took(m)))
	t.Row("pause", output.Milliseconds(d.PauseMs))
	t.Row("bytes", output.Bytes(d.Bytes))
	if d.DiskBytes+d.SparedBytes > 0 {
		t.Row("disk copied", output.Bytes(d.DiskBytes))
		t.Row("disk spared", output.Bytes(d.SparedBytes))
	}
	if d.CodecMs > 0 {
		t.Row("codec", output.Milliseconds(d.CodecMs)+" of a core")
	}
	t.Row("rounds", d.Rounds)
	t.Row("rescued packets", fmt.Sprint(d.RescuedPackets))
	t.Row("converged", output.Milliseconds(d.ConvergedMs))
	t.Line("")
	t.Head("PHASE", "AFTER", "TOOK")
	for _, p := range m.Phases {
		t.Row(p.Phase, fmt.Sprintf("%.3f s", p.At.Sub(m.CreatedAt).Seconds()), output.Seconds(p.TookS))
	}
	if len(d.DiskWrites) > 0 {
		t.Line("")
		t.Head("DISK", "FOR", "WRITES", "A WRITE", "FLUSHES", "A FLUSH")
	}
	for _, w := range d.DiskWrites {
		t.Row(w.Stretch, output.Seconds(w.Seconds), w.Writes, meanOf(w.Writes, w.WriteMs), w.Flushes, meanOf(w.Flushes, w.FlushMs))
	}
	encodedTable(t, "MEMORY", d.Memory)
	encodedTable(t, "BLOCKS", d.Blocks)
	if len(d.Passes) > 0 {
		t.Line("")
		t.Head("PASS", "SENT", "WIRE", "DIRTIED", "TOOK", "PAUSE", "")
	}
	for i, p := range d.Passes {
		t.Row(i+1, output.Bytes(p.Sent), output.Bytes(p.Wire), output.Bytes(p.Dirty), output.Milliseconds(p.TookMs), output.Milliseconds(p.PauseMs), p.Why)
	}
}

// encodedTable says what streams consisted of, if they were encoded.
func encodedTable(t *output.Table, of string, all []migration.Encoded) {
	if len(all) > 0 {
		t.Line("")
		t.Head(of, "PAGES", "STREAM", "WIRE")
	}
	for _, k := range all {
		t.Row(k.Kind, k.Pages, output.Bytes(k.Stream), output.Bytes(k.Wire))
	}
}

// meanOf is the mean time of some; of none there is none.
func meanOf(n uint64, ms float64) string {
	if n == 0 {
		return ""
	}
	return output.Milliseconds(ms)
}

func took(m api.Migration) float64 {
	if m.FinishedAt.IsZero() {
		return 0
	}
	return m.FinishedAt.Sub(m.CreatedAt).Seconds()
}

// progress tells a migration's way: a bar that is drawn over itself on a terminal, a line
// for each phase elsewhere.
type progress struct {
	out   *output.Printer
	phase string
	drawn bool
}

func newProgress(out *output.Printer) *progress { return &progress{out: out} }

const barWidth = 30

func (p *progress) update(m api.Migration) {
	if !p.out.Terminal {
		if m.Phase != p.phase {
			p.phase = m.Phase
			fmt.Fprintf(p.out.Err, "%s %s → %s: %s (%s)\n", m.VM, m.From, m.To, m.Phase, output.Percent(m.Progress))
		}
		return
	}
	full := min(max(int(m.Progress*barWidth), 0), barWidth)
	line := fmt.Sprintf("%s %s → %s [%s%s] %4s %s", m.VM, m.From, m.To, strings.Repeat("█", full), strings.Repeat("·", barWidth-full), output.Percent(m.Progress), m.Phase)
	if m.ETAS > 0 {
		line += fmt.Sprintf(", %s left", output.Seconds(m.ETAS))
	}
	fmt.Fprintf(p.out.Err, "\r\x1b[K%s", line)
	p.drawn = true
}

func (p *progress) end() {
	if p.drawn {
		fmt.Fprintln(p.out.Err)
	}
}

func (a *app) migrationIDs() cobra.CompletionFunc {
	return a.names(func(ctx context.Context, c *api.Client) (names []string, err error) {
		all, err := c.Migrations(ctx, "", false)
		for _, m := range all {
			names = append(names, string(m.ID))
		}
		return names, err
	})
}

func (a *app) migration() *cobra.Command {
	show := &cobra.Command{
		Use: "show ID", Short: "Show a migration with its numbers", Args: args("ID"), ValidArgsFunction: a.migrationIDs(), Annotations: map[string]string{hasHTML: ""},
		Example: "  heliotrope migration show m-7f3k\n  heliotrope migration show m-7f3k -o html > move.html    where time and bytes went, as a page that needs nothing else",
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			m, err := c.Migration(ctx, heliotrope.MoveID(args[0]))
			if err != nil {
				return err
			}
			return out.ShowPage(m, func(w io.Writer) error { return webreport.RenderMove(w, m) }, func(t *output.Table) { migrationTable(t, m) })
		}),
	}
	watchCmd := &cobra.Command{
		Use: "watch ID", Short: "Watch a migration until it has ended", Args: args("ID"), ValidArgsFunction: a.migrationIDs(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			return watch(ctx, c, out, heliotrope.MoveID(args[0]))
		}),
	}
	abort := &cobra.Command{
		Use: "abort ID", Short: "Roll a migration back; fails once it is committed", Args: args("ID"), ValidArgsFunction: a.migrationIDs(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			m, err := c.AbortMigration(ctx, heliotrope.MoveID(args[0]))
			if err != nil {
				return err
			}
			return out.Show(m, func(t *output.Table) { t.Line("%s is being rolled back; %s stays at %s", m.ID, m.VM, m.From) })
		}),
	}
	return group("migration", "Moves of VMs, running and past", `  heliotrope migration list --active
  heliotrope migration watch m-7f3k
  heliotrope migration abort m-7f3k`, a.migrationList(), show, watchCmd, abort)
}

func (a *app) migrationList() *cobra.Command {
	var vm string
	var active bool
	cmd := &cobra.Command{Use: "list", Short: "List migrations, newest first", Args: args()}
	cmd.Flags().StringVar(&vm, "vm", "", "only those of this VM")
	cmd.Flags().BoolVar(&active, "active", false, "only those that have not ended")
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
		all, err := c.Migrations(ctx, heliotrope.VMID(vm), active)
		if err != nil {
			return err
		}
		return out.Show(all, func(t *output.Table) {
			t.Head("MIGRATION", "VM", "FROM", "TO", "PHASE", "PROGRESS", "PAUSE", "BYTES", "BEGAN")
			for _, m := range all {
				t.Row(m.ID, m.VM, m.From, m.To, m.Phase, output.Percent(m.Progress), output.Milliseconds(m.Measured.PauseMs), output.Bytes(m.Measured.Bytes), m.CreatedAt)
			}
		})
	})
	return cmd
}
