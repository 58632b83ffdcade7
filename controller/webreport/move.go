package webreport

import (
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strings"

	"heliotrope/controller/api"
	"heliotrope/internal/axis"
	"heliotrope/migration"
)

// movePage is what move.html reads.
type movePage struct {
	sheet
	api.Migration
	Lead  string
	Tiles []tile

	Stages, Memory, Passes template.HTML
	Parts                  []memoryPart
	Whole                  memoryPart
	Rows                   []passRow
}

// passRow is a pass with its number.
type passRow struct {
	Number int
	migration.Pass
}

// memoryPart is one kind of what memory consisted of.
type memoryPart struct {
	migration.Encoded
	Class, Means string
	Guest        float64 // bytes of the guest's memory
	OfWire       float64 // share of 1
}

// memoryKinds are the kinds in the order of how little each costs (docs/wan.md).
var memoryKinds = []struct{ kind, class, means string }{
	{"zero", "c1", "runs of zeros"},
	{"same", "share g0", "as it was when it was last sent"},
	{"dup", "share g4", "as another page of the VM"},
	{"image", "c4", "of the image of the VM's disk"},
	{"site", "share g2", "kept at the destination"},
	{"peer", "share g3", "carried by another VM's stream"},
	{"delta", "share g1", "some bytes differ"},
	{"literal", "share g5", "compressed"},
	{"noise", "share g7", "not to be compressed"},
	{"verbatim", "share g6", "devices, and what was not understood"},
	{"heads", "share gx", "what tells which is which"},
}

// RenderMove writes a move as a page, ended or not.
func RenderMove(w io.Writer, m api.Migration) error { return execute(w, "move.html", newMovePage(m)) }

func newMovePage(m api.Migration) *movePage {
	v := &movePage{sheet: newSheet("Move " + string(m.ID)), Migration: m, Lead: moveLead(m)}
	d := m.Measured
	if m.Ended() {
		v.Tiles = append(v.Tiles, tile{seconds(m.FinishedAt.Sub(m.CreatedAt).Seconds()), "from the order to the end"})
	} else {
		v.Tiles = append(v.Tiles, tile{percent(m.Progress), "done"})
	}
	for _, t := range []tile{{millis(d.PauseMs), "vCPUs stood still"}, {amount(d.Bytes), "sent between the hosts"}, {amount(d.DiskBytes), "of disks copied"}, {amount(d.SparedBytes), "of disks were there"}} {
		if t.Value != "–" {
			v.Tiles = append(v.Tiles, t)
		}
	}
	v.Stages = drawStages(m.Phases)
	v.Parts, v.Whole = memoryParts(d.Memory)
	if len(v.Parts) > 0 {
		v.Tiles = append(v.Tiles, tile{percent(part(float64(v.Whole.Wire), float64(v.Whole.Stream))), "of memory's stream crossed"})
		v.Memory = drawMemory(v.Parts, v.Whole)
	}
	_, blocks := memoryParts(d.Blocks)
	if blocks.Stream > 0 {
		v.Tiles = append(v.Tiles, tile{percent(part(float64(blocks.Wire), float64(blocks.Stream))), "of disks' streams crossed"})
	}
	if stream := v.Whole.Stream + blocks.Stream; d.CodecMs > 0 && stream > 0 {
		v.Tiles = append(v.Tiles, tile{rate(float64(stream) / d.CodecMs * 1e3), "encoded by a core"})
	}
	v.Passes = drawPasses(d.Passes)
	for i, p := range d.Passes {
		v.Rows = append(v.Rows, passRow{i + 1, p})
	}
	return v
}

// amount is bytes, or a dash for none.
func amount(v uint64) string {
	if v == 0 {
		return "–"
	}
	return bytesText(v)
}

// moveLead is a move in one sentence.
func moveLead(m api.Migration) string {
	vm, from, to := clip(string(m.VM), longest), clip(string(m.From), longest), clip(string(m.To), longest)
	switch {
	case m.Phase == api.PhaseSucceeded:
		return fmt.Sprintf("%s went from %s to %s in %s and stood still for %s.", vm, from, to, seconds(m.FinishedAt.Sub(m.CreatedAt).Seconds()), millis(m.Measured.PauseMs))
	case m.Phase == api.PhaseHeld:
		return fmt.Sprintf("%s is safe, and its move to %s waits for something.", vm, to)
	case m.Ended():
		return fmt.Sprintf("%s stays at %s.", vm, from)
	}
	return fmt.Sprintf("%s is on its way from %s to %s.", vm, from, to)
}

// memoryParts are the kinds that there were, and their sum.
func memoryParts(all []migration.Encoded) (parts []memoryPart, sum memoryPart) {
	for _, k := range memoryKinds {
		i := slices.IndexFunc(all, func(e migration.Encoded) bool { return e.Kind == k.kind })
		if i < 0 {
			continue
		}
		p := memoryPart{Encoded: all[i], Class: k.class, Means: k.means}
		if p.Kind != "verbatim" && p.Kind != "heads" {
			p.Guest = float64(p.Pages) * 4096
			sum.Pages += p.Pages
		}
		sum.Stream, sum.Wire, sum.Guest = sum.Stream+p.Stream, sum.Wire+p.Wire, sum.Guest+p.Guest
		parts = append(parts, p)
	}
	for i := range parts {
		parts[i].OfWire = part(float64(parts[i].Wire), float64(sum.Wire))
	}
	return parts, sum
}

