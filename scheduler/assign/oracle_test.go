package assign_test

import (
	"bytes"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"heliotrope/scheduler/assign"
	"heliotrope/scheduler/assign/lp"
)

// made is a field of applications of seven units, a chain with a hub and a little to the next
// application, at sites with room for half as much again.
func made(units, sites int, seed uint64) *assign.Field {
	r := rand.New(rand.NewPCG(seed, 1))
	f := &assign.Field{Sites: sites, Moves: make([]int, units*sites), Edges: make([][]assign.Edge, units),
		Price: make([]float64, sites*sites), Back: make([]float64, sites*sites)}
	for a := range sites {
		for b := range sites {
			if a != b {
				f.Price[a*sites+b] = 0.02 + 0.1*r.Float64()
				f.Back[b*sites+a] = f.Price[a*sites+b]
			}
		}
	}
	var vcpus float64
	for u := range units {
		f.Home = append(f.Home, r.IntN(sites))
		f.VCPUs = append(f.VCPUs, float64(int(1)<<r.IntN(4)))
		f.MiB = append(f.MiB, 4096*f.VCPUs[u])
		vcpus += f.VCPUs[u]
		for k := range sites {
			usd := f.VCPUs[u] * (0.03 + 0.02*float64(k)/float64(sites))
			if r.IntN(10) == 0 && k != f.Home[u] {
				usd += assign.Never
			}
			f.Linear = append(f.Linear, usd)
		}
	}
	join := func(u, v int, scale float64) {
		if out, in := scale*math.Exp(r.NormFloat64()), scale*r.Float64(); u != v {
			f.Edges[u] = append(f.Edges[u], assign.Edge{To: v, Out: out, In: in, Rule: assign.None})
			f.Edges[v] = append(f.Edges[v], assign.Edge{To: u, Out: in, In: out, Rule: assign.None})
		}
	}
	for u := 0; u+1 < units; u++ {
		if u%7 == 6 {
			join(u, u+1, 0.05)
			continue
		}
		join(u, u+1, 3)
		if hub := u / 7 * 7; hub != u {
			join(hub, u+1, 1)
		}
	}
	for k := range sites {
		part := vcpus * 1.5 / float64(sites) * (0.7 + 0.6*float64(k)/float64(sites))
		f.RoomVCPUs, f.RoomMiB = append(f.RoomVCPUs, part), append(f.RoomMiB, 4096*part)
	}
	return f
}

// proven is the optimum by CBC.
func proven(t *testing.T, f *assign.Field) lp.Answer {
	t.Helper()
	cbc, err := exec.LookPath("cbc")
	if err != nil {
		t.Fatal("cbc is not installed: make deps")
	}
	dir := t.TempDir()
	var text bytes.Buffer
	if err := lp.Write(&text, f); err != nil {
		t.Fatal(err)
	}
	in, out := filepath.Join(dir, "in.lp"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := exec.Command(cbc, in, "-ratioGap", "0", "-allowableGap", "1e-7", "-solve", "-solution", out).CombinedOutput()
	if err != nil {
		t.Fatalf("cbc: %v: %s", err, log)
	}
	solution, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer solution.Close()
	answer, err := lp.Read(solution, bytes.NewReader(log), len(f.Home))
	if err != nil {
		t.Fatal(err)
	}
	if !answer.Proven || answer.At == nil {
		t.Fatalf("cbc says %q", answer.Status)
	}
	return answer
}

// What CBC proves to be the least is what we find, and our bound is below it.
func TestAgainstProvenOptima(t *testing.T) {
	for seed := range uint64(6) {
		f := made(12+2*int(seed%3), 3, seed)
		answer := proven(t, f)
		if usd := f.USD(answer.At); math.Abs(usd-answer.USD) > 1e-6*usd {
			t.Fatalf("seed %d: the programme says %v of what costs %v", seed, answer.USD, usd)
		}
		s, bound := f.Search(assign.Options{Seed: 1, Iterations: 400_000})
		if s.USD < answer.USD*(1-1e-6) || bound > answer.USD*(1+1e-6) {
			t.Errorf("seed %d: found %v, bound %v, and the optimum is %v", seed, s.USD, bound, answer.USD)
		}
		if s.USD > answer.USD*1.001 {
			t.Errorf("seed %d: found %v, optimum %v", seed, s.USD, answer.USD)
		}
		t.Logf("seed %d: found +%.4f %%, bound −%.3f %%", seed, 100*(s.USD/answer.USD-1), 100*(1-bound/answer.USD))
	}
}

func TestReadOfNonsense(t *testing.T) {
	for _, text := range []string{"", "Infeasible\n", "Optimal - objective value x\n"} {
		if _, err := lp.Read(bytes.NewReader([]byte(text)), bytes.NewReader(nil), 1); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}
