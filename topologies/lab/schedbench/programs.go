package schedbench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"heliotrope/scheduler/assign"
	"heliotrope/scheduler/assign/lp"
)

// run runs a program in a directory of its own and returns what it printed.
func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("run %s: it is not installed: make deps", name)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("run %s: %w: %s", name, err, out)
	}
	return out, nil
}

// cbc solves a field from a start, which may be nil, for at most so much processor time.
func cbc(ctx context.Context, f *assign.Field, start []int, limit time.Duration) (lp.Answer, error) {
	dir, err := os.MkdirTemp("", "schedbench")
	if err != nil {
		return lp.Answer{}, fmt.Errorf("make directory: %w", err)
	}
	defer os.RemoveAll(dir)
	var text bytes.Buffer
	if err := lp.Write(&text, f); err != nil {
		return lp.Answer{}, err
	}
	if err := os.WriteFile(filepath.Join(dir, "in.lp"), text.Bytes(), 0o600); err != nil {
		return lp.Answer{}, fmt.Errorf("write programme: %w", err)
	}
	args := []string{"in.lp"}
	if start != nil {
		if err := os.WriteFile(filepath.Join(dir, "start"), lp.Start(f, start), 0o600); err != nil {
			return lp.Answer{}, fmt.Errorf("write start: %w", err)
		}
		args = append(args, "-mipstart", "start")
	}
	args = append(args, "-sec", strconv.Itoa(int(math.Ceil(limit.Seconds()))), "-ratioGap", "0", "-allowableGap", "1e-7", "-solve", "-solution", "out")
	log, err := run(ctx, dir, "cbc", args...)
	if err != nil {
		return lp.Answer{}, err
	}
	out, err := os.ReadFile(filepath.Join(dir, "out"))
	if err != nil {
		return lp.Answer{}, fmt.Errorf("read solution: %w", err)
	}
	return lp.Read(bytes.NewReader(out), bytes.NewReader(log), len(f.Home))
}

// metis cuts the traffic into as many parts as there are sites, by the sites' room.
func metis(ctx context.Context, f *assign.Field) ([]int, error) {
	dir, err := os.MkdirTemp("", "schedbench")
	if err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	defer os.RemoveAll(dir)
	graph, parts := metisInput(f)
	err = errors.Join(os.WriteFile(filepath.Join(dir, "graph"), graph, 0o600), os.WriteFile(filepath.Join(dir, "parts"), parts, 0o600))
	if err != nil {
		return nil, fmt.Errorf("write graph: %w", err)
	}
	if _, err := run(ctx, dir, "gpmetis", "-tpwgts=parts", "-ufactor=50", "-ncuts=10", "graph", strconv.Itoa(f.Sites)); err != nil {
		return nil, err
	}
	out, err := os.ReadFile(filepath.Join(dir, "graph.part."+strconv.Itoa(f.Sites)))
	if err != nil {
		return nil, fmt.Errorf("read parts: %w", err)
	}
	var part []int
	for _, word := range strings.Fields(string(out)) {
		p, err := strconv.Atoi(word)
		if err != nil {
			return nil, fmt.Errorf("read parts: %w", err)
		}
		part = append(part, p)
	}
	if len(part) != len(f.Home) {
		return nil, fmt.Errorf("read parts: %d of %d", len(part), len(f.Home))
	}
	return part, nil
}

// metisInput is the graph, of which weights are whole numbers, and the parts' shares.
func metisInput(f *assign.Field) (graph, parts []byte) {
	var most, all float64
	edges := 0
	for _, list := range f.Edges {
		edges += len(list)
		for _, e := range list {
			most = max(most, e.Out+e.In)
		}
	}
	var text, shares bytes.Buffer
	w := bufio.NewWriter(&text)
	fmt.Fprintf(w, "%d %d 011 1\n", len(f.Home), edges/2)
	for u, list := range f.Edges {
		fmt.Fprintf(w, "%d", max(1, int(f.VCPUs[u])))
		for _, e := range list {
			fmt.Fprintf(w, " %d %d", e.To+1, max(1, int((e.Out+e.In)/most*1e6)))
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush() // into memory
	for _, r := range f.RoomVCPUs {
		all += r
	}
	for k, r := range f.RoomVCPUs {
		fmt.Fprintf(&shares, "%d = %.6f\n", k, r/all)
	}
	return text.Bytes(), shares.Bytes()
}

// mapped maps parts to sites for the least money, room aside, and puts units that may not be
// there where they may be for the least: what METIS does not know is done as well for it as
// it can be.
func mapped(f *assign.Field, part []int, seed uint64) (usd float64) {
	n := f.Sites
	linear, traffic := make([]float64, n*n), make([]float64, n*n)
	for u, p := range part {
		for k := range n {
			if usd := f.Linear[u*n+k]; usd < assign.Never/2 {
				linear[p*n+k] += usd
			}
		}
		for _, e := range f.Edges[u] {
			traffic[p*n+part[e.To]] += e.Out
		}
	}
	cost := func(site []int) float64 {
		var sum float64
		for p := range n {
			sum += linear[p*n+site[p]]
			for q := range n {
				sum += traffic[p*n+q] * f.Price[site[p]*n+site[q]]
			}
		}
		return sum
	}
	r := rand.New(rand.NewPCG(seed, 3))
	var best []int
	least := math.Inf(1)
	for range 50 {
		site := r.Perm(n)
		if usd := exchange(site, cost); usd < least {
			best, least = slices.Clone(site), usd
		}
	}
	at := make([]int, len(part))
	for u, p := range part {
		at[u] = best[p]
	}
	for u := range at {
		if f.Linear[u*n+at[u]] < assign.Never/2 {
			continue
		}
		row := make([]float64, n)
		for k := range row {
			row[k] = f.Linear[u*n+k]
			for _, e := range f.Edges[u] {
				row[k] += f.PairUSD(e, k, at[e.To])
			}
		}
		at[u] = slices.Index(row, slices.Min(row))
	}
	return f.USD(at)
}

// exchange swaps two parts' sites as long as that is cheaper.
func exchange(site []int, cost func([]int) float64) float64 {
	usd := cost(site)
	for better := true; better; {
		better = false
		for p := range site {
			for q := range p {
				site[p], site[q] = site[q], site[p]
				if now := cost(site); now < usd-1e-9 {
					usd, better = now, true
				} else {
					site[p], site[q] = site[q], site[p]
				}
			}
		}
	}
	return usd
}
