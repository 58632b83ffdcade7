package cli

import (
	"context"
	"crypto/rand"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/controller/api"
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
		RunE: a.run(func(ctx context.Context, c *api.Client, out *printer, _ []string) error {
			sites, err := c.Sites(ctx)
			if err != nil {
				return err
			}
			return out.show(sites, func(t *table) {
				t.head("SITE", "PROVIDER", "UNDERLAY", "ROUTER", "HOSTS", "VMS")
				for _, s := range sites {
					t.row(s.Name, s.Provider, s.Underlay, s.Router, join(s.Hosts), join(s.VMs))
				}
			})
		}),
	}
}

func (a *app) network() *cobra.Command {
	return group("network", "Virtual networks that span all hosts", "  heliotrope network list", &cobra.Command{
		Use: "list", Short: "List all networks", Args: args(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *printer, _ []string) error {
			networks, err := c.Networks(ctx)
			if err != nil {
				return err
			}
			return out.show(networks, func(t *table) {
				t.head("NETWORK", "VNI", "SUBNET", "GATEWAY", "MTU", "GROUP", "VMS")
				for _, n := range networks {
					t.row(n.Name, n.VNI, n.Subnet, n.Gateway, n.MTU, n.Group, join(n.VMs))
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
		RunE: a.run(func(ctx context.Context, c *api.Client, out *printer, _ []string) error {
			hosts, err := c.Hosts(ctx)
			if err != nil {
				return err
			}
			return out.show(hosts, func(t *table) {
				t.head("HOST", "SITE", "STATE", "ADDRESS", "CPUS", "MEMORY", "KVM", "VMS", "LAST SEEN")
				for _, h := range hosts {
					t.row(h.Name, h.Site, h.State, h.Address, h.CPUs, mebibytes(h.MemoryMiB), h.KVM, join(h.VMs), h.LastSeen)
				}
			})
		}),
	}
}

func mebibytes(n int) string {
	if n == 0 {
		return ""
	}
	return cell(n) + " MiB"
}

func (a *app) hostShow() *cobra.Command {
	return &cobra.Command{
		Use: "show HOST", Short: "Show everything about a host", Args: args("HOST"), ValidArgsFunction: a.hostNames(),
		Example: "  heliotrope host show eu-1",
		RunE: a.run(func(ctx context.Context, c *api.Client, out *printer, args []string) error {
			h, err := c.Host(ctx, heliotrope.HostID(args[0]))
			if err != nil {
				return err
			}
			return out.show(h, func(t *table) {
				t.row("host", h.Name)
				t.row("site", h.Site)
				t.row("state", h.State)
				t.row("address", h.Address)
				t.row("public next hop", h.Public)
				t.row("connected", connected(h))
				t.row("joined", h.JoinedAt)
				t.row("last seen", h.LastSeen)
				t.row("agent", h.Agent)
				t.row("hypervisor", strings.TrimSpace("QEMU "+h.QEMU+" libvirt "+h.Libvirt))
				t.row("KVM", h.KVM)
				t.row("CPUs", h.CPUs)
				t.row("memory", mebibytes(h.MemoryMiB))
				t.row("underlay MTU", h.UnderlayMTU)
				t.row("VMs", join(h.VMs))
				if !h.DrainedAt.IsZero() {
					t.row("drained", cell(h.DrainedAt)+" "+h.DrainReason)
					t.row("goes away", h.DrainedBy)
				}
				for _, u := range h.Unmanaged {
					t.row("not ours", u)
				}
				for _, w := range h.Warnings {
					t.row("warning", w)
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
		RunE: a.run(func(ctx context.Context, c *api.Client, out *printer, args []string) error {
			token, err := c.CreateToken(ctx, heliotrope.HostID(args[0]), rand.Text())
			if err != nil {
				return err
			}
			return out.show(token, func(t *table) { t.line("%s", token.Token) })
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
	cmd.RunE = a.run(func(ctx context.Context, c *api.Client, out *printer, args []string) error {
		r.DeadlineS = deadline.Seconds()
		if err := c.DrainHost(ctx, heliotrope.HostID(args[0]), r); err != nil {
			return err
		}
		return out.show(map[string]string{"drained": args[0]}, func(t *table) {
			t.line("all VMs leave %s; watch it: heliotrope host show %s", args[0], args[0])
		})
	})
	return cmd
}

func (a *app) hostUndrain() *cobra.Command {
	return &cobra.Command{
		Use: "undrain HOST", Short: "Let VMs come to a host again", Args: args("HOST"), ValidArgsFunction: a.hostNames(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *printer, args []string) error {
			if err := c.UndrainHost(ctx, heliotrope.HostID(args[0])); err != nil {
				return err
			}
			return out.show(map[string]string{"undrained": args[0]}, func(t *table) { t.line("VMs may come to %s again", args[0]) })
		}),
	}
}

func (a *app) hostRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove HOST", Short: "Refuse a host's certificate from now on, and drop its connections", Args: args("HOST"), ValidArgsFunction: a.hostNames(),
		Example: "  heliotrope host remove eu-1",
		RunE: a.run(func(ctx context.Context, c *api.Client, out *printer, args []string) error {
			if err := c.RevokeHost(ctx, heliotrope.HostID(args[0])); err != nil {
				return err
			}
			return out.show(map[string]string{"removed": args[0]}, func(t *table) { t.line("%s is no longer let in", args[0]) })
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
  heliotrope vm migrate web --to eu --wait`, a.vmList(), a.vmShow(), a.vmMigrate())
}

func (a *app) vmList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List all VMs, with where they are", Args: args(),
		RunE: a.run(func(ctx context.Context, c *api.Client, out *printer, _ []string) error {
			vms, err := c.VMs(ctx)
			if err != nil {
				return err
			}
			return out.show(vms, func(t *table) {
				t.head("VM", "STATE", "SITE", "HOST", "EPOCH", "ADDRESS", "PUBLIC", "MIGRATION")
				for _, v := range vms {
					private, public := addresses(v)
					t.row(v.Name, v.State, v.Site, v.Host, v.Epoch, private, public, v.Migration)
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
		RunE: a.run(func(ctx context.Context, c *api.Client, out *printer, args []string) error {
			v, err := c.VM(ctx, heliotrope.VMID(args[0]))
			if err != nil {
				return err
			}
			return out.show(v, func(t *table) {
				t.row("VM", v.Name)
				t.row("state", v.State)
				t.row("host", v.Host)
				t.row("site", v.Site)
				t.row("epoch", v.Epoch)
				t.row("home", v.Home)
				t.row("image", v.Image)
				t.row("CPUs", v.CPUs)
				t.row("memory", mebibytes(v.MemoryMiB))
				t.row("migration", v.Migration)
				for _, w := range v.Warnings {
					t.row("warning", w)
				}
				t.line("")
				t.head("NETWORK", "MAC", "ADDRESS", "PUBLIC")
				for _, n := range v.NICs {
					t.row(n.Network, n.MAC, n.Address, n.Public)
				}
			})
		}),
	}
}