// drawMemory draws what the guest has, what the hypervisor sent of it and what crossed, by
// kinds, as three bars of one scale.
func drawMemory(parts []memoryPart, sum memoryPart) template.HTML {
	const left, wide, high, apart = 118.0, 870.0, 26.0, 46.0
	most := max(sum.Guest, float64(sum.Stream), float64(sum.Wire))
	if most == 0 {
		return ""
	}
	var d drawing
	d.open("memory", lineWide, 3*apart, "Memory by kinds of pages",
		fmt.Sprintf("%s of pages, %s of the hypervisor's stream, %s on the wire. The table says the same in numbers.", bytesText(uint64(sum.Guest)), bytesText(sum.Stream), bytesText(sum.Wire)))
	for row, b := range []struct {
		name string
		of   func(memoryPart) float64
	}{{"pages", func(p memoryPart) float64 { return p.Guest }}, {"stream", func(p memoryPart) float64 { return float64(p.Stream) }}, {"wire", func(p memoryPart) float64 { return float64(p.Wire) }}} {
		y, x := float64(row)*apart+8, left
		d.text("end name", left-12, y+high/2+4, b.name)
		for _, p := range parts {
			w := b.of(p) / most * wide
			if w <= 0 {
				continue
			}
			d.put(`<rect class="%v" x="%v" y="%v" width="%v" height="%v"><title>%v: %v</title></rect>`, p.Class, x, y, w, high, p.Kind, bytesText(uint64(b.of(p))))
			x += w
		}
		d.text("small", x+8, y+high/2+4, bytesText(uint64(b.of(sum))))
	}
	d.put(`</svg>`)
	return d.html()
}

// stageClass is the colour of a phase: what has changed nothing yet, what the VM stands still
// in, and what comes after.
func stageClass(phase string) string {
	switch phase {
	case "Switchover", "Commit", "Activate":
		return "gohead"
	case "Converge", "Cleanup":
		return "share g2"
	case "Revert", "Rollback":
		return "share g1"
	}
	return "share g0"
}

// drawStages draws the phases that took time, one below the other.
func drawStages(all []api.PhaseTime) template.HTML {
	const left, wide, high, apart, foot = 118.0, 840.0, 16.0, 26.0, 26.0
	if len(all) == 0 {
		return ""
	}
	begin := all[0].At
	end := 0.0
	for _, p := range all {
		end = max(end, p.At.Sub(begin).Seconds()+finite(p.TookS))
	}
	if !(end > 0) {
		return ""
	}
	shown, _ := cut(slices.DeleteFunc(slices.Clone(all), func(p api.PhaseTime) bool { return finite(p.TookS) <= 0 }), rowLimit)
	var d drawing
	d.open("stages", lineWide, float64(len(shown))*apart+foot, "Phases of the move", "When each began and how long it took: "+seconds(end)+" in all.")
	bottom := float64(len(shown)) * apart
	step, _ := axis.Scale(end, 5)
	for at := 0.0; at <= end; at += step {
		x := left + wide*at/end
		d.put(`<path class="rule" d="M%v 0V%v"/>`, x, bottom)
		d.text("mid small", x, bottom+18, strings.TrimSuffix(roundRate(at), "B/s")+"s")
	}
	for i, p := range shown {
		y := float64(i)*apart + (apart-high)/2
		x, w := left+wide*max(0, p.At.Sub(begin).Seconds())/end, max(2, wide*p.TookS/end)
		d.text("end name", left-12, y+high/2+4, clip(p.Phase, 16))
		d.put(`<rect class="%v" x="%v" y="%v" width="%v" height="%v" rx="3"><title>%v: %v</title></rect>`, stageClass(p.Phase), x, y, w, high, p.Phase, seconds(p.TookS))
		d.text("small", x+w+8, y+high/2+4, seconds(p.TookS))
	}
	d.put(`</svg>`)
	return d.html()
}

// passLines are what is drawn of passes.
var passLines = []struct {
	class string
	of    func(migration.Pass) uint64
}{
	{"within", func(p migration.Pass) uint64 { return p.Sent }},
	{"volume", func(p migration.Pass) uint64 { return p.Wire }},
	{"go", func(p migration.Pass) uint64 { return p.Dirty }},
}

// drawPasses draws what each pass over the memory sent and left, on a logarithmic scale: a copy
// that converges falls.
func drawPasses(all []migration.Pass) template.HTML {
	const left, right, top, low, high = 118.0, 1040.0, 14.0, 200.0, 230.0
	if len(all) < 2 {
		return ""
	}
	var rates [][]float64
	for _, l := range passLines {
		row := make([]float64, len(all))
		for i, p := range all {
			row[i] = float64(l.of(p))
		}
		rates = append(rates, row)
	}
	s := scaleOf(rates)
	if s.high == 0 {
		return ""
	}
	decades := math.Round(math.Log10(s.high / s.low))
	x := func(i int) float64 { return left + (right-left)*float64(i)/float64(len(all)-1) }
	y := func(v float64) float64 {
		return low - (low-top)*min(1, max(0, math.Log10(max(v, s.low)/s.low)/decades))
	}
	var d drawing
	d.open("passes", lineWide, high, "Passes over the memory", fmt.Sprintf("What each of %d passes sent, what crossed for it and what the guest dirtied meanwhile, logarithmic.", len(all)))
	for k := 0.0; k <= decades; k++ {
		v := s.low * math.Pow(10, k)
		d.put(`<path class="rule" d="M%v %vH%v"/>`, left, y(v), right)
		d.text("end small", left-12, y(v)+4, strings.TrimSuffix(roundRate(v), "/s"))
	}
	every := (len(all) + 19) / 20
	for i := range all {
		if i%every == 0 {
			d.text("mid small", x(i), low+20, fmt.Sprint(i+1))
		}
	}
	for k, l := range passLines {
		var points drawing
		for i, v := range rates[k] {
			points.put("L%v %v", x(i), y(v))
		}
		d.put(`<path class="%v" d="M%v"/>`, l.class, points.b.String()[1:])
	}
	d.put(`</svg>`)
	return d.html()
}
