package replay

import (
	"cmp"
	"fmt"
	"html"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"heliotrope/internal/axis"
)

// Curve is what one choice had cost until each moment.
type Curve struct {
	Name   string  `json:"name"`
	Points []Point `json:"points"`
	Ours   bool    `json:"ours,omitempty"` // drawn before all others
}

// Style is that of a Picture. It stands inside it; a page with a content security policy
// knows it by its hash.
const Style = `.spend{--ink:#1d2126;--soft:#646c75;--line:#e3e5e4;--accent:#2b6c8f;--far:#cc4f26;--near:#8a949e;font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",Arial,sans-serif;font-variant-numeric:tabular-nums}
@media (prefers-color-scheme:dark){.spend{--ink:#e4e6e8;--soft:#98a1aa;--line:#2e343b;--accent:#6fb3d6;--far:#f4835a;--near:#77828d}}
.spend text{fill:var(--soft)}.spend .title{fill:var(--ink);font-size:14px;font-weight:600}.spend .mid{text-anchor:middle}.spend .end{text-anchor:end}
.spend .rule{stroke:var(--line);fill:none}.spend .other{stroke:var(--near);fill:none;stroke-width:1;opacity:.4}.spend .best{stroke:var(--ink);fill:none;stroke-width:1.4;stroke-dasharray:5 3}
.spend .ours{stroke:var(--accent);fill:none;stroke-width:2.4;stroke-linejoin:round}.spend .area{fill:var(--accent);opacity:.12}
.spend .onours{fill:var(--accent);font-weight:600}.spend .onbest{fill:var(--ink);font-weight:600}`

// The picture, in pixels.
const (
	wide, high  = 1080.0, 420.0
	left, right = 72.0, 836.0
	top, bottom = 56.0, 376.0
	apart       = 15.0 // names on the right, from one to the next
	points      = 400  // of a curve that are drawn
	letters     = 28   // of a name
)

// Picture draws curves of what was paid over time as one SVG that stands by itself: ours, the
// best of the others, and all the others in the background, of which the dearest and the one
// in the middle have names. The same curves make the same bytes; names are escaped. Curves
// without points are left out.
func Picture(title string, curves []Curve) string {
	curves = slices.DeleteFunc(slices.Clone(curves), func(c Curve) bool { return len(c.Points) == 0 })
	f := frameOf(curves)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" class="spend" viewBox="0 0 %s %s" width="%[1]s" height="%[2]s" role="img" aria-labelledby="spend-t spend-d"><title id="spend-t">%s</title><desc id="spend-d">%s</desc><style>%s</style>`,
		px(wide), px(high), text(title), text(describe(curves)), Style)
	fmt.Fprintf(&b, `<text class="title" x="%s" y="26">%s</text>`, px(left), text(title))
	f.axes(&b)
	labels := f.lines(&b, curves)
	f.names(&b, labels)
	b.WriteString(`</svg>`)
	return b.String()
}

// last is what a curve came to.
func (c *Curve) last() float64 { return c.Points[len(c.Points)-1].USD }

// describe says what there is to see for those who do not see it.
func describe(curves []Curve) string {
	if len(curves) == 0 {
		return "Nothing was paid."
	}
	var said []string
	low, high := curves[0], curves[0]
	for _, c := range curves {
		switch {
		case c.Ours:
			said = append(said, fmt.Sprintf("%s %s", c.Name, dollars(c.last())))
		case low.Ours || c.last() < low.last():
			low = c
		}
		if !c.Ours && (high.Ours || c.last() > high.last()) {
			high = c
		}
	}
	said = append(said, fmt.Sprintf("of the %d others %s the least, %s, and %s the most, %s", len(curves)-len(said), low.Name, dollars(low.last()), high.Name, dollars(high.last())))
	return "Paid in the end: " + strings.Join(said, "; ") + "."
}

// frame maps time and money to pixels.
type frame struct {
	from, to time.Time
	step     float64 // USD, of the rules
	most     float64
}

func frameOf(curves []Curve) frame {
	var f frame
	for _, c := range curves {
		for _, p := range c.Points {
			if f.from.IsZero() || p.At.Before(f.from) {
				f.from = p.At
			}
			if p.At.After(f.to) {
				f.to = p.At
			}
			f.most = max(f.most, finite(p.USD))
		}
	}
	f.step, f.most = axis.Scale(f.most, 6)
	return f
}

