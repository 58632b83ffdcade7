package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
)

func (a *app) status() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "The whole system on one screen; exits with 1 if it is not ready", Args: args(),
		Example: "  heliotrope status\n  heliotrope status --lab three-clouds",
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			s, err := c.Status(ctx)
			if err != nil {
				return err
			}
			err = out.Show(s, func(t *output.Table) { statusTable(t, c.Server(), s) })
			if err == nil && !s.Ready {
				return silentError{errors.New("the controller is not ready")}
			}
			return err
		}),
	}
}

func statusTable(t *output.Table, server string, s api.Status) {
	t.Row("controller", fmt.Sprintf("%s, version %s", server, s.Version.Version))
	leader := "none"
	if s.Leader != "" {
		leader = fmt.Sprintf("%s, term %d", s.Leader, s.Term)
	}
	t.Row("leader", leader)
	topology := "none yet: heliotrope topology apply FILE"
	if s.Revision > 0 {
		topology = fmt.Sprintf("%s, revision %d", s.Topology, s.Revision)
	}
	t.Row("topology", topology)
	t.Row("hosts", fmt.Sprintf("%d of %d up, %d sites", s.HostsUp, s.Hosts, s.Sites))
	t.Row("VMs", fmt.Sprintf("%d of %d running, %d on the move", s.VMsRunning, s.VMs, s.Moving))
	if s.NeedAttention > 0 {
		t.Row("ATTENTION", fmt.Sprintf("%d migrations are held: heliotrope migration list", s.NeedAttention))
	}
	for _, c := range s.Checks {
		t.Row(map[bool]string{true: "ok", false: "FAIL"}[c.OK], c.Name+": "+output.Cell(c.Detail))
	}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Versions of this program and of the controller, if there is one", Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := a.printer(cmd)
			if err != nil {
				return err
			}
			v := map[string]api.Version{"client": {Version: a.version, Go: runtime.Version()}}
			if c, err := a.client(); err == nil {
				defer c.Close()
				if server, err := c.Version(cmd.Context()); err == nil {
					v["server"] = server
				}
			}
			return out.Show(v, func(t *output.Table) {
				t.Row("client", v["client"].Version, v["client"].Go)
				if server, ok := v["server"]; ok {
					t.Row("server", server.Version, server.Go)
				}
			})
		},
	}
}

func (a *app) events() *cobra.Command {
	var follow bool
	var kinds []string
	var limit int
	var after int64
	cmd := &cobra.Command{
		Use: "events", Short: "What happened", Args: args(),
		Example: `  heliotrope events                                the last 50
  heliotrope events --follow --kind migration      moves, as they happen
  heliotrope events -o json --after 1234           for programs: one JSON object a line`,
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with those to come")
	cmd.Flags().StringSliceVar(&kinds, "kind", nil, "only these kinds")
	cmd.Flags().IntVar(&limit, "limit", 50, "how many of the past, 1 to 1000")
	cmd.Flags().Int64Var(&after, "after", 0, "only those with a higher id")
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
		page, err := c.Events(ctx, after, limit, kinds...)
		if err != nil {
			return err
		}
		for _, e := range page.Events {
			if err := writeEvent(out, e); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		err = c.FollowEvents(ctx, page.Revision, kinds, func(e api.Event) error { return writeEvent(out, e) })
		if ctx.Err() != nil { // ^C is how one stops
			return nil
		}
		return err
	})
	return cmd
}

// writeEvent writes one event, so that a pipe has it at once.
func writeEvent(p *output.Printer, e api.Event) error {
	switch p.Format {
	case "json":
		data, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(p.Out, "%s\n", data)
		return err
	case "yaml":
		data, err := output.YAML(e)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(p.Out, "---\n%s", data)
		return err
	}
	_, err := fmt.Fprintf(p.Out, "%s  %-6d %-10s %-12s %s\n", output.Cell(e.At), e.ID, e.Kind, output.Cell(e.Subject), e.Message)
	return err
}
