package reassign

import "math"

const (
	kickTries = 12 // places of which the cheapest is taken
	kickRent  = 10 // of a unit of room that there is not there
	kickPicks = 3  // processes of which the largest is
)

// kick sends a process away from a machine that pays what it need not, to where that costs least of a few places,
// whatever rule that breaks, and there it stays.
func (w *walker) kick() {
	i := w.misplaced()
	least, to := math.Inf(1), none
	for range kickTries {
		l := w.Below(len(w.here))
		if l == w.at[i] || !w.sent(i, l) {
			continue
		}
		over, _ := w.spills(&w.c)
		if cost := float64(w.gain(&w.c)) + kickRent*float64(over); cost < least {
			least, to = cost, l
		}
	}
	if to != none && w.sent(i, to) {
		gain := w.gain(&w.c)
		w.tell(&w.c)
		w.take(&w.c, gain)
		w.kept = i
	}
}

// sent has the chain be that a process goes to a machine, and one of its service that is there comes back, and says whether that can be.
func (w *walker) sent(i, l int) bool {
	w.c.begin(i, w.at[i], l)
	if j := w.with[w.of[i]*w.machines+l]; j != none {
		w.c.push(j, w.at[i])
	}
	return w.may(&w.c)
}

// misplaced is the largest of a few processes of a machine, that one by chance, by how much it pays for nothing.
func (w *walker) misplaced() int {
	waste := w.waste()
	var all int64
	for _, x := range waste {
		all += x
	}
	k := w.Below(len(waste))
	if x := int64(float64(all) * float64(w.Next()>>11) / (1 << 53)); all > 0 {
		for k = 0; k < len(waste)-1 && x >= waste[k]; k++ {
			x -= waste[k]
		}
	}
	if len(w.here[k]) == 0 {
		return w.Below(len(w.at))
	}
	i := w.here[k][w.Below(len(w.here[k]))]
	for range kickPicks - 1 {
		if j := w.here[k][w.Below(len(w.here[k]))]; w.size(j) > w.size(i) {
			i = j
		}
	}
	return i
}

// waste is of each machine how far it is, in each term, on the other side of zero than all machines together: that much would cost
// nothing if they were one.
func (w *walker) waste() []int64 {
	waste := make([]int64, len(w.here))
	for t := range w.terms {
		var sum int64
		for k := range waste {
			sum += w.sums[k*w.terms+t]
		}
		for k := range waste {
			x := w.sums[k*w.terms+t]
			if sum > 0 {
				x = -x
			}
			waste[k] += max(0, x)
		}
	}
	return waste
}

// size is how much a process adds to all terms of the cost.
func (s *state) size(i int) (size int64) {
	for _, x := range s.rows[i*s.terms : i*s.terms+s.terms] {
		size += max(x, -x)
	}
	return size
}
