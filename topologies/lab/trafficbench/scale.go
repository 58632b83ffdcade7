package trafficbench

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/report"
	"heliotrope/scheduler/traffic/synth"
	"heliotrope/topologies/lab/claim"
)

const (
	scaleVMs   = 10_000
	scaleEdges = 200_000
	scaleHosts = 100
	scaleBins  = 10 // seconds
)

// scaleFigures are times of this process's CPU, so that what else runs does not count.
type scaleFigures struct {
	VMs       int     `json:"vms"`
	Edges     int     `json:"edges"`
	Rows      int     `json:"rows"`
	RowsPerS  float64 `json:"rows_per_core_second"`
	MatrixS   float64 `json:"matrix_s"`
	InferS    float64 `json:"infer_s"`
	ReportS   float64 `json:"report_s"`
	Groups    int     `json:"groups"`
	MemoryMiB float64 `json:"ledger_mib"`
	RSSMiB    float64 `json:"rss_mib"`
}

// scale takes in what 10,000 VMs with 20 peers each send, and makes a report of it.
func scale(_ context.Context, b *Bench) ([]claim.Claim, any, error) {
	truth := synth.Generate(synth.Config{Seed: b.Seed, VMs: scaleVMs, Background: 0.00175})
	edges := truth.Graph.Edges
	lines, err := encoded(truth.Graph)
	if err != nil {
		return nil, nil, err
	}
	f := scaleFigures{VMs: scaleVMs, Edges: len(edges)}
	before := heap()
	ledger := traffic.NewLedger(traffic.Limits{})
	start := binTime()
	took, err := cpu(func() error {
		for _, line := range lines {
			var bin traffic.Bin
			if err := json.Unmarshal(line, &bin); err != nil {
				return fmt.Errorf("decode bin: %w", err)
			}
			f.Rows += len(bin.Counts)
			if err := ledger.Add(bin, bin.Start.Add(time.Second)); err != nil {
				return fmt.Errorf("take bin: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, f, err
	}
	f.RowsPerS = float64(f.Rows) / took.Seconds()
	f.MemoryMiB = heap() - before
	runtime.KeepAlive(lines) // they were there before, too
	var m traffic.Matrix
	var analysis pattern.Analysis
	took, _ = cpu(func() error { m = ledger.Matrix(start.Add(scaleBins*time.Second), scaleBins*time.Second); return nil })
	f.MatrixS = took.Seconds()
	took, _ = cpu(func() error { analysis = pattern.Infer(pattern.FromMatrix(m)); return nil })
	f.InferS, f.Groups = took.Seconds(), len(analysis.Groups)
	var groups []report.Group
	for _, g := range analysis.Groups {
		groups = append(groups, report.Group{Group: g})
	}
	took, _ = cpu(func() error {
		m := ledger.Matrix(start.Add(scaleBins*time.Second), scaleBins*time.Second)
		report.Build(report.Input{Now: start, Matrix: m, Groups: groups}, report.Options{})
		return nil
	})
	f.ReportS, f.RSSMiB = took.Seconds(), rss()
	fmt.Fprintf(b.Out, "\n%d VMs, %d edges, %d s of bins of %d hosts: %d rows at %.0f rows per core second; matrix %.2f s, inference %.2f s (%d groups), report %.2f s; the ledger holds %.0f MiB, the process %.0f MiB\n\n",
		f.VMs, f.Edges, scaleBins, scaleHosts, f.Rows, f.RowsPerS, f.MatrixS, f.InferS, f.Groups, f.ReportS, f.MemoryMiB, f.RSSMiB)
	return []claim.Claim{
		claim.New("edges", float64(len(m.Cells)), ">=", scaleEdges*0.95),
		claim.New("inference of 10,000 VMs, CPU s", f.InferS, "<=", 5),
		claim.New("ingest, rows per core second", f.RowsPerS, ">=", 50_000),
		claim.New("report of 10,000 VMs, CPU s", f.ReportS, "<=", 2),
	}, f, nil
}

func binTime() time.Time { return time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC) }

// encoded are the bins of all hosts and seconds as they cross the wire.
func encoded(g pattern.Graph) ([][]byte, error) {
	counts := make([][]traffic.Count, scaleHosts)
	for _, e := range g.Edges {
		h := e.From % scaleHosts
		counts[h] = append(counts[h], traffic.Count{Key: traffic.Key{Src: g.Ends[e.From], Dst: g.Ends[e.To], Service: e.Service, Reply: e.Reply},
			Packets: uint64(e.Packets) + 1, Bytes: uint64(e.Bytes) + 40, Active: 10, Peak: uint64(e.Bytes / 5)})
	}
	var lines [][]byte
	for s := range scaleBins {
		for h := range counts {
			line, err := json.Marshal(traffic.Bin{Host: heliotrope.HostID(fmt.Sprintf("host-%d", h)), Boot: "b", Seq: uint64(s + 1),
				Start: binTime().Add(time.Duration(s) * time.Second), Source: traffic.SourcePackets, Sampling: 1, Counts: counts[h], Ports: 100})
			if err != nil {
				return nil, fmt.Errorf("encode bin: %w", err)
			}
			lines = append(lines, line)
		}
	}
	return lines, nil
}

// cpu is the processor time that f takes, the collector's of garbage included.
func cpu(f func() error) (time.Duration, error) {
	before := used()
	err := f()
	return used() - before, err
}

func used() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0 // it never fails for oneself
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// rss is the most memory that the process had, in MiB.
func rss() float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Maxrss) / 1024
}
