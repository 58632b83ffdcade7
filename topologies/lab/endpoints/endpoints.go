// Package endpoints makes traffic of which the truth is known: light VMs of a lab talk to
// each other in a pattern, over TCP and UDP with real payload, and say what they sent.
//
//	driver ── pipes ── endpoint (one process in each VM's namespaces) ── TCP, UDP ── endpoint …
//
// A Fleet is the endpoints of some VMs. Drive has them carry out a Plan, which says who
// sends to whom, over which service and how quickly; the graph of a pattern is package
// synth's. Each endpoint counts by itself (count.go): what it gets from the kernel for a
// connection or a datagram, never what it meant to send. A Truth is all their counts as a
// matrix, once as the senders counted and once as the receivers did.
//
// An endpoint ends when its standard input does: with the driver, however that dies. Plans
// are bounded in rate and time.
//
// The package does not need a lab: StartAt takes namespaces by the number of a process.
// It also starts real applications in light VMs (apps.go).
package endpoints

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/topologies/lab"
)

// Place is where an endpoint is to be: in the namespaces of process PID.
type Place struct {
	VM      heliotrope.VMID
	PID     int
	Address netip.Addr
}

// Places are those of a light lab's VMs in the order given, or all of them by name.
func Places(ctx context.Context, t lab.Target, vms []heliotrope.VMID) ([]Place, error) {
	status, err := lab.Read(ctx, t)
	if err != nil {
		return nil, err
	}
	var all []Place
	for _, n := range status.Nodes {
		if n.Kind == lab.KindVM && n.PID != 0 {
			all = append(all, Place{VM: n.VM, PID: n.PID, Address: n.Address})
		}
	}
	var chosen []Place
	for _, vm := range vms {
		i := slices.IndexFunc(all, func(p Place) bool { return p.VM == vm })
		if i < 0 {
			return nil, fmt.Errorf("find endpoint: lab %s has no light VM %q", status.Name, vm)
		}
		chosen = append(chosen, all[i])
	}
	if len(vms) > 0 {
		return chosen, nil
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("find endpoints: lab %s has no light VMs: bring it up with --light", status.Name)
	}
	return all, nil
}

// Fleet is a set of endpoints that run. Make it with Start or StartAt.
type Fleet struct {
	places    []Place
	endpoints map[heliotrope.VMID]*remote
	cancel    context.CancelFunc
	running   sync.WaitGroup
	driving   sync.Mutex
}

// Start starts an endpoint in each of a light lab's VMs, in all of them where none is named.
func Start(ctx context.Context, t lab.Target, vms []heliotrope.VMID) (*Fleet, error) {
	places, err := Places(ctx, t, vms)
	if err != nil {
		return nil, err
	}
	return StartAt(ctx, places)
}

// StartAt starts an endpoint in each place. The caller's program must have Command below
// its command lab: an endpoint is that program again. All endpoints end when ctx does.
func StartAt(ctx context.Context, places []Place) (*Fleet, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own program: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	f := &Fleet{places: places, endpoints: make(map[heliotrope.VMID]*remote), cancel: cancel}
	for _, p := range places {
		r, err := f.start(ctx, self, p)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		f.endpoints[p.VM] = r
	}
	return f, nil
}

// Places are where the endpoints are.
func (f *Fleet) Places() []Place { return slices.Clone(f.places) }

// Close ends all endpoints and waits for them.
func (f *Fleet) Close() error {
	f.cancel()
	var problems []error
	for _, r := range f.endpoints {
		problems = append(problems, r.in.Close())
	}
	f.running.Wait()
	for _, r := range f.endpoints {
		r.out.Close() // read to its end
	}
	return errors.Join(problems...)
}

// remote is the driver's side of an endpoint.
type remote struct {
	vm      heliotrope.VMID
	in, out *os.File
	orders  *json.Encoder
	answers *json.Decoder
	said    *bytes.Buffer // on standard error; read it only once the process has ended
	ended   chan struct{}
}

func (f *Fleet) start(ctx context.Context, self string, p Place) (*remote, error) {
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make pipe: %w", err), in.Close(), theirIn.Close())
	}
	r := &remote{vm: p.VM, in: in, out: out, orders: json.NewEncoder(in), answers: json.NewDecoder(out),
		said: &bytes.Buffer{}, ended: make(chan struct{})}
	f.running.Go(func() {
		defer close(r.ended)
		defer theirIn.Close()
		defer theirOut.Close()
		code, err := lab.Enter(ctx, p.PID, []string{self, "lab", commandName, endpointName}, lab.Stdio{In: theirIn, Out: theirOut, Err: r.said})
		if ctx.Err() == nil {
			fmt.Fprintf(r.said, " (code %d, %v)", code, err)
		}
	})
	return r, nil
}

