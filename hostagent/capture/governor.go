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

	// What the kernel does for a packet is done by whoever sends it, and this thread's clock
	// does not tell it. kernelPacket is what its counting takes: 0.3 to 1.2 µs were measured,
	// by what packets of one and of 1,000 flows took longer to send. ringPacket is what it
	// takes to copy one that is looked at into the ring: 1.0 µs by samples of the stack, TCP
	// at 20 Gbit/s.
	kernelPacket = time.Microsecond
	ringPacket   = time.Microsecond
)

// governor keeps counting within its budget. It has no clock.
type governor struct {
	orders traffic.Orders
	budget time.Duration // of processor time in a second
	kernel bool          // it can count, as far as is known
	dice   time.Duration // in which the kernel finds that a packet is not among the sampled

	source   traffic.Source
	sampling uint32

	calm int
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
		g.source = traffic.SourceEBPF
	}
}

// mayUseKernel says whether the kernel may be asked to count, now or later.
func (g *governor) mayUseKernel() bool {
	return g.kernel && g.orders.Source != traffic.SourcePackets
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
	if g.source == traffic.SourceEBPF && g.sampling == 1 { // what looking at them would take
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

// inKernel is the processor time that the kernel takes to count one of sampling packets.
func (g *governor) inKernel(passed uint64, sampling uint32) time.Duration {
	took := time.Duration(passed) * kernelPacket / time.Duration(sampling)
	if sampling > 1 {
		took += time.Duration(passed) * g.dice
	}
	return took
}

// less looks at less when so many packets passed in a second.
func (g *governor) less(passed uint64) {
	if g.source == traffic.SourcePackets && g.orders.Source == "" && g.mayUseKernel() {
		g.source = traffic.SourceEBPF // which counts as many for less
		if g.orders.Sampling == 0 {
			g.sampleInKernel(passed)
		}
		return
	}
	if g.orders.Sampling == 0 && g.worthIt() {
		g.sampling *= 2
	}
}

// sampleInKernel chooses one of how many packets the kernel is to count. Where it cannot be all, a
// quarter of the budget is enough: nothing is exact any more, the traffic may grow, and beside TCP
// whose copies are in the caches both parts take about twice what is reckoned.
func (g *governor) sampleInKernel(passed uint64) {
	g.sampling = 1
	if g.inKernel(passed, 1) <= g.budget*3/4 {
		return
	}
	for g.inKernel(passed, g.sampling) > g.budget/4 && g.worthIt() {
		g.sampling *= 2
	}
}

// worthIt says whether looking at less than now would save anything: not where the kernel
// throws dice for almost all of the time.
func (g *governor) worthIt() bool {
	if g.source == traffic.SourceEBPF && kernelPacket/time.Duration(g.sampling) < g.dice/4 {
		return false
	}
	return g.sampling < mostSampling
}

func (g *governor) more() {
	switch {
	case g.orders.Sampling == 0 && g.sampling > 1:
		g.sampling /= 2
	case g.orders.Source == "" && g.source == traffic.SourceEBPF:
		g.source = traffic.SourcePackets
	}
}
