package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/topologies"
	"heliotrope/topologies/lab/node"
)

// ExitError is how 'lab exec' hands on the exit code of the command it ran; main ends with it.
type ExitError struct{ Code int }

func (e ExitError) Error() string { return fmt.Sprintf("the command exited with %d", e.Code) }

// Command returns 'lab' with its subcommands, the hidden ones with which a lab starts its
// own processes included: the program that calls Up must have it at its root.
func Command() *cobra.Command {
	t := &Target{}
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Bring a topology up on this machine, with real daemons",
		Long: `Bring a topology up on this machine: a namespace per host with its own Open vSwitch,
libvirt and agent, a BIRD router per site, and a WAN between them. Needs root.`,
		Example: `  heliotrope lab up topologies/two-sites.yaml
  heliotrope lab status
  heliotrope lab exec left-1 -- ovs-vsctl show
  heliotrope lab link left-right --delay 80ms --loss 0.01
  heliotrope lab down`,
		Args: cobra.NoArgs, // else a mistyped verb would show the help and succeed
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&t.Name, "lab", "", "name of the lab; needed only where several run")
	cmd.PersistentFlags().StringVar(&t.Dir, "dir", "", "directory of the lab (default "+DefaultDir+"/NAME)")
	cmd.AddCommand(upCommand(t), downCommand(t), statusCommand(t), execCommand(t), logsCommand(t), linkCommand(t), killCommand(t),
		superviseCommand(), nodeCommand())
	return cmd
}

func upCommand(t *Target) *cobra.Command {
	var o Options
	cmd := &cobra.Command{
		Use: "up FILE", Short: "Bring a lab up",
		Long: `Bring the topology of FILE up and return when everything answers. The lab lives on in
the background until 'lab down'. Its name is the topology's, or --lab.`,
		Example: "  heliotrope lab up topologies/three-clouds.yaml\n  heliotrope lab up mine.yaml --lab second\n  heliotrope lab up topologies/traffic.yaml --light\n  heliotrope lab up topologies/two-sites.yaml --image-store",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			top, err := topologies.LoadFile(args[0], topologies.Options{})
			if err != nil {
				return err
			}
			o.Topology, o.TopologyFile, o.Name, o.Dir = top, args[0], t.Name, t.Dir
			began := time.Now()
			o.Progress = func(what string) {
				fmt.Fprintf(cmd.ErrOrStderr(), "%5.1fs  %s\n", time.Since(began).Seconds(), what)
			}
			return Up(cmd.Context(), o)
		},
	}
	cmd.Flags().BoolVar(&o.ImageStore, "image-store", false, "an image store in the lab's directory, from which VMs take their disks")
	cmd.Flags().BoolVar(&o.WithoutControl, "without-control", false, "no controller and no agents: routers, Open vSwitch and libvirt only")
	cmd.Flags().BoolVar(&o.Light, "light", false, "VMs are namespaces and no guests: many of them, real traffic, no moves")
	cmd.Flags().BoolVar(&o.WithoutLibvirt, "without-libvirt", false, "no libvirt on the hosts: for many hosts and no VMs")
	cmd.Flags().StringVar(&o.AgentBinary, "agent", "", "the agent's program (default: heliotrope-agent beside this one)")
	cmd.Flags().DurationVar(&o.Patience, "timeout", time.Minute, "how long everything may take to come up")
	return cmd
}

func downCommand(t *Target) *cobra.Command {
	return &cobra.Command{
		Use: "down [NAME]", Short: "Take a lab down; nothing of it remains",
		Example: "  heliotrope lab down\n  heliotrope lab down second",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				t.Name = args[0]
			}
			if err := t.Choose(cmd.Context()); errors.Is(err, errNoLab) {
				return nil
			} else if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			return Down(ctx, *t)
		},
	}
}

// errNoLab says that no lab is there to choose.
var errNoLab = errors.New("no lab is up: bring one up with 'heliotrope lab up FILE'")

// Choose settles on the only lab where none was named: the only one that runs, else the
// only one that left something.
func (t *Target) Choose(ctx context.Context) error {
	if t.Name != "" || t.Dir != "" {
		return nil
	}
	names, err := Names()
	if err != nil {
		return err
	}
	var running []string
	for _, name := range names {
		if _, err := Read(ctx, Target{Name: name}); err == nil {
			running = append(running, name)
		}
	}
	if len(running) > 0 {
		names = running
	}
	switch len(names) {
	case 0:
		return errNoLab
	case 1:
		t.Name = names[0]
		return nil
	}
	return fmt.Errorf("several labs are up: say which with --lab: %s", strings.Join(names, ", "))
}

