package wan

import "time"

// Pace chooses the Level at which a stream arrives soonest, from what was seen of the wire
// and of the packers so far. Its zero value has seen nothing, and chooses Fast.
//
// A byte of the stream takes the wire ratio/link, and the packers crowd*cost/packers; they work
// beside each other, so the slower of the two counts. crowd is how much slower packers are than
// they would be if the processors were theirs alone: it shows in how long the wire waits for
// them. On a long way the wire is the slower, and the level is the one that sends least while
// the packers keep up. Where the wire is faster than any of them, it is Plain: a short way is
// not made longer, but for the first 15 MB or so of a stream, from which this is learned.
type Pace struct {
	wireBytes, wireTime float64         // what was written, and how long writing took, of late
	seen                int             // bytes on the wire, in all
	size, packed, time  [Levels]float64 // of each level: bytes of the stream and of frames, seconds of packing
	waited, crowd       float64         // seconds of late that the wire waited for packers; how crowded processors are, 1 or more
	busy                float64         // seconds of late that it waited or wrote
	bytes               float64         // of the stream, meanwhile
	level               Level
	chosen              bool
}

const (
	// The first bytes go into buffers on the way, and look like a fast wire.
	paceBegin = 4 << 20
	// Less than this of the wire is no measurement.
	paceLeast = 2 << 20
	// What counts as of late: sums are halved when they have grown beyond.
	paceWire   = 8 << 20
	paceStream = 16 << 20
	// A level is left for one that is better by so much: what differs less, changes to and fro.
	paceGain = 1.1
	// Of those that are as good but for so much, the lightest is chosen.
	paceSame = 1.05
	// The wire waits for packers, and not now and then, if it does for so much of its time.
	paceWaits = 0.15
	// How much of what was learned of the crowd holds after another batch.
	paceForgets = 0.99
)

// priors are levels' cost and output relative to Fast, until they have been tried; measured
// on pages of programs and libraries. Plain costs a copy and a hash.
var priors = [Levels]struct{ cost, ratio float64 }{
	Plain: {0.05, 0},
	Light: {0.3, 1.35},
	Fast:  {1, 1},
}

// Before Fast has been tried: a slow core, and pages that are like most.
const (
	firstCost  = 1 / 200e6 // seconds a byte
	firstRatio = 0.4
)

// Saw takes note of a packed batch: how long it took one packer to pack it, how long the wire
// waited for that, and how long it took to take it.
func (p *Pace) Saw(b *Batch, packing, waiting, sending time.Duration) {
	if p.seen += b.frame; p.seen > paceBegin {
		p.wireBytes, p.wireTime = p.wireBytes+float64(b.frame), p.wireTime+sending.Seconds()
	}
	if p.wireBytes > paceWire {
		p.wireBytes, p.wireTime = p.wireBytes/2, p.wireTime/2
	}
	p.waited, p.busy, p.bytes = p.waited+waiting.Seconds(), p.busy+(waiting+sending).Seconds(), p.bytes+float64(b.size)
	if p.bytes > paceStream {
		p.waited, p.busy, p.bytes = p.waited/2, p.busy/2, p.bytes/2
	}
	l := b.Level
	p.size[l] += float64(b.size)
	p.packed[l] += float64(b.frame)
	p.time[l] += packing.Seconds()
	if p.size[l] > paceStream {
		p.size[l], p.packed[l], p.time[l] = p.size[l]/2, p.packed[l]/2, p.time[l]/2
	}
}

// Link is what the wire carries, in bytes a second; 0 if that is not known yet.
func (p *Pace) Link() float64 {
	if p.wireBytes < paceLeast || p.wireTime == 0 {
		return 0
	}
	return p.wireBytes / p.wireTime
}

// Level is the best one from least to most for a source with that many packers.
func (p *Pace) Level(packers int, least, most Level) Level {
	if !p.chosen {
		p.level, p.chosen = Fast, true
	}
	p.level = max(min(p.level, most), least)
	link := p.Link()
	if link == 0 {
		return p.level
	}
	p.feel(packers)
	soonest := p.each(least, link, packers)
	for l := least + 1; l <= most; l++ {
		soonest = min(soonest, p.each(l, link, packers))
	}
	if p.each(p.level, link, packers) <= soonest*paceGain {
		return p.level
	}
	for p.level = least; p.each(p.level, link, packers) > soonest*paceSame; p.level++ {
	}
	return p.level
}

// feel judges how crowded the processors are.
func (p *Pace) feel(packers int) {
	p.crowd = max(1, p.crowd*paceForgets)
	if p.bytes < paceStream/2 || p.waited < paceWaits*p.busy {
		return
	}
	if cost, _ := p.of(p.level); cost > 0 {
		p.crowd = max(p.crowd, min(p.busy/p.bytes/cost*float64(max(packers, 1)), float64(max(packers, 1))*2))
	}
}

// each is how many seconds a byte of the stream takes at a level.
func (p *Pace) each(l Level, link float64, packers int) float64 {
	cost, ratio := p.of(l)
	return max(p.crowd*cost/float64(max(packers, 1)), ratio/link)
}

// of is a level's seconds of packing and bytes of frames for a byte of the stream.
func (p *Pace) of(l Level) (cost, ratio float64) {
	if p.size[l] >= 2*BatchBytes {
		return p.time[l] / p.size[l], p.packed[l] / p.size[l]
	}
	cost, ratio = firstCost, firstRatio
	if p.size[Fast] >= 2*BatchBytes {
		cost, ratio = p.time[Fast]/p.size[Fast], p.packed[Fast]/p.size[Fast]
	}
	if l == Plain {
		return firstCost * priors[l].cost, 1
	}
	return cost * priors[l].cost, min(ratio*priors[l].ratio, 1)
}
