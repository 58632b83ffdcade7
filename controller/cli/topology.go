package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
	"heliotrope/topologies"
)

func (a *app) topology() *cobra.Command {
	return group("topology", "What there is to be: sites, hosts, networks, VMs", `  heliotrope topology validate mine.yaml
  heliotrope topology plan mine.yaml
  heliotrope topology apply mine.yaml`,
		a.topologyGet(), a.topologyValidate(), a.topologyPlan(), a.topologyApply(), a.topologyDiff(), topologySchema())
}

func (a *app) topologyGet() *cobra.Command {
	return &cobra.Command{
		Use: "get", Short: "Print the topology in force as a file", Args: args(),
		Long:    "Print the topology in force as a file. Passwords of BGP peers are left out; a peer that is\napplied without a password keeps the one it has.",
		Example: "  heliotrope topology get > mine.yaml",
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			if out.Format == "json" {
				t, _, err := c.Topology(ctx)
				if err != nil {
					return err
				}
				return out.Show(t, nil)
			}
			text, err := c.TopologyYAML(ctx)
			if err != nil {
				return err
			}
			_, err = out.Out.Write(text)
			return err
		}),
	}
}

// load reads a topology file, or standard input for -, and finds all that is wrong with it.
func load(cmd *cobra.Command, name string) ([]byte, heliotrope.Topology, error) {
	var data []byte
	var err error
	if name == "-" {
		name = "standard input"
		data, err = io.ReadAll(io.LimitReader(cmd.InOrStdin(), topologies.DefaultMaxBytes+1))
	} else {
		data, err = readFile(name)
	}
	if err != nil {
		return nil, heliotrope.Topology{}, usagef("read topology: %w", err)
	}
	t, err := topologies.Parse(data, name, topologies.Options{})
	var all topologies.Errors
	if errors.As(err, &all) {
		return nil, t, fmt.Errorf("the topology is wrong in %s\n%w", output.Plural(len(all), "place"), err)
	}
	return data, t, err
}

// readFile reads one byte more than a topology may have, so that Parse says so.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, topologies.DefaultMaxBytes+1))
	return data, errors.Join(err, f.Close())
}

func (a *app) topologyValidate() *cobra.Command {
	return &cobra.Command{
		Use: "validate FILE", Short: "Find everything that is wrong with a file; needs no controller", Args: args("FILE"),
		Example: "  heliotrope topology validate mine.yaml\n  heliotrope topology validate - < mine.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			out, err := a.printer(cmd)
			if err != nil {
				return err
			}
			_, t, err := load(cmd, args[0])
			var all topologies.Errors
			if errors.As(err, &all) && out.Format != "table" {
				return errors.Join(out.Show(all, nil), usageError{silentError{err}})
			}
			if err != nil {
				return err
			}
			check := api.TopologyCheck{Valid: true, Name: t.Name, Sites: len(t.Sites), Hosts: len(t.Hosts), Networks: len(t.Networks), VMs: len(t.VMs)}
			return out.Show(check, func(tab *output.Table) {
				tab.Line("%s is valid: %s, %s, %s, %s", t.Name, output.Plural(check.Sites, "site"), output.Plural(check.Hosts, "host"),
					output.Plural(check.Networks, "network"), output.Plural(check.VMs, "VM"))
			})
		},
	}
}

func (a *app) topologyPlan() *cobra.Command {
	return &cobra.Command{
		Use: "plan FILE", Short: "Say what applying a file would do", Args: args("FILE"),
		Example: "  heliotrope topology plan mine.yaml",
		RunE: a.withTopology(func(ctx context.Context, c *api.Client, data []byte) (api.TopologyPlan, error) {
			return c.PlanTopology(ctx, data)
		}),
	}
}

