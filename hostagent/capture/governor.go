package capture

import (
	"math/bits"
	"time"

	"heliotrope/scheduler/traffic"
)

const (
	defaultBudget = 0.05
	reserve       = 10 // a tenth of the budget is for the second that is over before anything is done
	mostSampling  = 4096
	calmBins      = 30 // below a third of the budget, before more is looked at again
	beyondKernel  = 16 // one of so many packets is looked at where counting all in the kernel takes too much

	// What the kernel does for a packet is done by whoever sends it, and this thread's clock
	// does not tell it. kernelPacket is what its counting takes: measured, at 100,000 and
	// 1,000,000 packets a second, 0.2 to 0.8 µs. ringPacket is what it takes to copy one that
	// is looked at into the ring: 1.0 µs by samples of the stack, TCP at 20 Gbit/s.
	kernelPacket = 800 * time.Nanosecond
	ringPacket   = time.Microsecond
)

// governor keeps counting within its budget. It has no clock.
type governor struct {
	orders traffic.Orders
	budget time.Duration // of processor time in a second
	kernel bool          // it can count, as far as is known

	source   traffic.Source
	sampling uint32

	calm int
	much uint64        // packets in a second that were too many to count in the kernel; 0: not known
	cost time.Duration // of a packet that is looked at
	mark time.Duration // processor time of the bin when the sampling was last raised in it
}

func (g *governor) order(o traffic.Orders) {
	same := g.source != "" && o.Source == g.orders.Source && o.Sampling == g.orders.Sampling
	g.orders = o
	if o.Budget <= 0 {
		o.Budget = defaultBudget
	}
	g.budget = time.Duration(o.Budget * float64(traffic.BinLength))
	if same {
		return
	}
	g.calm, g.source, g.sampling = 0, traffic.SourcePackets, max(o.Sampling, 1)
	if o.Source == traffic.SourceEBPF && g.kernel {
		g.source, g.sampling = traffic.SourceEBPF, 1
	}
}

// mayUseKernel says whether the kernel may be asked to count, now or later.
func (g *governor) mayUseKernel() bool {
	return g.kernel && (g.orders.Source == traffic.SourceEBPF || g.orders.Source == "" && g.orders.Sampling <= 1)
}

// refuse takes in that the kernel cannot count.
func (g *governor) refuse() {
	g.kernel, g.source, g.sampling = false, traffic.SourcePackets, max(g.orders.Sampling, 1)
}

// overrun raises the sampling within a bin of which some time has passed, when the bin has
// already taken twice its budget.
func (g *governor) overrun(cpu, passed time.Duration) bool {
	if g.source != traffic.SourcePackets || g.orders.Sampling != 0 || g.sampling >= mostSampling || cpu-g.mark <= 2*g.budget {
		return false
	}
	passed = max(passed, traffic.BinLength/4) // a burst is not a rate yet
	rate := float64(cpu-g.mark) / float64(passed) * float64(traffic.BinLength)
	factor := uint(max(2, rate/float64(g.budget)))
	g.sampling = min(g.sampling<<bits.Len(factor-1), mostSampling)
	g.mark, g.calm = cpu, 0
	return true
}

// ended takes in what a bin took, and how many packets passed and were looked at in it.
func (g *governor) ended(cpu time.Duration, passed, looked uint64) {
	g.mark = 0
	if g.source == traffic.SourcePackets && looked > 1000 {
		g.cost = cpu / time.Duration(looked)
	}
	if cpu > g.budget-g.budget/reserve {
		g.calm = 0
		g.less(passed)
		return
	}
	if g.source == traffic.SourceEBPF { // what looking at them would take
		cpu = max(cpu, time.Duration(passed)*g.cost)
	}
	if g.calm++; cpu >= g.budget/3 {
		g.calm = 0
	}
	if g.calm >= calmBins {
		g.calm = 0
		g.more()
	}
}

// less looks at less when so many packets passed in a second.
func (g *governor) less(passed uint64) {
	kernel := time.Duration(passed)*kernelPacket < g.budget*3/4 && (g.much == 0 || passed < g.much/2)
	switch {
	case g.source == traffic.SourceEBPF && g.orders.Source == "":
		g.source, g.sampling, g.much = traffic.SourcePackets, beyondKernel, passed
	case g.source != traffic.SourcePackets: // it is ordered
	case g.mayUseKernel() && kernel:
		g.source, g.sampling = traffic.SourceEBPF, 1
	case g.orders.Sampling == 0:
		g.sampling = min(g.sampling*2, mostSampling)
	}
}

func (g *governor) more() {
	switch {
	case g.orders.Sampling == 0 && g.sampling > 1:
		g.sampling /= 2
	case g.orders.Source == "" && g.source == traffic.SourceEBPF:
		g.source = traffic.SourcePackets
	}
}
