package replay

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"
)

func line(name string, ours bool, usdPerTick float64, ticks int, step time.Duration) Curve {
	c := Curve{Name: name, Ours: ours}
	for i := range ticks {
		c.Points = append(c.Points, Point{begin.Add(time.Duration(i) * step), usdPerTick * float64(i)})
	}
	return c
}

// wellFormed reads a picture as XML and returns its texts.
func wellFormed(t *testing.T, svg string) []string {
	t.Helper()
	var texts []string
	d := xml.NewDecoder(strings.NewReader(svg))
	inText := false
	for {
		token, err := d.Token()
		if err == io.EOF {
			return texts
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, svg)
		}
		switch x := token.(type) {
		case xml.StartElement:
			inText = x.Name.Local == "text"
			for _, a := range x.Attr {
				if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
					t.Fatalf("%s is %q", a.Name.Local, a.Value)
				}
			}
		case xml.CharData:
			if inText {
				texts = append(texts, string(x))
			}
		case xml.EndElement:
			inText = false
		}
	}
}

func TestPictureNamesWhatMatters(t *testing.T) {
	curves := []Curve{line("us <script>", false, 3, 1000, 7*24*time.Hour), line("scheduler", true, 1.1, 1000, 7*24*time.Hour),
		line("mars", false, 1, 1000, 7*24*time.Hour), line("venus", false, 9, 1000, 7*24*time.Hour), {Name: "empty"}}
	svg := Picture("spot & more", curves)
	texts := strings.Join(wellFormed(t, svg), "|")
	for _, want := range []string{"spot & more", "$1,099 scheduler", "$999 mars", "$2,997 us <script>", "$8,991 venus", "$10,000"} {
		if !strings.Contains(texts, want) {
			t.Errorf("%q is not there: %s", want, texts)
		}
	}
	if strings.Contains(svg, "<script>") || strings.Contains(svg, "empty") {
		t.Error("what is foreign is not escaped, or what is empty is there")
	}
	if !strings.Contains(svg, "of the 3 others mars the least, $999, and venus the most, $8,991") {
		t.Error("nobody says what there is to see")
	}
	if svg != Picture("spot & more", curves) {
		t.Error("twice the same curves, two pictures")
	}
	if len(svg) > 40_000 {
		t.Errorf("%d bytes: it was not thinned", len(svg))
	}
}

// Whatever is drawn, it is one well-formed picture.
func TestPictureOfAnything(t *testing.T) {
	for name, curves := range map[string][]Curve{
		"nothing":     nil,
		"one point":   {line("a", true, 1, 1, time.Hour)},
		"no time":     {line("a", false, 1, 3, 0)},
		"nothing due": {line("a", true, 0, 9, time.Hour), line("b", false, 0, 9, time.Hour)},
		"no numbers":  {line("a", true, math.NaN(), 9, time.Hour), line("b", false, math.Inf(1), 9, time.Hour)},
		"control":     {line("a\x00\u202e\xff", true, 1, 9, 24*time.Hour)},
		"hours":       {line("a", true, 1, 9, time.Hour), line("b", false, 1.01, 9, time.Hour)},
	} {
		t.Run(name, func(t *testing.T) { wellFormed(t, Picture(name, curves)) })
	}
	var many []Curve
	for i := range 40 {
		many = append(many, line(fmt.Sprint("region-with-a-very-long-name-", i), i == 0, 1, 30, 24*time.Hour))
	}
	for _, text := range wellFormed(t, Picture("all alike", many)) {
		if len([]rune(text)) > 40 {
			t.Errorf("%q is too long", text)
		}
	}
}
