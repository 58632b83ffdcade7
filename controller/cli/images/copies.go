package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
	"heliotrope/imagesync"
	"heliotrope/imagesync/delta"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/qcow2"
	"heliotrope/imagesync/site"
	"heliotrope/imagesync/source"
)

// importFlags say how an image comes in.
type importFlags struct {
	backing                       bool
	format, sum, downloads, limit string
}

func (a *app) imports() *cobra.Command {
	var o importFlags
	cmd := &cobra.Command{
		Use: "import IMAGE FILE|URL", Short: "Make a new version of an image of a raw or qcow2 file", Args: cobra.ExactArgs(2),
		Long: `Make a new version of an image of a file: raw, a block device, or qcow2 with whatever it has inside. What the store has already takes no room.
A backing file is read only if --backing says so, since its name comes from the file itself.

An http or https URL is downloaded first. A download that was broken off goes on where it ended, now or when the command is given again.`,
		Example: `  heliotrope image import debian debian-12-genericcloud-amd64.qcow2
  heliotrope image import debian https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2 --sha256 3f…`,
		RunE: a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, args []string) error {
			if err := manifest.CheckName(args[0]); err != nil { // before anything is downloaded
				return err
			}
			if isURL(args[1]) {
				return importURL(ctx, s, out, args[0], args[1], o)
			}
			if o.sum != "" {
				return errors.New("--sha256 is for what is downloaded: check a file with sha256sum")
			}
			return importFile(ctx, s, out, args[0], args[1], args[1], o)
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&o.backing, "backing", false, "read the backing files of a qcow2 image as well")
	f.StringVar(&o.format, "format", "", "raw or qcow2 (default: what the file begins like)")
	f.StringVar(&o.sum, "sha256", "", "what a download has to have, in hexadecimal digits")
	f.StringVar(&o.limit, "max-size", "256G", "the largest file that is downloaded")
	f.StringVar(&o.downloads, "downloads", defaultDir("/var/lib/heliotrope/image-downloads", "image-downloads"), "directory of downloads that are under way")
	return cmd
}

func importFile(ctx context.Context, s *imagesync.Store, out *output.Printer, image, file, from string, o importFlags) error {
	src, err := source.Open(file, o.format, o.backing)
	if !o.backing && errors.Is(err, qcow2.ErrUnsupported) {
		err = fmt.Errorf("%w (--backing reads a backing file as well)", err)
	}
	if err != nil {
		return fmt.Errorf("import %s: %w", image, err)
	}
	defer src.Close()
	bar := newBar(out, "imported")
	v, stats, err := s.Import(ctx, image, src, imagesync.ImportOptions{From: from, Progress: bar.update})
	bar.end()
	if err != nil {
		return err
	}
	return showMade(out, v, stats, delta.Stats{})
}

func importURL(ctx context.Context, s *imagesync.Store, out *output.Printer, image, where string, o importFlags) error {
	limit, err := site.ParseBytes(o.limit)
	if err == nil {
		err = checkSum(o.sum)
	}
	if err == nil && o.backing {
		err = errors.New("--backing is for files: a download has no other beside it")
	}
	if err != nil {
		return err
	}
	d, err := newDownload(where, o.downloads, limit)
	if err != nil {
		return fmt.Errorf("import %s: %w", image, err)
	}
	defer d.Close()
	bar := newBar(out, "downloaded")
	d.tell = bar.update
	err = d.get(ctx)
	bar.end()
	var sum string
	if err == nil {
		sum, err = d.check(o.sum)
	}
	if err != nil {
		return fmt.Errorf("import %s: %w", image, err)
	}
	if err := importFile(ctx, s, out, image, d.file, d.origin(sum), o); err != nil {
		return err
	}
	return d.remove()
}

// made is what import, push and pull say.
type made struct {
	manifest.Version
	Read  int64 `json:"read_bytes,omitempty"`   // of the file
	New   int64 `json:"new_bytes,omitempty"`    // that the store did not have
	Kept  int64 `json:"stored_bytes,omitempty"` // what they take
	Wire  int64 `json:"wire_bytes,omitempty"`   // that crossed
	Moved int64 `json:"data_bytes,omitempty"`   // of them, before they were compressed
}

func showMade(out *output.Printer, v manifest.Version, w imagesync.WriteStats, d delta.Stats) error {
	m := made{v, w.Put, w.New, w.Stored, d.Bytes, d.Data * manifest.BlockSize}
	return out.Show(m, func(t *output.Table) {
		t.Row("image", v.Ref())
		t.Row("root", v.Root)
		t.Row("size", output.Bytes(uint64(v.Size)))
		t.Row("content", output.Bytes(uint64(v.Content)))
		if w.Put > 0 {
			t.Row("new here", fmt.Sprintf("%s, %s on the disk", output.Bytes(uint64(m.New)), output.Bytes(uint64(m.Kept))))
		}
		if d.Bytes > 0 {
			t.Row("sent", fmt.Sprintf("%s, for %s of blocks that were missing", output.Bytes(uint64(m.Wire)), output.Bytes(uint64(m.Moved))))
		}
	})
}

func (a *app) export() *cobra.Command {
	return &cobra.Command{
		Use: "export IMAGE[@VERSION] FILE", Short: "Write a version to a raw file, with holes where it is zero", Args: cobra.ExactArgs(2),
		RunE: a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, args []string) error {
			r, err := s.Open(ctx, args[0])
			if err != nil {
				return err
			}
			defer r.Close()
			bar := newBar(out, "exported")
			err = exportTo(ctx, r, args[1], bar.update)
			bar.end()
			if err != nil {
				return err
			}
			return showVersion(out, r.Version, false)
		}),
	}
}

