package images

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
)

func (a *app) policies() *cobra.Command {
	var q api.ImagePolicyQuery
	var sites []string
	cmd := &cobra.Command{
		Use: "policies [IMAGE]", Short: "Show what the topology's policies have come to hosts: where, when, how much, for how much", Args: cobra.MaximumNArgs(1),
		Long: `Show the policies of images that the topology has (its section images), and what each would have come to which site, when, how many bytes that
are and what they cost. --policy shows that of a policy which is not in force; nothing is sent.`,
		Example: `  heliotrope image policies
  heliotrope image policies debian --policy everywhere --sites eu,asia      # what if?`,
		RunE: remote(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			q.Image = heliotrope.ImageID(strings.Join(args, ""))
			for _, s := range sites {
				if s != "all" {
					q.Sites = append(q.Sites, heliotrope.SiteID(s))
				}
			}
			all, err := c.ImagePolicies(ctx, q)
			if err != nil {
				return err
			}
			return showPolicies(out, all)
		}),
	}
	cmd.Flags().StringVar(&q.Policy, "policy", "", "what if the image had this policy: everywhere, follow or on-demand")
	cmd.Flags().StringSliceVar(&sites, "sites", nil, "with --policy: at these sites only (default: all)")
	cmd.Flags().StringVar(&q.Priority, "priority", "", "with --policy: with this priority: low, normal or high (default: as the topology says)")
	return cmd
}

func showPolicies(out *output.Printer, all []api.ImagePolicy) error {
	return out.Show(all, func(t *output.Table) {
		if len(all) == 0 {
			t.Line("the topology has no images with a policy: all come as VMs read them")
			return
		}
		var crosses int64
		var usd float64
		t.Head("IMAGE", "POLICY", "SITE", "HERE", "COMING", "COMES", "TAKES", "COSTS", "WHEN", "WHY")
		for _, p := range all {
			name := string(p.Image)
			if p.Version > 0 {
				name = fmt.Sprintf("%s@%d", p.Image, p.Version)
			}
			policy := p.Policy
			if p.Priority != "" && p.Priority != heliotrope.ImageNormal {
				policy += ", " + p.Priority
			}
			if len(p.Comes) == 0 {
				t.Row(name, policy, "", "", "", "", "", "", "", whyNothing(p))
			}
			for _, c := range p.Comes {
				t.Row(name, policy, c.Site, fmt.Sprintf("%d of %d", c.Here, c.Hosts), c.Coming, output.Bytes(uint64(c.WireBytes)), output.Seconds(c.ETAS), dollars(c.CostUSD), when(c, p),
					strings.Join(reasons(c), "; "))
				crosses, usd = crosses+c.WireBytes, usd+c.CostUSD
			}
		}
		t.Line("")
		if crosses == 0 {
			t.Line("nothing is to come")
			return
		}
		t.Line("in all %s are to come from the store, for %.4f USD", output.Bytes(uint64(crosses)), usd)
	})
}

func whyNothing(p api.ImagePolicy) string {
	if p.Note != "" {
		return p.Note
	}
	if p.Policy == heliotrope.ImageFollow {
		return "no VM of it is anywhere, or is to be"
	}
	return "there is no such host"
}

// when says when hosts of a site are told that were not.
func when(c api.ImageComes, p api.ImagePolicy) string {
	lack := c.Hosts - c.Here - c.Coming - c.Away - c.Full
	switch {
	case lack == 0:
		return ""
	case c.At.IsZero():
		return "never"
	case !c.At.After(time.Now()):
		return "now"
	}
	return c.At.UTC().Format("2006-01-02 15:04") + " UTC"
}

func reasons(c api.ImageComes) []string {
	return slices.DeleteFunc([]string{c.Why, plural(c.Away, "host away or without a store", "hosts away or without a store"),
		plural(c.Full, "host whose cache has no room", "hosts whose caches have no room")}, func(s string) bool { return s == "" })
}

// plural says how many, unless there is none.
func plural(n int, one, many string) string {
	switch n {
	case 0:
		return ""
	case 1:
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
