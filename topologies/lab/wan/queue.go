package wan

import (
	"container/heap"
	"math/rand/v2"
)

const (
	// cellSize holds a frame of up to 2,047 bytes: an MTU of 1,500 and some room.
	cellSize = 2048
	// maxCells bounds the frames in flight of one WAN: 128 MiB, or 400 ms at 1.9 Gbit/s.
	maxCells  = 1 << 16
	slabCells = 256
)

type cell [cellSize]byte

// pool lends cells. It grows slab by slab to maxCells and never shrinks.
type pool struct {
	free []*cell
	made int
}

// get returns nil when all cells are lent.
func (p *pool) get() *cell {
	if len(p.free) == 0 {
		if p.made == maxCells {
			return nil
		}
		slab := make([]cell, slabCells)
		for i := range slab {
			p.free = append(p.free, &slab[i])
		}
		p.made += slabCells
	}
	c := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	return c
}

func (p *pool) put(c *cell) { p.free = append(p.free, c) }

// flight is a frame on its way: its bytes and when they leave.
type flight struct {
	depart int64
	cell   *cell
	size   int
}

// fifo is a ring of flights ordered by departure.
type fifo struct {
	ring []flight // its length is a power of two, or zero
	head int
	size int
}

func (f *fifo) at(i int) *flight { return &f.ring[(f.head+i)&(len(f.ring)-1)] }

// push puts x in its place: the end, unless reordering lets it overtake.
func (f *fifo) push(x flight) {
	if f.size == len(f.ring) {
		f.grow()
	}
	i := f.size
	f.size++
	for ; i > 0 && f.at(i-1).depart > x.depart; i-- {
		*f.at(i) = *f.at(i - 1)
	}
	*f.at(i) = x
}

func (f *fifo) pop() flight {
	x := *f.at(0)
	*f.at(0) = flight{}
	f.head = (f.head + 1) & (len(f.ring) - 1)
	f.size--
	return x
}

func (f *fifo) grow() {
	ring := make([]flight, max(64, 2*len(f.ring)))
	for i := range f.size {
		ring[i] = *f.at(i)
	}
	f.ring, f.head = ring, 0
}

// pipe is one direction between two ports.
type pipe struct {
	shape Shape
	line  line
	rng   *rand.Rand
	to    *port
	meter Meter
	queue fifo
	index int // in the agenda, -1 when the queue is empty
}

// agenda orders the pipes that have frames in flight by their next departure.
type agenda []*pipe

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].queue.at(0).depart < a[j].queue.at(0).depart }
func (a agenda) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].index, a[j].index = i, j
}

func (a *agenda) Push(x any) {
	p := x.(*pipe)
	p.index = len(*a)
	*a = append(*a, p)
}

func (a *agenda) Pop() any {
	old := *a
	p := old[len(old)-1]
	old[len(old)-1] = nil
	*a = old[:len(old)-1]
	p.index = -1
	return p
}

// add puts a flight on p and p in its place.
func (a *agenda) add(p *pipe, x flight) {
	p.queue.push(x)
	if p.index < 0 {
		heap.Push(a, p)
	} else if p.queue.at(0).cell == x.cell {
		heap.Fix(a, p.index)
	}
}

// take returns the next flight that departs at now or before.
func (a *agenda) take(now int64) (*pipe, flight, bool) {
	if len(*a) == 0 || (*a)[0].queue.at(0).depart > now {
		return nil, flight{}, false
	}
	p := (*a)[0]
	x := p.queue.pop()
	if p.queue.size == 0 {
		heap.Pop(a)
	} else {
		heap.Fix(a, 0)
	}
	return p, x, true
}
