package webreport

import (
	"cmp"
	"fmt"
	"html/template"
	"slices"
	"time"

	"heliotrope/internal/axis"
	"heliotrope/scheduler/traffic/report"
)

const (
	lineWide, lineHigh = 1080.0, 250.0
	linePoints         = 500 // of a line that are drawn; of more, the largest of each few
)

// frame is what time and values are drawn in, in pixels: a time line.
type frame struct {
	left, right, high, low float64
	from, to               time.Time
	step, top              float64 // of the values' rules
}

// newFrame is a frame for values from 0 to most.
func newFrame(low float64, from, to time.Time, most float64) frame {
	f := frame{left: 72, right: 1056, high: 64, low: low, from: from, to: to}
	f.step, f.top = axis.Scale(finite(most), 4)
	return f
}

func (f frame) x(t time.Time) float64 {
	return f.left + (f.right-f.left)*float64(t.Sub(f.from))/float64(f.to.Sub(f.from))
}

func (f frame) y(v float64) float64 {
	return f.low - (f.low-f.high)*min(f.top, max(0, finite(v)))/f.top
}

// draw draws rules of values and ticks of time.
func (f frame) draw(d *drawing, label func(float64) string) {
	for v := 0.0; v <= f.top*1.001; v += f.step {
		d.put(`<path class="rule" d="M%v %vH%v"/>`, f.left, f.y(v), f.right)
		d.text("end small", f.left-8, f.y(v)+4, label(v))
	}
	ticks, layout := axis.Times(f.from, f.to)
	for _, t := range ticks {
		d.put(`<path class="tick" d="M%v %vv5"/>`, f.x(t), f.low)
		d.text("mid small", f.x(t), f.low+20, t.Format(layout))
	}
}

// mark is an event with its number on the time line.
type mark struct {
	Number int
	report.Event
}

// drawTimeline draws bytes per second, and the events as numbers above. The marks are in
// the order of time.
func drawTimeline(history []report.Volume, events []report.Event) (template.HTML, []mark) {
	marks := make([]mark, len(events))
	sorted := slices.SortedStableFunc(slices.Values(events), func(a, b report.Event) int { return a.At.Compare(b.At) })
	for i, e := range sorted {
		marks[i] = mark{i + 1, e}
	}
	history = slices.SortedStableFunc(slices.Values(history), func(a, b report.Volume) int { return a.At.Compare(b.At) })
	if len(history) < 2 || !history[0].At.Before(history[len(history)-1].At) {
		return "", marks
	}
	from, to := history[0].At, history[len(history)-1].At
	top := 0.0
	for _, v := range history {
		top = max(top, finite(v.Rate))
	}
	f := newFrame(218, from, to, top)
	var d drawing
	d.open("line", lineWide, lineHigh, "Bytes per second over time",
		fmt.Sprintf("From %s to %s, at most %s; %d events are marked with their numbers in the list below.", clock(from), clock(to), rate(f.top), len(marks)))
	f.draw(&d, roundRate)
	drawVolume(&d, f, thin(history, func(v report.Volume) float64 { return v.Rate }))
	f.drawMarks(&d, marks)
	d.put(`</svg>`)
	return d.html(), marks
}

// thin keeps the largest of each few points: a peak stays.
func thin[T any](all []T, value func(T) float64) []T {
	few := (len(all) + linePoints - 1) / linePoints
	if few < 2 {
		return all
	}
	var kept []T
	for part := range slices.Chunk(all, few) {
		kept = append(kept, slices.MaxFunc(part, func(a, b T) int {
			return cmp.Compare(finite(value(a)), finite(value(b)))
		}))
	}
	return kept
}

// unbroken are the parts of all between which points are missing.
func unbroken[T any](all []T, at func(T) time.Time) [][]T {
	steps := make([]time.Duration, 0, len(all))
	for i := 1; i < len(all); i++ {
		steps = append(steps, at(all[i]).Sub(at(all[i-1])))
	}
	if len(steps) == 0 {
		return [][]T{all}
	}
	slices.Sort(steps)
	gap := 4 * steps[len(steps)/2]
	var parts [][]T
	first := 0
	for end := 1; end <= len(all); end++ {
		if end == len(all) || at(all[end]).Sub(at(all[end-1])) > gap {
			parts = append(parts, all[first:end])
			first = end
		}
	}
	return parts
}

// drawLine draws values, of which there is at least one; alone it is a dot. Under is the
// area under the line, down to what base says of each, nil for nothing.
func drawLine[T any](d *drawing, f frame, line, under string, all []T, at func(T) time.Time, value, base func(T) float64) {
	var points drawing
	for i, v := range all {
		points.put("L%v %v", f.x(at(v)), f.y(value(v)))
		if i == 0 && len(all) == 1 {
			points.put("h1")
		}
	}
	path := points.b.String()[1:]
	if under != "" {
		d.put(`<path class="%v" d="M`, under)
		d.b.WriteString(path)
		if base == nil {
			base, all = func(T) float64 { return 0 }, []T{all[0], all[len(all)-1]}
		}
		for _, v := range slices.Backward(all) {
			d.put("L%v %v", f.x(at(v)), f.y(base(v)))
		}
		d.put(`z"/>`)
	}
	if line != "" {
		d.put(`<path class="%v" d="M`, line)
		d.b.WriteString(path)
		d.put(`"/>`)
	}
}

// drawVolume draws the line and the area under it. Where points are missing it breaks off.
func drawVolume(d *drawing, f frame, all []report.Volume) {
	at := func(v report.Volume) time.Time { return v.At }
	for _, part := range unbroken(all, at) {
		drawLine(d, f, "volume", "area", part, at, func(v report.Volume) float64 { return v.Rate }, nil)
	}
}

// drawMarks puts the numbers of events in three rows, so that none covers another; where
// there are more, only their lines are drawn.
func (f frame) drawMarks(d *drawing, marks []mark) {
	const size, apart = 8.0, 19.0
	free := [3]float64{}
	for _, m := range marks {
		if m.At.Before(f.from) || m.At.After(f.to) {
			continue
		}
		at, high := f.x(m.At), f.high-6
		row := slices.IndexFunc(free[:], func(free float64) bool { return at >= free })
		if row >= 0 {
			high = f.high - 14 - float64(row)*apart
			free[row] = at + apart
		}
		d.put(`<path class="event" d="M%v %vV%v"/>`, at, high, f.low)
		if row >= 0 {
			d.put(`<circle class="eventdot" cx="%v" cy="%v" r="%v"><title>%v: %v</title></circle>`, at, high, size, clock(m.At), m.What)
			d.put(`<text class="mid eventno" x="%v" y="%v">%v</text>`, at, high+3.5, m.Number)
		}
	}
}
