package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
)

func (a *app) route() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the public routes that are announced", Args: args(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			routes, err := c.Routes(ctx)
			if err != nil {
				return err
			}
			return out.Show(routes, func(t *output.Table) {
				t.Head("PREFIX", "VM", "PRIVATE", "SITE", "HOST", "NEXT HOP", "ANNOUNCED", "PEERS")
				for _, r := range routes {
					t.Row(r.Prefix, r.VM, r.Private, r.Site, r.Host, r.NextHop, r.Announced, r.Peers)
				}
			})
		}),
	}
	return group("route", "Public routes", "  heliotrope route list\n  heliotrope route why 198.51.100.10", list, a.routeWhy())
}

func (a *app) routeWhy() *cobra.Command {
	return &cobra.Command{
		Use: "why IP", Short: "Where an address goes, and who believes what about it", Args: args("IP"),
		Long:    "Where an address goes, and who believes what about it: its owner, the route that every\nrouter should have, what each BGP peer was told and tells us. Exits with 1 unless all is well.",
		Example: "  heliotrope route why 198.51.100.10",
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			addr, err := netip.ParseAddr(args[0])
			if err != nil {
				return usagef("%q is no address", args[0])
			}
			why, err := c.WhyRoute(ctx, addr)
			if err != nil {
				return err
			}
			err = out.Show(why, func(t *output.Table) { whyTable(t, why) })
			if err == nil && why.Verdict != "ok" && why.Verdict != "moving" {
				return silentError{fmt.Errorf("the verdict is %s", why.Verdict)}
			}
			return err
		}),
	}
}

func whyTable(t *output.Table, w api.RouteWhy) {
	t.Line("%s: %s", w.Address, w.Verdict)
	for _, s := range w.Explanation {
		t.Line("  %s", s)
	}
	if len(w.Peers) == 0 {
		return
	}
	t.Line("")
	t.Head("PEER", "SITE", "SESSION", "TOLD", "NEXT HOP", "HEARD", "NOTE")
	for _, p := range w.Peers {
		t.Row(p.Peer, p.Site, p.Session, p.Told, p.NextHop, p.Heard, p.Explanation)
	}
}

func (a *app) mesh() *cobra.Command {
	status := &cobra.Command{
		Use: "status", Short: "Every tunnel, seen from both ends", Args: args(),
		Example: "  heliotrope mesh status",
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			m, err := c.Mesh(ctx)
			if err != nil {
				return err
			}
			return out.Show(m, func(t *output.Table) { meshTable(t, m) })
		}),
	}
	return group("mesh", "The tunnels between all hosts", "  heliotrope mesh status\n  heliotrope mesh verify --packet-size 1450", status, a.meshVerify())
}

// meshTable is a matrix where it fits on a screen, and a list of all links with details.
func meshTable(t *output.Table, m api.Mesh) {
	links := map[[2]heliotrope.HostID]api.MeshLink{}
	down := 0
	for _, l := range m.Links {
		links[[2]heliotrope.HostID{l.From, l.To}] = l
		if l.State != "up" {
			down++
		}
	}
	if len(m.Hosts) <= 12 {
		head := []string{"FROM\\TO"}
		for _, h := range m.Hosts {
			head = append(head, string(h))
		}
		t.Head(head...)
		for _, from := range m.Hosts {
			row := []any{from}
			for _, to := range m.Hosts {
				row = append(row, meshCell(links[[2]heliotrope.HostID{from, to}]))
			}
			t.Row(row...)
		}
		t.Line("")
	}
	t.Head("FROM", "TO", "STATE", "BFD", "RTT", "LOSS", "MTU", "RX", "TX", "ERROR")
	for _, l := range m.Links {
		t.Row(l.From, l.To, l.State, l.BFD, output.Milliseconds(l.RTTMs), output.Percent(l.Loss), positive(l.MTU), output.Bytes(l.RxBytes), output.Bytes(l.TxBytes), l.Error)
	}
	t.Line("%d hosts, %d of %d links up", len(m.Hosts), len(m.Links)-down, len(m.Links))
}

func meshCell(l api.MeshLink) string {
	switch {
	case l.From == "":
		return "·"
	case l.State != "up":
		return l.State
	case l.RTTMs == 0:
		return "up"
	}
	return output.Milliseconds(l.RTTMs)
}

func positive(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func (a *app) meshVerify() *cobra.Command {
	var size int
	cmd := &cobra.Command{
		Use: "verify", Short: "Prove that packets of a size pass every tunnel; exits with 1 if not", Args: args(),
		Example: "  heliotrope mesh verify --packet-size 1450",
	}
	cmd.Flags().IntVar(&size, "packet-size", 1450, "bytes of the inner IP packet, never fragmented")
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
		v, err := c.VerifyMesh(ctx, size)
		if err != nil {
			return err
		}
		err = out.Show(v, func(t *output.Table) {
			t.Head("FROM", "TO", "RESULT", "RTT", "ERROR")
			for _, l := range v.Links {
				t.Row(l.From, l.To, map[bool]string{true: "ok", false: "FAIL"}[l.OK], output.Milliseconds(l.RTTMs), l.Error)
			}
			t.Line("packets of %d bytes %s everywhere", v.PacketSize, map[bool]string{true: "pass", false: "do not pass"}[v.OK])
		})
		if err == nil && !v.OK {
			return silentError{errors.New("packets of this size do not pass everywhere")}
		}
		return err
	})
	return cmd
}

func (a *app) flows() *cobra.Command {
	list := &cobra.Command{
		Use: "list HOST", Short: "The flows of a host's br-int", Args: args("HOST"), ValidArgsFunction: a.hostNames(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			l, err := c.Flows(ctx, heliotrope.HostID(args[0]))
			if err != nil {
				return err
			}
			return out.Show(l, func(t *output.Table) {
				t.Head("TABLE", "PRIORITY", "PACKETS", "MATCH", "ACTIONS")
				for _, f := range l.Flows {
					t.Row(f.Table, f.Priority, f.Packets, f.Match, f.Actions)
				}
			})
		}),
	}
	return group("flows", "What the hosts' switches do with packets", "  heliotrope flows diff eu-1\n  heliotrope flows list eu-1", a.flowsDiff(), list)
}

func (a *app) flowsDiff() *cobra.Command {
	return &cobra.Command{
		Use: "diff HOST", Short: "Flows wanted minus flows installed; exits with 1 if they differ", Args: args("HOST"), ValidArgsFunction: a.hostNames(),
		Example: "  heliotrope flows diff eu-1",
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			d, err := c.FlowDiff(ctx, heliotrope.HostID(args[0]))
			if err != nil {
				return err
			}
			same := len(d.Missing)+len(d.Extra) == 0
			err = out.Show(d, func(t *output.Table) {
				for _, l := range []struct {
					sign  string
					flows []api.Flow
				}{{"+", d.Missing}, {"-", d.Extra}, {"?", d.Foreign}} {
					for _, f := range l.flows {
						t.Row(l.sign, f.Table, f.Priority, f.Match, f.Actions)
					}
				}
				t.Line("%s: %d missing (+), %d surplus (-), %d not ours (?)", d.Host, len(d.Missing), len(d.Extra), len(d.Foreign))
			})
			if err == nil && !same {
				return silentError{errors.New("the flows differ")}
			}
			return err
		}),
	}
}
