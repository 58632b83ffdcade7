package capture

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"time"

	"heliotrope/scheduler/traffic"
)

// A tally is a bin in the making.
type tally struct {
	number   uint32 // no other one has it
	second   int64  // since 1970
	most     int    // keys
	sampling uint32 // the largest
	kernel   bool   // a part of it was counted in the kernel, which does not tell slots
	index    map[traffic.Key]int
	cells    []cell

	looked                    uint64        // packets that were decoded
	inKernel                  time.Duration // what the kernel took to count, a guess
	passed                    uint64        // packets, an estimate, those that count elsewhere included
	shed, crowded, unreadable uint64
}

type cell struct {
	traffic.Count
	variance float64 // of Bytes
	slot     int64   // the latest, and what it holds
	inSlot   uint64
}

// place is where a tally counts a key: 0 is not known yet, 1 nowhere, and above them the
// cell's number, twice: odd where its key is coarser.
type place int

const (
	unknown place = 0
	nowhere place = 1
)

func (p place) cell() int    { return int(p)/2 - 1 }
func (p place) coarse() bool { return p&1 != 0 }

func (t *tally) reset(number uint32, second int64, most int) {
	index, cells := t.index, t.cells[:0]
	if index == nil {
		index = map[traffic.Key]int{}
	}
	clear(index)
	*t = tally{number: number, second: second, most: max(most, 16), index: index, cells: cells}
}

// find returns the place of a key, making one. Towards the limit new keys become coarser,
// in steps, and at the limit they are one.
func (t *tally) find(k traffic.Key) place {
	for level, room := range []int{t.most - t.most/4, t.most - t.most/8, t.most - t.most/16, t.most - 1, t.most} {
		coarser := coarsen(k, level)
		i, ok := t.index[coarser]
		if !ok && len(t.cells) >= room {
			continue
		}
		if !ok {
			i = len(t.cells)
			t.index[coarser] = i
			t.cells = append(t.cells, cell{Count: traffic.Count{Key: coarser}})
		}
		p := place(2 * (i + 1))
		if coarser != k {
			p++
		}
		return p
	}
	panic("unreachable: the last level is one key")
}

var everywhere = traffic.Outside(netip.PrefixFrom(netip.IPv4Unspecified(), 0))

// coarsen gives up the service's port first, then what prefixes tell, then the protocol,
// and the ends last.
func coarsen(k traffic.Key, level int) traffic.Key {
	if level >= 1 {
		k.Service.Port, k.Reply = 0, false
	}
	switch level {
	case 2:
		k.Src, k.Dst = widen(k.Src, 8), widen(k.Dst, 8)
	case 3:
		k.Src, k.Dst, k.Service = widen(k.Src, 0), widen(k.Dst, 0), traffic.Service{}
	case 4:
		k = traffic.Key{Src: everywhere, Dst: everywhere}
	}
	return k
}

func widen(e traffic.End, bits int) traffic.End {
	if e.IsVM() || e.Prefix.Bits() <= bits {
		return e
	}
	return traffic.Outside(netip.PrefixFrom(e.Prefix.Addr(), bits))
}

// add counts a packet that was looked at, which stands for weight ones.
func (t *tally) add(p place, length, weight uint32, at int64) {
	if p == nowhere {
		return
	}
	c := &t.cells[p.cell()]
	w, n := uint64(weight), uint64(length)
	c.Packets += w
	c.Bytes += w * n
	c.Samples++
	c.variance += float64(w*(w-1)) * float64(n*n)
	if p.coarse() {
		t.crowded += w
	}
	if slot := at / int64(traffic.SlotLength); slot > c.slot {
		c.slot, c.inSlot = slot, 0
		c.Active++
	}
	c.inSlot += n
	c.Peak = max(c.Peak, c.inSlot)
}

// addMany counts what the kernel has counted, each packet for weight ones.
func (t *tally) addMany(p place, n kernelValue, weight uint32) {
	t.kernel = true
	if p == nowhere {
		return
	}
	c := &t.cells[p.cell()]
	w := uint64(weight)
	c.Packets += w * n.Packets
	c.Bytes += w * n.Bytes
	c.Samples += uint32(n.Packets)
	c.variance += float64(w*(w-1)) * float64(n.Squares)
	if p.coarse() {
		t.crowded += w * n.Packets
	}
}

func (t *tally) addRoundTrip(p place, rtt time.Duration) {
	c := &t.cells[p.cell()]
	if c.RTTs == 0 || rtt < c.RTTMin {
		c.RTTMin = rtt
	}
	c.RTTs++
	c.RTTSum += rtt
}

// bin is the tally as it is told. Where its sampling changed within the second, each
// packet was weighed with the one it was chosen by, and Squares are such that Sampling and
// Squares give the variance of the whole.
func (t *tally) bin() traffic.Bin {
	b := traffic.Bin{
		Start:    time.Unix(t.second, 0).UTC(),
		Sampling: max(t.sampling, 1), Shed: t.shed, Crowded: t.crowded, Unreadable: t.unreadable,
		Counts: make([]traffic.Count, 0, len(t.cells)),
	}
	for _, c := range t.cells {
		if b.Sampling > 1 {
			c.Squares = uint64(math.Round(c.variance / (float64(b.Sampling) * float64(b.Sampling-1))))
		} else {
			c.Samples = 0
		}
		if b.Sampling > 1 || t.kernel {
			c.Peak, c.Active = 0, 0
		}
		if c.Packets > 0 || c.RTTs > 0 {
			b.Counts = append(b.Counts, c.Count)
		}
	}
	slices.SortFunc(b.Counts, func(x, y traffic.Count) int { return cmp.Compare(y.Bytes, x.Bytes) })
	return b
}
