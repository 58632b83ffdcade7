package main

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	peerInterval = 10 * time.Millisecond
	peerPause    = 500 * time.Millisecond // between two attempts to connect
	// peerGap is how long an echo may stay away before it counts as a gap.
	peerGap = 250 * time.Millisecond
)

// peer keeps one TCP connection to another guest's echo and exchanges a sequence, to show
// that two guests go on talking while they move.
type peer struct {
	address string

	mu       sync.Mutex
	sent     uint64
	acked    uint64
	gaps     uint64
	wrong    uint64
	longest  time.Duration
	connects uint64
	failed   error
	conn     net.Conn
	dropped  bool
}

// peerReport is one element of the answer of /peer.
type peerReport struct {
	Peer       string  `json:"peer"`
	Connected  bool    `json:"connected"`
	Sent       uint64  `json:"sent"`
	Acked      uint64  `json:"acked"` // the latest number that came back
	Gaps       uint64  `json:"gaps"`  // echoes that came more than 250 ms after the one before
	Wrong      uint64  `json:"wrong"` // echoes with another number than the next
	LongestMS  float64 `json:"longest_ms"`
	Reconnects uint64  `json:"reconnects"`
	Error      string  `json:"error,omitempty"` // the latest
}

func (p *peer) report() peerReport {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := peerReport{
		Peer: p.address, Connected: p.connects > 0 && p.failed == nil, Sent: p.sent, Acked: p.acked,
		Gaps: p.gaps, Wrong: p.wrong, LongestMS: float64(p.longest) / 1e6,
	}
	if p.connects > 0 {
		r.Reconnects = p.connects - 1
	}
	if p.failed != nil {
		r.Error = p.failed.Error()
	}
	return r
}

// run connects again and again until the peer is dropped: the other guest may not be up yet.
func (p *peer) run() {
	for {
		err := p.talk()
		p.mu.Lock()
		p.failed = err
		dropped := p.dropped
		p.mu.Unlock()
		if dropped {
			return
		}
		time.Sleep(peerPause)
	}
}

func (p *peer) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropped = true
	if p.conn != nil {
		p.conn.Close()
	}
}

func (p *peer) talk() error {
	conn, err := net.DialTimeout("tcp", p.address, 5*time.Second)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.connects++
	p.failed = nil
	p.conn = conn
	if p.dropped {
		conn.Close()
	}
	first := p.sent + 1
	p.mu.Unlock()
	listened := make(chan error, 1)
	go func() { listened <- p.listen(conn, first) }()
	err = p.write(conn)
	conn.Close()
	return errors.Join(err, <-listened)
}

func (p *peer) write(conn net.Conn) error {
	ticker := time.NewTicker(peerInterval)
	defer ticker.Stop()
	message := make([]byte, 8)
	for range ticker.C {
		p.mu.Lock()
		p.sent++
		binary.BigEndian.PutUint64(message, p.sent)
		p.mu.Unlock()
		if _, err := conn.Write(message); err != nil {
			return err
		}
	}
	return nil
}

// listen closes the connection when it ends, which ends write too.
func (p *peer) listen(conn net.Conn, next uint64) error {
	defer conn.Close()
	message := make([]byte, 8)
	last := time.Now()
	for ; ; next++ {
		if _, err := io.ReadFull(conn, message); err != nil {
			return err
		}
		now := time.Now()
		p.mu.Lock()
		p.acked = binary.BigEndian.Uint64(message)
		if p.acked != next {
			p.wrong++
			next = p.acked
		}
		if now.Sub(last) > peerGap {
			p.gaps++
		}
		p.longest = max(p.longest, now.Sub(last))
		p.mu.Unlock()
		last = now
	}
}
