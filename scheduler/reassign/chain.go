package reassign

const longest = 3 // processes of a chain

// chain is a change: each process goes to the machine of the next, and the last to one that nobody leaves, or
// to the first's.
type chain struct {
	n    int
	who  [longest]int
	at   [longest + 1]int // machines: each process goes from one to the next
	ring bool             // the last machine is the first
}

// begin makes it a chain of one process.
func (c *chain) begin(i, from, to int) {
	c.n, c.ring = 1, false
	c.who[0], c.at[0], c.at[1] = i, from, to
}

// push has a process leave where the last one goes.
func (c *chain) push(j, to int) {
	c.who[c.n] = j
	c.n++
	c.at[c.n] = to
	c.ring = to == c.at[0]
}

// ends are the process that comes to a machine of the chain and the one that leaves it.
func (c *chain) ends(x int) (in, out int) {
	in, out = none, none
	switch {
	case x > 0:
		in = c.who[x-1]
	case c.ring:
		in = c.who[c.n-1]
	}
	if x < c.n {
		out = c.who[x]
	}
	return in, out
}

// machines is how many it has.
func (c *chain) machines() int {
	if c.ring {
		return c.n
	}
	return c.n + 1
}

// may says whether a chain is one that can be: no two processes of a service at a machine, nor one where
// there can never be room.
func (s *state) may(c *chain) bool {
	for x := range c.machines() {
		in, out := c.ends(x)
		if in == none {
			continue
		}
		k := c.at[x]
		if there := s.with[s.of[in]*s.machines+k]; there != none && there != out || s.barred[in*s.machines+k] {
			return false
		}
	}
	return true
}

// spills is how much more room a chain takes than there is, and at how many more resources.
func (s *state) spills(c *chain) (more int64, times int) {
	for x := range c.machines() {
		in, out := c.ends(x)
		m, t := s.spill(in, out, c.at[x])
		more, times = more+m, times+t
	}
	return more, times
}

// gain is what a chain adds to the cost.
func (s *state) gain(c *chain) int64 {
	var cost int64
	counts := false
	for x := range c.machines() {
		in, out := c.ends(x)
		cost += s.pay(in, out, c.at[x])
		if out != none {
			cost += s.being(out, c.at[x+1]) - s.being(out, c.at[x])
			counts = counts || s.away(out, c.at[x+1]) != 0
		}
	}
	if counts {
		before := s.most
		for x, i := range c.who[:c.n] {
			s.count(s.of[i], s.away(i, c.at[x+1]))
		}
		cost += s.serviceWeight * int64(s.most-before)
		for x, i := range c.who[:c.n] {
			s.count(s.of[i], -s.away(i, c.at[x+1]))
		}
	}
	return cost
}

// tell lets the rules of services know of a chain.
func (s *state) tell(c *chain) {
	for x, i := range c.who[:c.n] {
		s.services.exit(i, c.at[x])
	}
	for x, i := range c.who[:c.n] {
		s.services.enter(i, c.at[x+1])
	}
}

// untell takes that back.
func (s *state) untell(c *chain) {
	for x, i := range c.who[:c.n] {
		s.services.exit(i, c.at[x+1])
	}
	for x, i := range c.who[:c.n] {
		s.services.enter(i, c.at[x])
	}
}

// take carries a chain out that costs so much more. The rules have been told.
func (s *state) take(c *chain, cost int64) {
	s.cost += cost
	for x, i := range c.who[:c.n] {
		s.count(s.of[i], s.away(i, c.at[x+1]))
		s.leave(i)
		s.at[i] = c.at[x+1]
		s.enter(i, c.at[x+1])
	}
}
