package hostagent

import (
	"context"
	"encoding/json"
	"fmt"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/bench"
	"heliotrope/hostagent/durable"
	"heliotrope/scheduler/perf"
	"io"
	"os"
)

var _ agentapi.Bencher = bencher{}

// bencher measures the host, as the newest controller wants it.
type bencher struct {
	*bench.Bench
	ledger *durable.Ledger
}

// newBencher measures by running this program anew, with the word bench (Measure).
func newBencher(c Config, mv *moves) (bencher, error) {
	program, err := os.Executable()
	if err != nil {
		return bencher{}, fmt.Errorf("find the agent's program: %w", err)
	}
	return bencher{ledger: mv.ledger, Bench: bench.New(bench.Config{Program: []string{program, "bench", "--state-dir", c.StateDir},
		Every: c.BenchEvery, Moving: mv.moving, Log: c.Log})}, nil
}

// Measure measures the host now.
func (b bencher) Measure(ctx context.Context, o agentapi.BenchOrder) (perf.Measurement, error) {
	if err := b.ledger.Fence(o.Term); err != nil {
		return perf.Measurement{}, err
	}
	return b.Bench.Measure(ctx)
}

// Measure measures this host once, alone in its process, and writes the measurement as JSON.
func Measure(ctx context.Context, c Config, out io.Writer) error {
	m, err := bench.Measure(ctx, c.StateDir, bench.Budget{}, true)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(m); err != nil {
		return fmt.Errorf("write measurement: %w", err)
	}
	return nil
}
