// Package perf is the performance models of hosts: what measurements of them mean.
//
// An agent measures its host now and then (package hostagent/bench). Of each host a few of
// the newest measurements are kept. From these Build makes, for each class of hosts (provider,
// instance type, site) and each metric, a distribution with a histogram; for each host what
// it is like now; and anomalies: hosts that are not like their class, or not like they were.
//
// # Robust, and in logarithms
//
// Machines are noisy, and what matters of a speed is the ratio. So all statistics are of the
// logarithm of a value, centres are medians and spreads are 1.4826 times the median absolute
// deviation, which a few wild values do not move. What a host is like now is the median of
// its newest measurements (newest), so that one bad measurement means nothing and a change
// is known when the second measurement shows it.
//
// # A vCPU means the same everywhere
//
// A reference vCPU does as many rounds of work per second as the median host's vCPU. A host's
// speed is how many reference vCPUs one of its vCPUs is worth. What is not known well is taken
// to be nearer to 1: a speed is shrunk (in logarithms) by how many measurements there are and
// how well they agree, kept within minSpeed and maxSpeed, and told in steps of a tenth, so
// that noise changes no plan. Where nothing was measured a vCPU is a reference vCPU.
package perf

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"heliotrope"
)

// Metric names what is measured, with its unit.
type Metric string

// The metrics. A round is one of the fixed work of package hostagent/bench. Round trips are
// those that agents measure all the time; the controller adds them to a measurement. A rate of a host
// that is busy is that of the time in which the work could run.
const (
	CPUSingle       Metric = "cpu_single_rounds_per_second"       // one thread alone
	CPUAll          Metric = "cpu_all_rounds_per_second_per_vcpu" // all vCPUs at once: shows steal and shared cores
	MemoryBandwidth Metric = "memory_triad_bytes_per_second"      // one thread, past the last-level cache
	MemoryLatency   Metric = "memory_latency_seconds"             // of a load that depends on the one before
	DiskWrite       Metric = "disk_write_bytes_per_second"        // sequential, and safe on the disk
	DiskRead        Metric = "disk_read_bytes_per_second"         // sequential
	DiskRandomRead  Metric = "disk_random_reads_per_second"       // of 4 KiB, one at a time
	DiskSync        Metric = "disk_sync_seconds"                  // until 4 KiB are safe on the disk
	NetworkRTT      Metric = "network_rtt_seconds"                // to the other hosts of the site, the median
)

// Metrics are all of them, in the order in which they are shown.
func Metrics() []Metric {
	return []Metric{CPUSingle, CPUAll, MemoryBandwidth, MemoryLatency, DiskWrite, DiskRead, DiskRandomRead, DiskSync, NetworkRTT}
}

// Name is the metric as people call it.
func (m Metric) Name() string {
	return map[Metric]string{CPUSingle: "one thread", CPUAll: "each of all vCPUs", MemoryBandwidth: "memory bandwidth", MemoryLatency: "memory latency",
		DiskWrite: "disk write", DiskRead: "disk read", DiskRandomRead: "disk random read", DiskSync: "disk sync", NetworkRTT: "network round trip"}[m]
}

// LessIsBetter says whether a small value is the good one.
func (m Metric) LessIsBetter() bool { return strings.HasSuffix(string(m), "_seconds") }

// Text says a value as people read it, with its unit.
func (m Metric) Text(value float64) string {
	unit := "/s"
	switch {
	case m.LessIsBetter():
		unit = "s"
	case strings.Contains(string(m), "_bytes_"):
		unit = "B/s"
	}
	for _, p := range []struct {
		name string
		size float64
	}{{"G", 1e9}, {"M", 1e6}, {"k", 1e3}, {"", 1}, {"m", 1e-3}, {"µ", 1e-6}, {"n", 1e-9}} {
		if value >= 0.9995*p.size || p.name == "n" {
			return fmt.Sprintf("%.3g %s%s", value/p.size, p.name, unit)
		}
	}
	return ""
}

