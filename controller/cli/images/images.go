// Package images is "heliotrope image": VM images in a store that this machine reaches, a
// directory or a bucket. It needs no controller; whoever may read and write the store may do
// what it does.
package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"heliotrope/controller/cli/output"
	"heliotrope/imagesync"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/site"
)

type app struct{ store, keys string }

// Command is the noun and its verbs.
func Command() *cobra.Command {
	a := &app{}
	cmd := &cobra.Command{
		Use: "image", Short: "VM images: import, versions, copies by what is missing, export", Args: cobra.NoArgs,
		Long: `VM images in a store: a directory (made when it is first used) or a bucket (s3://, azblob://). Every version is kept, each different
64 KiB once, compressed, and checked by its hash whenever it is read. IMAGE is an image's newest version, IMAGE@2 its second.`,
		Example: `  heliotrope image import debian debian-12.qcow2    a new version of image debian
  heliotrope image list
  heliotrope image push debian --to /mnt/backup     what is missing there
  heliotrope image export debian@1 disk.raw
  heliotrope image gc                               free what no version needs`,
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() } // so that a wrong verb is told
	f := cmd.PersistentFlags()
	f.StringVar(&a.store, "store", defaultDir("/var/lib/heliotrope/image-store", "image-store"), "the image store: a directory, or a bucket's URL")
	f.StringVar(&a.keys, "keys", defaultDir("/var/lib/heliotrope/image-keys", "image-keys"), "directory of the keys that sign for stores")
	cmd.AddCommand(a.imports(), a.list(), a.show(), a.export(), a.clone(), a.remove(), a.pin(true), a.pin(false), a.release(), a.push(), a.pull(),
		a.verify(), a.gc(), a.du(), a.quota(), a.serve(), a.commit(), a.upload(), a.uploads(), a.places(), a.policies(), a.scrub())
	return cmd
}

// defaultDir is where root has something, or else who runs this.
func defaultDir(root, name string) string {
	if os.Geteuid() == 0 {
		return root
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return root
	}
	return filepath.Join(home, ".local", "share", "heliotrope", name)
}

// open opens a store. There says that it has to be there: else an empty one is made.
func (a *app) open(ctx context.Context, where string, there bool) (*imagesync.Store, error) {
	d, where, err := depot.Open(ctx, where)
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s, err := imagesync.Open(ctx, where, d, imagesync.Options{Keys: keyring.Dir(a.keys), There: there})
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return s, nil
}

// run is a command that works on the store.
func (a *app) run(do func(ctx context.Context, s *imagesync.Store, out *output.Printer, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		format := "table"
		if f := cmd.Flags().Lookup("output"); f != nil {
			format = f.Value.String()
		}
		out := output.New(format, cmd.OutOrStdout(), cmd.ErrOrStderr())
		s, err := a.open(cmd.Context(), a.store, false)
		if err != nil {
			return err
		}
		return errors.Join(do(cmd.Context(), s, out, args), s.Close())
	}
}

// version is one as it is shown.
type version struct {
	manifest.Version
	Pinned bool     `json:"pinned"`
	Needed []string `json:"needed_by,omitempty"` // HOST/VOLUME of disks that stand on it; show tells
}

func (a *app) list() *cobra.Command {
	return &cobra.Command{
		Use: "list [IMAGE]", Short: "List all versions of an image, or of all", Args: cobra.MaximumNArgs(1),
		RunE: a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, args []string) error {
			image := strings.Join(args, "")
			all, err := s.Versions(ctx, image)
			if err != nil {
				return err
			}
			if image != "" && len(all) == 0 {
				return fmt.Errorf("%s: %w", image, imagesync.ErrNotFound)
			}
			shown := []version{}
			for _, v := range all {
				pinned, err := s.Pinned(ctx, v)
				if err != nil {
					return err
				}
				shown = append(shown, version{Version: v, Pinned: pinned})
			}
			return out.Show(shown, func(t *output.Table) {
				t.Head("IMAGE", "VERSION", "SIZE", "CONTENT", "CREATED", "PINNED", "FROM")
				for _, v := range shown {
					pinned := ""
					if v.Pinned {
						pinned = "pinned"
					}
					t.Row(v.Image, v.Number, output.Bytes(uint64(v.Size)), output.Bytes(uint64(v.Content)), v.Created.Local().Format(time.DateTime), pinned, v.From)
				}
			})
		}),
	}
}

func (a *app) show() *cobra.Command {
	return &cobra.Command{
		Use: "show IMAGE[@VERSION]", Short: "Show a version", Args: cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, args []string) error {
			v, err := s.Version(ctx, args[0])
			if err != nil {
				return err
			}
			pinned, err := s.Pinned(ctx, v)
			if err != nil {
				return err
			}
			needed, err := s.Needs(ctx, v)
			if err != nil {
				return err
			}
			return showVersion(out, v, pinned, needed...)
		}),
	}
}

func showVersion(out *output.Printer, v manifest.Version, pinned bool, needed ...string) error {
	return out.Show(version{v, pinned, needed}, func(t *output.Table) {
		t.Row("image", v.Ref())
		t.Row("root", v.Root)
		t.Row("size", output.Bytes(uint64(v.Size)))
		t.Row("content", output.Bytes(uint64(v.Content)))
		if !v.Parent.IsZero() {
			t.Row("made from", v.Parent)
		}
		t.Row("writer's epoch", v.Epoch)
		t.Row("created", v.Created.Local().Format(time.DateTime))
		t.Row("from", v.From)
		t.Row("pinned", pinned)
		for _, owner := range needed {
			t.Row("needed by", owner)
		}
	})
}

