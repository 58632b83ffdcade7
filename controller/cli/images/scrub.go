package images

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
)

func (a *app) scrub() *cobra.Command {
	var now bool
	cmd := &cobra.Command{
		Use: "scrub", Short: "Show how far the controller's reading of its image store is, and what it found to be damaged", Args: cobra.NoArgs,
		Long: `The controller that leads reads all of its image store again and again, slowly (--image-scrub, once a week unless told), since a bit that has turned is
found only by who reads it. Exit code 1 if something is damaged; "heliotrope image verify --mend" mends it.`,
		Example: `  heliotrope image scrub
  heliotrope image scrub --now       # read all of it at once`,
		RunE: remote(func(ctx context.Context, c *api.Client, out *output.Printer, _ []string) error {
			ask := c.ImageScrub
			if now {
				ask = c.ScrubImages
			}
			s, err := ask(ctx)
			if err != nil {
				return err
			}
			return showScrub(out, s, now)
		}),
	}
	cmd.Flags().BoolVar(&now, "now", false, "begin to read all of it now, as fast as it can be")
	return cmd
}

func showScrub(out *output.Printer, s api.ImageScrub, now bool) error {
	err := out.Show(s, func(t *output.Table) {
		if now {
			t.Line("all of it is going to be read; see how far that is: heliotrope image scrub")
		}
		if s.Error != "" {
			t.Row("error", s.Error)
		}
		every := "when it is asked for"
		if s.EveryS > 0 {
			every = "once in " + (time.Duration(s.EveryS) * time.Second).String()
		}
		t.Row("all is read", every)
		t.Row("this round", s.BeganAt)
		t.Row("read", fmt.Sprintf("%s of %s, %s", output.Bytes(uint64(s.ReadBytes)), output.Bytes(uint64(s.AllBytes)), output.Plural(s.Packs, "pack")))
		t.Row("last whole", s.EndedAt)
		t.Row("damaged", len(s.Damaged))
		if len(s.Damaged) > 0 {
			t.Line("")
			t.Head("WHAT", "WRONG", "NEEDED BY")
		}
		for _, d := range s.Damaged {
			t.Row(d.What, d.Why, strings.Join(d.NeededBy, ", "))
		}
	})
	if err == nil && len(s.Damaged) > 0 {
		err = fmt.Errorf("%s damaged in the store: heliotrope image verify --mend --from STORE brings back what is lost", output.Plural(len(s.Damaged), "thing"))
	}
	return err
}
