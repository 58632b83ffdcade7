// Package wanbench measures what moving a VM's memory over a WAN takes: unmodified QEMUs on both
// sides of the lab's WAN, whose meter says how many bytes crossed, in QEMU's own modes and with the
// relay's codec, in the same run.
//
// The guests have 256 MB each, and are under plain emulation:
//
//	idle   has read 130 MB of programs and libraries of a Debian root, and does nothing
//	db     rewrites records in place: 96 MB of them, 8,000 a second, anywhere
//	churn  unpacks, compiles, packs, sorts and removes files in memory
//	cache  a redis with 60,000 hashes, whose fields are set and counted up
//	four   four of the idle ones, which move at the same time
//
// What the sites have of the guest is another row each: nothing (ours), the image of its disk, which comes to each of them from a
// store of images as to hosts (ours+image), what one like it has left (ours+site), and what it has left itself (ours+back).
//
// A guest is booted once and goes to and fro between the sites, by one mode after the other. It
// counts on its console, so that one which arrived dead is found. The bytes that QEMU sent are
// those that the other QEMU got: the decoder compares a hash of all of them before it gives any
// out, and a migration in which it differs fails.
package wanbench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"heliotrope/migration/wan"
	"heliotrope/topologies/lab/claim"
	"heliotrope/topologies/lab/imagebench"
)

// Bench is the benchmark.
type Bench struct {
	claim.Bench
	Images string // directory in which the guests' disk is kept
	Rounds int
	Modes  []string
	Guests []string
	Links  []link
}

// works are what guests do.
var works = []string{"idle", "db", "churn", "cache"}

// fours are the modes by which four move together.
var fours = []string{"plain", "multifd+zstd", ours.name, oursImage, oursSite}

func classOf(c int) string { return wan.Class(c).String() }

// Command is "heliotrope lab bench-wan".
func Command() *cobra.Command {
	b := &Bench{Bench: claim.Bench{Name: "wan"}}
	var links []string
	var names []string
	for _, m := range modes {
		names = append(names, m.name)
	}
	cmd := &cobra.Command{
		Use: "bench-wan", Short: "Hold moves of memory over a WAN against QEMU's own ways", Args: cobra.NoArgs,
		Long: `Move guests between two sites over the lab's WAN, in each of QEMU's own modes and with the relay's codec. It exits with 0 when it has
measured; the last line, a JSON object, says whether what is claimed held.`,
		Example: "  heliotrope lab bench-wan\n  heliotrope lab bench-wan --guests db --modes plain,ours --links 100/0ms --rounds 1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.Out = cmd.OutOrStdout()
			for _, l := range links {
				var k link
				rate, rtt, _ := strings.Cut(l, "/")
				d, err := time.ParseDuration(rtt)
				if _, bad := fmt.Sscan(rate, &k.Mbits); bad != nil || err != nil {
					return fmt.Errorf("--links %s: write MBITS/RTT, as in 100/27ms", l)
				}
				k.RTT = d
				b.Links = append(b.Links, k)
			}
			cmd.SilenceUsage = true
			b.Parts = []claim.Part{{Name: "moves", Run: b.moves}}
			return b.Run(cmd.Context(), nil)
		},
	}
	cmd.AddCommand(endCommand())
	f := cmd.Flags()
	f.StringVar(&b.Images, "images", imagebench.DefaultDir(), "directory in which the guests' disk is kept")
	f.IntVar(&b.Rounds, "rounds", 3, "moves of each kind")
	f.StringSliceVar(&b.Modes, "modes", names, "ways to move")
	f.StringSliceVar(&b.Guests, "guests", append(slices.Clip(works), four), "guests to move")
	f.StringSliceVar(&links, "links", []string{"100/0ms", "465/0ms", "465/27ms"}, "ways between the sites: MBITS/RTT")
	return cmd
}

// moves moves every guest by every mode over every link, so many rounds.
func (b *Bench) moves(ctx context.Context) ([]claim.Claim, any, error) {
	if err := imagebench.Images(ctx, b.Images, b.Out); err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "heliotrope-wan-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	f, err := newField(ctx, dir, filepath.Join(b.Images, "v1.raw"))
	if err != nil {
		return nil, nil, err
	}
	y, err := newYard(ctx)
	if err != nil {
		return nil, nil, err
	}
	var all []moved
	for _, work := range b.Guests {
		got, guestErr := b.guest(ctx, y, f, work)
		all, err = append(all, got...), errors.Join(err, guestErr)
	}
	err = errors.Join(err, y.close())
	s := summarise(all)
	s.print(b)
	return s.claims(), map[string]any{"moves": all}, err
}