func (a *app) clone() *cobra.Command {
	return &cobra.Command{
		Use: "clone IMAGE[@VERSION] NEW", Short: "Make an image of another one's version; it takes no room", Args: cobra.ExactArgs(2),
		RunE: a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, args []string) error {
			v, err := s.Clone(ctx, args[0], args[1])
			if err != nil {
				return fmt.Errorf("clone %s: %w", args[0], err)
			}
			return showVersion(out, v, false)
		}),
	}
}

func (a *app) remove() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use: "remove IMAGE[@VERSION]", Short: "Remove a version; gc frees what nobody else needs", Args: cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, args []string) error {
			v, err := s.Version(ctx, args[0])
			if err == nil && !dry {
				v, err = s.Remove(ctx, v.Ref())
			}
			if err != nil {
				return fmt.Errorf("remove %s: %w", args[0], err)
			}
			return out.Show(v, func(t *output.Table) {
				if dry {
					t.Line("%s would be removed", v.Ref())
				} else {
					t.Line("%s is removed", v.Ref())
				}
			})
		}),
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say which version it would be")
	return cmd
}

func (a *app) pin(pin bool) *cobra.Command {
	cmd := &cobra.Command{Use: "pin IMAGE[@VERSION]", Short: "Keep a version from being removed", Args: cobra.ExactArgs(1)}
	do := (*imagesync.Store).Pin
	if !pin {
		cmd.Use, cmd.Short, do = "unpin IMAGE[@VERSION]", "Let a pinned version be removed", (*imagesync.Store).Unpin
	}
	cmd.RunE = a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, args []string) error {
		if err := do(s, ctx, args[0]); err != nil {
			return err
		}
		v, err := s.Version(ctx, args[0])
		if err != nil {
			return err
		}
		return showVersion(out, v, pin)
	})
	return cmd
}

func (a *app) release() *cobra.Command {
	return &cobra.Command{
		Use: "release IMAGE@VERSION HOST/VOLUME", Short: "Forget that a disk stands on a version: its host is gone for good", Args: cobra.ExactArgs(2),
		Long: `Forget that a disk stands on a version. A disk that is removed says so itself; this is for those of hosts that are gone for good. A disk that
is still there loses with the version what it has not fetched yet. "image show" tells which disks stand on a version.`,
		RunE: a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, args []string) error {
			v, err := s.Version(ctx, args[0])
			if err == nil {
				err = s.NoNeed(ctx, v, args[1])
			}
			if err != nil {
				return fmt.Errorf("release %s: %w", args[0], err)
			}
			needed, err := s.Needs(ctx, v)
			if err != nil {
				return err
			}
			pinned, err := s.Pinned(ctx, v)
			if err != nil {
				return err
			}
			return showVersion(out, v, pinned, needed...)
		}),
	}
}

func (a *app) gc() *cobra.Command {
	var o imagesync.GCOptions
	cmd := &cobra.Command{
		Use: "gc", Short: "Free what no version needs", Args: cobra.NoArgs,
		Long: `Free what no version, no reader and no writer needs. What a writer that is at work may need is left to the next time.`,
		RunE: a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, _ []string) error {
			r, err := s.GC(ctx, o)
			if err != nil {
				return fmt.Errorf("collect garbage: %w", err)
			}
			return out.Show(r, func(t *output.Table) {
				would := ""
				if o.DryRun {
					would = "would be "
				}
				t.Line("%sfreed: %s (%s, %s)", would, output.Bytes(uint64(r.Bytes)), output.Plural(r.Packs, "pack"), output.Plural(r.Manifests, "manifest"))
				if r.Rewritten > 0 {
					t.Line("%srewritten, to be denser: %s", would, output.Bytes(uint64(r.Rewritten)))
				}
				if r.Full {
					t.Line("the disk has no room to rewrite packs of which little is needed: run gc again")
				}
				if r.Waiting > 0 {
					t.Line("%s wait for: %s", output.Plural(r.Waiting, "file"), strings.Join(r.Writers, ", "))
				}
			})
		}),
	}
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "only say what would be freed")
	cmd.Flags().Float64Var(&o.Dense, "dense", 0.5, "rewrite packs of which less than this share is needed")
	return cmd
}

func (a *app) du() *cobra.Command {
	return &cobra.Command{
		Use: "du", Short: "Show what each version takes, and shares", Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, _ []string) error {
			u, err := s.Usage(ctx)
			if err != nil {
				return err
			}
			return out.Show(u, func(t *output.Table) {
				t.Head("VERSION", "SIZE", "CONTENT", "STORED", "ALONE")
				for _, v := range u.Versions {
					t.Row(v.Ref, output.Bytes(uint64(v.Size)), output.Bytes(uint64(v.Content)), output.Bytes(uint64(v.Stored)), output.Bytes(uint64(v.Alone)))
				}
				t.Line("")
				t.Line("all: %s of content in %s of packs, %.2f for one", output.Bytes(uint64(u.Content)), output.Bytes(uint64(u.Packs)), u.Ratio())
				if u.Quota > 0 {
					t.Line("quota: %s", output.Bytes(uint64(u.Quota)))
				}
			})
		}),
	}
}

func (a *app) quota() *cobra.Command {
	return &cobra.Command{
		Use: "quota BYTES", Short: "Bound the bytes that the store takes; 0 ends that", Args: cobra.ExactArgs(1),
		Example: "  heliotrope image quota 200G",
		RunE: a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, args []string) error {
			n, err := site.ParseBytes(args[0])
			if err != nil {
				return err
			}
			return s.SetQuota(ctx, n)
		}),
	}
}
