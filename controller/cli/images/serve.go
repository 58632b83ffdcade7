package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"heliotrope/controller/cli/output"
	"heliotrope/imagesync"
	"heliotrope/imagesync/delta"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/nbd"
	"heliotrope/imagesync/volume"
)

const bootTime = time.Minute // of a boot that is recorded, by default

func (a *app) serve() *cobra.Command {
	var socket, dir, prefetch string
	var names []string
	var o SiteOptions
	var readOnly bool
	cmd := &cobra.Command{
		Use: "serve IMAGE[@VERSION] --socket PATH --dir DIR (--volume NAME... | --read-only)", Short: "Serve a version to VMs over NBD: as it is, or as disks of their own", Args: cobra.ExactArgs(1),
		Long: `Serve a version to VMs of this host over NBD, on a unix socket: as it is (--read-only), or as disks that can be written (--volume), each of which
keeps what was written to it in DIR and takes no room before. A volume that is not there is made. One that is there stays on the version that
it was made from. A VM need not wait for the image: what it reads comes first, then what the last boot has read, then the rest.

All volumes of a version share what has come of it, and one process serves them: give it --volume several times; each is an export of its name.
The version must stay in the store as long as a volume stands on it (heliotrope image pin).

The process ends with SIGTERM; what was written is on the disk then.`,
		Example: `  heliotrope image serve debian --socket /run/web.sock --dir /var/lib/heliotrope/volumes --volume web
  heliotrope image serve debian@3 --socket /run/debian.sock --dir /var/lib/heliotrope/volumes --read-only
  heliotrope image serve debian --socket /run/two.sock --dir /var/lib/heliotrope/volumes --volume web1 --volume web2 --prefetch 5M`,
		RunE: a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, args []string) error {
			if len(names) == 0 && !readOnly {
				return errors.New("say --volume NAME for a disk that can be written, or --read-only for the version as it is")
			}
			if err := o.setPrefetch(prefetch); err != nil {
				return err
			}
			o.Log = slog.New(slog.NewTextHandler(out.Err, nil))
			base, err := openBase(ctx, s, dir, args[0], names)
			if err != nil {
				return fmt.Errorf("serve %s: %w", args[0], err)
			}
			defer base.Close()
			site, err := OpenSite(dir, base.Version, base, o)
			if err != nil {
				return fmt.Errorf("serve %s: %w", base.Version.Ref(), err)
			}
			if err := errors.Join(site.serve(ctx, out, socket, names, readOnly), site.Close()); err != nil {
				return fmt.Errorf("serve %s: %w", base.Version.Ref(), err)
			}
			return nil
		}),
	}
	f := cmd.Flags()
	f.StringVar(&socket, "socket", "", "the unix socket to make")
	f.StringVar(&dir, "dir", "", "directory of volumes and of what has come of images")
	f.StringArrayVar(&names, "volume", nil, "a disk that can be written; may be given several times")
	f.BoolVar(&readOnly, "read-only", false, "refuse writes")
	f.StringVar(&prefetch, "prefetch", "on", "let come what nobody has asked for yet: on, off, or at most so many bytes of content a second, such as 5M")
	f.DurationVar(&o.Record, "record", bootTime, "for how long after a new volume's first client what it reads is taken for the boot; 0 for no record")
	f.StringVar(&o.WorkingSet, "working-set", "", "file of the boot that is recorded and made ready (default: one for each image in DIR)")
	cmd.MarkFlagRequired("socket")
	cmd.MarkFlagRequired("dir")
	return cmd
}

