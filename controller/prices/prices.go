// Package prices follows what sites cost, where somebody else keeps that up to date: a
// feed (package feed) in JSON, read every minute:
//
//	{"sites": {"us": {"usd_per_vcpu_hour": 0.031, "usd_per_gib_hour": 0.0042,
//	                  "grams_co2_per_vcpu_hour": 18, "interruptions_per_hour": 0.002}}}
//
// CO2 and interruptions are among them since both are what a place costs by a policy.
// What it does not say is as the topology has it. A feed that cannot be read, or says what
// cannot be, changes nothing: the last prices stay, for a day at most, since old ones are
// better than none and worse than what an engineer wrote down.
package prices

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/internal/feed"
)

const (
	every    = time.Minute
	goodFor  = 24 * time.Hour
	most     = 1e6 // USD, grams, interruptions
	mostSite = 10_000
)

// Price is what a site costs; nil is as the topology has it.
type Price struct {
	USDPerVCPUHour       *float64 `json:"usd_per_vcpu_hour,omitempty"`
	USDPerGiBHour        *float64 `json:"usd_per_gib_hour,omitempty"`
	GramsCO2PerVCPUHour  *float64 `json:"grams_co2_per_vcpu_hour,omitempty"`
	InterruptionsPerHour *float64 `json:"interruptions_per_hour,omitempty"`
}

// Feed is prices that somebody else keeps. Its zero value knows none.
type Feed struct {
	read feed.Source
	name string
	log  *slog.Logger
	tell func(site heliotrope.SiteID, what string)

	mu    sync.Mutex
	sites map[heliotrope.SiteID]Price
	at    time.Time
}

// Open returns the feed of a name; none where that is empty. tell is told of each site
// whose price has changed.
func Open(name string, log *slog.Logger, tell func(heliotrope.SiteID, string)) (*Feed, error) {
	f := &Feed{name: name, log: log, tell: tell}
	if name == "" {
		return f, nil
	}
	var err error
	if f.read, err = feed.Open(name); err != nil {
		return nil, fmt.Errorf("open prices: %w", err)
	}
	return f, nil
}

// Run reads the feed until ctx ends.
func (f *Feed) Run(ctx context.Context) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if f.read != nil {
			if err := f.look(ctx); err != nil && ctx.Err() == nil {
				f.log.Warn("prices are not read", "feed", f.name, "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (f *Feed) look(ctx context.Context) error {
	text, err := f.read(ctx)
	if err != nil {
		return err
	}
	sites, err := parse(text)
	if err != nil {
		return err
	}
	f.mu.Lock()
	before := f.sites
	f.sites, f.at = sites, time.Now()
	f.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(sites)) {
		if what := sites[id].String(); what != before[id].String() {
			f.tell(id, "costs "+what)
		}
	}
	return nil
}

// Apply replaces prices of a topology's sites by those of the feed.
func (f *Feed) Apply(t *heliotrope.Topology) {
	f.mu.Lock()
	sites, at := f.sites, f.at
	f.mu.Unlock()
	if len(sites) == 0 || time.Since(at) > goodFor {
		return
	}
	t.Sites = maps.Clone(t.Sites)
	for id, p := range sites {
		s, ok := t.Sites[id]
		if !ok {
			continue
		}
		s.PricePerVCPUHour = told(p.USDPerVCPUHour, s.PricePerVCPUHour)
		s.PricePerGiBHour = told(p.USDPerGiBHour, s.PricePerGiBHour)
		s.GramsCO2PerVCPUHour = told(p.GramsCO2PerVCPUHour, s.GramsCO2PerVCPUHour)
		s.InterruptionsPerHour = told(p.InterruptionsPerHour, s.InterruptionsPerHour)
		t.Sites[id] = s
	}
}

// told is what the feed says, or else the topology.
func told(feed *float64, topology float64) float64 {
	if feed != nil {
		return *feed
	}
	return topology
}

// String is a price for people.
func (p Price) String() string {
	say := func(usd *float64, of string) string {
		if usd == nil {
			return "as the topology says for a " + of
		}
		return fmt.Sprintf("USD %.4g for a %s", *usd, of)
	}
	s := say(p.USDPerVCPUHour, "vCPU-hour") + ", " + say(p.USDPerGiBHour, "GiB-hour")
	if p.GramsCO2PerVCPUHour != nil {
		s += fmt.Sprintf(", emits %.4g g of CO₂ for a vCPU-hour", *p.GramsCO2PerVCPUHour)
	}
	if p.InterruptionsPerHour != nil {
		s += fmt.Sprintf(", interrupts a VM %.4g times an hour", *p.InterruptionsPerHour)
	}
	return s
}

// parse reads a feed; nothing is no prices. All of it is right, or none is taken.
func parse(text []byte) (map[heliotrope.SiteID]Price, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, nil
	}
	var doc struct {
		Sites map[heliotrope.SiteID]Price `json:"sites"`
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&doc); err != nil {
		return nil, fmt.Errorf("read prices: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("read prices: something follows them")
	}
	if len(doc.Sites) > mostSite {
		return nil, fmt.Errorf("read prices: of %d sites, at most %d may be", len(doc.Sites), mostSite)
	}
	for id, p := range doc.Sites {
		for name, x := range map[string]*float64{"usd_per_vcpu_hour": p.USDPerVCPUHour, "usd_per_gib_hour": p.USDPerGiBHour,
			"grams_co2_per_vcpu_hour": p.GramsCO2PerVCPUHour, "interruptions_per_hour": p.InterruptionsPerHour} {
			if x != nil && !(*x >= 0 && *x <= most) {
				return nil, fmt.Errorf("read prices: site %q: %s %v is out of range: use 0 to %g", id, name, *x, float64(most))
			}
		}
	}
	return doc.Sites, nil
}
