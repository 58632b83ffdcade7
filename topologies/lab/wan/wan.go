// Package wan is the lab's wide area network: it forwards Ethernet frames between the sites'
// routers and does to them what distance does, because not every kernel has netem.
//
// Each router has a TAP device whose other end is a file of ours (OpenTap). One thread reads
// all of them, looks the destination up in a fixed table of MAC addresses, and asks the
// line of that direction (pipe.go: pure) when the frame departs. Frames for now are written
// at once, the others wait in a ring per direction; the thread sleeps in ppoll until the next
// departure. One thread carries 2 Gbit/s of full frames between two namespaces of a machine of
// two cores; a goroutine per port that shapes nothing carried 3.5, at the price of a lock per
// frame as soon as it shapes. Frames live in a bounded pool of cells, and nothing is allocated
// per frame.
//
// A frame to a group address goes to every other port, each copy on its own line. A frame to
// an address nobody has is dropped: a WAN learns nothing and floods nothing.
package wan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope"
)

// Pair names one direction between two ports.
type Pair struct{ From, To string }

func (p Pair) String() string { return p.From + ">" + p.To }

// MarshalText makes a map of Pairs a JSON object.
func (p Pair) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// Meter counts what one direction did. Frames that arrived are Packets, the drops and InFlight.
type Meter struct {
	Packets   uint64        `json:"packets"` // delivered
	Bytes     uint64        `json:"bytes"`   // delivered, whole Ethernet frames
	LossDrop  uint64        `json:"loss_drop"`
	QueueDrop uint64        `json:"queue_drop"` // the queue, or the memory of the whole WAN, was full
	DownDrop  uint64        `json:"down_drop"`  // the link, or the port behind it, was down
	InFlight  int           `json:"in_flight"`
	Backlog   time.Duration `json:"backlog"` // what a frame would wait now before it is sent
}

// WAN is a set of ports and the lines between them. Its methods may be called at any time,
// also while Run runs.
type WAN struct {
	log  *slog.Logger
	base time.Time
	wake int // eventfd: the table of ports changed, or Run is to end

	mu     sync.Mutex
	ports  []*port
	byName map[string]*port
	byMAC  map[heliotrope.MAC]*port
	agenda agenda
	pool   pool
	closed bool
}

type port struct {
	name  string
	mac   heliotrope.MAC
	fd    int     // -1 when the device is gone
	pipes []*pipe // to each port, by index; nil to itself
	index int
}

// New returns a WAN without ports.
func New(log *slog.Logger) *WAN {
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		wake = -1 // out of files: Run says so
	}
	return &WAN{
		log: log, base: time.Now(), wake: wake,
		byName: map[string]*port{}, byMAC: map[heliotrope.MAC]*port{},
	}
}

// AddPort adds the router name, whose wan device has the address mac, and takes over tap,
// the file that OpenTap returned. A name that is there already gets the new device (its
// router was restarted); its lines keep their shapes and meters.
func (w *WAN) AddPort(name string, mac heliotrope.MAC, tap *os.File) error {
	fd, err := takeOver(tap)
	if err != nil {
		return fmt.Errorf("add port %s: %w", name, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.admit(name, mac); err != nil {
		unix.Close(fd)
		return fmt.Errorf("add port %s: %w", name, err)
	}
	p := w.byName[name]
	if p == nil {
		p = &port{name: name, fd: -1, index: len(w.ports)}
		w.connect(p)
	}
	w.unplug(p)
	delete(w.byMAC, p.mac)
	p.mac, p.fd = mac, fd
	w.byMAC[mac] = p
	w.kick()
	return nil
}

func (w *WAN) admit(name string, mac heliotrope.MAC) error {
	if w.closed {
		return errors.New("the WAN has ended")
	}
	if mac.IsZero() || mac[0]&1 != 0 {
		return fmt.Errorf("%v is no unicast address", mac)
	}
	if other := w.byMAC[mac]; other != nil && other.name != name {
		return fmt.Errorf("%v is already the address of %s", mac, other.name)
	}
	return nil
}

// connect makes the lines between p and every other port.
func (w *WAN) connect(p *port) {
	line := func(to *port) *pipe {
		return &pipe{to: to, index: -1, rng: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
	}
	for _, other := range w.ports {
		other.pipes = append(other.pipes, line(p))
		p.pipes = append(p.pipes, line(other))
	}
	p.pipes = append(p.pipes, nil)
	w.ports = append(w.ports, p)
	w.byName[p.name] = p
}

// unplug closes a port's device; frames for it are dropped as down from now on.
func (w *WAN) unplug(p *port) {
	if p.fd >= 0 {
		unix.Close(p.fd)
		p.fd = -1
	}
}

// kick wakes the thread in Run. The caller holds w.mu.
func (w *WAN) kick() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	unix.Write(w.wake, one[:]) // full means it is awake already
}

// SetShape changes one direction, from the next frame on. Frames in flight keep the
// departure they were given, and later ones stay behind them unless s.Reorder.
func (w *WAN) SetShape(from, to string, s Shape) error {
	if err := s.Validate(); err != nil {
		return fmt.Errorf("shape %s>%s: %w", from, to, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p, err := w.pipe(from, to)
	if err != nil {
		return fmt.Errorf("shape %s>%s: %w", from, to, err)
	}
	if s.Rate != p.shape.Rate {
		p.line.remainder = 0
	}
	p.shape = s
	return nil
}

// Shape returns the shape of one direction.
func (w *WAN) Shape(from, to string) (Shape, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, err := w.pipe(from, to)
	if err != nil {
		return Shape{}, fmt.Errorf("read shape %s>%s: %w", from, to, err)
	}
	return p.shape, nil
}

func (w *WAN) pipe(from, to string) (*pipe, error) {
	for _, name := range []string{from, to} {
		if w.byName[name] == nil {
			return nil, fmt.Errorf("no port is named %q", name)
		}
	}
	if from == to {
		return nil, errors.New("a port has no line to itself")
	}
	return w.byName[from].pipes[w.byName[to].index], nil
}

// Meters returns the counters of every direction.
func (w *WAN) Meters() map[Pair]Meter {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	meters := make(map[Pair]Meter, len(w.ports)*len(w.ports))
	for _, from := range w.ports {
		for _, p := range from.pipes {
			if p == nil {
				continue
			}
			m := p.meter
			m.InFlight = p.queue.size
			m.Backlog = p.line.backlog(now)
			meters[Pair{from.name, p.to.name}] = m
		}
	}
	return meters
}

func (w *WAN) now() int64 { return int64(time.Since(w.base)) }
