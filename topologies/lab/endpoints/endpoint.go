package endpoints

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/scheduler/traffic"
)

// order is what the driver tells an endpoint, one JSON object a line; each is answered.
type order struct {
	Listen *listenOrder `json:",omitempty"`
	Run    *runOrder    `json:",omitempty"` // answered when all that it begins has ended
	Count  bool         `json:",omitempty"`
}

// listenOrder begins a plan: it sets the counts to zero.
type listenOrder struct {
	Services []traffic.Service
	Book     map[netip.Addr]heliotrope.VMID
}

type runOrder struct {
	Talks []talk
	For   time.Duration
}

// talk is a Talk as its client sees it; rates are bytes a second.
type talk struct {
	Peer       heliotrope.VMID
	Address    netip.Addr
	Service    traffic.Service
	Rate, Back float64
	Size       int
}

type answer struct {
	Error  string                     `json:",omitempty"`
	Counts map[heliotrope.VMID]Counts `json:",omitempty"`
	Device DeviceCounters             `json:",omitzero"`
}

// endpoint is the process in a VM.
type endpoint struct {
	ctx     context.Context
	group   *errgroup.Group // servers, until the process ends
	serving map[traffic.Service]bool
	device  DeviceCounters // when the plan began

	mu     sync.Mutex
	book   map[netip.Addr]heliotrope.VMID
	counts map[heliotrope.VMID]Counts
	begun  map[netip.AddrPort]bool // whose datagrams came
}

// runEndpoint carries out orders until in ends or ctx does.
func runEndpoint(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	e := &endpoint{ctx: ctx, group: group, serving: make(map[traffic.Service]bool)}
	orders := make(chan order)
	group.Go(func() error { // reads on while an order is carried out, to see the driver go
		defer cancel()
		for dec := json.NewDecoder(in); ; {
			var o order
			if err := dec.Decode(&o); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return fmt.Errorf("read order: %w", err)
			}
			select {
			case orders <- o:
			case <-ctx.Done():
				return nil
			}
		}
	})
	group.Go(func() error {
		for enc := json.NewEncoder(out); ; {
			select {
			case <-ctx.Done():
				return nil
			case o := <-orders:
				a, err := e.do(o)
				if err != nil {
					a.Error = err.Error()
				}
				if err := enc.Encode(a); err != nil {
					return fmt.Errorf("answer driver: %w", err)
				}
			}
		}
	})
	return group.Wait()
}

func (e *endpoint) do(o order) (answer, error) {
	switch {
	case o.Listen != nil:
		return answer{}, e.listen(*o.Listen)
	case o.Run != nil:
		return answer{}, e.run(*o.Run)
	case o.Count:
		now, err := readDevices()
		e.mu.Lock()
		defer e.mu.Unlock()
		return answer{Counts: maps.Clone(e.counts), Device: now.since(e.device)}, err
	}
	return answer{}, errors.New("an order of nothing")
}

// listen offers services. Those of earlier plans stay.
func (e *endpoint) listen(o listenOrder) (err error) {
	e.mu.Lock()
	e.book, e.counts, e.begun = o.Book, make(map[heliotrope.VMID]Counts), make(map[netip.AddrPort]bool)
	e.mu.Unlock()
	if e.device, err = readDevices(); err != nil {
		return err
	}
	for _, s := range o.Services {
		if e.serving[s] {
			continue
		}
		if err := e.serve(s); err != nil {
			return fmt.Errorf("offer %v: %w", s, err)
		}
		e.serving[s] = true
	}
	return nil
}

func (e *endpoint) serve(s traffic.Service) error {
	at := fmt.Sprintf(":%d", s.Port)
	if s.Protocol == traffic.UDP {
		conn, err := (&net.ListenConfig{Control: growBuffers}).ListenPacket(e.ctx, "udp", at)
		if err != nil {
			return err
		}
		context.AfterFunc(e.ctx, func() { conn.Close() })
		e.group.Go(func() error { return e.serveUDP(conn.(*net.UDPConn)) })
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(e.ctx, "tcp", at)
	if err != nil {
		return err
	}
	context.AfterFunc(e.ctx, func() { l.Close() })
	e.group.Go(func() error { return e.serveTCP(l) })
	return nil
}

// run begins all talks and waits for their end. One that breaks off is an error; what it
// has sent by then is counted.
func (e *endpoint) run(o runOrder) error {
	ctx, cancel := context.WithTimeout(e.ctx, o.For)
	defer cancel()
	var group errgroup.Group
	for _, t := range o.Talks {
		group.Go(func() error {
			do := e.talkTCP
			if t.Service.Protocol == traffic.UDP {
				do = e.talkUDP
			}
			if err := do(ctx, t); err != nil && e.ctx.Err() == nil {
				return fmt.Errorf("talk to %s over %v: %w", t.Peer, t.Service, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// peer is whose address that is; empty where it is nobody's.
func (e *endpoint) peer(a net.Addr) heliotrope.VMID {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return ""
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.book[at.Addr().Unmap()]
}

// begins says whether a datagram is the first that a socket sent in this plan.
func (e *endpoint) begins(from netip.AddrPort) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	was := e.begun[from]
	e.begun[from] = true
	return !was
}

const (
	paceUnit = 1400.0 // bytes that are worth a wakeup
	paceMin  = 20 * time.Millisecond
	paceMax  = 250 * time.Millisecond
	paceMost = 256 << 10 // bytes at once: what was held up is not all made up for
)

// pace calls send with the number of bytes that are due at a rate of bytes a second, until
// ctx ends or send fails. send says how many it has sent.
func pace(ctx context.Context, rate float64, send func(due int) (int, error)) error {
	if rate <= 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(min(max(time.Duration(paceUnit/rate*float64(time.Second)), paceMin), paceMax))
	defer tick.Stop()
	var sent float64
	for began := time.Now(); ; {
		due := rate*time.Since(began).Seconds() - sent
		if due > paceMost {
			sent += due - paceMost
			due = paceMost
		}
		if due >= 1 {
			n, err := send(int(due))
			if sent += float64(n); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
