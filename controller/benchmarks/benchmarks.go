// Package benchmarks keeps what the hosts' agents measure of their hosts, and says what it
// means (package scheduler/perf).
//
// An agent tells its newest measurement over its connection, and each to come. The newest 32
// of a host are kept in the store, so that histograms outlive controllers. A host that
// becomes an anomaly, or is none any more, is told as an event, once: what was told before
// follows from what was kept before, so nothing else is remembered.
//
// Only the controller that leads takes measurements in, and answers.
package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/hostagent/agentapi"
	"heliotrope/scheduler/perf"
)

// World is what must be known of the rest.
type World interface {
	Topology() heliotrope.Topology
	// Paths are those from a host to the others, as measured lately.
	Paths(h heliotrope.HostID) []agentapi.Path
	// Leads says whether this controller does.
	Leads() bool
	// Tell records what happened.
	Tell(kind, subject, message string)
}

// Records keeps the measurements of each host, oldest first. controller/store has it.
type Records interface {
	Benchmarks(ctx context.Context) (map[heliotrope.HostID][]perf.Measurement, error)
	// SetBenchmarks keeps all in place of those before; none: nothing is kept of the host.
	SetBenchmarks(ctx context.Context, term uint64, h heliotrope.HostID, all []perf.Measurement) error
}

// Agent measures its host; *agentapi.Agent is one.
type Agent interface {
	Host() heliotrope.HostID
	Measure(ctx context.Context, order agentapi.BenchOrder) (perf.Measurement, error)
	Measurements(ctx context.Context, f func(perf.Measurement) error) error
}

const (
	// clockAhead is how far a host's clock may be ahead of the controller's.
	clockAhead = time.Hour
	// goneKept is how long the measurements of a host that is gone are kept: it may come back.
	goneKept = 90 * 24 * time.Hour
)

var _ api.Benchmarks = (*Benchmarks)(nil)

// Benchmarks is what was measured of the hosts. Make it with New.
type Benchmarks struct {
	world   World
	records Records
	log     *slog.Logger

	mu     sync.Mutex // guards all below, and is held while a measurement is stored
	kept   map[heliotrope.HostID][]perf.Measurement
	agents map[heliotrope.HostID]connection
}

type connection struct {
	Agent
	term uint64
}

// New returns what knows of no measurement yet.
func New(world World, records Records, log *slog.Logger) *Benchmarks {
	return &Benchmarks{world: world, records: records, log: log, agents: map[heliotrope.HostID]connection{}}
}

// Load takes up what leaders before have kept. Who begins to lead calls it first. A host
// that is in no topology any more is forgotten some time after it was measured last.
func (b *Benchmarks) Load(ctx context.Context, term uint64) error {
	kept, err := b.records.Benchmarks(ctx)
	if err != nil {
		return fmt.Errorf("load benchmarks: %w", err)
	}
	known := b.world.Topology().Hosts
	for h, all := range kept {
		if _, ok := known[h]; ok || len(all) > 0 && time.Since(all[len(all)-1].At) < goneKept {
			continue
		}
		if err := b.records.SetBenchmarks(ctx, term, h, nil); err != nil {
			return fmt.Errorf("forget benchmarks of %s: %w", h, err)
		}
		delete(kept, h)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept = kept
	return nil
}

// Serve takes in what a host's agent measures, until its connection or ctx ends.
func (b *Benchmarks) Serve(ctx context.Context, agent Agent, term uint64) error {
	h, mine := agent.Host(), connection{agent, term}
	b.mu.Lock()
	b.agents[h] = mine
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.agents[h] == mine { // it may have connected again before this end was seen
			delete(b.agents, h)
		}
	}()
	return agent.Measurements(ctx, func(m perf.Measurement) error {
		if err := b.take(ctx, term, h, m); err != nil && ctx.Err() == nil {
			b.log.Warn("measurement of a host is not kept", "host", h, "err", err)
		}
		return nil
	})
}

// take keeps a measurement and tells what it changes. One that is known is left.
func (b *Benchmarks) take(ctx context.Context, term uint64, h heliotrope.HostID, m perf.Measurement) error {
	if ahead := time.Until(m.At); ahead > clockAhead {
		return fmt.Errorf("the clock of %s is %v ahead", h, ahead.Round(time.Minute))
	}
	if rtt, ok := b.roundTrip(h); ok {
		values := map[perf.Metric]float64{perf.NetworkRTT: rtt}
		maps.Copy(values, m.Values)
		m.Values = values
	}
	b.mu.Lock()
	all := perf.Keep(b.kept[h], m)
	if len(all) == len(b.kept[h]) && len(all) > 0 && all[len(all)-1].At.Equal(b.kept[h][len(all)-1].At) {
		b.mu.Unlock()
		return nil
	}
	before := perf.Build(b.hosts()).Anomalies
	if err := b.records.SetBenchmarks(ctx, term, h, all); err != nil {
		b.mu.Unlock()
		return err
	}
	b.kept = maps.Clone(b.kept)
	if b.kept == nil {
		b.kept = map[heliotrope.HostID][]perf.Measurement{}
	}
	b.kept[h] = all
	begun, ended := perf.Changed(before, perf.Build(b.hosts()).Anomalies)
	b.mu.Unlock()
	for _, a := range begun {
		b.world.Tell("host", string(a.Host), a.What)
	}
	for _, a := range ended {
		b.world.Tell("host", string(a.Host), a.Metric.Name()+" is as usual again")
	}
	return nil
}