func statusCommand(t *Target) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "status", Short: "Show nodes, daemons and links of a lab",
		Example: "  heliotrope lab status\n  heliotrope lab status -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := t.Choose(cmd.Context()); err != nil {
				return err
			}
			s, err := Read(cmd.Context(), *t)
			if err != nil {
				return err
			}
			switch output {
			case "table":
				return s.WriteTable(cmd.OutOrStdout(), time.Now())
			case "json":
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(s)
			}
			return fmt.Errorf("output %q: want table or json", output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func execCommand(t *Target) *cobra.Command {
	return &cobra.Command{
		Use: "exec NODE -- COMMAND [ARGUMENT...]", Short: "Run a command inside a node",
		Example: "  heliotrope lab exec left-1 -- virsh list\n  heliotrope lab exec router-left -- birdc show route\n  heliotrope lab exec visitor -- bash",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := t.Choose(cmd.Context()); err != nil {
				return err
			}
			code, err := Exec(cmd.Context(), *t, args[0], args[1:], Stdio{cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()})
			if err == nil && code != 0 {
				cmd.SilenceErrors = true
				return ExitError{code}
			}
			return err
		},
	}
}

func logsCommand(t *Target) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "logs NODE [DAEMON]", Short: "Show a daemon's log, or which logs a node has",
		Example: "  heliotrope lab logs left-1\n  heliotrope lab logs left-1 libvirtd\n  heliotrope lab logs controller controller -f\n  heliotrope lab logs supervisor",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := t.Choose(cmd.Context()); err != nil {
				return err
			}
			if len(args) == 2 || args[0] == "supervisor" {
				return Logs(cmd.Context(), *t, args[0], args[len(args)-1], follow, cmd.OutOrStdout())
			}
			names, err := LogNames(*t, args[0])
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), strings.Join(names, "\n"))
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	return cmd
}

func linkCommand(t *Target) *cobra.Command {
	var delay, jitter, queue time.Duration
	var loss float64
	var rate, from string
	var down, up bool
	cmd := &cobra.Command{
		Use: "link LINK", Short: "Change a WAN link while everything runs, or show it",
		Example: "  heliotrope lab link us-eu\n  heliotrope lab link us-eu --delay 80ms --loss 0.01 --rate 100Mbit\n  heliotrope lab link us-eu --down --from us\n  heliotrope lab link us-eu --up",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := t.Choose(cmd.Context()); err != nil {
				return err
			}
			c := LinkChange{Link: heliotrope.LinkID(args[0]), From: heliotrope.SiteID(from)}
			flags := cmd.Flags()
			given(flags.Changed("delay"), &c.Delay, heliotrope.Duration(delay))
			given(flags.Changed("jitter"), &c.Jitter, heliotrope.Duration(jitter))
			given(flags.Changed("queue"), &c.Queue, heliotrope.Duration(queue))
			given(flags.Changed("loss"), &c.Loss, loss)
			given(down || up, &c.Down, down)
			if flags.Changed("rate") {
				c.Rate = new(heliotrope.BitRate)
				if err := c.Rate.UnmarshalText([]byte(rate)); err != nil {
					return err
				}
			}
			s, err := Change(cmd.Context(), *t, c)
			if err != nil {
				return err
			}
			return s.writeLinks(cmd.OutOrStdout(), c.Link)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&delay, "delay", 0, "one way")
	f.DurationVar(&jitter, "jitter", 0, "spread around the delay")
	f.DurationVar(&queue, "queue", 0, "longest wait for the rate; 0 is the default of 50ms")
	f.Float64Var(&loss, "loss", 0, "share of packets, 0 to 1")
	f.StringVar(&rate, "rate", "", "each way, such as 100Mbit; 0bit is unlimited")
	f.StringVar(&from, "from", "", "only in the direction from this site")
	f.BoolVar(&down, "down", false, "let nothing through")
	f.BoolVar(&up, "up", false, "let packets through again")
	cmd.MarkFlagsMutuallyExclusive("down", "up")
	return cmd
}

func given[T any](is bool, field **T, value T) {
	if is {
		*field = &value
	}
}

func killCommand(t *Target) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "kill NODE DAEMON", Short: "Kill a daemon; its node starts it again",
		Example: "  heliotrope lab kill left-1 ovs-vswitchd\n  heliotrope lab kill left-1 libvirtd --signal TERM",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := t.Choose(cmd.Context()); err != nil {
				return err
			}
			s := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG"))
			if s == 0 {
				return fmt.Errorf("no signal is named %q", name)
			}
			return Kill(cmd.Context(), *t, KillOrder{Node: args[0], Daemon: args[1], Signal: s})
		},
	}
	cmd.Flags().StringVarP(&name, "signal", "s", "KILL", "which signal")
	return cmd
}

// superviseCommand and nodeCommand are what Up and the supervisor start.
func superviseCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "supervise", Hidden: true, Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return Run(cmd.Context(), os.Stdin, os.Stdout, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		},
	}
	cmd.Flags().String("name", "", "shown in the list of processes")
	return cmd
}

func nodeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "node", Hidden: true, Args: cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return node.Run(cmd.Context()) },
	}
}
