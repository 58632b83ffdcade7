package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"heliotrope/controller/cli/output"
	"heliotrope/imagesync"
	"heliotrope/imagesync/delta"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/nbd"
	"heliotrope/imagesync/site"
)

const bootTime = time.Minute // of a boot that is recorded, by default

func (a *app) serve() *cobra.Command {
	var socket, dir, prefetch string
	var names []string
	var o site.Options
	var readOnly bool
	cmd := &cobra.Command{
		Use: "serve IMAGE[@VERSION] --socket PATH --dir DIR (--volume NAME... | --read-only)", Short: "Serve a version to VMs over NBD: as it is, or as disks of their own", Args: cobra.ExactArgs(1),
		Long: `Serve a version to VMs of this host over NBD, on a unix socket: as it is (--read-only), or as disks that can be written (--volume), each of which
keeps what was written to it in DIR and takes no room before. A volume that is not there is made. One that is there stays on the version that
it was made from. A VM need not wait for the image: what it reads comes first, then what the last boot has read, then the rest.

All volumes of a version share what has come of it, and one process serves them: give it --volume several times; each is an export of its name.
The store keeps the version for as long as a volume stands on it: delete a volume's directory in DIR/volumes, and say heliotrope image release.

The process ends with SIGTERM; what was written is on the disk then.`,
		Example: `  heliotrope image serve debian --socket /run/web.sock --dir /var/lib/heliotrope/volumes --volume web
  heliotrope image serve debian@3 --socket /run/debian.sock --dir /var/lib/heliotrope/volumes --read-only
  heliotrope image serve debian --socket /run/two.sock --dir /var/lib/heliotrope/volumes --volume web1 --volume web2 --prefetch 5M`,
		RunE: a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, args []string) error {
			if len(names) == 0 && !readOnly {
				return errors.New("say --volume NAME for a disk that can be written, or --read-only for the version as it is")
			}
			if err := setPrefetch(&o, prefetch); err != nil {
				return err
			}
			o.Log = slog.New(slog.NewTextHandler(out.Err, nil))
			base, err := openBase(ctx, s, dir, args[0], names)
			if err != nil {
				return fmt.Errorf("serve %s: %w", args[0], err)
			}
			defer base.Close()
			if err := need(ctx, s, base.Version, dir, names); err != nil {
				return fmt.Errorf("serve %s: %w", args[0], err)
			}
			host, err := site.Open(dir, base.Version, base, o)
			if err != nil {
				return fmt.Errorf("serve %s: %w", base.Version.Ref(), err)
			}
			if err := errors.Join(serve(ctx, host, out, socket, names, readOnly), host.Close()); err != nil {
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

// need says to the store that volumes stand on a version, for as long as they are there: nobody
// may remove it.
func need(ctx context.Context, s *imagesync.Store, v manifest.Version, dir string, names []string) error {
	machine, err := os.Hostname()
	if err != nil {
		return err
	}
	owner, err := site.Owner(dir, machine)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := s.Need(ctx, v, owner+"/"+name); err != nil {
			return err
		}
	}
	return nil
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
		o, err := site.ReadOrigin(dir, name)
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
func setPrefetch(o *site.Options, flag string) (err error) {
	switch flag {
	case "on", "off":
		o.NoPrefetch = flag == "off"
		return nil
	}
	if o.Rate, err = site.ParseBytes(flag); err != nil || o.Rate == 0 {
		return fmt.Errorf("prefetch %q: it is on, off, or bytes a second, such as 5M", flag)
	}
	return nil
}

// serve opens the volumes, says what there is, and serves it until ctx ends.
func serve(ctx context.Context, s *site.Site, out *output.Printer, socket string, names []string, readOnly bool) error {
	exports, err := s.Exports(names, readOnly)
	if err != nil {
		return err
	}
	if socket, err = filepath.Abs(socket); err != nil {
		return err
	}
	all, err := list(s, names)
	if err != nil {
		return err
	}
	l, err := nbd.Listen(ctx, socket)
	if err != nil {
		return err
	}
	for _, d := range all {
		uri := fmt.Sprintf("nbd+unix:///%s?socket=%s", d.name, (&url.URL{Path: socket}).EscapedPath())
		mode, only := "can be written", ""
		if readOnly {
			mode, only = "read-only", ",readonly=on"
		}
		fmt.Fprintf(out.Err, "serving %s: %s, %s, %s\n", d.what, output.Bytes(uint64(s.Version.Size)), mode, uri)
		fmt.Fprintf(out.Err, "  for a VM: qemu-system-x86_64 -drive 'file=%s,format=raw,if=virtio%s' …\n", strings.ReplaceAll(uri, ",", ",,"), only)
	}
	return s.Run(ctx, l, exports)
}

// shown is an export as it is told.
type shown struct{ name, what string }

func list(s *site.Site, names []string) ([]shown, error) {
	if len(names) == 0 {
		return []shown{{what: s.Version.Ref()}}, nil
	}
	var all []shown
	for _, name := range names {
		d, err := s.Open(name)
		if err != nil {
			return nil, err
		}
		what := "volume " + name + " on " + s.Version.Ref()
		if d.Fresh {
			what += " (new)"
		}
		if len(names) == 1 {
			name = "" // the only one needs no name
		}
		all = append(all, shown{name, what})
	}
	return all, nil
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
	o, err := site.ReadOrigin(dir, name)
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
	host, err := site.Open(dir, o.Base, base, site.Options{NoPrefetch: true})
	if err != nil {
		return v, stats, err
	}
	v, stats, err = host.Commit(ctx, store, name, image)
	return v, stats, errors.Join(err, host.Close())
}
