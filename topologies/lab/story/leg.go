package story

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"text/tabwriter"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/topologies/lab/claim"
	"heliotrope/topologies/lab/guest"
	"heliotrope/topologies/lab/probe"
)

// leg is one move and what everybody saw of it.
type leg struct {
	From      heliotrope.HostID
	To        heliotrope.HostID
	Migration api.Migration
	Client    probe.Report
	Guest     guestChange
	WANBytes  uint64
	RouteMS   float64 // from the commit until the last router's kernel had the new route
}

// MarshalJSON has the numbers of the table.
func (l leg) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{
		"from": l.From, "to": l.To, "phase": l.Migration.Phase, "seconds": l.seconds(),
		"pause_ms": l.Migration.Measured.PauseMs, "gap_ms": l.Client.UDP.LongestGap.MS, "tcp_stall_ms": l.Client.TCP.LongestStall.MS,
		"probes": l.Client.UDP.Sent, "lost": l.Client.UDP.Lost, "duplicated": l.Client.UDP.Duplicated, "reordered": l.Client.UDP.Reordered,
		"rescued": l.Migration.Measured.RescuedPackets, "route_converged_ms": l.RouteMS, "wan_bytes": l.WANBytes,
		"disk_bytes": l.Migration.Measured.DiskBytes, "disk_spared_bytes": l.Migration.Measured.SparedBytes,
		"relay_bytes": l.Migration.Measured.Bytes, "rounds": l.Migration.Measured.Rounds, "memory": l.Migration.Measured.Memory, "guest": l.Guest,
	})
}

func (l leg) seconds() float64 {
	return l.Migration.FinishedAt.Sub(l.Migration.CreatedAt).Seconds()
}

func (l leg) String() string {
	stream, wire := l.memory()
	return fmt.Sprintf("%s in %.1f s: paused %.0f ms, the client saw a gap of %.0f ms, %d of %d probes lost, %d doubled; %.0f MB of memory crossed in %.0f, "+
		"%d pages of it were in its disk's image, %.1f MB of a disk of %.0f; guest %s",
		l.Migration.Phase, l.seconds(), l.Migration.Measured.PauseMs, l.Client.UDP.LongestGap.MS, l.Client.UDP.Lost, l.Client.UDP.Sent, l.Client.UDP.Duplicated,
		stream/1e6, wire/1e6, pages(l.Migration, "image"), float64(l.Migration.Measured.DiskBytes)/1e6, guest.StoredBytes/1e6, l.Guest)
}

// memory is how many bytes of memory QEMU sent, and how many crossed.
func (l leg) memory() (stream, wire float64) {
	for _, k := range l.Migration.Measured.Memory {
		stream, wire = stream+float64(k.Stream), wire+float64(k.Wire)
	}
	return stream, wire
}

// pages is how many of a move's memory were of a kind.
func pages(m api.Migration, kind string) (n uint64) {
	for _, k := range m.Measured.Memory {
		if k.Kind == kind {
			n += k.Pages
		}
	}
	return n
}

func writeTable(out io.Writer, legs []leg) {
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "move\ttook s\tpause ms\tclient gap ms\tTCP stall ms\tprobes\tlost\tdoubled\trescued\troutes after ms\tWAN MB\tdisk MB\tguest\t")
	for _, l := range legs {
		m, u := l.Migration.Measured, l.Client.UDP
		fmt.Fprintf(w, "%s → %s\t%.1f\t%.0f\t%.0f\t%.0f\t%d\t%d\t%d\t%d\t%.0f\t%.1f\t%.1f\t%s\t\n", l.From, l.To, l.seconds(), m.PauseMs, u.LongestGap.MS,
			l.Client.TCP.LongestStall.MS, u.Sent, u.Lost, u.Duplicated, m.RescuedPackets, l.RouteMS, float64(l.WANBytes)/1e6,
			float64(m.DiskBytes)/1e6, l.Guest)
	}
	w.Flush()
}

// judge says what had to hold and whether it did. That nothing is lost or doubled is the
// aim, and shown; more than maxLost in a move fails.
func judge(legs []leg, total probe.Report, wanted int) []claim.Claim {
	image := math.Inf(1)
	var done, lost, worst, doubled, badPages, badRecords, ticksBack, crossed, disk float64
	for _, l := range legs {
		if stream, wire := l.memory(); stream > 0 {
			crossed = max(crossed, wire/stream)
		} else {
			crossed = 1
		}
		if l.Migration.Phase == api.PhaseSucceeded {
			done++
		}
		image = min(image, float64(pages(l.Migration, "image")))
		disk = max(disk, float64(l.Migration.Measured.DiskBytes)/guest.StoredBytes)
		lost += float64(l.Client.UDP.Lost)
		worst = max(worst, float64(l.Client.UDP.Lost))
		doubled += float64(l.Client.UDP.Duplicated)
		badPages = max(badPages, float64(l.Guest.BadPages))
		badRecords = max(badRecords, float64(l.Guest.BadRecords))
		if !l.Guest.Continuous {
			ticksBack++
		}
	}
	alive := 0.0
	if total.TCP.Connected && !total.TCP.Broken {
		alive = 1
	}
	return []claim.Claim{
		claim.New("moves that succeeded", done, "==", float64(wanted)),
		claim.New("TCP connection alive", alive, "==", 1),
		claim.New("probes lost in the worst move", worst, "<=", maxLost),
		claim.New("probes lost in all (aim 0)", lost, "<=", float64(maxLost*wanted)),
		claim.New("probes doubled in all", doubled, "==", 0),
		claim.New("pages of guest memory damaged", badPages, "==", 0),
		claim.New("records on guest disk damaged", badRecords, "==", 0),
		claim.New("moves in which the guest's clock broke off", ticksBack, "==", 0),
		// A quarter of this guest's memory is noise, by which damage is found.
		claim.New("memory's bytes on the wire over those that QEMU sent, worst move", crossed, "<=", 0.7),
		claim.New("pages of memory that both sites have in the image of the VM's disk, move with the fewest", image, ">", 0),
		// It stands on an image that every site has from the store: only what it has written crosses.
		claim.New("disk's bytes that were copied over its size, worst move", disk, "<=", 0.25),
	}
}
