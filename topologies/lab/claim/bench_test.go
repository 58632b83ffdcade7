package claim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

// A part that fails is a claim that does not hold, and the others are measured; only what
// was asked for is.
func TestBench(t *testing.T) {
	var out bytes.Buffer
	ran := ""
	part := func(name string, err error) Part {
		return Part{name, func(context.Context) ([]Claim, any, error) {
			ran += name
			return []Claim{New(name, 1, "<=", 2)}, len(ran), err
		}}
	}
	b := Bench{Name: "letters", Out: &out, Only: []string{"a", "c"}, Parts: []Part{part("a", errors.New("no rig")), part("b", nil), part("c", nil)}}
	if err := b.Run(t.Context(), map[string]any{"real": true}); err != nil || ran != "ac" {
		t.Fatalf("ran %q, %v", ran, err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var got struct {
		Bench   string
		Claims  []Claim
		Figures map[string]any
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
		t.Fatal(err)
	}
	if got.Bench != "letters" || len(got.Claims) != 3 || got.Claims[1].Holds || got.Claims[1].Name != "a could be measured" || got.Figures["real"] != true || got.Figures["c"] != 2.0 {
		t.Errorf("%+v", got)
	}
	if !strings.Contains(out.String(), "MISSED: a could be measured") || !strings.Contains(out.String(), "no rig") {
		t.Error(out.String())
	}
	b.Only = []string{"d"}
	if err := b.Run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "a, b, c") {
		t.Errorf("a part that is not there: %v", err)
	}
}

// A part that panics fails like any other, and so do the one in which the time ends and those after
// it; the line is there all the same.
func TestBenchOfPartsThatDie(t *testing.T) {
	var out bytes.Buffer
	b := Bench{Name: "deaths", Out: &out, Limit: 60 * time.Millisecond, Parts: []Part{
		{"panics", func(context.Context) ([]Claim, any, error) { panic("no reason") }},
		{"hangs", func(ctx context.Context) ([]Claim, any, error) { <-ctx.Done(); return nil, nil, context.Cause(ctx) }},
		{"late", func(context.Context) ([]Claim, any, error) { t.Error("it ran"); return nil, nil, nil }},
	}}
	if err := b.Run(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	text := strings.TrimSpace(out.String())
	var got struct{ Claims []Claim }
	if err := json.Unmarshal([]byte(text[strings.LastIndexByte(text, '\n')+1:]), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Claims) != 4 || Failed(got.Claims) == nil || got.Claims[1].Holds || got.Claims[2].Holds || got.Claims[3].Name != "all parts, s" {
		t.Errorf("%+v", got.Claims)
	}
	for _, want := range []string{"no reason", "longer than 60ms", `"op":"<="`} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in %s", want, text)
		}
	}
}
