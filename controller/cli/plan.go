package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
	"heliotrope/controller/webreport"
	"heliotrope/scheduler"
	"heliotrope/scheduler/diff"
	"heliotrope/scheduler/pace"
)

func (a *app) plan() *cobra.Command {
	return group("plan", "Where VMs ought to be, why, and how to get there", `  heliotrope plan simulate                     what it would be now; keeps nothing
  heliotrope plan create --policy closest      keep it; it moves nothing before it is applied
  heliotrope plan apply p-4t7a --wait          move the VMs, and watch
  heliotrope plan explain p-4t7a               each move with its reasons, and what it gained`,
		a.planSimulate(), a.planCreate(), a.planList(), a.planShow(), a.planExplain(), a.planDiff(), a.planApply(), a.planAbort())
}

// planFlags say what a plan is to rest on.
type planFlags struct {
	r            api.PlanRequest
	pool, policy string
	window       string
}

func (a *app) planFlags(cmd *cobra.Command) *planFlags {
	var f planFlags
	fl := cmd.Flags()
	fl.StringVar(&f.pool, "pool", "", "only this pool's VMs move, by its policy and window (default: all VMs)")
	fl.StringVar(&f.policy, "policy", "", "what matters: one of the topology's policies, or "+strings.Join(scheduler.Presets(), ", ")+" (default: the pool's, or balanced)")
	fl.StringVar(&f.window, "window", "", "length of the time whose traffic counts, 1s to 24h (default: the pool's, or 10m)")
	fl.IntVar(&f.r.MaxMoves, "max-moves", 0, "no more moves than that (default: any number)")
	fl.Uint64Var(&f.r.Seed, "seed", 0, "of the search: the same seed gives the same plan")
	complete(cmd, "policy", scheduler.Presets()...)
	return &f
}

func (f *planFlags) request() (api.PlanRequest, error) {
	r := f.r
	r.Pool, r.Policy = heliotrope.PoolID(f.pool), heliotrope.PolicyID(f.policy)
	if f.window != "" {
		w, err := time.ParseDuration(f.window)
		if err != nil || w < api.MinWindow || w > api.MaxWindow {
			return r, usagef("--window %s: use 1s to 24h", f.window)
		}
		r.WindowS = w.Seconds()
	}
	return r, nil
}

func (a *app) planSimulate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "simulate", Short: "Say what a plan would be, also if prices were others or a site failed; keeps nothing", Args: args(), Annotations: map[string]string{hasHTML: ""},
		Long: `Say which VMs ought to move where, in which order, what that gains in USD an hour, and
how far from the best that is at most. It rests on the topology's prices, distances and rules and
on the traffic that was counted. Nothing is moved, and nothing is kept.`,
		Example: `  heliotrope plan simulate                                money and distance, by the last ten minutes
  heliotrope plan simulate --policy cheapest --window 24h
  heliotrope plan simulate --at 6h --window 1h             by the traffic of an hour, six hours ago
  heliotrope plan simulate --down us --price eu=0.02       without us, and with another price of a vCPU-hour
  heliotrope plan simulate -o html > plan.html             a page with a map, that needs nothing else`,
	}
	f := a.planFlags(cmd)
	var at string
	var down, prices []string
	fl := cmd.Flags()
	fl.StringVar(&at, "at", "now", "end of the time whose traffic counts: now, how long ago (6h), or 2026-11-25T12:00:00Z")
	fl.StringSliceVar(&down, "down", nil, "sites that nothing may be at")
	fl.StringSliceVar(&prices, "price", nil, "SITE=USD per vCPU and hour, in place of the topology's")
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
		r, err := f.request()
		if err != nil {
			return err
		}
		if r.At, err = moment("at", at); err != nil {
			return err
		}
		for _, s := range down {
			r.Down = append(r.Down, heliotrope.SiteID(s))
		}
		if r.Prices, err = sitePrices(prices); err != nil {
			return err
		}
		p, err := c.SimulatePlan(ctx, r)
		if err != nil {
			return err
		}
		return out.ShowPage(p, func(w io.Writer) error { return webreport.RenderPlan(w, api.Plan{Plan: p}) },
			func(t *output.Table) { t.Line("%s", strings.TrimSuffix(p.String(), "\n")) })
	})
	return cmd
}

