package relay

import (
	"context"
	"sync"

	"heliotrope/migration/relay/near"
	"heliotrope/migration/wan"
)

// elsewhere gives a decoder the pages that other streams carry: to this host, and to others of its site.
type elsewhere struct {
	wan.CarriedPages
	ctx context.Context
	now **near.Batch // what was asked for of the batch that is being rebuilt
}

// CarriedPage implements wan.CarriedPages.
func (e elsewhere) CarriedPage(ref wan.Ref, dst *[4096]byte) (bool, error) {
	switch {
	case ref.At == "":
		return e.CarriedPages.CarriedPage(ref, dst)
	case *e.now == nil:
		return false, nil
	}
	return (*e.now).Page(e.ctx, ref, dst)
}

// askNeighbours begins to ask other hosts of the site for what they have, until end is called.
func (d *memoryDestination) askNeighbours(ctx context.Context, e *Encoding, taken Offer) (end func()) {
	if !taken.Near {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	d.near = e.Near.Fetcher(ctx, e.Share, taken.PageSeed)
	d.near.Miss = func(stream uint64) { _ = d.says.without(stream) } // where that fails, so does the rest
	return func() { cancel(); d.near.Wait() }
}

// lookAhead asks neighbours for what a batch refers to, so that it is here when the batch is rebuilt, and the source for
// what they have not got.
func (d *memoryDestination) lookAhead(ctx context.Context, foresight *wan.Foresight, a *arrived, number uint64) error {
	if d.near == nil {
		return nil
	}
	refs, err := foresight.Look(nil, a.Batch)
	if err != nil || len(refs) == 0 {
		return err
	}
	pages := int64(len(refs)) * pageBytes
	if err := d.room.Acquire(ctx, pages); err != nil {
		return err
	}
	a.bytes += pages
	a.near = d.near.Fetch(refs, func() { _ = d.again.ask(number) })
	return nil
}

// firstPass finds out when a hypervisor has sent each page of a VM once.
type firstPass struct {
	pages uint64
	over  bool
}

// ended says whether it has, by what a batch consists of and how many pages the guest has, if that is known: now and
// then a page comes again before its end, but many do behind it only.
func (p *firstPass) ended(s *wan.Stats, guest int) bool {
	other := s.Pages[wan.Dup] + s.Pages[wan.Image] + s.Pages[wan.Site] + s.Pages[wan.Peer] + s.Pages[wan.Literal] + s.Pages[wan.Noise]
	again := s.Pages[wan.Same] + s.Pages[wan.Delta]
	p.pages += s.Pages[wan.Zero] + other + again
	p.over = p.over || again > other || guest > 0 && p.pages >= uint64(guest)
	return p.over
}

// asking is what a source was asked for again: it answers in the order of the questions.
type asking struct {
	says  func(batch uint64) error
	order sync.Mutex // held while a question is put

	mu    sync.Mutex
	asked map[uint64]chan frame // by batch
	queue []chan frame          // that are not answered yet
	over  bool
}

func newAsking(says func(batch uint64) error) *asking {
	return &asking{says: says, asked: map[uint64]chan frame{}}
}

// ask asks for what a batch refers to, unless that was done.
func (a *asking) ask(batch uint64) error {
	a.order.Lock()
	defer a.order.Unlock()
	a.mu.Lock()
	_, done := a.asked[batch]
	if !done {
		answer := make(chan frame, 1)
		a.asked[batch] = answer
		if a.queue = append(a.queue, answer); a.over {
			close(answer)
		}
	}
	a.mu.Unlock()
	if done {
		return nil
	}
	return a.says(batch)
}

// get returns what a batch refers to; once of each.
func (a *asking) get(ctx context.Context, batch uint64) (frame, error) {
	if err := a.ask(batch); err != nil {
		return frame{}, err
	}
	a.mu.Lock()
	answer := a.asked[batch]
	a.mu.Unlock()
	f, open, err := receive(ctx, answer)
	if err == nil && !open {
		err = errTruncated
	}
	return f, err
}

// rebuilt says that nothing more is asked of a batch.
func (a *asking) rebuilt(batch uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.asked, batch)
}

// answer takes an answer.
func (a *asking) answer(f frame) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) == 0 {
		return errNotAsked
	}
	a.queue[0] <- f
	a.queue = a.queue[1:]
	return nil
}

// end says that no answers come any more.
func (a *asking) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	for _, answer := range a.queue {
		close(answer)
	}
	a.queue = nil
}
