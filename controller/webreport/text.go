package webreport

import (
	"cmp"
	"fmt"
	"html/template"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"heliotrope/scheduler/traffic"
)

const longest = 64 // runes of a name

// clean makes a text fit to show: what has no glyph, and what turns the direction of
// writing, is U+FFFD.
func clean(v any) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsGraphic(r) {
			return r
		}
		return unicode.ReplacementChar
	}, fmt.Sprint(v))
}

// clip is clean, and not longer than n runes.
func clip(s string, n int) string {
	s = clean(s)
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func endName(e traffic.End) string {
	if e == (traffic.End{}) {
		return "?"
	}
	return clip(e.String(), longest)
}

// endNames lists the first of all.
func endNames(all []traffic.End) template.HTML { return list(all, endName) }

func names[T ~string](all []T) template.HTML {
	return list(all, func(id T) string { return clip(string(id), longest) })
}

// list never breaks a line within a name, as long as it fits.
func list[T any](all []T, name func(T) string) template.HTML {
	const most = 12
	first, more := cut(all, most)
	var d drawing
	for i, v := range first {
		comma := ","
		if i == len(first)-1 {
			comma = ""
		}
		d.put("<span class=\"id\">%v%v</span> ", name(v), comma)
	}
	if more > 0 {
		d.put("and %v more", more)
	}
	return d.html()
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// finite is v, or 0 where v is no number.
func finite(v float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return v
}

// count writes a number with three digits and an SI prefix: 1.24 k.
func count(v float64) string {
	v = finite(v)
	i := 0
	for ; math.Abs(v) >= 999.5 && i < 6; i++ {
		v /= 1000
	}
	digits := 0
	switch a := math.Abs(v); {
	case a < 9.995:
		digits = 2
	case a < 99.95:
		digits = 1
	}
	s := strconv.FormatFloat(v, 'f', digits, 64)
	if i == 0 {
		if v == math.Trunc(v) {
			s = strconv.FormatFloat(v, 'f', 0, 64)
		}
		return s
	}
	return s + "\u00a0" + []string{"", "k", "M", "G", "T", "P", "E"}[i]
}

// rate writes bytes per second: 1.24 MB/s.
func rate(v float64) string {
	s := count(v)
	if strings.ContainsRune(s, '\u00a0') {
		return s + "B/s"
	}
	return s + "\u00a0B/s"
}

// roundRate is rate without zeros behind the point: 1 MB/s, for scales.
func roundRate(v float64) string {
	number, unit, _ := strings.Cut(rate(v), "\u00a0")
	if strings.Contains(number, ".") {
		number = strings.TrimRight(strings.TrimRight(number, "0"), ".")
	}
	return number + "\u00a0" + unit
}

// dash writes a value that may be absent.
func dash(v float64) string {
	if finite(v) == 0 {
		return "–"
	}
	return count(v)
}

func millis(v float64) string {
	if finite(v) == 0 {
		return "–"
	}
	return count(v) + "\u00a0ms"
}

func usd(v float64) string {
	switch v = finite(v); {
	case v != 0 && math.Abs(v) < 0.005:
		return "<\u00a00.01\u00a0USD"
	case math.Abs(v) >= 1000:
		return strconv.FormatFloat(v, 'f', 0, 64) + "\u00a0USD"
	}
	return strconv.FormatFloat(v, 'f', 2, 64) + "\u00a0USD"
}

// percent writes a share of 1. What is not all does not read 100 %.
func percent(v float64) string {
	v = finite(v)
	switch {
	case v > 0 && v < 0.001:
		return "<\u00a00.1\u00a0%"
	case v < 0.0995:
		return strings.TrimSuffix(strconv.FormatFloat(100*v, 'f', 1, 64), ".0") + "\u00a0%"
	case v < 1:
		v = min(v, 0.99)
	}
	return strconv.FormatFloat(100*v, 'f', 0, 64) + "\u00a0%"
}

func clock(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	return t.UTC().Format(time.TimeOnly)
}

func day(t time.Time) string { return t.UTC().Format("2 January 2006") }

// span writes a duration in the units that one would say.
func span(d time.Duration) string {
	d = d.Round(time.Second)
	if d < 2*time.Minute {
		return fmt.Sprintf("%d s", int(d.Seconds()))
	}
	var parts []string
	for _, u := range []struct {
		of   time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}} {
		if n := d / u.of; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, u.name))
			d -= n * u.of
		}
	}
	return strings.Join(parts, " ")
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return whole(n) + " " + noun + "s"
}

// shape writes the sides of a grid: 4 × 3.
func shape(sides []int) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(sides), "[]"), " ", " × ")
}

// bar draws v as a part of all. Its number stands beside it, so it has no name.
func bar(v, all float64) template.HTML {
	const width = 72
	share := min(1, max(0, part(v, all)))
	var d drawing
	d.put(`<svg class="bar" width="%v" height="6" aria-hidden="true"><rect class="track" width="%v" height="6" rx="3"/>`, width, width)
	if share > 0 {
		d.put(`<rect class="value" width="%v" height="6" rx="3"/>`, max(3, share*width))
	}
	d.put(`</svg>`)
	return d.html()
}

// caption says how many rows of a table there are, and how many are shown.
func caption(shown, all int, what string) string {
	if shown < all {
		return fmt.Sprintf("The %d largest of %d %s", shown, all, what)
	}
	return fmt.Sprintf("%d %s", all, what)
}

func sum(a, b float64) float64 { return finite(a) + finite(b) }

func part(v, all float64) float64 { return finite(v / all) }

// whole writes a number with all its digits, in threes.
func whole[T int | uint64](n T) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u00a0" + s[i:]
	}
	return s
}
