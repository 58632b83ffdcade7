package cli

import (
	"context"
	"crypto/rand"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
	"heliotrope/controller/cli/snapshots"
)

func (a *app) site() *cobra.Command {
	cmd := group("site", "Places with a router and hosts", `  heliotrope site list
  heliotrope site bench                    how fast their hosts are`, a.siteList(), a.siteBench())
	cmd.Aliases = []string{"sites"}
	return cmd
}

func (a *app) siteList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List all sites", Args: args(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			sites, err := c.Sites(ctx)
			if err != nil {
				return err
			}
			return out.Show(sites, func(t *output.Table) {
				t.Head("SITE", "PROVIDER", "UNDERLAY", "ROUTER", "HOSTS", "VMS")
				for _, s := range sites {
					t.Row(s.Name, s.Provider, s.Underlay, s.Router, output.Join(s.Hosts), output.Join(s.VMs))
				}
			})
		}),
	}
}

func (a *app) network() *cobra.Command {
	return group("network", "Virtual networks that span all hosts", "  heliotrope network list", &cobra.Command{
		Use: "list", Short: "List all networks", Args: args(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			networks, err := c.Networks(ctx)
			if err != nil {
				return err
			}
			return out.Show(networks, func(t *output.Table) {
				t.Head("NETWORK", "VNI", "SUBNET", "GATEWAY", "MTU", "GROUP", "VMS")
				for _, n := range networks {
					t.Row(n.Name, n.VNI, n.Subnet, n.Gateway, n.MTU, n.Group, output.Join(n.VMs))
				}
			})
		}),
	})
}

func (a *app) hostNames() cobra.CompletionFunc {
	return a.names(func(ctx context.Context, c *api.Client) (names []string, err error) {
		hosts, err := c.Hosts(ctx)
		for _, h := range hosts {
			names = append(names, string(h.Name))
		}
		return names, err
	})
}

func (a *app) host() *cobra.Command {
	token := group("token", "Tokens with which hosts join", "  heliotrope host token create eu-1", a.tokenCreate())
	return group("host", "Machines that run Open vSwitch, QEMU and the agent", `  heliotrope host list
  heliotrope host token create eu-1        a token for: heliotrope-agent join --controller … --token …
  heliotrope host drain eu-1               have all VMs leave it
  heliotrope host remove eu-1              refuse its certificate from now on`,
		a.hostList(), a.hostShow(), token, a.hostDrain(), a.hostUndrain(), a.hostRemove())
}

func (a *app) hostList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List all hosts, with what is connected", Args: args(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			hosts, err := c.Hosts(ctx)
			if err != nil {
				return err
			}
			return out.Show(hosts, func(t *output.Table) {
				t.Head("HOST", "SITE", "STATE", "ADDRESS", "CPUS", "MEMORY", "KVM", "VMS", "LAST SEEN")
				for _, h := range hosts {
					t.Row(h.Name, h.Site, h.State, h.Address, h.CPUs, mebibytes(h.MemoryMiB), h.KVM, output.Join(h.VMs), h.LastSeen)
				}
			})
		}),
	}
}

func mebibytes(n int) string {
	if n == 0 {
		return ""
	}
	return output.Cell(n) + " MiB"
}

func (a *app) hostShow() *cobra.Command {
	return &cobra.Command{
		Use: "show HOST", Short: "Show everything about a host", Args: args("HOST"), ValidArgsFunction: a.hostNames(),
		Example: "  heliotrope host show eu-1",
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			h, err := c.Host(ctx, heliotrope.HostID(args[0]))
			if err != nil {
				return err
			}
			return out.Show(h, func(t *output.Table) {
				t.Row("host", h.Name)
				t.Row("site", h.Site)
				t.Row("state", h.State)
				t.Row("address", h.Address)
				t.Row("public next hop", h.Public)
				t.Row("connected", connected(h))
				t.Row("joined", h.JoinedAt)
				t.Row("last seen", h.LastSeen)
				t.Row("agent", h.Agent)
				t.Row("hypervisor", strings.TrimSpace("QEMU "+h.QEMU+" libvirt "+h.Libvirt))
				t.Row("KVM", h.KVM)
				t.Row("CPUs", h.CPUs)
				t.Row("memory", mebibytes(h.MemoryMiB))
				t.Row("underlay MTU", h.UnderlayMTU)
				t.Row("VMs", output.Join(h.VMs))
				if !h.DrainedAt.IsZero() {
					t.Row("drained", output.Cell(h.DrainedAt)+" "+h.DrainReason)
					t.Row("goes away", h.DrainedBy)
				}
				for _, u := range h.Unmanaged {
					t.Row("not ours", u)
				}
				for _, w := range h.Warnings {
					t.Row("warning", w)
				}
			})
		}),
	}
}

func connected(h api.Host) string {
	var on []string
	for _, c := range []struct {
		name string
		on   bool
	}{{"agent", h.RPC}, {"ovsdb", h.OVSDB}, {"openflow", h.OpenFlow}} {
		if c.on {
			on = append(on, c.name)
		}
	}
	return strings.Join(on, ", ")
}

