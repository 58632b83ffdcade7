package webreport

import (
	"cmp"
	"fmt"
	"html/template"
	"math"
	"slices"
	"time"

	"heliotrope/scheduler/traffic/report"
)

// The time line, in pixels.
const (
	lineWide, lineHigh  = 1080.0, 250.0
	lineLeft, lineRight = 72.0, 1056.0
	lineTop, lineBottom = 64.0, 218.0
	linePoints          = 500 // that are drawn; of more, the largest of each few
)

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
	step := niceStep(top / 4)
	top = step * max(1, math.Ceil(top/step))
	x := func(t time.Time) float64 {
		return lineLeft + (lineRight-lineLeft)*float64(t.Sub(from))/float64(to.Sub(from))
	}
	y := func(v float64) float64 { return lineBottom - (lineBottom-lineTop)*min(top, max(0, finite(v)))/top }
	var d drawing
	d.open("line", lineWide, lineHigh, "Bytes per second over time",
		fmt.Sprintf("From %s to %s, at most %s; %d events are marked with their numbers in the list below.", clock(from), clock(to), rate(top), len(marks)))
	for v := 0.0; v <= top*1.001; v += step {
		d.put(`<path class="rule" d="M%v %vH%v"/>`, lineLeft, y(v), lineRight)
		d.text("end small", lineLeft-8, y(v)+4, roundRate(v))
	}
	drawTimes(&d, from, to, x)
	drawVolume(&d, thin(history), x, y)
	drawMarks(&d, marks, from, to, x)
	d.put(`</svg>`)
	return d.html(), marks
}

// niceStep is v or a little more: 1, 2 or 5 times a power of ten.
func niceStep(v float64) float64 {
	if v <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, k := range []float64{1, 2, 5} {
		if v <= k*power*1.0001 {
			return k * power
		}
	}
	return 10 * power
}

var timeSteps = []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second,
	time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour}

func drawTimes(d *drawing, from, to time.Time, x func(time.Time) float64) {
	const most = 9
	step := timeSteps[0]
	for i := 1; to.Sub(from)/step >= most; i++ {
		if step *= 2; i < len(timeSteps) {
			step = timeSteps[i]
		}
	}
	layout := "15:04"
	if step < time.Minute {
		layout = time.TimeOnly
	} else if step >= 24*time.Hour {
		layout = "2 Jan"
	}
	t := from.UTC().Truncate(step)
	if t.Before(from) {
		t = t.Add(step)
	}
	for ; !t.After(to); t = t.Add(step) {
		d.put(`<path class="tick" d="M%v %vv5"/>`, x(t), lineBottom)
		d.text("mid small", x(t), lineBottom+20, t.Format(layout))
	}
}

// thin keeps the largest of each few points: a peak stays.
func thin(all []report.Volume) []report.Volume {
	few := (len(all) + linePoints - 1) / linePoints
	if few < 2 {
		return all
	}
	var kept []report.Volume
	for part := range slices.Chunk(all, few) {
		kept = append(kept, slices.MaxFunc(part, func(a, b report.Volume) int {
			return cmp.Compare(finite(a.Rate), finite(b.Rate))
		}))
	}
	return kept
}

// drawVolume draws the line and the area under it. Where points are missing it breaks off.
func drawVolume(d *drawing, all []report.Volume, x func(time.Time) float64, y func(float64) float64) {
	steps := make([]time.Duration, 0, len(all))
	for i := 1; i < len(all); i++ {
		steps = append(steps, all[i].At.Sub(all[i-1].At))
	}
	slices.Sort(steps)
	gap := 4 * steps[len(steps)/2]
	for first := 0; first < len(all); {
		end := first + 1
		for end < len(all) && all[end].At.Sub(all[end-1].At) <= gap {
			end++
		}
		var line drawing
		for i, v := range all[first:end] {
			line.put("L%v %v", x(v.At), y(v.Rate))
			if i == 0 && end == first+1 { // alone: a dot
				line.put("h1")
			}
		}
		points := line.b.String()[1:]
		d.put(`<path class="area" d="M%v %vL`, x(all[first].At), lineBottom)
		d.b.WriteString(points)
		d.put(`L%v %vz"/><path class="volume" d="M`, x(all[end-1].At), lineBottom)
		d.b.WriteString(points)
		d.put(`"/>`)
		first = end
	}
}

// drawMarks puts the numbers of events in three rows, so that none covers another; where
// there are more, only their lines are drawn.
func drawMarks(d *drawing, marks []mark, from, to time.Time, x func(time.Time) float64) {
	const size, apart = 8.0, 19.0
	free := [3]float64{}
	for _, m := range marks {
		if m.At.Before(from) || m.At.After(to) {
			continue
		}
		at, high := x(m.At), lineTop-6
		row := slices.IndexFunc(free[:], func(f float64) bool { return at >= f })
		if row >= 0 {
			high = lineTop - 14 - float64(row)*apart
			free[row] = at + apart
		}
		d.put(`<path class="event" d="M%v %vV%v"/>`, at, high, lineBottom)
		if row >= 0 {
			d.put(`<circle class="eventdot" cx="%v" cy="%v" r="%v"><title>%v: %v</title></circle>`, at, high, size, clock(m.At), m.What)
			d.put(`<text class="mid eventno" x="%v" y="%v">%v</text>`, at, high+3.5, m.Number)
		}
	}
}