// roundTrip is the median, in seconds, of a host's round trips to the others of its site.
// What is farther says more of the distance than of the host.
func (b *Benchmarks) roundTrip(h heliotrope.HostID) (float64, bool) {
	t := b.world.Topology()
	var near []time.Duration
	for _, p := range b.world.Paths(h) {
		if peer, ok := t.Hosts[p.Peer]; ok && peer.Site == t.Hosts[h].Site && p.RTT > 0 {
			near = append(near, p.RTT)
		}
	}
	if len(near) == 0 {
		return 0, false
	}
	slices.Sort(near)
	return near[len(near)/2].Seconds(), true
}

// hosts are those of the topology with what was measured of them. The lock is held.
func (b *Benchmarks) hosts() []perf.Host {
	t := b.world.Topology()
	var hosts []perf.Host
	for _, h := range slices.Sorted(maps.Keys(t.Hosts)) {
		hosts = append(hosts, perf.Host{ID: h, Class: perf.ClassOf(t, h), History: b.kept[h]})
	}
	return hosts
}

// Speeds are how many reference vCPUs a vCPU of each host that was measured is worth.
func (b *Benchmarks) Speeds() map[heliotrope.HostID]float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return perf.Speeds(b.hosts())
}

// HostModels are those of all hosts, or (host not empty) of one host and its class.
func (b *Benchmarks) HostModels(_ context.Context, host heliotrope.HostID) (perf.Report, error) {
	if err := b.may(host); err != nil {
		return perf.Report{}, err
	}
	b.mu.Lock()
	r := perf.Build(b.hosts())
	b.mu.Unlock()
	if host != "" {
		r = r.Of(host)
	}
	return r, nil
}

// classesShown bounds what benchmarks add to the metrics, however many hosts there are.
const classesShown = 20

// Gauge is a value for whoever watches; its name bears its unit.
type Gauge struct {
	Name, Help     string
	Labels, Values []string
	Value          float64
}

// Gauges are how many anomalies there are, and the medians of the classes, of the largest
// if there are many. Who does not lead has none.
func (b *Benchmarks) Gauges() []Gauge {
	if !b.world.Leads() {
		return nil
	}
	b.mu.Lock()
	r := perf.Build(b.hosts())
	b.mu.Unlock()
	gauges := []Gauge{{Name: "heliotrope_host_anomalies", Help: "Hosts' metrics that are not like their class, or not like they were.", Value: float64(len(r.Anomalies))}}
	slices.SortStableFunc(r.Classes, func(x, y perf.ClassModel) int { return y.Hosts - x.Hosts })
	for _, c := range r.Classes[:min(len(r.Classes), classesShown)] {
		for _, d := range c.Metrics {
			gauges = append(gauges, Gauge{"heliotrope_host_" + string(d.Metric), "Median over the measurements of a class of hosts: " + d.Metric.Name() + ".",
				[]string{"provider", "instance_type", "site"}, []string{c.Provider, c.InstanceType, string(c.Site)}, d.Median})
		}
	}
	return gauges
}

// may says whether a question about a host, or all, can be answered here.
func (b *Benchmarks) may(host heliotrope.HostID) error {
	if !b.world.Leads() {
		return api.Unavailable("measurements are known to the controller that leads: ask that one (heliotrope status)")
	}
	if _, ok := b.world.Topology().Hosts[host]; host != "" && !ok {
		return api.NotFound("host", string(host))
	}
	return nil
}

// MeasureHost measures a host now, and keeps what comes of it.
func (b *Benchmarks) MeasureHost(ctx context.Context, host heliotrope.HostID) (perf.Measurement, error) {
	if err := b.may(host); err != nil {
		return perf.Measurement{}, err
	}
	b.mu.Lock()
	agent, ok := b.agents[host]
	b.mu.Unlock()
	if !ok {
		return perf.Measurement{}, api.Conflict(fmt.Sprintf("%s is not connected", host), "heliotrope host show "+string(host)+" says since when")
	}
	m, err := agent.Measure(ctx, agentapi.BenchOrder{Term: agent.term})
	if errors.Is(err, agentapi.ErrBusy) {
		return m, api.Conflict(err.Error(), "try again when the move, or the measurement, has ended")
	}
	if err == nil {
		err = b.take(ctx, agent.term, host, m)
	}
	if err != nil {
		return perf.Measurement{}, fmt.Errorf("measure host: %w", err)
	}
	return m, nil
}
