package perf

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"heliotrope"
)

const (
	// newest is how many measurements say what a host is like now: the median of three
	// follows a change with the second measurement and no single wild one.
	newest = 3

	// A speed rests on the newest speedNewest. One measurement alone, or a disagreement of
	// usualNoise between them, is worth as much as nothing known.
	speedNewest = 5
	usualNoise  = 0.1
	minSpeed    = 0.5
	maxSpeed    = 2
	speedSteps  = 10 // from one to the next whole speed

	// A host deviates if it is farther from the centre than wild times the spread, which is
	// taken to be leastSpread at least: what is within a sixth is never an anomaly.
	wild        = 3.5
	leastSpread = 0.05
	leastPeers  = 4 // other hosts of a class
	leastPast   = 6 // own measurements, before the newest
)

// Report is the performance models of all hosts.
type Report struct {
	ReferenceRoundsPerSecond float64      `json:"reference_rounds_per_second" doc:"Of a reference vCPU: the median over all hosts; 0 while nothing was measured."`
	Classes                  []ClassModel `json:"classes" nullable:"false"`
	Hosts                    []HostModel  `json:"hosts" nullable:"false" doc:"By name; those of the topology."`
	Anomalies                []Anomaly    `json:"anomalies" nullable:"false"`
}

// ClassModel is what the hosts of a class are like.
type ClassModel struct {
	Class
	Hosts   int            `json:"hosts" doc:"That were measured."`
	Metrics []Distribution `json:"metrics" nullable:"false"`
}

// HostModel is what a host is like now.
type HostModel struct {
	Host         heliotrope.HostID  `json:"host"`
	Class        Class              `json:"class"`
	Measurements int                `json:"measurements" doc:"That are kept."`
	MeasuredAt   time.Time          `json:"measured_at,omitzero" doc:"The newest."`
	VCPUSpeed    float64            `json:"vcpu_speed" doc:"Reference vCPUs that one of its vCPUs is worth to the scheduler; 1 while nothing is known."`
	Values       map[Metric]float64 `json:"values,omitempty" doc:"Medians of the newest three measurements."`
	Missing      map[Metric]string  `json:"missing,omitempty" doc:"What the newest measurement could not measure, and why."`
}

// Against what an anomaly is one.
const (
	AgainstClass = "class"
	AgainstPast  = "past"
)

// Anomaly is a host that is not like its class, or not like it was.
type Anomaly struct {
	Host    heliotrope.HostID `json:"host"`
	Metric  Metric            `json:"metric"`
	Against string            `json:"against" enum:"class,past"`
	Value   float64           `json:"value" doc:"Of now."`
	Usual   float64           `json:"usual" doc:"Median of the class's other hosts, or of the host's own past."`
	Score   float64           `json:"score" doc:"How many spreads the logarithm is from the usual; negative: below."`
	Worse   bool              `json:"worse"`
	What    string            `json:"what" doc:"In a sentence."`
}

// Build makes the models of hosts. Their order does not matter.
func Build(hosts []Host) Report {
	hosts = slices.SortedFunc(slices.Values(hosts), func(a, b Host) int { return cmp.Compare(a.ID, b.ID) })
	r := Report{Classes: []ClassModel{}, Hosts: []HostModel{}, Anomalies: []Anomaly{}}
	speeds := Speeds(hosts)
	if reference, ok := reference(hosts); ok {
		r.ReferenceRoundsPerSecond = round(math.Exp(reference))
	}
	classes := map[Class][]Host{}
	for _, h := range hosts {
		r.Hosts = append(r.Hosts, hostModel(h, cmp.Or(speeds[h.ID], 1)))
		if len(h.History) > 0 {
			classes[h.Class] = append(classes[h.Class], h)
		}
	}
	for class, members := range classes {
		r.Classes = append(r.Classes, classModel(class, members))
	}
	slices.SortFunc(r.Classes, func(a, b ClassModel) int { return a.compare(b.Class) })
	for _, h := range hosts {
		r.Anomalies = append(r.Anomalies, anomalies(h, classes[h.Class])...)
	}
	return r
}

// Of is the report as far as one host matters: its class, itself, its anomalies.
func (r Report) Of(host heliotrope.HostID) Report {
	at := slices.IndexFunc(r.Hosts, func(h HostModel) bool { return h.Host == host })
	if at < 0 {
		return Report{ReferenceRoundsPerSecond: r.ReferenceRoundsPerSecond, Classes: []ClassModel{}, Hosts: []HostModel{}, Anomalies: []Anomaly{}}
	}
	h := r.Hosts[at]
	r.Hosts = []HostModel{h}
	r.Classes = slices.DeleteFunc(slices.Clone(r.Classes), func(c ClassModel) bool { return c.Class != h.Class })
	r.Anomalies = slices.DeleteFunc(slices.Clone(r.Anomalies), func(a Anomaly) bool { return a.Host != host })
	return r
}

