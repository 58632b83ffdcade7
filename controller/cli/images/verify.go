package images

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"heliotrope/controller/cli/output"
	"heliotrope/imagesync"
)

type verifyFlags struct {
	quick, mend, dryRun bool
	from                string
}

func (a *app) verify() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use: "verify", Short: "Check all signatures, manifests and hashes of the store, and mend it", Args: cobra.NoArgs,
		Long: `Check that every version is signed and complete and that every byte in the store is what was written. Exit code 1 if anything is wrong;
what that is and which versions need it is shown.

With --mend what is left of damaged files is saved, and what is lost comes from the store that --from names. What neither has is missing
from then on: import the image again, under any name, and it is there, also for the versions that miss it.`,
		Example: `  heliotrope image verify
  heliotrope image verify --mend --from s3://images?region=eu-west-3 --dry-run    what would come back?
  heliotrope image verify --mend --from s3://images?region=eu-west-3`,
		RunE: a.run(func(ctx context.Context, s *imagesync.Store, out *output.Printer, _ []string) error {
			if !f.mend && (f.dryRun || f.from != "") {
				return errors.New("--from and --dry-run are for --mend")
			}
			if f.mend && f.quick {
				return errors.New("--mend has to read the chunks: leave --quick out")
			}
			bar := newBar(out, "verified")
			r, err := s.Verify(ctx, !f.quick, bar.update)
			bar.end()
			if err != nil {
				return err
			}
			var mended *imagesync.MendReport
			if f.mend {
				m, err := a.mend(ctx, s, r, f)
				if err != nil {
					return err
				}
				mended = &m
			}
			return showVerified(out, r, mended, f.dryRun)
		}),
	}
	fl := cmd.Flags()
	fl.BoolVar(&f.quick, "quick", false, "do not read the chunks, only look whether they are there")
	fl.BoolVar(&f.mend, "mend", false, "save what is left of what is damaged")
	fl.StringVar(&f.from, "from", "", "store that has what is lost, with --mend")
	fl.BoolVar(&f.dryRun, "dry-run", false, "only say what --mend would do")
	return cmd
}

func (a *app) mend(ctx context.Context, s *imagesync.Store, r imagesync.Report, f verifyFlags) (m imagesync.MendReport, err error) {
	o := imagesync.MendOptions{DryRun: f.dryRun}
	if f.from != "" {
		if o.From, err = a.open(ctx, f.from, true); err != nil {
			return m, err
		}
		defer func() { err = errors.Join(err, o.From.Close()) }()
	}
	return s.Mend(ctx, r, o)
}

// showVerified shows what was found and mended, and fails if something is wrong now.
func showVerified(out *output.Printer, r imagesync.Report, m *imagesync.MendReport, dryRun bool) error {
	type finding struct {
		What, Error string
		Images      []string
	}
	shown := struct {
		Versions, Packs int
		Chunks, Bytes   int64
		Findings        []finding
		Mended          *imagesync.MendReport `json:",omitempty"`
	}{r.Versions, r.Packs, r.Chunks, r.Bytes, []finding{}, m}
	for _, f := range r.Findings {
		shown.Findings = append(shown.Findings, finding{f.What, f.Err.Error(), f.Images})
	}
	err := out.Show(shown, func(t *output.Table) {
		t.Line("%s, %s of packs read", output.Plural(r.Versions, "version"), output.Bytes(uint64(r.Bytes)))
		if m != nil {
			t.Line("%s", mendedText(*m, dryRun))
		}
		if len(r.Findings) > 0 {
			t.Head("WHAT", "WRONG", "NEEDED BY")
		}
		for _, f := range r.Findings {
			t.Row(f.What, f.Err, strings.Join(f.Images, ", "))
		}
	})
	switch {
	case err != nil || len(r.Findings) == 0:
		return err
	case m == nil || dryRun:
		return fmt.Errorf("%s wrong in the store", output.Plural(len(r.Findings), "thing"))
	case m.Lost > 0:
		return fmt.Errorf("%s lost: --from names a store that has them, or import the image again", output.Plural(m.Lost, "chunk or manifest"))
	}
	return nil
}

func mendedText(m imagesync.MendReport, dryRun bool) string {
	verb := "mended"
	if dryRun {
		verb = "would be mended"
	}
	return fmt.Sprintf("%s: %s, of which %s saved; %s and %s from the other store; %d lost", verb, output.Plural(m.Packs, "pack"), output.Plural(m.Saved, "chunk"),
		output.Plural(m.Restored, "chunk"), output.Plural(m.Manifests, "manifest"), m.Lost)
}