// ask gives an order and waits for the answer.
func (r *remote) ask(ctx context.Context, o order) (answer, error) {
	defer context.AfterFunc(ctx, func() { r.out.SetReadDeadline(time.Now()) })()
	var a answer
	err := r.orders.Encode(o)
	if err == nil {
		err = r.answers.Decode(&a)
	}
	switch {
	case ctx.Err() != nil:
		return a, context.Cause(ctx)
	case err != nil:
		select {
		case <-r.ended:
			return a, fmt.Errorf("order endpoint %s: it has ended: %s", r.vm, strings.TrimSpace(r.said.String()))
		case <-time.After(time.Second):
			return a, fmt.Errorf("order endpoint %s: %w", r.vm, err)
		}
	case a.Error != "":
		return a, fmt.Errorf("endpoint %s: %s", r.vm, a.Error)
	}
	return a, nil
}

// each gives every endpoint an order at once and hands its answer to took, one at a time.
// It waits for all of them, so that none has an answer left that nobody took.
func (f *Fleet) each(ctx context.Context, order func(Place) order, took func(Place, answer)) error {
	var group errgroup.Group
	var mu sync.Mutex
	for _, p := range f.places {
		group.Go(func() error {
			a, err := f.endpoints[p.VM].ask(ctx, order(p))
			if err == nil && took != nil {
				mu.Lock()
				defer mu.Unlock()
				took(p, a)
			}
			return err
		})
	}
	return group.Wait()
}

// Truth is what was sent and what arrived while a plan was carried out.
type Truth struct {
	From     time.Time        `json:"from"` // before the first packet
	To       time.Time        `json:"to"`   // after the last
	Sent     traffic.Matrix   `json:"sent"`
	Received traffic.Matrix   `json:"received"`
	Devices  []DeviceCounters `json:"devices"` // what the endpoints' devices carried in all
}

// DeviceCounters are the kernel's counters of all devices of an endpoint but its loopback:
// frames, and bytes with their Ethernet headers, ARP included. They are a check of the rest.
type DeviceCounters struct {
	VM        heliotrope.VMID `json:"vm"`
	TxPackets uint64          `json:"tx_packets"`
	TxBytes   uint64          `json:"tx_bytes"`
	RxPackets uint64          `json:"rx_packets"`
	RxBytes   uint64          `json:"rx_bytes"`
}

const (
	settlePause = 100 * time.Millisecond // between two looks at what has arrived
	settleLimit = 3 * time.Second        // for what is on its way when the last has been sent
)

// Drive carries out a plan, one at a time. Where only some talks failed, the truth of what
// was sent all the same comes with the error.
func (f *Fleet) Drive(ctx context.Context, p Plan) (Truth, error) {
	f.driving.Lock()
	defer f.driving.Unlock()
	if err := p.check(f.places); err != nil {
		return Truth{}, err
	}
	book := make(map[netip.Addr]heliotrope.VMID)
	for _, at := range f.places {
		book[at.Address] = at.VM
	}
	if err := f.each(ctx, func(at Place) order { return order{Listen: &listenOrder{p.services(at.VM), book}} }, nil); err != nil {
		return Truth{}, err
	}
	t := Truth{From: time.Now().UTC()}
	failed := f.each(ctx, func(at Place) order { return order{Run: &runOrder{p.talks(at.VM, f.places), p.For}} }, nil)
	for began, before := time.Now(), -1.0; ; {
		t.To = time.Now().UTC()
		if err := f.count(ctx, &t); err != nil {
			return Truth{}, errors.Join(failed, err)
		}
		sent, got := total(t.Sent), total(t.Received)
		if sent == got || got == before && time.Since(began) > time.Second || time.Since(began) > settleLimit {
			return t, failed
		}
		before = got
		select {
		case <-time.After(settlePause):
		case <-ctx.Done():
			return Truth{}, context.Cause(ctx)
		}
	}
}

func total(m traffic.Matrix) (packets float64) {
	for _, c := range m.Cells {
		packets += c.Packets
	}
	return packets
}

// count asks all endpoints for their counts.
func (f *Fleet) count(ctx context.Context, t *Truth) error {
	var sent, got []traffic.Cell
	t.Devices = nil
	err := f.each(ctx, func(Place) order { return order{Count: true} }, func(at Place, a answer) {
		a.Device.VM = at.VM
		t.Devices = append(t.Devices, a.Device)
		for peer, c := range a.Counts {
			sent = append(sent, cell(at.VM, peer, c.Sent))
			got = append(got, cell(peer, at.VM, c.Got))
		}
	})
	slices.SortFunc(t.Devices, func(a, b DeviceCounters) int { return strings.Compare(string(a.VM), string(b.VM)) })
	t.Sent, t.Received = matrix(*t, sent), matrix(*t, got)
	return err
}

func cell(from, to heliotrope.VMID, v Volume) traffic.Cell {
	bytes := float64(v.Bytes)
	return traffic.Cell{Src: traffic.VM(from), Dst: traffic.VM(to), Packets: float64(v.Packets), Flows: float64(v.Flows), Bytes: bytes, Low: bytes, High: bytes}
}

func matrix(t Truth, cells []traffic.Cell) traffic.Matrix {
	cells = slices.DeleteFunc(cells, func(c traffic.Cell) bool { return c.Packets == 0 })
	slices.SortFunc(cells, func(a, b traffic.Cell) int {
		if c := a.Src.Compare(b.Src); c != 0 {
			return c
		}
		return a.Dst.Compare(b.Dst)
	})
	return traffic.Matrix{From: t.From, To: t.To, Cells: cells}
}
