package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
)

// patience is how long an upload goes on asking a controller that does not answer.
const patience = 5 * time.Minute

// remote is a command that talks to a controller, as the flags say which.
func remote(do func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		flag := func(name string) string {
			if f := cmd.Flags().Lookup(name); f != nil {
				return f.Value.String()
			}
			return ""
		}
		home, _ := os.UserHomeDir() // without one there are no credentials in it
		c, err := api.Find(api.Place{Home: home, Server: flag("server"), Lab: flag("lab"), TokenFile: flag("token-file"), CAFile: flag("ca-file"), Token: os.Getenv("HELIOTROPE_TOKEN")})
		if err != nil {
			return err
		}
		defer c.Close()
		return do(cmd.Context(), c, output.New(flag("output"), cmd.OutOrStdout(), cmd.ErrOrStderr()), args)
	}
}

func (a *app) upload() *cobra.Command {
	var r api.UploadRequest
	cmd := &cobra.Command{
		Use: "upload IMAGE FILE", Short: "Send a file to the controller, which makes a new version of an image of it", Args: cobra.ExactArgs(2),
		Long: `Send a raw or qcow2 file to the controller (which must have an image store: --image-store), and wait until it is imported. What has come stays
there for a day: the same command goes on where it ended. The file's SHA-256 is checked there.`,
		Example: "  heliotrope image upload debian debian-12-genericcloud-amd64.qcow2 --server https://ctl.example.net:7080",
		RunE: remote(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			r.Image, r.From = args[0], filepath.Base(args[1])
			return send(ctx, c, out, r, args[1])
		}),
	}
	cmd.Flags().StringVar(&r.Format, "format", "", "raw or qcow2 (default: what the file begins like)")
	return cmd
}

func send(ctx context.Context, c *api.Client, out *output.Printer, r api.UploadRequest, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	r.SizeBytes = info.Size()
	if !info.Mode().IsRegular() || r.SizeBytes == 0 {
		return fmt.Errorf("upload %s: it is no file with something in it", file)
	}
	if r.SHA256, err = sum(ctx, out, f, r.SizeBytes); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	u, err := c.CreateUpload(ctx, r, "image "+r.Image+" "+r.SHA256+" "+time.Now().UTC().Format(time.DateOnly))
	if err != nil {
		return err
	}
	now, err := c.Upload(ctx, u.ID) // the answer may be that of a command before
	var gone *api.Problem
	if u = now; errors.As(err, &gone) && gone.Type == api.TypeNotFound || err == nil && u.State == api.UploadFailed {
		u, err = c.CreateUpload(ctx, r, "")
	}
	if err != nil {
		return err
	}
	bar := newBar(out, "sent")
	u, err = c.Send(ctx, u, f, patience, func(u api.Upload) { bar.update(u.OffsetBytes, u.SizeBytes) })
	bar.end()
	if err != nil {
		return fmt.Errorf("upload %s: %w; the same command goes on at %s", file, err, output.Bytes(uint64(u.OffsetBytes)))
	}
	bar = newBar(out, "imported")
	for u.State == api.UploadImporting {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(300 * time.Millisecond):
		}
		if u, err = c.Upload(ctx, u.ID); err != nil {
			return err
		}
		bar.update(int64(u.Progress*float64(u.SizeBytes)), u.SizeBytes)
	}
	bar.end()
	if u.State == api.UploadFailed {
		return fmt.Errorf("%s was not imported: %s", file, u.Note)
	}
	return out.Show(u, func(t *output.Table) {
		t.Line("%s: %s of content, %s of which are new", u.Made.Ref(), output.Bytes(uint64(u.Made.ContentBytes)), output.Bytes(uint64(u.NewBytes)))
	})
}

// sum is the file's SHA-256.
func sum(ctx context.Context, out *output.Printer, f *os.File, size int64) (string, error) {
	h, buf, done := sha256.New(), make([]byte, 1<<20), int64(0)
	bar := newBar(out, "read")
	defer bar.end()
	for {
		n, err := f.Read(buf)
		h.Write(buf[:n])
		done += int64(n)
		bar.update(done, size)
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return "", err
		}
	}
}

func (a *app) places() *cobra.Command {
	return &cobra.Command{
		Use: "places IMAGE[@VERSION]", Short: "Show how much of a version each host has", Args: cobra.ExactArgs(1),
		RunE: remote(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			places, err := c.ImagePlaces(ctx, args[0])
			if err != nil {
				return err
			}
			return showPlaces(out, places)
		}),
	}
}

func (a *app) uploads() *cobra.Command {
	cmd := &cobra.Command{
		Use: "uploads", Short: "List files that are being sent to the controller", Args: cobra.NoArgs,
		RunE: remote(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			all, err := c.Uploads(ctx)
			if err != nil {
				return err
			}
			return out.Show(all, func(t *output.Table) {
				t.Head("UPLOAD", "IMAGE", "STATE", "CAME", "OF", "UNTIL", "NOTE")
				for _, u := range all {
					t.Row(u.ID, u.Image, u.State, output.Bytes(uint64(u.OffsetBytes)), output.Bytes(uint64(u.SizeBytes)), u.ExpiresAt.Local().Format(time.DateTime), u.Note)
				}
			})
		}),
	}
	drop := &cobra.Command{
		Use: "drop UPLOAD", Short: "Forget an upload and what came of it", Args: cobra.ExactArgs(1),
		RunE: remote(func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error {
			return c.DropUpload(ctx, args[0])
		}),
	}
	cmd.AddCommand(drop)
	return cmd
}
