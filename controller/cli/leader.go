package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
	"heliotrope/scheduler"
	"heliotrope/scheduler/leader"
	"heliotrope/scheduler/pace"
	"heliotrope/scheduler/survey"
	"heliotrope/scheduler/trial"
)

func (a *app) leader() *cobra.Command {
	return group("leader", "Which replica of a replicated service ought to lead it", `  heliotrope leader follow --replicas kv-us,kv-eu,kv-asia --program ./etcd-leader
  heliotrope leader follow --replicas kv-us,kv-eu,kv-asia --program ./etcd-leader --dry-run --count 1`,
		a.leaderFollow())
}

// follower keeps a replicated service led where its clients are nearest to an answer.
type follower struct {
	client           *api.Client
	out              *output.Printer
	replicas         []heliotrope.VMID
	program          string
	policy           heliotrope.PolicyID
	pace             pace.Pace
	window, interval time.Duration
	dry              bool
	moved            []pace.Moved
}

// election is what a follower tells: who leads, and who ought to.
type election struct {
	At    time.Time       `json:"at"`
	Leads heliotrope.VMID `json:"leads"`
	To    heliotrope.VMID `json:"to,omitempty"` // who ought to lead instead
	Done  bool            `json:"done"`         // and does
	TookS float64         `json:"took_s,omitempty"`
	Says  string          `json:"says"`
}

func (a *app) leaderFollow() *cobra.Command {
	f := follower{}
	var replicas []string
	var count int
	cmd := &cobra.Command{
		Use: "follow", Short: "Have a service led where its clients are, until Ctrl-C", Args: args(),
		Long: `Have a replicated service led by the replica from which its clients get their answers
soonest, until Ctrl-C. Replicas are VMs or stubs, and stay where they are; only the leader changes.

Who asks, and how much, is the traffic that was counted at the replicas. An answer takes the way
from the asker to the leader, and from the leader to as many replicas as make a majority with it.
Another leads only if that would have been better in each tenth of the window by itself.

--program is how this service is led. It is run as 'PROGRAM which', and prints the replica that
leads; and as 'PROGRAM move REPLICA', and returns once that one leads.`,
		Example: `  heliotrope leader follow --replicas kv-us,kv-eu,kv-asia --program ./etcd-leader
  heliotrope leader follow --replicas kv-us,kv-eu,kv-asia --program ./etcd-leader --dry-run --count 1`,
	}
	fl := cmd.Flags()
	fl.StringSliceVar(&replicas, "replicas", nil, "VMs or stubs that can lead, three or more")
	fl.StringVar(&f.program, "program", "", "what says and changes who leads")
	fl.StringVar((*string)(&f.policy), "policy", "follow-the-sun", "what matters: one of the topology's policies, or "+strings.Join(scheduler.Presets(), ", "))
	fl.DurationVar(&f.window, "window", 10*time.Minute, "of traffic that decides, 10s or more")
	fl.DurationVar(&f.interval, "interval", 0, "from one look to the next (default: a tenth of the window)")
	coolDown := fl.Duration("cool-down", 0, "from one change of the leader to the next (default: any)")
	fl.IntVar(&f.pace.MaxMovesPerHour, "max-moves-per-hour", 0, "changes in any 60 minutes (default: any number)")
	fl.IntVar(&f.pace.MaxMovesPerDay, "max-moves-per-day", 0, "changes in any 24 hours (default: any number)")
	fl.BoolVar(&f.dry, "dry-run", false, "only say who ought to lead")
	fl.IntVar(&count, "count", 0, "how many looks (default: until Ctrl-C)")
	complete(cmd, "policy", scheduler.Presets()...)
	for _, name := range []string{"replicas", "program"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // no such flag: a mistake in this package
		}
	}
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) (err error) {
		f.client, f.out, f.pace.CoolDownPerVM = c, out, heliotrope.Duration(*coolDown)
		if len(replicas) < 3 {
			return usagef("--replicas %s: fewer than three have no majority without any of them", strings.Join(replicas, ","))
		}
		if f.window < trial.Tenths*api.MinWindow || f.window > api.MaxWindow {
			return usagef("--window %v: use 10s to 24h", f.window)
		}
		if f.interval == 0 {
			f.interval = f.window / trial.Tenths
		}
		if f.interval < 0 || count < 0 || *coolDown < 0 || f.pace.MaxMovesPerHour < 0 || f.pace.MaxMovesPerDay < 0 {
			return usagef("--interval, --count, --cool-down and --max-moves-… are positive")
		}
		for _, r := range replicas {
			f.replicas = append(f.replicas, heliotrope.VMID(r))
		}
		return f.follow(ctx, count)
	})
	return cmd
}

