package main

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope/topologies/lab/guest/record"
)

const (
	maxRate = 1_000_000 // pages or records a second
	// idleSweep is how many pages a second are verified when nobody asks: slow enough to
	// cost next to nothing under emulation.
	idleSweep = 256
	step      = 10 * time.Millisecond
)

// memory is a working set of pages, each filled from a generator that is keyed by the page
// and its version, so that one wrong, missing or stale byte is seen. A writer gives random
// pages new versions at a rate; a verifier walks all the time, and whole on demand.
type memory struct {
	mu       sync.Mutex
	region   []byte
	versions []uint64
	rate     int
	dirtied  uint64
	verified uint64 // pages, in all
	bad      uint64
	sweeps   uint64
	cursor   int
}

// memoryReport is the answer of /checksum.
type memoryReport struct {
	Pages    int    `json:"pages"`
	Rate     int    `json:"rate"`     // pages dirtied a second
	Dirtied  uint64 `json:"dirtied"`  // pages, since the working set was made
	Verified uint64 `json:"verified"` // pages, since the working set was made
	Bad      uint64 `json:"bad"`      // of them
	Sweeps   uint64 `json:"sweeps"`   // over the whole working set
	Took     string `json:"took,omitempty"`
}

// resize makes a new working set and starts to dirty it at rate pages a second.
func (m *memory) resize(pages, rate int) error {
	if pages < 0 || rate < 0 || rate > maxRate {
		return fmt.Errorf("change memory workload: %d pages at %d a second make no sense", pages, rate)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if pages != len(m.versions) {
		if err := m.allocate(pages); err != nil {
			return fmt.Errorf("change memory workload: %w", err)
		}
	}
	m.rate = rate
	return nil
}

func (m *memory) allocate(pages int) error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return err
	}
	free := (info.Freeram*uint64(info.Unit) + uint64(len(m.region))) / pageSize
	if uint64(pages) > free*9/10 {
		return fmt.Errorf("%d pages do not fit: %d are free", pages, free)
	}
	if m.region != nil {
		unix.Munmap(m.region)
	}
	m.region, m.versions = nil, nil
	m.dirtied, m.verified, m.bad, m.sweeps, m.cursor = 0, 0, 0, 0, 0
	if pages == 0 {
		return nil
	}
	region, err := unix.Mmap(-1, 0, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	m.region, m.versions = region, make([]uint64, pages)
	for page := range pages {
		record.Fill(m.page(page), uint64(page), 0)
	}
	return nil
}

func (m *memory) page(i int) []byte { return m.region[i*pageSize : (i+1)*pageSize] }

// run dirties and verifies for ever.
func (m *memory) run() error {
	ticker := time.NewTicker(step)
	defer ticker.Stop()
	var writes, checks pace
	for now := range ticker.C {
		m.mu.Lock()
		rate := m.rate
		m.mu.Unlock()
		for range writes.due(now, rate) {
			m.dirty()
		}
		for range checks.due(now, idleSweep) {
			m.verifyNext()
		}
	}
	return nil
}

func (m *memory) dirty() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.versions) == 0 {
		return
	}
	i := rand.IntN(len(m.versions))
	m.versions[i]++
	m.dirtied++
	record.Fill(m.page(i), uint64(i), m.versions[i])
}

func (m *memory) verifyNext() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.versions) == 0 {
		return
	}
	m.verify(m.cursor)
	if m.cursor++; m.cursor == len(m.versions) {
		m.cursor = 0
		m.sweeps++
	}
}

func (m *memory) verify(i int) {
	m.verified++
	if !record.Intact(m.page(i), uint64(i), m.versions[i]) {
		m.bad++
	}
}

// sweep verifies every page; the writer goes on between two pages.
func (m *memory) sweep() memoryReport {
	began := time.Now()
	for i := 0; ; i++ {
		m.mu.Lock()
		if i >= len(m.versions) {
			break
		}
		m.verify(i)
		m.mu.Unlock()
	}
	defer m.mu.Unlock()
	m.sweeps++
	r := m.report()
	r.Took = time.Since(began).Round(time.Millisecond).String()
	return r
}

// report wants m.mu held.
func (m *memory) report() memoryReport {
	return memoryReport{
		Pages: len(m.versions), Rate: m.rate, Dirtied: m.dirtied,
		Verified: m.verified, Bad: m.bad, Sweeps: m.sweeps,
	}
}

// pace turns a rate into whole numbers of things that are due, without drift.
type pace struct {
	last time.Time
	owed float64
}

// due caps what piled up while the guest could not run at one second's worth.
func (p *pace) due(now time.Time, rate int) int {
	if !p.last.IsZero() {
		p.owed = min(p.owed+now.Sub(p.last).Seconds()*float64(rate), float64(rate))
	}
	p.last = now
	n := int(p.owed)
	p.owed -= float64(n)
	return n
}