func hostModel(h Host, speed float64) HostModel {
	m := HostModel{Host: h.ID, Class: h.Class, Measurements: len(h.History), VCPUSpeed: speed}
	if n := len(h.History); n > 0 {
		m.MeasuredAt, m.Missing = h.History[n-1].At, h.History[n-1].Missing
		m.Values = map[Metric]float64{}
	}
	for _, metric := range Metrics() {
		if now, ok := h.now(metric); ok {
			m.Values[metric] = round(math.Exp(now))
		}
	}
	return m
}

// now is the logarithm of what a host is like.
func (h Host) now(m Metric) (float64, bool) {
	logs := tail(h.logs(m), newest)
	if len(logs) == 0 {
		return 0, false
	}
	return median(logs), true
}

func classModel(c Class, members []Host) ClassModel {
	model := ClassModel{Class: c, Hosts: len(members), Metrics: []Distribution{}}
	for _, m := range Metrics() {
		var logs []float64
		for _, h := range members {
			logs = append(logs, h.logs(m)...)
		}
		if len(logs) > 0 {
			model.Metrics = append(model.Metrics, distribution(m, logs))
		}
	}
	return model
}

// reference is the logarithm of the rounds per second of a reference vCPU.
func reference(hosts []Host) (float64, bool) {
	var scores []float64
	for _, h := range hosts {
		if logs := tail(h.logs(CPUAll), speedNewest); len(logs) > 0 {
			scores = append(scores, median(logs))
		}
	}
	if len(scores) == 0 {
		return 0, false
	}
	return median(scores), true
}

// Speeds says how many reference vCPUs one vCPU of each host is worth. A host whose CPU was
// never measured is not in it: a vCPU there counts as one.
func Speeds(hosts []Host) map[heliotrope.HostID]float64 {
	speeds := map[heliotrope.HostID]float64{}
	centre, _ := reference(hosts)
	for _, h := range hosts {
		logs := tail(h.logs(CPUAll), speedNewest)
		if len(logs) == 0 {
			continue
		}
		n, noise := float64(len(logs)), spread(logs)/usualNoise
		trust := n / (n + 1 + noise*noise)
		speed := math.Exp(trust * (median(logs) - centre))
		speeds[h.ID] = math.Round(min(max(speed, minSpeed), maxSpeed)*speedSteps) / speedSteps
	}
	return speeds
}

// anomalies are those of one host; members are all measured hosts of its class.
func anomalies(h Host, members []Host) []Anomaly {
	var found []Anomaly
	for _, m := range Metrics() {
		now, ok := h.now(m)
		if !ok {
			continue
		}
		var others []float64
		for _, o := range members {
			if x, ok := o.now(m); ok && o.ID != h.ID {
				others = append(others, x)
			}
		}
		if a, odd := deviation(h.ID, m, now, others, leastPeers); odd {
			a.Against = AgainstClass
			a.What = fmt.Sprintf("%s, of the %d others of its class (%s)", a.What, len(others), h.Class)
			found = append(found, a)
		}
		logs := h.logs(m)
		past := logs[:max(0, len(logs)-newest)]
		if a, odd := deviation(h.ID, m, now, past, leastPast); odd {
			a.Against = AgainstPast
			a.What = fmt.Sprintf("%s, of its own %d measurements before", a.What, len(past))
			found = append(found, a)
		}
	}
	return found
}

// deviation says whether a value is far from usual ones, of which there are least or more.
func deviation(h heliotrope.HostID, m Metric, now float64, usual []float64, least int) (Anomaly, bool) {
	if len(usual) < least {
		return Anomaly{}, false
	}
	centre := median(usual)
	width := max(spread(usual), leastSpread)
	score := (now - centre) / width
	if math.Abs(score) <= wild {
		return Anomaly{}, false
	}
	a := Anomaly{Host: h, Metric: m, Value: round(math.Exp(now)), Usual: round(math.Exp(centre)), Score: round(score), Worse: (score > 0) == m.LessIsBetter()}
	side, share := "above", math.Exp(now-centre)-1
	if share < 0 {
		side, share = "below", -share
	}
	a.What = fmt.Sprintf("%s is %s, %.0f %% %s the median %s (%s to %s is usual)", m.Name(), m.Text(a.Value), 100*share, side,
		m.Text(a.Usual), m.Text(math.Exp(centre-wild*width)), m.Text(math.Exp(centre+wild*width)))
	return a, true
}

// Changed compares the anomalies of two reports: those that are new, and those that are no
// more.
func Changed(before, after []Anomaly) (begun, ended []Anomaly) {
	same := func(a Anomaly) func(Anomaly) bool {
		return func(b Anomaly) bool {
			return a.Host == b.Host && a.Metric == b.Metric && a.Against == b.Against && a.Worse == b.Worse
		}
	}
	for _, a := range after {
		if !slices.ContainsFunc(before, same(a)) {
			begun = append(begun, a)
		}
	}
	for _, a := range before {
		if !slices.ContainsFunc(after, same(a)) {
			ended = append(ended, a)
		}
	}
	return begun, ended
}
