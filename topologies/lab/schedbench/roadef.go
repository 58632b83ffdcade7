package schedbench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"heliotrope/scheduler/reassign"
	"heliotrope/topologies/lab/claim"
)

const (
	roadefDir = "roadef2012" // in the directory of data: the challenge's files by their names

	nearBest   = 0.01
	nearEnough = 10_000 // a cost this near to the bound, as its part, ends a search
)

// roadefBest are the lowest costs that were published of the challenge's instances A1: those of its
// participants, as S. Gualandi lists them ("Challenging MIPs instances", 2012-12-03), where a1_4 is
// at 252,728,589. For that one a lower cost is held against that later work is said to have reached.
var roadefBest = []struct {
	name string
	best int64
}{
	{"a1_1", 44_306_501}, {"a1_2", 777_532_896}, {"a1_3", 583_005_717}, {"a1_4", 244_875_200}, {"a1_5", 727_578_309},
}

// reassigned is what became of an instance.
type reassigned struct {
	Instance  string        `json:"instance"`
	Processes int           `json:"processes"`
	Machines  int           `json:"machines"`
	Services  int           `json:"services"`
	Initial   int64         `json:"initial_cost"`
	Published int64         `json:"published_initial_cost"`
	Cost      int64         `json:"cost"`
	Parts     reassign.Cost `json:"of_which"`
	Best      int64         `json:"best_known_cost"`
	Bound     int64         `json:"bound"`
	Gap       float64       `json:"gap"`      // over the best known
	Seconds   float64       `json:"cpu_s"`    // in all
	WithinS   float64       `json:"within_s"` // CPU seconds until it was within 1 % of the best known; -1: never
	Broken    []string      `json:"broken,omitempty"`
}

// roadef solves the machine reassignment problems of the ROADEF/EURO challenge 2012 by the search that
// plans are made with.
func roadef(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	dir := filepath.Join(b.Data, roadefDir)
	if _, err := os.Stat(dir); b.Data == "" || errors.Is(err, fs.ErrNotExist) {
		b.Say("no instances (--data with a directory %s): nothing is claimed of them", roadefDir)
		return nil, nil, nil
	}
	var list []reassigned
	worst, broken, unlike := math.Inf(-1), 0, 0
	for _, instance := range roadefBest {
		r, err := reassignment(ctx, b, dir, instance.name, instance.best)
		if err != nil {
			return nil, list, err
		}
		list = append(list, r)
		b.Say("%s: %d processes of %d services on %d machines, from %d to %d; best known %d: %+.4f %%; bound %d: %+.4f %%; %.1f CPU s, within 1 %% after %.1f; %d rules broken",
			r.Instance, r.Processes, r.Services, r.Machines, r.Initial, r.Cost, r.Best, 100*r.Gap, r.Bound, 100*(float64(r.Cost)/float64(r.Bound)-1), r.Seconds, r.WithinS, len(r.Broken))
		worst, broken = max(worst, r.Gap), broken+len(r.Broken)
		if r.Initial != r.Published {
			unlike++
		}
	}
	return []claim.Claim{
		claim.New(fmt.Sprintf("ROADEF 2012 A1 after %d CPU s each: over the best known cost, max", b.Seconds), worst, "<=", nearBest),
		claim.New("ROADEF 2012 A1: rules broken", float64(broken), "==", 0),
		claim.New("ROADEF 2012 A1: initial costs that are not as published", float64(unlike), "==", 0),
	}, list, nil
}

// reassignment solves one instance.
func reassignment(ctx context.Context, b *Bench, dir, name string, best int64) (reassigned, error) {
	r := reassigned{Instance: name, Best: best, WithinS: -1}
	p, initial, err := readInstance(dir, name, &r)
	if err != nil {
		return r, err
	}
	r.Processes, r.Machines, r.Services, r.Bound = len(p.Processes), len(p.Machines), len(p.Services), p.Bound()
	cost, _ := p.Check(initial, initial)
	r.Initial = cost.Total()
	began := processorSeconds()
	spent := func() float64 { return processorSeconds() - began }
	a, _, err := p.Search(initial, reassign.Options{
		Seed: b.Seed,
		Spent: func() float64 {
			if ctx.Err() != nil {
				return 1
			}
			return spent() / float64(b.Seconds)
		},
		Enough: r.Bound + r.Bound/nearEnough,
		Found: func(cost int64) {
			if r.WithinS < 0 && float64(cost) <= (1+nearBest)*float64(best) {
				r.WithinS = spent()
			}
		},
	})
	if err != nil {
		return r, fmt.Errorf("solve %s: %w", name, err)
	}
	r.Seconds = spent()
	r.Parts, r.Broken = p.Check(initial, a)
	r.Cost = r.Parts.Total()
	r.Gap = float64(r.Cost)/float64(best) - 1
	return r, nil
}

// readInstance reads an instance's files.
func readInstance(dir, name string, r *reassigned) (*reassign.Problem, reassign.Assignment, error) {
	model, err := os.Open(filepath.Join(dir, "model_"+name+".txt"))
	if err != nil {
		return nil, nil, err
	}
	defer model.Close()
	p, err := reassign.ReadProblem(model)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	assignment, err := os.Open(filepath.Join(dir, "assignment_"+name+".txt"))
	if err != nil {
		return nil, nil, err
	}
	defer assignment.Close()
	a, err := p.ReadAssignment(assignment)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "original_cost_"+name+".txt"))
	if err != nil {
		return nil, nil, err
	}
	r.Published, err = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return p, a, err
}