// exportTo writes beside the file first: one that is there is replaced by a whole one or not
// at all.
func exportTo(ctx context.Context, r *imagesync.Reader, file string, progress func(done, all int64)) error {
	part, err := os.OpenFile(file+".part", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("export %s: %w", r.Version.Ref(), err)
	}
	defer os.Remove(part.Name())
	err = part.Truncate(r.Size())
	if err == nil {
		err = r.Export(ctx, part, progress)
	}
	if err = errors.Join(err, part.Sync(), part.Close()); err == nil {
		err = os.Rename(part.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("export %s: %w", r.Version.Ref(), err)
	}
	return nil
}

func (a *app) pull() *cobra.Command {
	var from string
	var dry bool
	cmd := &cobra.Command{
		Use: "pull IMAGE[@VERSION] --from STORE", Short: "Get a version from another store, by what is missing here", Args: cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, args []string) error {
			other, err := a.open(ctx, from, true)
			if err != nil {
				return err
			}
			return errors.Join(transfer(ctx, other, s, args[0], dry, out), other.Close())
		}),
	}
	cmd.Flags().StringVar(&from, "from", "", "the store that has it: a directory, or a bucket's URL")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be sent")
	cmd.MarkFlagRequired("from")
	return cmd
}

func (a *app) push() *cobra.Command {
	var to string
	var p pushFlags
	cmd := &cobra.Command{
		Use: "push IMAGE[@VERSION] --to STORE | --sites SITES", Short: "Copy a version to another store, or let it come to hosts before they need it", Args: cobra.ExactArgs(1),
		Long: `With --to, copy a version to another store, by what is missing there. With --sites, ask the controller to let a version of its store come to the
hosts of these sites (or of all), so that a VM there starts from what is there; hosts pull it in the background, after what their VMs read.`,
		Example: `  heliotrope image push debian --to /mnt/backup
  heliotrope image push debian@3 --sites all --wait`,
	}
	copies := a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, args []string) error {
		other, err := a.open(ctx, to, false)
		if err != nil {
			return err
		}
		return errors.Join(transfer(ctx, s, other, args[0], p.dry, out), other.Close())
	})
	hosts := remote(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
		return p.push(ctx, c, out, args[0])
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(p.sites) > 0 {
			return hosts(cmd, args)
		}
		return copies(cmd, args)
	}
	f := cmd.Flags()
	f.StringVar(&to, "to", "", "the store that is to have it: a directory, or a bucket's URL")
	f.StringSliceVar(&p.sites, "sites", nil, "sites whose hosts are to have it, or all")
	f.BoolVar(&p.wait, "wait", false, "with --sites: until it is there, or the command is interrupted")
	f.BoolVar(&p.dry, "dry-run", false, "only say what would be sent, or come")
	f.BoolVar(&p.inWindow, "in-window", false, "with --sites: hosts let it come in the windows of the image's policy only")
	f.StringVar(&p.rate, "rate", "", "with --sites: most that crosses the WAN to each site, as 50Mbit (default: any)")
	f.StringVar(&p.priority, "priority", "", "with --sites: which images go first over a link that they share: low, normal or high (default: as the image's policy, else normal)")
	cmd.MarkFlagsOneRequired("to", "sites")
	cmd.MarkFlagsMutuallyExclusive("to", "sites")
	cmd.MarkFlagsMutuallyExclusive("to", "in-window")
	cmd.MarkFlagsMutuallyExclusive("to", "rate")
	cmd.MarkFlagsMutuallyExclusive("to", "priority")
	return cmd
}

func transfer(ctx context.Context, from, to *imagesync.Store, ref string, dry bool, out *output.Printer) error {
	if dry {
		v, stats, err := to.Foresee(ctx, from, ref)
		if err != nil {
			return err
		}
		return showMade(out, v, imagesync.WriteStats{}, stats)
	}
	v, stats, err := to.Pull(ctx, from, ref)
	if err != nil {
		return err
	}
	return showMade(out, v, imagesync.WriteStats{}, stats)
}

// bar tells how far a command is: drawn over itself on a terminal, else a line now and then.
// What takes less than two seconds says nothing.
type bar struct {
	out   *output.Printer
	done  string
	began time.Time
	last  time.Time
	drawn bool
}

func newBar(out *output.Printer, done string) *bar {
	now := time.Now()
	return &bar{out: out, done: done, began: now, last: now.Add(time.Second)}
}

func (b *bar) update(done, all int64) {
	every := 10 * time.Second
	if b.out.Terminal {
		every = 200 * time.Millisecond
	}
	now := time.Now()
	if all == 0 || now.Sub(b.began) < 2*time.Second || now.Sub(b.last) < every {
		return
	}
	b.last, b.drawn = now, true
	share := float64(done) / float64(all)
	left := time.Duration(float64(now.Sub(b.began)) * (1 - share) / max(share, 1e-3)).Round(time.Second)
	line := fmt.Sprintf("%s %s of %s (%s), %s left", b.done, output.Bytes(uint64(done)), output.Bytes(uint64(all)), output.Percent(share), left)
	if b.out.Terminal {
		fmt.Fprintf(b.out.Err, "\r\033[K%s", line)
	} else {
		fmt.Fprintln(b.out.Err, line)
	}
}

func (b *bar) end() {
	if b.drawn && b.out.Terminal {
		fmt.Fprint(b.out.Err, "\r\033[K")
	}
}
