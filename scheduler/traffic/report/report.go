// Package report is what an engineer and the scheduler read of the traffic: who talks most,
// in which groups and patterns, what crosses sites and what that costs. A Report is a value;
// it says what it does not know.
package report

import (
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/phases"
)

// Report is what was seen in one window. Rates are per second of the window; bytes are IP
// bytes; money is USD per hour at the window's rates.
type Report struct {
	At       time.Time        `json:"at" doc:"When the report was made."`
	From     time.Time        `json:"from"`
	To       time.Time        `json:"to"`
	Topology string           `json:"topology,omitempty"`
	Total    Total            `json:"total"`
	Talkers  []Talker         `json:"talkers" doc:"Ends, those that send and get most first."`
	Pairs    []Pair           `json:"pairs" doc:"Who sends to whom, the most first."`
	Services []Service        `json:"services" doc:"What they talk, the most first."`
	Groups   []Group          `json:"groups" doc:"VMs that belong together, and their patterns."`
	Events   []Event          `json:"events,omitempty" doc:"Changes of groups, patterns and volumes, the newest first."`
	Sites    []Site           `json:"sites,omitempty" doc:"What goes from site to site."`
	Savings  []traffic.Saving `json:"savings,omitempty" doc:"Estimate of what other places for VMs would save."`
	Sources  []Source         `json:"sources" doc:"How each host counted."`
	History  []Volume         `json:"history,omitempty" doc:"Bytes per second over time, of all pairs."`
	Notes    []string         `json:"notes,omitempty" doc:"What was not seen, or only in part."`
}

// Total is all traffic together.
type Total struct {
	BytesPerSecond   float64 `json:"bytes_per_second"`
	PacketsPerSecond float64 `json:"packets_per_second"`
	FlowsPerSecond   float64 `json:"flows_per_second"`
	Pairs            int     `json:"pairs"`
	VMs              int     `json:"vms" doc:"That sent or got something."`
	Outside          int     `json:"outside" doc:"Prefixes outside."`
}

// Talker is one end.
type Talker struct {
	End  traffic.End       `json:"end"`
	Site heliotrope.SiteID `json:"site,omitempty"`
	Host heliotrope.HostID `json:"host,omitempty"`
	Sent float64           `json:"sent_bytes_per_second"`
	Got  float64           `json:"got_bytes_per_second"`
	Ends int               `json:"ends" doc:"How many others it talks to."`
}

// Pair is one direction between two ends.
type Pair struct {
	Src      traffic.End            `json:"src"`
	Dst      traffic.End            `json:"dst"`
	Rate     float64                `json:"bytes_per_second"`
	Low      float64                `json:"low_bytes_per_second" doc:"The truth is above, with 97.5 % confidence."`
	High     float64                `json:"high_bytes_per_second" doc:"The truth is below, with 97.5 % confidence."`
	Packets  float64                `json:"packets_per_second"`
	Flows    float64                `json:"flows_per_second,omitempty"`
	Service  traffic.Service        `json:"service,omitzero" doc:"The largest."`
	Reply    bool                   `json:"reply,omitempty" doc:"Src is the side that answers."`
	Services []traffic.ServiceShare `json:"services,omitempty" doc:"All of them: bytes in the window."`
	RTTMs    float64                `json:"rtt_ms,omitempty"`
	RTTMinMs float64                `json:"rtt_min_ms,omitempty"`
	Burst    float64                `json:"burst,omitempty" doc:"Peak rate over 10 ms, as a multiple of the mean."`
	From     heliotrope.SiteID      `json:"from_site,omitempty"`
	To       heliotrope.SiteID      `json:"to_site,omitempty"`
}

// Service is one protocol and port, all ends together.
type Service struct {
	Service traffic.Service `json:"service"`
	Rate    float64         `json:"bytes_per_second"`
	Servers []traffic.End   `json:"servers,omitempty" doc:"Ends that answer, the largest first, eight at most."`
	Clients int             `json:"clients"`
}

// Group is a group of VMs with its history.
type Group struct {
	ID string `json:"id" doc:"Stays the same while most members do."`
	pattern.Group
	Since  time.Time           `json:"since,omitzero" doc:"Since when it keeps to this pattern."`
	Phases []phases.Phase      `json:"phases,omitempty" doc:"The patterns before, the oldest first."`
	Sites  []heliotrope.SiteID `json:"sites,omitempty" doc:"Where its members are."`
}

// Event is a change that was seen.
type Event struct {
	At    time.Time `json:"at"`
	Kind  string    `json:"kind" doc:"pattern, members, appeared, ended, volume"`
	Group string    `json:"group,omitempty"`
	What  string    `json:"what" doc:"A sentence."`
}

// Site is what goes from one site to another.
type Site struct {
	From       heliotrope.SiteID `json:"from"`
	To         heliotrope.SiteID `json:"to"`
	Rate       float64           `json:"bytes_per_second"`
	USDPerHour float64           `json:"usd_per_hour"`
	Priced     bool              `json:"priced" doc:"The topology has a price for this way."`
}

// Source is how a host counted.
type Source struct {
	Host     heliotrope.HostID `json:"host"`
	Source   traffic.Source    `json:"source,omitempty"`
	Sampling uint32            `json:"sampling,omitempty"`
	Ports    int               `json:"ports"`
	CPU      float64           `json:"cpu" doc:"Share of one core that counting took."`
	Shed     uint64            `json:"shed" doc:"Packets of the newest second that were not looked at."`
	Crowded  uint64            `json:"crowded" doc:"Packets of the newest second that were counted under a coarser key."`
	LastBin  time.Time         `json:"last_bin,omitzero"`
	Missing  float64           `json:"missing" doc:"Share of the window of which nothing came, 0 to 1."`
}

// Volume is a point of a time line.
type Volume struct {
	At   time.Time `json:"at"`
	Rate float64   `json:"bytes_per_second"`
}

// Options say how a report is made.
type Options struct {
	Top int // ends, pairs and services that are listed; 0: 20
}
