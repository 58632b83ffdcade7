// Package snapshots is "heliotrope vm snapshot" and "vm snapshots": running VMs' disks as images of the store.
package snapshots

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
)

// Tools are the command line's own.
type Tools struct {
	// Run makes a command of what talks to a controller.
	Run func(do func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error) func(*cobra.Command, []string) error
	// Args says how many arguments of which names there are.
	Args func(names ...string) cobra.PositionalArgs
	VMs  cobra.CompletionFunc
}

type flags struct {
	as, key         string
	next, wait, dry bool
}

// Commands are both.
func Commands(t Tools) []*cobra.Command { return []*cobra.Command{t.snapshot(), t.snapshots()} }

func (t Tools) snapshot() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use: "snapshot VM --as IMAGE", Short: "Make an image of a running VM's disk, as it is now", Args: t.Args("VM"), ValidArgsFunction: t.VMs,
		Long: `Make a version of an image of the store of a running VM's disk as it is at this moment; the VM goes on, and is not stopped for it. What it
was told is written is in the image, as after a power cut: no file system is asked to make itself tidy. Only what was written since the disk was
made is read, and of that sent what the store has not. Without --wait the command returns when the snapshot is taken.`,
		Example: `  heliotrope vm snapshot web --as web-backup --dry-run    how much would go?
  heliotrope vm snapshot web --as web-backup --wait       take it, and wait until it is in the store
  heliotrope vm snapshot web --as web-backup --next       web-backup's next version`,
		RunE: t.Run(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			if f.as == "" {
				return api.Invalid("say what it is to become: --as IMAGE")
			}
			return f.take(ctx, c, out, heliotrope.VMID(args[0]))
		}),
	}
	fl := cmd.Flags()
	fl.StringVar(&f.as, "as", "", "the image that it becomes")
	fl.BoolVar(&f.next, "next", false, "it becomes the next version of an image that is there")
	fl.BoolVarP(&f.wait, "wait", "w", false, "wait until it is in the store, and fail if it does not get there")
	fl.BoolVar(&f.dry, "dry-run", false, "say how much would go at most, take nothing")
	fl.StringVar(&f.key, "idempotency-key", "", "same key: same snapshot (default: a random one)")
	return cmd
}

func (f flags) take(ctx context.Context, c *api.Client, out *output.Printer, vm heliotrope.VMID) error {
	if f.key == "" {
		f.key = rand.Text()
	}
	s, err := c.StartSnapshot(ctx, api.SnapshotRequest{VM: vm, As: f.as, Next: f.next, DryRun: f.dry}, f.key)
	if err != nil {
		return err
	}
	if f.dry {
		return out.Show(s, func(t *output.Table) {
			t.Line("%s would become a version of %s", s.VM, s.Image)
			t.Row("disk", "over "+s.Base+", at "+string(s.Host))
			t.Row("bytes", output.Bytes(uint64(s.TotalBytes))+" at most, less what the store has already")
			t.Row("takes", output.Seconds(s.ETAS))
			if s.CostUSD > 0 {
				t.Row("costs", fmt.Sprintf("%.4f USD at most", s.CostUSD))
			}
		})
	}
	if !f.wait {
		return out.Show(s, func(t *output.Table) {
			t.Line("%s is taken: %s at %s, %s", s.ID, s.VM, s.Host, output.Bytes(uint64(s.TotalBytes)))
			t.Line("it becomes a version of %s in the background: heliotrope vm snapshots", s.Image)
		})
	}
	b := bar{out: out}
	s, err = c.WatchSnapshot(ctx, s.ID, b.update)
	if ctx.Err() != nil {
		return fmt.Errorf("no longer watching; the snapshot goes on: heliotrope vm snapshots")
	}
	if err != nil {
		return err
	}
	if s.State == api.SnapshotFailed {
		return fmt.Errorf("the snapshot of %s has failed: %s", s.VM, s.Note)
	}
	return out.Show(s, func(t *output.Table) {
		t.Line("%s is %s as it was at %s", s.Made, s.VM, s.BeganAt.UTC().Format(time.DateTime+" MST"))
		t.Line("%s were read, %s of them new to the store, where they take %s", output.Bytes(uint64(s.ReadBytes)), output.Bytes(uint64(s.NewBytes)), output.Bytes(uint64(s.StoredBytes)))
	})
}

func (t Tools) snapshots() *cobra.Command {
	var drop string
	cmd := &cobra.Command{
		Use: "snapshots", Short: "List snapshots of VMs' disks that are under way, or ended lately", Args: t.Args(),
		Example: `  heliotrope vm snapshots
  heliotrope vm snapshots --drop s-0123456789abcdef    give one up, or forget it; an image that it has become stays`,
		RunE: t.Run(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			if drop != "" {
				if err := c.DropSnapshot(ctx, drop); err != nil {
					return err
				}
			}
			all, err := c.Snapshots(ctx)
			if err != nil {
				return err
			}
			return out.Show(all, func(t *output.Table) {
				t.Head("ID", "VM", "HOST", "STATE", "DONE", "OF", "IMAGE", "TAKEN", "NOTE")
				for _, s := range all {
					image := s.Image
					if s.Made != "" {
						image = s.Made
					}
					t.Row(s.ID, s.VM, s.Host, s.State, output.Percent(s.Progress), output.Bytes(uint64(s.TotalBytes)), image, s.BeganAt, s.Note)
				}
			})
		}),
	}
	cmd.Flags().StringVar(&drop, "drop", "", "give this one up, or forget it if it is over")
	return cmd
}

// bar tells how far a snapshot is.
type bar struct {
	out  *output.Printer
	said time.Time
}

func (b *bar) update(s api.Snapshot) {
	every, begin, end := 10*time.Second, "", "\n"
	if b.out.Terminal {
		every, begin, end = 0, "\r\033[K", ""
	}
	if s.Over() {
		if b.out.Terminal {
			fmt.Fprint(b.out.Err, begin)
		}
		return
	}
	if time.Since(b.said) < every {
		return
	}
	b.said = time.Now()
	fmt.Fprintf(b.out.Err, "%s%-16s [%-30s] %4s  of %s %s%s", begin, s.Image, strings.Repeat("=", int(30*s.Progress)), output.Percent(s.Progress),
		output.Bytes(uint64(s.TotalBytes)), s.Note, end)
}