// openBase opens the version that volumes stand on: those that are there all on the same one, and
// what the user has asked for; else that.
func openBase(ctx context.Context, s *imagesync.Store, dir, ref string, names []string) (*imagesync.Reader, error) {
	asked, err := s.Version(ctx, ref)
	if err != nil {
		return nil, err
	}
	v, first := asked, ""
	for _, name := range names {
		o, err := readOrigin(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		switch {
		case err != nil:
			return nil, err
		case o.Base.Image != asked.Image || strings.Contains(ref, "@") && o.Base.Root != asked.Root:
			return nil, fmt.Errorf("volume %s was made from %s, not from %s: choose another name, or serve %[2]s", name, o.Base.Ref(), asked.Ref())
		case first != "" && o.Base.Root != v.Root:
			return nil, fmt.Errorf("volumes %s and %s were made from %s and %s: serve each version with a command of its own", first, name, v.Ref(), o.Base.Ref())
		}
		v, first = o.Base, name
	}
	return openOrigin(ctx, s, v)
}

// openOrigin opens the very version that a volume was made from.
func openOrigin(ctx context.Context, s *imagesync.Store, v manifest.Version) (*imagesync.Reader, error) {
	r, err := s.Open(ctx, v.Ref())
	if err != nil {
		return nil, err
	}
	if r.Version.Root != v.Root {
		r.Close()
		return nil, fmt.Errorf("%s of this store is not the %[1]s that the volume was made from: is it another store?", v.Ref())
	}
	return r, nil
}

// setPrefetch reads the flag.
func (o *SiteOptions) setPrefetch(flag string) (err error) {
	switch flag {
	case "on", "off":
		o.NoPrefetch = flag == "off"
		return nil
	}
	if o.Rate, err = parseBytes(flag); err != nil || o.Rate == 0 {
		return fmt.Errorf("prefetch %q: it is on, off, or bytes a second, such as 5M", flag)
	}
	return nil
}

// serve opens the volumes, says what there is, and serves it until ctx ends.
func (s *Site) serve(ctx context.Context, out *output.Printer, socket string, names []string, readOnly bool) error {
	exports, err := s.Exports(names, readOnly)
	if err != nil {
		return err
	}
	if socket, err = filepath.Abs(socket); err != nil {
		return err
	}
	l, err := nbd.Listen(ctx, socket)
	if err != nil {
		return err
	}
	for _, d := range s.list(names) {
		uri := fmt.Sprintf("nbd+unix:///%s?socket=%s", d.name, (&url.URL{Path: socket}).EscapedPath())
		mode, only := "can be written", ""
		if readOnly {
			mode, only = "read-only", ",readonly=on"
		}
		fmt.Fprintf(out.Err, "serving %s: %s, %s, %s\n", d.what, output.Bytes(uint64(s.version.Size)), mode, uri)
		fmt.Fprintf(out.Err, "  for a VM: qemu-system-x86_64 -drive 'file=%s,format=raw,if=virtio%s' …\n", strings.ReplaceAll(uri, ",", ",,"), only)
	}
	return s.Run(ctx, l, exports)
}

// shown is an export as it is told.
type shown struct{ name, what string }

func (s *Site) list(names []string) []shown {
	if len(names) == 0 {
		return []shown{{what: s.version.Ref()}}
	}
	var all []shown
	for _, name := range names {
		what := "volume " + name + " on " + s.version.Ref()
		if d := s.disks[name]; d.fresh {
			what += " (new)"
		}
		if len(names) == 1 {
			name = "" // the only one needs no name
		}
		all = append(all, shown{name, what})
	}
	return all
}

func (a *app) commit() *cobra.Command {
	var dir, image string
	cmd := &cobra.Command{
		Use: "commit VOLUME --dir DIR [--as IMAGE]", Short: "Make a new version of what was written to a volume", Args: cobra.ExactArgs(1),
		Long: `Make a new version of what was written to a volume that no process serves. Only chunks are read that were written to since the last commit.
The version follows the one that the volume grew from: if somebody else has made a newer one, commit refuses, and --as takes another name.
The volume goes on from the new version.`,
		Example: "  heliotrope image commit web --dir /var/lib/heliotrope/volumes --as web",
		RunE: a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, args []string) error {
			v, stats, err := commitVolume(ctx, s, dir, args[0], image)
			if err != nil {
				return fmt.Errorf("commit %s: %w", args[0], err)
			}
			return showMade(out, v, stats, delta.Stats{})
		}),
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory of the volume")
	cmd.Flags().StringVar(&image, "as", "", "the image that gets the version (default: the one that the volume grew from)")
	cmd.MarkFlagRequired("dir")
	return cmd
}

func commitVolume(ctx context.Context, store *imagesync.Store, dir, name, image string) (v manifest.Version, stats imagesync.WriteStats, err error) {
	o, err := readOrigin(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return v, stats, fmt.Errorf("there is no such volume in %s", dir)
	}
	if err != nil {
		return v, stats, err
	}
	base, err := openOrigin(ctx, store, o.Base)
	if err != nil {
		return v, stats, err
	}
	defer base.Close()
	site, err := OpenSite(dir, o.Base, base, SiteOptions{NoPrefetch: true})
	if err != nil {
		return v, stats, err
	}
	v, stats, err = site.commit(ctx, store, name, image)
	return v, stats, errors.Join(err, site.Close())
}

