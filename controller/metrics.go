package controller

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"heliotrope/controller/api"
	"heliotrope/controller/world"
	"heliotrope/internal/reconcile"
	"heliotrope/migration"
)

// metrics are the controller's own; names bear their unit, labels are few.
type metrics struct {
	registry *prometheus.Registry
	rounds   *prometheus.CounterVec
	changes  *prometheus.CounterVec
	took     *prometheus.HistogramVec
}

func newMetrics(c *Controller) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		rounds:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "heliotrope_loop_rounds_total", Help: "Rounds of a reconcile loop."}, []string{"loop", "result"}),
		changes:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "heliotrope_loop_changes_total", Help: "Changes that a reconcile loop applied."}, []string{"loop"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "heliotrope_loop_round_seconds", Help: "Length of a round of a reconcile loop.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8)}, []string{"loop"}),
	}
	m.registry.MustRegister(m.rounds, m.changes, m.took, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &viewCollector{c})
	return m
}

func (m *metrics) round(loop string, r reconcile.Round) {
	result := "ok"
	if r.Err != nil {
		result = "error"
	}
	m.rounds.WithLabelValues(loop, result).Inc()
	m.changes.WithLabelValues(loop).Add(float64(r.Changes))
	m.took.WithLabelValues(loop).Observe(r.Took.Seconds())
}

// pairsShown bounds what traffic adds to the metrics, however many VMs there are.
const pairsShown = 20

// viewCollector counts what is in the current view whenever it is asked.
type viewCollector struct{ c *Controller }

var (
	descHosts  = prometheus.NewDesc("heliotrope_hosts", "Hosts of the topology, by state.", []string{"state"}, nil)
	descVMs    = prometheus.NewDesc("heliotrope_vms", "VMs of the topology, by state.", []string{"state"}, nil)
	descMoves  = prometheus.NewDesc("heliotrope_migrations", "Migrations that are kept, by phase.", []string{"phase"}, nil)
	descWrite  = prometheus.NewDesc("heliotrope_migration_last_disk_seconds", "The mean time of a guest's write or flush in a stretch (before, bulk, mirror, after) of the newest migration that succeeded.", []string{"stretch", "op"}, nil)
	descPause  = prometheus.NewDesc("heliotrope_migration_last_pause_seconds", "The hypervisor's pause in the newest migration that succeeded.", nil, nil)
	descRev    = prometheus.NewDesc("heliotrope_store_revision", "Revision of the store that the controller has seen.", nil, nil)
	descLeader = prometheus.NewDesc("heliotrope_leader", "1 while this controller leads.", nil, nil)
	descRate   = prometheus.NewDesc("heliotrope_traffic_bytes_per_second", "IP bytes that VMs sent and got in the last minute.", nil, nil)
	descPair   = prometheus.NewDesc("heliotrope_traffic_pair_bytes_per_second", "The largest pairs of the last minute, 20 at most.", []string{"src", "dst"}, nil)
	descCPU    = prometheus.NewDesc("heliotrope_capture_cpu_ratio", "Share of one core that counting took in the newest second.", []string{"host"}, nil)
	descPlans  = prometheus.NewDesc("heliotrope_plans", "Plans that are kept, by state.", []string{"state"}, nil)
	descGained = prometheus.NewDesc("heliotrope_plan_gained_usd_per_hour", "What the newest plan that was measured gained.", nil, nil)
	descShed   = prometheus.NewDesc("heliotrope_capture_shed_packets", "Packets of the newest second that were not looked at.", []string{"host"}, nil)
)

// Describe names the metrics.
func (v *viewCollector) Describe(ch chan<- *prometheus.Desc) {
	own := []*prometheus.Desc{descHosts, descVMs, descMoves, descPause, descWrite, descRev, descLeader, descRate, descPair, descCPU, descShed, descPlans, descGained}
	for _, d := range append(own, imageDescs...) {
		ch <- d
	}
}

// plans counts what the autopilot keeps.
func (v *viewCollector) plans(gauge func(d *prometheus.Desc, value float64, labels ...string)) {
	all, err := v.c.pilot.Plans(context.Background())
	if err != nil {
		return // it is only starting
	}
	states := map[string]int{api.PlanProposed: 0, api.PlanRunning: 0}
	told := false
	for _, p := range all { // newest first
		states[p.State]++
		if p.Measured != nil && !told {
			told = true
			gauge(descGained, p.Measured.Gained)
		}
	}
	for state, n := range states {
		gauge(descPlans, float64(n), state)
	}
}

// Collect counts.
func (v *viewCollector) Collect(ch chan<- prometheus.Metric) {
	now := v.c.world.View()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	hosts := map[api.HostState]int{api.HostUp: 0, api.HostLost: 0}
	for h := range now.Topology.Hosts {
		hosts[hostView(now, h).State]++
	}
	for state, n := range hosts {
		gauge(descHosts, float64(n), string(state))
	}
	vms := map[string]int{"running": 0}
	for vm := range now.Topology.VMs {
		vms[vmView(now, vm).State]++
	}
	for state, n := range vms {
		gauge(descVMs, float64(n), state)
	}
	moves, newest := map[migration.Phase]int{}, world.Move{}
	for _, m := range now.Moves {
		moves[m.Phase]++
		if m.Phase == migration.Succeeded && m.Revision > newest.Revision {
			newest = m
		}
	}
	for phase, n := range moves {
		gauge(descMoves, float64(n), strings.ToLower(string(phase)))
	}
	if newest.Revision != 0 {
		gauge(descPause, time.Duration(newest.Measured.Pause).Seconds())
		for _, w := range newest.Measured.DiskWrites {
			if w.Writes > 0 {
				gauge(descWrite, w.WriteMs/1000, string(w.Stretch), "write")
			}
			if w.Flushes > 0 {
				gauge(descWrite, w.FlushMs/1000, string(w.Stretch), "flush")
			}
		}
	}
	if v.c.leading() != nil {
		brief := v.c.traffic.Brief(pairsShown)
		gauge(descRate, brief.Total.BytesPerSecond)
		for _, p := range brief.Pairs {
			gauge(descPair, p.Rate, p.Src.String(), p.Dst.String())
		}
		v.plans(gauge)
		for _, s := range brief.Sources {
			gauge(descCPU, s.CPU, string(s.Host))
			gauge(descShed, float64(s.Shed), string(s.Host))
		}
	}
	for _, g := range v.c.speeds.Gauges() {
		gauge(prometheus.NewDesc(g.Name, g.Help, g.Labels, nil), g.Value, g.Values...)
	}
	v.c.collectImages(ch, now)
	gauge(descRev, float64(now.Revision))
	gauge(descLeader, map[bool]float64{true: 1}[v.c.leading() != nil])
}