// follow looks again and again. It goes on while the controller or the service is away,
// unless that is so from the start.
func (f *follower) follow(ctx context.Context, count int) error {
	tick := time.NewTicker(f.interval)
	defer tick.Stop()
	said := ""
	for look := 1; ; look++ {
		e, err := f.look(ctx)
		if ctx.Err() != nil { // ^C is how one stops
			return nil
		}
		if err != nil && look == 1 {
			return err
		}
		if err != nil {
			e.Says = err.Error()
		}
		if now := string(e.Leads) + " " + string(e.To) + " " + e.Says; now != said || e.Done {
			if err := f.tell(e); err != nil {
				return err
			}
			said = now
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

// tell writes a line, of JSON where that was asked for.
func (f *follower) tell(e election) error {
	if f.out.Format != "table" {
		data, err := json.Marshal(e)
		if err != nil {
			return fmt.Errorf("encode election: %w", err)
		}
		_, err = fmt.Fprintf(f.out.Out, "%s\n", data)
		return err
	}
	line := fmt.Sprintf("%s  %s leads", e.At.Format(time.TimeOnly), e.Leads)
	switch {
	case e.Done:
		line += fmt.Sprintf(", and now %s, after %.1f s", e.To, e.TookS)
	case e.To != "":
		line += fmt.Sprintf(", and %s ought to", e.To)
	}
	_, err := fmt.Fprintf(f.out.Out, "%s: %s\n", line, e.Says)
	return err
}

// look asks who leads and who ought to, and changes that.
func (f *follower) look(ctx context.Context) (election, error) {
	e := election{At: time.Now()}
	says, err := f.run(ctx, "which")
	if err != nil {
		return e, err
	}
	e.Leads = heliotrope.VMID(says)
	w, err := f.see(ctx)
	if err != nil {
		return e, err
	}
	s, err := w.asked(ctx, time.Time{}, f.window, e.Leads)
	if err != nil {
		return e, err
	}
	held, paced := f.pace.Allow(f.moved, e.At).Hold(s, w.policy)
	plan, err := scheduler.Solve(held, paced, scheduler.Options{Iterations: 1000})
	if err != nil {
		return e, fmt.Errorf("plan: %w", err)
	}
	if e.Says = plan.Reason; len(plan.Moves) == 0 {
		return e, nil
	}
	e.To, e.Says = leader.Replica(w.now, f.replicas, plan.Moves[0].To), plan.Moves[0].Why
	steady, err := f.steady(ctx, w, e.Leads, s, plan)
	if err != nil {
		return e, err
	}
	if !steady {
		e.Says = "not in each tenth of the window: " + e.Says
		return e, nil
	}
	if f.dry {
		return e, nil
	}
	began := time.Now()
	f.moved = append(f.moved, pace.Moved{VM: leader.ID, At: began})
	if _, err := f.run(ctx, "move", string(e.To)); err != nil {
		return e, err
	}
	e.Done, e.TookS = true, time.Since(began).Seconds()
	return e, nil
}

// steady says whether a plan would have gained in each part of its window by itself.
func (f *follower) steady(ctx context.Context, w *sight, leads heliotrope.VMID, s scheduler.Snapshot, plan scheduler.Plan) (bool, error) {
	policy := w.policy
	policy.MoveUSD, policy.PauseUSDPerSecond = 0, 0
	before := s.Placement()
	var parts trial.Trial
	for i := range trial.Tenths {
		part, err := w.asked(ctx, s.At.Add(-f.window*time.Duration(i)/trial.Tenths), f.window/trial.Tenths, leads)
		if err != nil {
			return false, err
		}
		was, is, _, err := scheduler.Compare(part, policy, before, plan.Apply(before))
		if err != nil {
			return false, fmt.Errorf("compare: %w", err)
		}
		parts.Add(was.Total() - is.Total())
	}
	return parts.Steady(), nil
}

// run has the program do something, and returns what it printed.
func (f *follower) run(ctx context.Context, verb ...string) (string, error) {
	var out, wrong bytes.Buffer
	cmd := exec.CommandContext(ctx, f.program, verb...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &wrong, time.Second
	if err := cmd.Run(); err != nil {
		return "", errors.Join(fmt.Errorf("run %s %s: %w", f.program, strings.Join(verb, " "), err), errors.New(strings.TrimSpace(wrong.String())))
	}
	return strings.TrimSpace(out.String()), nil
}

// sight is the world at one moment, but for its traffic.
type sight struct {
	f        *follower
	topology heliotrope.Topology
	policy   scheduler.Policy
	facts    survey.Facts
	now      scheduler.Snapshot
}

func (f *follower) see(ctx context.Context) (*sight, error) {
	w := &sight{f: f, facts: survey.Facts{Placements: map[heliotrope.VMID]heliotrope.Placement{}}}
	var err error
	if w.topology, _, err = f.client.Topology(ctx); err != nil {
		return nil, err
	}
	if w.policy, err = survey.Named(w.topology, f.policy); err != nil {
		return nil, usagef("--policy: %w", err)
	}
	vms, err := f.client.VMs(ctx)
	for _, vm := range vms {
		w.facts.Placements[vm.Name] = heliotrope.Placement{VM: vm.Name, Host: vm.Host}
	}
	w.now = survey.Take(time.Now(), w.topology, w.facts)
	return w, err
}

// asked is the leader's snapshot by the traffic of a window; zero end: up to now.
func (w *sight) asked(ctx context.Context, end time.Time, window time.Duration, leads heliotrope.VMID) (scheduler.Snapshot, error) {
	m, err := w.f.client.TrafficMatrix(ctx, api.TrafficQuery{Window: window, End: end})
	if err != nil {
		return scheduler.Snapshot{}, err
	}
	facts := w.facts
	facts.Traffic = m
	return leader.Snapshot(survey.Take(m.To, w.topology, facts), w.f.replicas, leads)
}