// commit makes a version of a volume's dirty chunks. A crash after the version was made and before
// the volume knew leaves a mark in the origin, by which the next commit finds it.
func (s *Site) commit(ctx context.Context, store *imagesync.Store, name, image string) (v manifest.Version, stats imagesync.WriteStats, err error) {
	d, err := s.open(name)
	if err != nil {
		return v, stats, err
	}
	o := d.origin
	if o.Pending != "" {
		made, err := store.Version(ctx, o.PendingImage)
		if err == nil && made.From == o.Pending {
			o.Version = made
		} else if err != nil && !errors.Is(err, imagesync.ErrNotFound) {
			return v, stats, err
		}
	}
	if image == "" {
		image = o.Version.Image
	}
	own := image == o.Version.Image
	used, err := d.Stats()
	if err != nil {
		return v, stats, err
	}
	if own && used.Dirty == 0 {
		return v, stats, fmt.Errorf("nothing was written since %s", o.Version.Ref())
	}
	free := func() error { return nil }
	if !own {
		free = func() error { return nameIsFree(ctx, store, image, o.Version) }
	}
	if err := free(); err != nil {
		return v, stats, err
	}
	o.Pending, o.PendingImage = fmt.Sprintf("volume %s, %s", name, time.Now().UTC().Format(time.RFC3339Nano)), image
	if err := d.remember(o); err != nil {
		return v, stats, err
	}
	w, err := store.Begin(ctx, image, imagesync.BeginOptions{Size: d.Size(), Base: &o.Version, Only: own, From: o.Pending, Permit: free})
	if err != nil {
		return v, stats, orElse(err)
	}
	defer w.Abort(ctx)
	err = d.Commit(ctx, w.Put, func(ctx context.Context) error {
		if v, err = w.Commit(ctx); err != nil {
			return err
		}
		o.Version, o.Pending, o.PendingImage = v, "", ""
		return d.remember(o)
	})
	return v, w.Stats(), orElse(err)
}

// nameIsFree says whether a volume that grew from another image may make the first version of this
// one.
func nameIsFree(ctx context.Context, store *imagesync.Store, image string, from manifest.Version) error {
	there, err := store.Version(ctx, image)
	switch {
	case err == nil:
		return fmt.Errorf("%s is there, and the volume grew from %s: choose another name", there.Ref(), from.Ref())
	case errors.Is(err, imagesync.ErrNotFound):
		return nil
	}
	return err
}

// orElse says what a user can do about a commit that was refused.
func orElse(err error) error {
	if errors.Is(err, imagesync.ErrConflict) {
		return fmt.Errorf("%w: --as gives what was written another name", err)
	}
	return err
}

// device is a volume as NBD has it.
type device struct{ *volume.Volume }

// Extents implements nbd.Device.
func (d device) Extents(ctx context.Context, off, n int64, yield func(nbd.Extent) bool) error {
	return d.Volume.Extents(ctx, off, n, func(e volume.Extent) bool { return yield(nbd.Extent(e)) })
}

// fixed is a version as NBD has it.
type fixed struct {
	*volume.Cache
	base volume.Base
}

var errFixed = fmt.Errorf("a version does not change: %w", syscall.EPERM)

// WriteAt implements nbd.Device, as do those that follow.
func (fixed) WriteAt(context.Context, []byte, int64, bool) error { return errFixed }
func (fixed) Flush(context.Context) error                        { return nil }
func (fixed) Trim(context.Context, int64, int64) error           { return errFixed }
func (fixed) Zero(context.Context, int64, int64, bool) error     { return errFixed }
func (f fixed) Extents(_ context.Context, off, n int64, yield func(nbd.Extent) bool) error {
	var last nbd.Extent
	for end := off + n; off < end; {
		k := min(volume.ChunkSize-off%volume.ChunkSize, end-off)
		zero := f.base.Zero(int(off / volume.ChunkSize))
		if last.Length > 0 && last.Zero != zero {
			if !yield(last) {
				return nil
			}
			last = nbd.Extent{}
		}
		last = nbd.Extent{Length: last.Length + k, Hole: zero, Zero: zero}
		off += k
	}
	yield(last)
	return nil
}