func (a *app) topologyApply() *cobra.Command {
	var dryRun, force bool
	cmd := &cobra.Command{
		Use: "apply FILE", Short: "Put a topology in force", Args: args("FILE"),
		Long:    "Put a topology in force. Nothing is changed when the file is wrong, or when somebody else\nchanged the topology between plan and apply (--force changes it all the same).",
		Example: "  heliotrope topology apply mine.yaml --dry-run\n  heliotrope topology apply mine.yaml",
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change, change nothing")
	cmd.Flags().BoolVar(&force, "force", false, "also when somebody changed the topology meanwhile")
	cmd.RunE = a.withTopology(func(ctx context.Context, c *api.Client, data []byte) (api.TopologyPlan, error) {
		plan, err := c.PlanTopology(ctx, data)
		if err != nil || dryRun {
			return plan, err
		}
		ifMatch := plan.Revision
		if force {
			ifMatch = -1
		}
		return c.ApplyTopology(ctx, data, ifMatch)
	})
	return cmd
}

// withTopology runs fn with a file and shows its plan.
func (a *app) withTopology(fn func(context.Context, *api.Client, []byte) (api.TopologyPlan, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		data, _, err := load(cmd, args[0])
		if err != nil {
			return err
		}
		return a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			plan, err := fn(ctx, c, data)
			if err != nil {
				return err
			}
			return out.Show(plan, func(t *output.Table) { planTable(t, plan) })
		})(cmd, args)
	}
}

func planTable(t *output.Table, p api.TopologyPlan) {
	count := map[string]int{}
	for _, c := range p.Changes {
		count[c.Op]++
		t.Row(map[string]string{"create": "+", "update": "~", "delete": "-"}[c.Op], c.Kind, c.Name, c.Effect)
		for _, f := range c.Fields {
			t.Row("", "", "  "+f.Path+":", fmt.Sprintf("%s → %s", output.Cell(f.Old), output.Cell(f.New)))
		}
	}
	for _, w := range p.Warnings {
		t.Line("warning: %s", w)
	}
	switch {
	case len(p.Changes) == 0:
		t.Line("%s: no difference to what is in force (revision %d)", p.Name, p.Revision)
	case p.Applied:
		t.Line("%s is in force (revision %d): %d created, %d updated, %d deleted", p.Name, p.Revision, count["create"], count["update"], count["delete"])
	default:
		t.Line("%s would create %d, update %d, delete %d", p.Name, count["create"], count["update"], count["delete"])
	}
}

func (a *app) topologyDiff() *cobra.Command {
	var exitCode bool
	cmd := &cobra.Command{
		Use: "diff FILE [FILE]", Short: "In what a file differs from the topology in force, or from another file",
		Example: "  heliotrope topology diff mine.yaml\n  heliotrope topology diff old.yaml new.yaml",
		Args: func(cmd *cobra.Command, got []string) error {
			if len(got) == 2 {
				return nil
			}
			return args("FILE")(cmd, got)
		},
	}
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "exit with 1 when there is a difference")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		different := false
		var err error
		if len(args) == 2 {
			different, err = a.diffFiles(cmd, args[0], args[1])
		} else {
			err = a.withTopology(func(ctx context.Context, c *api.Client, data []byte) (api.TopologyPlan, error) {
				plan, err := c.DiffTopology(ctx, data)
				different = len(plan.Changes) > 0
				return plan, err
			})(cmd, args)
		}
		if err == nil && different && exitCode {
			return silentError{errors.New("the topologies differ")}
		}
		return err
	}
	return cmd
}

func (a *app) diffFiles(cmd *cobra.Command, from, to string) (bool, error) {
	out, err := a.printer(cmd)
	if err != nil {
		return false, err
	}
	_, old, err := load(cmd, from)
	if err != nil {
		return false, err
	}
	_, now, err := load(cmd, to)
	if err != nil {
		return false, err
	}
	changes := topologies.Diff(old, now)
	return len(changes) > 0, out.Show(changes, func(t *output.Table) {
		for _, c := range changes {
			t.Line("%s", c)
		}
		if len(changes) == 0 {
			t.Line("no difference")
		}
	})
}

func topologySchema() *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of topology files, for editors", Args: args(),
		Example: "  heliotrope topology schema > heliotrope.schema.json\n  # then, as a file's first line:\n  # yaml-language-server: $schema=heliotrope.schema.json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), topologies.Schema())
			return err
		},
	}
}
