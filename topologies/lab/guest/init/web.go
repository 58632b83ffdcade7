package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// guest is what the web pages show.
type guest struct {
	name    string
	bootID  string
	started time.Time
	ticks   ticks
	resumes resumes
	memory  memory
	disk    disk

	mu    sync.Mutex
	peers []*peer
}

// ticksReport is the answer of /ticks.
type ticksReport struct {
	Hostname    string  `json:"hostname"`
	BootID      string  `json:"boot_id"` // another one after each boot
	Ticks       int64   `json:"ticks"`   // one per 10 ms that the guest ran; never goes back
	Uptime      float64 `json:"uptime"`  // seconds since the kernel started
	MonotonicNS int64   `json:"monotonic_ns"`
	LongestMS   float64 `json:"longest_ms"` // the longest time between two ticks that the guest saw
	Resumes     int64   `json:"resumes"`    // times that the guest was resumed elsewhere
}

func (g *guest) serveHTTP(listener net.Listener) error {
	server := &http.Server{Handler: g.pages(), ReadHeaderTimeout: 10 * time.Second}
	return server.Serve(listener)
}

func (g *guest) pages() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "hello from %s\nticks %d\n", g.name, g.ticks.count.Load())
	})
	mux.HandleFunc("GET /ticks", func(w http.ResponseWriter, _ *http.Request) { answer(w, g.ticksReport()) })
	mux.HandleFunc("GET /checksum", func(w http.ResponseWriter, _ *http.Request) { answer(w, g.memory.sweep()) })
	mux.HandleFunc("GET /disk", func(w http.ResponseWriter, _ *http.Request) { answer(w, g.disk.verify()) })
	mux.HandleFunc("GET /peer", func(w http.ResponseWriter, r *http.Request) {
		if add := r.URL.Query().Get("add"); add != "" {
			g.call(add)
		}
		g.hangUp(r.URL.Query().Get("drop"))
		answer(w, g.peerReports())
	})
	mux.HandleFunc("/workload", g.workload)
	return mux
}

// call adds a peer that was not there before.
func (g *guest) call(address string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if slices.ContainsFunc(g.peers, func(p *peer) bool { return p.address == address }) {
		return
	}
	p := &peer{address: address}
	g.peers = append(g.peers, p)
	go p.run()
}

// hangUp ends what call began.
func (g *guest) hangUp(address string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.peers {
		if p.address == address {
			p.drop()
		}
	}
	g.peers = slices.DeleteFunc(g.peers, func(p *peer) bool { return p.address == address })
}

func (g *guest) peerReports() []peerReport {
	g.mu.Lock()
	defer g.mu.Unlock()
	reports := make([]peerReport, 0, len(g.peers))
	for _, p := range g.peers {
		reports = append(reports, p.report())
	}
	return reports
}

func (g *guest) ticksReport() ticksReport {
	return ticksReport{
		Hostname: g.name, BootID: g.bootID, Ticks: g.ticks.count.Load(),
		Uptime: uptime().Seconds(), MonotonicNS: int64(time.Since(g.started)),
		LongestMS: float64(g.ticks.longest.Load()) / 1e6, Resumes: g.resumes.seen.Load(),
	}
}

// workload changes what is given, and answers with what is so now.
func (g *guest) workload(w http.ResponseWriter, r *http.Request) {
	g.memory.mu.Lock()
	now := g.memory.report()
	g.memory.mu.Unlock()
	pages, rate := now.Pages, now.Rate
	for name, into := range map[string]*int{"pages": &pages, "rate": &rate} {
		if !r.URL.Query().Has(name) {
			continue
		}
		n, err := strconv.Atoi(r.URL.Query().Get(name))
		if err != nil {
			http.Error(w, name+" is no number", http.StatusBadRequest)
			return
		}
		*into = n
	}
	if err := g.memory.resize(pages, rate); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	g.memory.mu.Lock()
	defer g.memory.mu.Unlock()
	answer(w, g.memory.report())
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}
