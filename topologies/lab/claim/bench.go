package claim

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// Part is one question of a benchmark. It prints a table of its own and returns figures for
// the JSON line.
type Part struct {
	Name string
	Run  func(context.Context) ([]Claim, any, error)
}

// Bench is a benchmark. It exits well when it has measured; whether what is claimed held, its
// last line says, a JSON object.
type Bench struct {
	Name  string
	Parts []Part
	Only  []string // parts to run; none: all
	Out   io.Writer
	// Limit is the time for all parts, which is claimed of the whole. The part that goes on until a fifteenth of it is left, in which
	// it may tidy up, fails, and those after it; 0: none.
	Limit time.Duration

	began time.Time
}

// Names are those of the parts, as people list them.
func (b *Bench) Names() string {
	var names []string
	for _, p := range b.Parts {
		names = append(names, p.Name)
	}
	return strings.Join(names, ", ")
}

// Run measures part after part, nothing beside. One that cannot be measured, or panics, fails its claim
// and the others go on. Figures may have some already that belong to no part.
func (b *Bench) Run(ctx context.Context, figures map[string]any) error {
	for _, name := range b.Only {
		if !slices.ContainsFunc(b.Parts, func(p Part) bool { return p.Name == name }) {
			return fmt.Errorf("there is no part %q: there are %s", name, b.Names())
		}
	}
	b.began = time.Now()
	if figures = maps.Clone(figures); figures == nil {
		figures = map[string]any{}
	}
	within, cancel := ctx, func() {}
	if b.Limit > 0 {
		within, cancel = context.WithTimeoutCause(ctx, b.Limit-b.Limit/15, fmt.Errorf("all parts take longer than %v", b.Limit))
	}
	defer cancel()
	var claims []Claim
	took := map[string]float64{}
	for _, p := range b.Parts {
		if len(b.Only) > 0 && !slices.Contains(b.Only, p.Name) {
			continue
		}
		b.Say("%s", p.Name)
		began := time.Now()
		made, figure, err := p.measure(within)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		claims, figures[p.Name] = append(claims, made...), figure
		if err != nil {
			b.Say("%s: %v", p.Name, err)
			claims = append(claims, New(p.Name+" could be measured", 0, "==", 1))
		}
		took[p.Name] = time.Since(began).Seconds()
		b.Say("%s took %.0f s", p.Name, took[p.Name])
	}
	if b.Limit > 0 && len(b.Only) == 0 {
		claims = append(claims, New("all parts, s", time.Since(b.began).Seconds(), "<=", b.Limit.Seconds()))
	}
	for _, c := range claims {
		if !c.Holds {
			b.Say("MISSED: %s: %.4g, must be %s %g", c.Name, c.Value, c.Op, c.Bound)
		}
	}
	enc := json.NewEncoder(b.Out)
	enc.SetEscapeHTML(false) // people read "<=" too
	err := enc.Encode(struct {
		Bench   string             `json:"bench"`
		Seconds float64            `json:"seconds"`
		CPUs    int                `json:"cpus"`
		Took    map[string]float64 `json:"part_seconds"`
		Claims  []Claim            `json:"claims"`
		Figures map[string]any     `json:"figures"`
	}{b.Name, time.Since(b.began).Seconds(), runtime.NumCPU(), took, claims, figures})
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	return nil
}

// measure runs the part; a panic is an error of it.
func (p Part) measure(ctx context.Context) (claims []Claim, figure any, err error) {
	defer func() {
		if r := recover(); r != nil {
			claims, figure, err = nil, nil, fmt.Errorf("panic: %v: %s", r, debug.Stack())
		}
	}()
	if err := context.Cause(ctx); err != nil {
		return nil, nil, err
	}
	return p.Run(ctx)
}

// Say tells how far it is, with the time since its beginning.
func (b *Bench) Say(format string, args ...any) {
	fmt.Fprintf(b.Out, "%6.1fs  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}