// guest boots one and moves it about. One that died is booted anew for the next mode.
func (b *Bench) guest(ctx context.Context, y *yard, f *field, work string) (all []moved, err error) {
	var ms []*machine
	defer func() { err = errors.Join(err, killAll(ms)) }()
	for round := range b.Rounds {
		for _, l := range b.Links {
			for _, md := range modes {
				if !slices.Contains(b.Modes, md.name) || work == four && !slices.Contains(fours, md.name) {
					continue
				}
				if ms == nil {
					if ms, err = y.bootAll(ctx, f, work); err != nil {
						return all, err
					}
				}
				to, r, moveErr := y.move(ctx, f, ms, md, l)
				if moveErr != nil {
					b.Say("%v", moveErr)
					err = errors.Join(err, moveErr, killAll(ms))
					if ms = nil; ctx.Err() != nil {
						return all, err
					}
					continue
				}
				ms = to
				all = append(all, r)
				b.tell(round, r)
			}
		}
	}
	return all, err
}

func (b *Bench) tell(round int, r moved) {
	forced := ""
	if r.Forced {
		forced = ", forced"
	}
	b.Say("%d  %-5s %-13s %-18s %7.1f MB, %6.2f s, pause %5.0f ms, %d rounds%s; CPU: QEMU %.1f s, relay %.1f + %.1f s", round+1, r.Guest, r.Mode, r.Link, float64(r.Wire)/1e6, r.Total, r.Pause,
		r.Rounds, forced, r.QEMU, r.Relay, r.There)
}

// cell is one kind of move.
type cell struct {
	guest, mode string
	link        link
}

// summary is the medians of each kind.
type summary map[cell]moved

func summarise(all []moved) summary {
	kinds := map[cell][]moved{}
	for _, r := range all {
		c := cell{r.Guest, r.Mode, r.Link}
		kinds[c] = append(kinds[c], r)
	}
	s := summary{}
	for c, rs := range kinds {
		m := rs[0]
		m.Wire = uint64(median(rs, func(r moved) float64 { return float64(r.Wire) }))
		m.Total = median(rs, func(r moved) float64 { return r.Total })
		m.Pause = median(rs, func(r moved) float64 { return r.Pause })
		m.QEMU = median(rs, func(r moved) float64 { return r.QEMU })
		m.Relay = median(rs, func(r moved) float64 { return r.Relay })
		m.Stream = uint64(median(rs, func(r moved) float64 { return float64(r.Stream) }))
		s[c] = m
	}
	return s
}

func median(rs []moved, value func(moved) float64) float64 {
	var all []float64
	for _, r := range rs {
		all = append(all, value(r))
	}
	slices.Sort(all)
	n := len(all)
	return (all[(n-1)/2] + all[n/2]) / 2
}

func orderOf(guest string) int { return slices.Index(append(slices.Clip(works), four), guest) }

func (s summary) print(b *Bench) {
	var cells []cell
	for c := range s {
		cells = append(cells, c)
	}
	order := func(name string) int { return slices.IndexFunc(modes, func(m mode) bool { return m.name == name }) }
	slices.SortFunc(cells, func(x, y cell) int {
		return cmp.Or(orderOf(x.guest)-orderOf(y.guest), x.link.Mbits-y.link.Mbits, int(x.link.RTT-y.link.RTT), order(x.mode)-order(y.mode))
	})
	w := tabwriter.NewWriter(b.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "guest\tlink\tmode\tWAN MB\t/ plain\ts\t/ plain\ts / wire\tpause ms\tQEMU CPU s\trelay CPU s\tstream MB/CPU s\t")
	for _, c := range cells {
		m, plain := s[c], s[cell{c.guest, "plain", c.link}]
		through := ""
		if m.Relay > 0 {
			through = fmt.Sprintf("%.0f", float64(m.Stream)/1e6/m.Relay)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%.1f\t%.3f\t%.2f\t%.3f\t%.2f\t%.0f\t%.1f\t%.1f\t%s\t\n", c.guest, c.link, c.mode, float64(m.Wire)/1e6, float64(m.Wire)/float64(max(plain.Wire, 1)),
			m.Total, m.Total/max(plain.Total, 1e-9), m.Total/(float64(m.Wire)/c.link.rate()), m.Pause, m.QEMU, m.Relay, through)
	}
	fmt.Fprintln(b.Out)
	w.Flush()
	fmt.Fprintln(b.Out)
}