// Measurement is what was measured of one host at one time.
type Measurement struct {
	At      time.Time          `json:"at"`
	VCPUs   int                `json:"vcpus" doc:"That took part."`
	Values  map[Metric]float64 `json:"values" doc:"By metric; a metric's name ends in its unit."`
	Missing map[Metric]string  `json:"missing,omitempty" doc:"What could not be measured, and why."`

	// What measuring took.
	CPUSeconds  float64 `json:"cpu_seconds" doc:"Of all threads."`
	MemoryBytes int64   `json:"memory_bytes" doc:"That were mapped at once."`
	DiskBytes   int64   `json:"disk_bytes" doc:"That were written and read."`
}

// Limits of a measurement that is taken from others.
const (
	maxReason = 200
	maxVCPUs  = 1 << 14
)

// Parse reads a measurement from JSON. It is an error if a metric is not known, or a value
// cannot be.
func Parse(data []byte) (Measurement, error) {
	var m Measurement
	if err := json.Unmarshal(data, &m); err != nil {
		return Measurement{}, fmt.Errorf("parse measurement: %w", err)
	}
	if err := m.Check(); err != nil {
		return Measurement{}, fmt.Errorf("parse measurement: %w", err)
	}
	return m, nil
}

// Check finds what cannot be.
func (m Measurement) Check() error {
	if m.At.IsZero() || m.VCPUs < 1 || m.VCPUs > maxVCPUs || !(m.CPUSeconds >= 0 && m.CPUSeconds <= 1e6) || m.MemoryBytes < 0 || m.DiskBytes < 0 {
		return fmt.Errorf("%d vCPUs, %v CPU seconds, at %v: cannot be", m.VCPUs, m.CPUSeconds, m.At)
	}
	for _, k := range slices.Sorted(maps.Keys(m.Values)) {
		if v := m.Values[k]; !slices.Contains(Metrics(), k) || !(v >= 1e-12 && v <= 1e15) {
			return fmt.Errorf("metric %q of %v: cannot be", k, v)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(m.Missing)) {
		if !slices.Contains(Metrics(), k) || len(m.Missing[k]) > maxReason {
			return fmt.Errorf("metric %q is missing for a reason of %d bytes: cannot be", k, len(m.Missing[k]))
		}
	}
	return nil
}

// Class is hosts that ought to be alike.
type Class struct {
	Provider     string            `json:"provider,omitempty"`
	InstanceType string            `json:"instance_type,omitempty"`
	Site         heliotrope.SiteID `json:"site"`
}

// ClassOf is the class of a host of a topology.
func ClassOf(t heliotrope.Topology, h heliotrope.HostID) Class {
	host := t.Hosts[h]
	return Class{Provider: t.Sites[host.Site].Provider, InstanceType: host.InstanceType, Site: host.Site}
}

// String names the class.
func (c Class) String() string {
	var parts []string
	for _, p := range []string{c.Provider, c.InstanceType, string(c.Site)} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, " ")
}

func (c Class) compare(d Class) int {
	return slices.Compare([]string{c.Provider, c.InstanceType, string(c.Site)}, []string{d.Provider, d.InstanceType, string(d.Site)})
}

// Host is a host with its measurements that are kept, oldest first.
type Host struct {
	ID      heliotrope.HostID
	Class   Class
	History []Measurement
}

// Kept is how many measurements of a host are kept.
const Kept = 32

// Keep adds a measurement to a history. One that is no newer than the newest is left out.
func Keep(history []Measurement, m Measurement) []Measurement {
	if n := len(history); n > 0 && !m.At.After(history[n-1].At) {
		return history
	}
	history = append(slices.Clone(history), m)
	return history[max(0, len(history)-Kept):]
}

// logs are the logarithms of a metric's values, oldest first.
func (h Host) logs(m Metric) []float64 {
	var all []float64
	for _, x := range h.History {
		if v := x.Values[m]; v > 0 {
			all = append(all, math.Log(v))
		}
	}
	return all
}