func sitePrices(list []string) (map[heliotrope.SiteID]float64, error) {
	prices := map[heliotrope.SiteID]float64{}
	for _, p := range list {
		site, text, _ := strings.Cut(p, "=")
		usd, err := strconv.ParseFloat(text, 64)
		if site == "" || err != nil || !(usd >= 0) {
			return nil, usagef("--price %s: write SITE=USD, like eu=0.03", p)
		}
		prices[heliotrope.SiteID(site)] = usd
	}
	return prices, nil
}

func (a *app) planCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create", Short: "Make a plan and keep it; it moves nothing before it is applied", Args: args(),
		Example: `  heliotrope plan create
  heliotrope plan create --pool shop
  heliotrope plan create --policy closest --dry-run`,
	}
	f := a.planFlags(cmd)
	var dryRun bool
	var key string
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "as simulate: keep nothing")
	cmd.Flags().StringVar(&key, "idempotency-key", "", "same key: same plan (default: a random one)")
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
		r, err := f.request()
		if err != nil {
			return err
		}
		if dryRun {
			p, err := c.SimulatePlan(ctx, r)
			if err != nil {
				return err
			}
			return out.Show(p, func(t *output.Table) { t.Line("%s", strings.TrimSuffix(p.String(), "\n")) })
		}
		if key == "" {
			key = rand.Text()
		}
		p, err := c.CreatePlan(ctx, r, key)
		if err != nil {
			return err
		}
		return out.Show(p, func(t *output.Table) {
			placementTable(t, p)
			if p.State == api.PlanProposed {
				t.Line("apply it: heliotrope plan apply %s", p.ID)
			}
		})
	})
	return cmd
}

func (a *app) planIDs() cobra.CompletionFunc {
	return a.names(func(ctx context.Context, c *api.Client) (names []string, err error) {
		all, err := c.Plans(ctx)
		for _, p := range all {
			names = append(names, string(p.ID))
		}
		return names, err
	})
}

func (a *app) planList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the plans that are kept, newest first", Args: args(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			all, err := c.Plans(ctx)
			if err != nil {
				return err
			}
			return out.Show(all, func(t *output.Table) {
				t.Head("PLAN", "POOL", "BY", "STATE", "MOVES", "PROMISED USD/h", "GAINED USD/h", "MADE", "NOTE")
				for _, p := range all {
					gained := ""
					if p.Measured != nil {
						gained = usdText(p.Measured.Gained)
					}
					t.Row(p.ID, p.Pool, p.By, p.State, len(p.Plan.Moves), usdText(p.Plan.Gain()), gained, p.CreatedAt, p.Note)
				}
			})
		}),
	}
}

func usdText(usd float64) string { return fmt.Sprintf("%.4f", usd) }

// aPlan is a command about one plan.
func (a *app) aPlan(use, short string, show func(t *output.Table, p api.Plan)) *cobra.Command {
	return &cobra.Command{
		Use: use + " PLAN", Short: short, Args: args("PLAN"), ValidArgsFunction: a.planIDs(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			p, err := c.Plan(ctx, heliotrope.PlanID(args[0]))
			if err != nil {
				return err
			}
			return out.ShowPage(p, func(w io.Writer) error { return webreport.RenderPlan(w, p) }, func(t *output.Table) { show(t, p) })
		}),
	}
}

func (a *app) planShow() *cobra.Command {
	cmd := a.aPlan("show", "Show a plan, how far it is, and what it gained", placementTable)
	cmd.Annotations = map[string]string{hasHTML: ""}
	cmd.Example = "  heliotrope plan show p-4t7a\n  heliotrope plan show p-4t7a -o html > plan.html    a page with a map, that needs nothing else"
	return cmd
}

func placementTable(t *output.Table, p api.Plan) {
	t.Row("plan", p.ID)
	t.Row("pool", p.Pool)
	t.Row("made", fmt.Sprintf("%s, by %s, policy %s", output.Cell(p.CreatedAt), p.By, p.Policy.Name))
	t.Row("state", p.State)
	t.Row("note", p.Note)
	if g := p.Measured; g != nil {
		t.Row("promised", usdText(g.Promised)+" USD/h")
		t.Row("gained", usdText(g.Gained)+" USD/h")
	}
	t.Line("")
	if len(p.Moves) == 0 {
		t.Line("%s", strings.TrimSuffix(p.Plan.String(), "\n"))
		return
	}
	t.Head("STEP", "VM", "FROM", "TO", "PHASE", "PAUSE", "BYTES", "PROMISED USD/h", "GAINED USD/h", "MIGRATION", "ERROR")
	for i, m := range p.Moves {
		of, gained := p.Plan.Moves[i], ""
		if p.Measured != nil && !of.Temporary {
			gained = usdText(p.Measured.VMs[of.VM].USDPerHour)
		}
		t.Row(of.Step, of.VM, of.From, of.To, m.Phase, output.Milliseconds(m.PauseMs), output.Bytes(m.Bytes), usdText(of.USDPerHour), gained, m.Migration, m.Error)
	}
}