func (f frame) x(t time.Time) float64 {
	if !f.from.Before(f.to) {
		return left
	}
	return left + (right-left)*float64(t.Sub(f.from))/float64(f.to.Sub(f.from))
}

func (f frame) y(usd float64) float64 { return bottom - (bottom-top)*finite(usd)/f.most }

// axes draws rules of money and ticks of time.
func (f frame) axes(b *strings.Builder) {
	for v := 0.0; v <= f.most*1.001; v += f.step {
		fmt.Fprintf(b, `<path class="rule" d="M%s %sH%s"/><text class="end" x="%s" y="%s">%s</text>`, px(left), px(f.y(v)), px(right), px(left-8), px(f.y(v)+4), dollars(v))
	}
	ticks, layout := axis.Times(f.from, f.to)
	for _, t := range ticks {
		fmt.Fprintf(b, `<path class="rule" d="M%s %sv5"/><text class="mid" x="%s" y="%s">%s</text>`, px(f.x(t)), px(bottom), px(f.x(t)), px(bottom+22), t.Format(layout))
	}
}

// label is a name at the end of a curve.
type label struct {
	y           float64
	class, text string
}

// lines draws the curves, those that matter last, and says which have names.
func (f frame) lines(b *strings.Builder, curves []Curve) []label {
	var others []Curve
	for _, c := range curves {
		if !c.Ours {
			others = append(others, c)
		}
	}
	slices.SortStableFunc(others, func(a, b Curve) int { return cmp.Compare(b.last(), a.last()) }) // the dearest first
	var labels []label
	name := func(class string, c Curve) {
		short := []rune(c.Name)
		if len(short) > letters {
			short = append(short[:letters-1], '…')
		}
		labels = append(labels, label{f.y(c.last()), class, fmt.Sprintf("%s %s", dollars(c.last()), string(short))})
	}
	for i, c := range others {
		class := "other"
		switch {
		case i == len(others)-1:
			class = "best"
			name("onbest", c)
		case i == 0 || i == len(others)/2:
			name("", c)
		}
		fmt.Fprintf(b, `<path class="%s" d="%s"><title>%s</title></path>`, class, f.path(c.Points), text(c.Name))
	}
	for _, c := range curves {
		if c.Ours {
			line := f.path(c.Points)
			fmt.Fprintf(b, `<path class="area" d="%sV%sH%sz"/><path class="ours" d="%[1]s"><title>%[4]s</title></path>`, line, px(bottom), px(f.x(c.Points[0].At)), text(c.Name))
			name("onours", c)
		}
	}
	return labels
}

// path is a curve, thinned to what can be seen.
func (f frame) path(all []Point) string {
	var b strings.Builder
	few := (len(all) + points - 1) / points
	for i, p := range all {
		if i%few != 0 && i != len(all)-1 {
			continue
		}
		sign := "L"
		if i == 0 {
			sign = "M"
		}
		fmt.Fprintf(&b, "%s%s %s", sign, px(f.x(p.At)), px(f.y(p.USD)))
	}
	return b.String()
}

// names writes labels on the right, none over another.
func (f frame) names(b *strings.Builder, labels []label) {
	slices.SortStableFunc(labels, func(a, b label) int { return cmp.Compare(a.y, b.y) })
	for i := range labels {
		if i > 0 {
			labels[i].y = max(labels[i].y, labels[i-1].y+apart)
		}
	}
	for i := len(labels) - 1; i >= 0; i-- { // and none below the picture
		limit := bottom
		if i+1 < len(labels) {
			limit = labels[i+1].y - apart
		}
		labels[i].y = min(labels[i].y, limit)
	}
	for _, l := range labels {
		fmt.Fprintf(b, `<text class="%s" x="%s" y="%s">%s</text>`, l.class, px(right+10), px(l.y+4), text(l.text))
	}
}

func finite(v float64) float64 {
	if math.IsNaN(v) || v < 0 {
		return 0
	}
	return min(v, 1e15)
}

// px has one decimal: more cannot be seen.
func px(v float64) string { return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64) }

// text makes what is foreign harmless, and what cannot be printed visible.
func text(s string) string {
	clean := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, strings.ToValidUTF8(s, "\uFFFD"))
	return html.EscapeString(clean)
}

func dollars(v float64) string {
	switch v = finite(v); {
	case v == 0:
		return "$0"
	case v < 10:
		return "$" + strconv.FormatFloat(v, 'f', 2, 64)
	}
	digits := strconv.FormatFloat(v, 'f', 0, 64)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return "$" + digits
}
