package spread

import "time"

// A host may get pieces otherwise than from feeders: the first of a chain from where the image
// is kept, any other from there too when it is Alone, and what its own users ask for in a hurry.
// Refresh lets its successors have those; while Source holds it is as live as one that is fed.

// Source says whether the host gets the content otherwise than from feeders, all that it lacks.
func (s *Share) Source(on bool) { s.update(func() { s.source = on }) }

// Refresh asks the Store for pieces that have come otherwise, and has successors get them.
func (s *Share) Refresh() {
	var came []int
	for _, w := range s.missing() {
		for i := w.from; i < w.from+w.n; i++ {
			if s.store.Has(i) {
				came = append(came, i)
			}
		}
	}
	if len(came) == 0 {
		return
	}
	s.update(func() {
		for _, i := range came {
			s.add(i)
		}
		s.pace.add(time.Now(), s.bytes)
	})
}

// add counts a piece that is stored, once. The lock is held.
func (s *Share) add(piece int) {
	if !s.have.has(piece) {
		s.have.add(piece)
		s.pieces++
		s.bytes += int64(s.outline.Piece(piece).Length)
	}
}

// Rest says that the host takes nothing for reasons of its own: no feeder is at fault.
func (s *Share) Rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard, s.fed = time.Now(), time.Now()
}

// Alone says that for some time no feeder was live, or that for long none has sent anything: that the
// content is better got otherwise, if it can be. It holds until a feeder is live and sends.
func (s *Share) Alone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	return now.Sub(s.heard) >= s.node.alone() || now.Sub(s.fed) >= s.node.patience()
}
