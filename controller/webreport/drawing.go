package webreport

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
)

// drawing is an SVG under construction.
type drawing struct{ b strings.Builder }

// put writes markup. Strings among its arguments are text from outside: they are cleaned
// and escaped, whether they stand in an attribute or between tags. Numbers have one
// decimal. Only formats, which are constants of this package, are markup.
func (d *drawing) put(format string, args ...any) {
	for i, a := range args {
		switch v := a.(type) {
		case float64:
			args[i] = strconv.FormatFloat(math.Round(finite(v)*10)/10, 'f', -1, 64)
		case int:
		default:
			args[i] = template.HTMLEscapeString(clean(v))
		}
	}
	fmt.Fprintf(&d.b, format, args...)
}

// open begins a picture of w by h with a name and a description for those who do not see it.
func (d *drawing) open(id string, w, h float64, title, desc string) {
	d.put(`<svg class="%v" viewBox="0 0 %v %v" width="%v" height="%v" role="img" aria-labelledby="%v-t %v-d"><title id="%v-t">%v</title><desc id="%v-d">%v</desc>`,
		id, w, h, w, h, id, id, id, title, id, desc)
}

func (d *drawing) text(class string, x, y float64, s string) {
	d.put(`<text class="%v" x="%v" y="%v">%v</text>`, class, x, y, s)
}

func (d *drawing) html() template.HTML { return template.HTML(d.b.String()) }

// levels is the number of colours of a scale.
const levels = 8

// scale maps rates to colours by their logarithm, from one power of ten to another.
type scale struct{ low, high float64 }

// scaleOf is the scale that fits all rates. What is under a millionth of the largest has
// the same colour as a millionth: it does not matter, and would flatten all else.
func scaleOf(rates [][]float64) scale {
	low, high := math.Inf(1), 0.0
	for _, row := range rates {
		for _, v := range row {
			if v = finite(v); v > 0 {
				low, high = min(low, v), max(high, v)
			}
		}
	}
	if high == 0 {
		return scale{}
	}
	// Within the powers of ten that a float64 has in full: the next one up is infinite, the
	// next one down 0, and a scale between those has no end.
	top := max(-299, min(math.Ceil(math.Log10(high)), 300))
	bottom := max(-300, math.Floor(math.Log10(max(low, high/1e6))))
	return scale{math.Pow(10, min(bottom, top-1)), math.Pow(10, top)}
}

// class is the style of v: c0 to c7, or none for nothing.
func (s scale) class(v float64) string {
	if v = finite(v); v <= 0 || s.high == 0 {
		return ""
	}
	at := math.Log(v/s.low) / math.Log(s.high/s.low)
	return "c" + strconv.Itoa(min(levels-1, max(0, int(at*levels))))
}

// drawScale is the legend of s.
func drawScale(s scale) template.HTML {
	const width, left = 400.0, 28.0
	var d drawing
	d.open("scale", width+2*left, 34, "Colour scale", "Bytes per second, from "+rate(s.low)+" to "+rate(s.high)+", logarithmic.")
	for i := range levels {
		d.put(`<rect class="c%v" x="%v" y="2" width="%v" height="10"/>`, i, left+float64(i)*width/levels, width/levels)
	}
	decades := math.Round(math.Log10(s.high / s.low))
	for k := 0.0; k <= decades; k++ {
		for _, step := range []float64{1, 2, 5} {
			if step > 1 && (decades > 2 || k == decades) {
				break
			}
			x := left + width*(k+math.Log10(step))/decades
			d.put(`<path class="tick" d="M%v 12v4"/>`, x)
			d.text("mid small", x, 29, roundRate(s.low*step*math.Pow(10, k)))
		}
	}
	d.put(`</svg>`)
	return d.html()
}