func (a *app) tokenCreate() *cobra.Command {
	return &cobra.Command{
		Use: "create HOST", Short: "Make a token with which a host joins, once, within an hour", Args: args("HOST"), ValidArgsFunction: a.hostNames(),
		Example: "  heliotrope host token create eu-1\n  heliotrope-agent join --controller 192.0.2.1:7443 --token HT10…   # then, on the host",
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			token, err := c.CreateToken(ctx, heliotrope.HostID(args[0]), rand.Text())
			if err != nil {
				return err
			}
			return out.Show(token, func(t *output.Table) { t.Line("%s", token.Token) })
		}),
	}
}

func (a *app) hostDrain() *cobra.Command {
	var r api.DrainRequest
	var deadline time.Duration
	cmd := &cobra.Command{
		Use: "drain HOST", Short: "Have all VMs leave a host, and let none come", Args: args("HOST"), ValidArgsFunction: a.hostNames(),
		Long: `Have all VMs leave a host, whatever their pools' autopilots are, and let none come until
undrain. Where each goes is a plan like any other: heliotrope plan list.`,
		Example: `  heliotrope host drain eu-1 --reason maintenance
  heliotrope host drain eu-1 --reason 'revoked by the provider' --deadline 60s`,
	}
	cmd.Flags().StringVar(&r.Reason, "reason", "", "why; it is told with the event")
	cmd.Flags().DurationVar(&deadline, "deadline", 0, "the host goes away after that (default: it does not by itself)")
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
		r.DeadlineS = deadline.Seconds()
		if err := c.DrainHost(ctx, heliotrope.HostID(args[0]), r); err != nil {
			return err
		}
		return out.Show(map[string]string{"drained": args[0]}, func(t *output.Table) {
			t.Line("all VMs leave %s; watch it: heliotrope host show %s", args[0], args[0])
		})
	})
	return cmd
}

func (a *app) hostUndrain() *cobra.Command {
	return &cobra.Command{
		Use: "undrain HOST", Short: "Let VMs come to a host again", Args: args("HOST"), ValidArgsFunction: a.hostNames(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			if err := c.UndrainHost(ctx, heliotrope.HostID(args[0])); err != nil {
				return err
			}
			return out.Show(map[string]string{"undrained": args[0]}, func(t *output.Table) { t.Line("VMs may come to %s again", args[0]) })
		}),
	}
}

func (a *app) hostRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove HOST", Short: "Refuse a host's certificate from now on, and drop its connections", Args: args("HOST"), ValidArgsFunction: a.hostNames(),
		Example: "  heliotrope host remove eu-1",
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			if err := c.RevokeHost(ctx, heliotrope.HostID(args[0])); err != nil {
				return err
			}
			return out.Show(map[string]string{"removed": args[0]}, func(t *output.Table) { t.Line("%s is no longer let in", args[0]) })
		}),
	}
}

func (a *app) vmNames() cobra.CompletionFunc {
	return a.names(func(ctx context.Context, c *api.Client) (names []string, err error) {
		vms, err := c.VMs(ctx)
		for _, v := range vms {
			names = append(names, string(v.Name))
		}
		return names, err
	})
}

func (a *app) vm() *cobra.Command {
	return group("vm", "Virtual machines", `  heliotrope vm list
  heliotrope vm migrate web --to eu --wait
  heliotrope vm snapshot web --as web-backup --wait`,
		append(snapshots.Commands(snapshots.Tools{Run: a.run, Args: args, VMs: a.vmNames()}), a.vmList(), a.vmShow(), a.vmMigrate())...)
}

func (a *app) vmList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List all VMs, with where they are", Args: args(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			vms, err := c.VMs(ctx)
			if err != nil {
				return err
			}
			return out.Show(vms, func(t *output.Table) {
				t.Head("VM", "STATE", "SITE", "HOST", "EPOCH", "ADDRESS", "PUBLIC", "MIGRATION")
				for _, v := range vms {
					private, public := addresses(v)
					t.Row(v.Name, v.State, v.Site, v.Host, v.Epoch, private, public, v.Migration)
				}
			})
		}),
	}
}

func addresses(v api.VM) (private, public string) {
	var a, b []string
	for _, n := range v.NICs {
		a = append(a, n.Address.String())
		if n.Public.IsValid() {
			b = append(b, n.Public.String())
		}
	}
	return strings.Join(a, ","), strings.Join(b, ",")
}

func (a *app) vmShow() *cobra.Command {
	return &cobra.Command{
		Use: "show VM", Short: "Show everything about a VM", Args: args("VM"), ValidArgsFunction: a.vmNames(),
		Example: "  heliotrope vm show web",
		RunE: a.run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			v, err := c.VM(ctx, heliotrope.VMID(args[0]))
			if err != nil {
				return err
			}
			return out.Show(v, func(t *output.Table) {
				t.Row("VM", v.Name)
				t.Row("state", v.State)
				t.Row("host", v.Host)
				t.Row("site", v.Site)
				t.Row("epoch", v.Epoch)
				t.Row("home", v.Home)
				t.Row("image", v.Image)
				if v.Tenant != "" {
					t.Row("tenant", v.Tenant)
				}
				t.Row("CPUs", v.CPUs)
				t.Row("memory", mebibytes(v.MemoryMiB))
				t.Row("migration", v.Migration)
				for _, w := range v.Warnings {
					t.Row("warning", w)
				}
				t.Line("")
				t.Head("NETWORK", "MAC", "ADDRESS", "PUBLIC")
				for _, n := range v.NICs {
					t.Row(n.Network, n.MAC, n.Address, n.Public)
				}
			})
		}),
	}
}
