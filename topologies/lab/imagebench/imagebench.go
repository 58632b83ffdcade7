// Package imagebench measures what becomes of VM images.
//
// Each part is a question with an answer that does not come from us:
//
//	store     how fast are images read in and checked, and how much do they share?
//	bitmap    a disk whose changes are known goes to another site: is anything read that did not change?
//	nbd       how many reads a second, next to nbdkit's file plugin?
//	crash     kill -9 at hundreds of points of import, push, gc, and of writes and flushes of disks: is
//	          anything lost or wrong?
//	faults    two writers race, the disk is full, bits flip on disk and on the wire: the same question
//	spread    256 MB to 16 hosts over 100 Mbit/s each: how much longer than to one?
//	boot      a VM where the image is not: how much longer to its first answer than at home?
//	copies    real images to a site that has none, an older one, a sibling: bytes on the wire,
//	          processor time, time; next to rsync -z, desync and casync in the same run
//
// The images are Debian roots that debootstrap makes, on ext4: one, the same after its upgrades and
// a month of logs, in place; the same files on a new filesystem in another order; and three
// siblings with other packages. They are made once and kept (--images).
package imagebench

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"heliotrope/topologies/lab/claim"
)

// benchLimit is what all parts may take.
const benchLimit = 30 * time.Minute

// Bench is the benchmark.
type Bench struct {
	claim.Bench
	Images string // directory in which the images are kept
	Points int    // of crash
}

// Command is "heliotrope lab bench-image".
func Command() *cobra.Command {
	b := &Bench{Bench: claim.Bench{Name: "image", Limit: benchLimit}}
	for _, p := range []struct {
		name string
		run  func(context.Context, *Bench) ([]claim.Claim, any, error)
	}{
		{"store", store}, {"bitmap", bitmap}, {"nbd", nbdPart}, {"crash", crash}, {"faults", faults}, {"spread", spreadPart}, {"boot", boot}, {"copies", copies},
	} {
		b.Parts = append(b.Parts, claim.Part{Name: p.name, Run: func(ctx context.Context) ([]claim.Claim, any, error) { return p.run(ctx, b) }})
	}
	cmd := &cobra.Command{
		Use: "bench-image", Short: "Hold images' copies against rsync, desync and casync, their disks against nbdkit, and all against kill -9", Args: cobra.NoArgs,
		Long: `Hold the copies of images against those of rsync, desync and casync, and their disks against nbdkit's, in the same run. It exits with 0
when it has measured; the last line, a JSON object, says whether what is claimed held. Parts run one after the other, for 30 minutes in all at most: those that
had not come to their end by then fail their claims. The images are made once, which needs a mirror of Debian (MIRROR); nothing else needs a network.`,
		Example: "  heliotrope lab bench-image\n  heliotrope lab bench-image --only copies",
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.Out = cmd.OutOrStdout()
			cmd.SilenceUsage = true
			return b.Run(cmd.Context(), nil)
		},
	}
	cmd.AddCommand(nbdServeCommand())
	f := cmd.Flags()
	f.StringSliceVar(&b.Only, "only", nil, "parts to measure: "+b.Names()+" (default all)")
	f.StringVar(&b.Images, "images", DefaultDir(), "directory in which the images are kept")
	f.IntVar(&b.Points, "points", 500, "processes of import, push and gc that are killed, and two fifths more that serve disks")
	return cmd
}

// DefaultDir is where the images are kept.
func DefaultDir() string { return filepath.Join(cacheDir(), "bench-images") }

func cacheDir() string {
	if dir := os.Getenv("HELIOTROPE_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "heliotrope")
}