func (a *app) planExplain() *cobra.Command {
	return a.aPlan("explain", "Say for each move of a plan what speaks for it and against it, and what it gained", func(t *output.Table, p api.Plan) {
		t.Line("%s", p.Plan.Reason)
		if p.Plan.Bounded {
			t.Line("it is at most %.2f %% above the best", 100*p.Plan.Gap)
		}
		for i, m := range p.Plan.Moves {
			t.Line("")
			t.Line("%s from %s to %s, in step %d: USD %.4f/h, %.3g ms nearer; %.1f s, of them %.0f ms paused", m.VM, m.From, m.To, m.Step, m.USDPerHour, m.Ms, m.Seconds, m.PauseMs)
			t.Line("  because %s", m.Why)
			if m.Confidence > 0 {
				t.Line("  it would have gained in %.0f %% of the window's parts with traffic", 100*m.Confidence)
			}
			if !m.Better.IsZero() {
				t.Line("  it had better begin at %s: what is paid until %s would be used up", m.Better.UTC().Format(time.RFC3339), m.PaidUntil.UTC().Format(time.RFC3339))
			}
			for _, e := range m.Evidence {
				t.Line("  %+.4f USD/h  %s", e.USDPerHour, e.Text)
			}
			if i < len(p.Moves) && p.Moves[i].PauseMs > 0 {
				t.Line("  was paused for %.0f ms", p.Moves[i].PauseMs)
			}
			if p.Measured != nil && !m.Temporary {
				s := p.Measured.VMs[m.VM]
				t.Line("  gained USD %.4f/h, and its traffic is %.3g ms nearer", s.USDPerHour, s.Ms)
			}
		}
		for i, w := range p.Plan.Ways {
			if i == 0 {
				t.Line("")
			}
			t.Line("between %s and %s: %.4g ms, %s", w.From, w.To, w.RTTMs, w.Source)
		}
		for _, b := range p.Plan.Blocked {
			t.Line("")
			t.Line("%s ought to go to %s and cannot: %s", b.VM, b.To, b.Why)
		}
		if g := p.Measured; g != nil {
			t.Line("")
			t.Line("promised USD %.4f/h, gained USD %.4f/h by the traffic from %s to %s", g.Promised, g.Gained, output.Cell(g.From), output.Cell(g.To))
		}
	})
}

func (a *app) planDiff() *cobra.Command {
	return &cobra.Command{
		Use: "diff PLAN PLAN", Short: "Compare two plans by where VMs end", Args: args("PLAN", "PLAN"), ValidArgsFunction: a.planIDs(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			p, err := c.Plan(ctx, heliotrope.PlanID(args[0]))
			if err != nil {
				return err
			}
			q, err := c.Plan(ctx, heliotrope.PlanID(args[1]))
			if err != nil {
				return err
			}
			d := diff.Plans(p.Plan, q.Plan)
			return out.Show(d, func(t *output.Table) { t.Line("%s", strings.TrimSuffix(d.String(), "\n")) })
		}),
	}
}

func (a *app) planApply() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{Use: "apply PLAN", Short: "Move the VMs as a plan says", Args: args("PLAN"), ValidArgsFunction: a.planIDs()}
	cmd.Flags().BoolVarP(&wait, "wait", "w", false, "watch until its moves have ended")
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
		p, err := c.ApplyPlan(ctx, heliotrope.PlanID(args[0]))
		if err != nil {
			return err
		}
		if !wait {
			return out.Show(p, func(t *output.Table) {
				t.Line("%s is %s: %s", p.ID, p.State, output.Plural(len(p.Plan.Moves), "move"))
				t.Line("watch it: heliotrope plan show %s", p.ID)
			})
		}
		return watchPlan(ctx, c, out, p)
	})
	return cmd
}

// watchPlan tells each turn of a plan's moves until they have ended, and fails if they failed.
func watchPlan(ctx context.Context, c *api.Client, out *output.Printer, p api.Plan) error {
	told := make([]string, len(p.Moves))
	for {
		for i, m := range p.Moves {
			if of := p.Plan.Moves[i]; m.Phase != told[i] {
				told[i] = m.Phase
				fmt.Fprintf(out.Err, "%s %s → %s: %s\n", of.VM, of.From, of.To, m.Phase)
			}
		}
		if p.State != api.PlanRunning {
			break
		}
		next, err := c.AwaitPlan(ctx, p.ID, p.Revision)
		if err != nil {
			return fmt.Errorf("no longer watching; the plan goes on: heliotrope plan show %s: %w", p.ID, err)
		}
		p = next
	}
	err := out.Show(p, func(t *output.Table) { placementTable(t, p) })
	if err == nil && (p.State == api.PlanFailed || p.State == api.PlanAborted) {
		return silentError{errors.New(p.Note)}
	}
	return err
}

func (a *app) planAbort() *cobra.Command {
	return &cobra.Command{
		Use: "abort PLAN", Short: "Begin no more of a plan's moves, and undo those that can be", Args: args("PLAN"), ValidArgsFunction: a.planIDs(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			p, err := c.AbortPlan(ctx, heliotrope.PlanID(args[0]))
			if err != nil {
				return err
			}
			return out.Show(p, func(t *output.Table) {
				if p.State == api.PlanAborted {
					t.Line("%s is aborted", p.ID)
				} else {
					t.Line("%s begins no more moves; watch it: heliotrope plan show %s", p.ID, p.ID)
				}
			})
		}),
	}
}

func (a *app) pool() *cobra.Command {
	names := a.names(func(ctx context.Context, c *api.Client) (names []string, err error) {
		all, err := c.Pools(ctx)
		for _, p := range all {
			names = append(names, string(p.Name))
		}
		return names, err
	})
	list := &cobra.Command{
		Use: "list", Short: "List all pools, and what their autopilots found", Args: args(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			all, err := c.Pools(ctx)
			if err != nil {
				return err
			}
			return out.Show(all, func(t *output.Table) {
				t.Head("POOL", "AUTOPILOT", "POLICY", "VMS", "PLAN", "LOOKED", "FOUND")
				for _, p := range all {
					t.Row(p.Name, p.Autopilot, p.Policy, len(p.VMs), p.Plan, p.ConsideredAt, p.Says)
				}
			})
		}),
	}
	show := &cobra.Command{
		Use: "show POOL", Short: "Show a pool, and the plan that its autopilot found last", Args: args("POOL"), ValidArgsFunction: names, Annotations: map[string]string{hasHTML: ""},
		Example: "  heliotrope pool show shop\n  heliotrope pool show shop -o html > shop.html    cost and distance over time, that needs nothing else",
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			p, err := c.Pool(ctx, heliotrope.PoolID(args[0]))
			if err != nil {
				return err
			}
			page := func(w io.Writer) error {
				plans, err := c.Plans(ctx)
				if err != nil {
					return err
				}
				return webreport.RenderPool(w, p, plans)
			}
			return out.ShowPage(p, page, func(t *output.Table) {
				t.Row("pool", p.Name)
				t.Row("autopilot", p.Autopilot)
				t.Row("policy", p.Policy)
				t.Row("VMs", output.Join(p.VMs))
				t.Row("plan", p.Plan)
				t.Row("may move now", paceText(p.Pace))
				t.Row("cooling down", output.Join(p.Pace.Stay))
				t.Row("looked", p.ConsideredAt)
				t.Row("found", p.Says)
				if p.Newest != nil {
					t.Line("")
					t.Line("%s", strings.TrimSuffix(p.Newest.String(), "\n"))
				}
			})
		}),
	}
	return group("pool", "VMs that are placed in one way, and their autopilots", "  heliotrope pool list\n  heliotrope pool show shop", list, show)
}

func paceText(a pace.Allowance) string {
	var s string
	switch {
	case a.Quiet:
		s = "nothing: it is a quiet time"
	case a.Moves == pace.AnyMoves:
		s = "any number"
	default:
		s = output.Plural(a.Moves, "VM")
	}
	if !a.Next.IsZero() {
		s += ", until " + output.Cell(a.Next)
	}
	return s
}
