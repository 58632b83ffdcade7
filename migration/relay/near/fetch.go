package near

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"
)

// Fetcher has the pages of a stream's batches from other hosts. Who has made it must Wait for it.
type Fetcher struct {
	// Miss is told of a stream whose pages are not to be had; once of each. It is set before the first Fetch.
	Miss func(stream uint64)

	host *Host
	say  hello

	ctx    context.Context
	mu     sync.Mutex
	hosts  map[string]*asked
	missed map[uint64]bool
	ended  bool // nothing is started any more
	run    sync.WaitGroup
}

// asked is a host that is asked for pages, by one goroutine.
type asked struct {
	at    string
	queue []part        // guarded by Fetcher.mu
	more  chan struct{} // one token, when the queue is longer
	dead  bool          // guarded by Fetcher.mu
}

// part is what a batch refers to of one stream.
type part struct {
	*Batch
	refs []wan.Ref
}

// Batch are the pages that a batch refers to at other hosts.
type Batch struct {
	done  chan struct{} // closed when no more come
	lack  func()        // called before that, if some do not
	mu    sync.Mutex
	parts int
	lacks bool
	pages map[wan.Ref]*[pageBytes]byte
}

// Fetcher returns one for a stream of s, with this seed of pages' hashes, until ctx ends; nil where no others can
// be asked.
func (h *Host) Fetcher(ctx context.Context, s *share.Share, seed uint64) *Fetcher {
	if h == nil || s == nil {
		return nil
	}
	return &Fetcher{ctx: ctx, host: h, say: hello{what: forPages, tenant: string(s.Tenant()), seed: seed}, hosts: map[string]*asked{}, missed: map[uint64]bool{}}
}

// Wait waits, once ctx has ended, for all that was started.
func (f *Fetcher) Wait() {
	if f == nil {
		return
	}
	<-f.ctx.Done()
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
	f.run.Wait()
}

// Fetch has pages that are at other hosts brought. It waits for nothing. If some are not to be had, lack is called.
func (f *Fetcher) Fetch(refs []wan.Ref, lack func()) *Batch {
	b := &Batch{done: make(chan struct{}), lack: lack, pages: make(map[wan.Ref]*[pageBytes]byte, len(refs))}
	type where struct {
		at     string
		stream uint64
	}
	parts := map[where][]wan.Ref{}
	for _, r := range refs {
		parts[where{r.At, r.Stream}] = append(parts[where{r.At, r.Stream}], r)
	}
	b.parts = len(parts)
	var lost []part
	f.mu.Lock()
	for w, refs := range parts {
		p := part{b, refs}
		a := f.of(w.at)
		if a.dead || f.missed[w.stream] {
			lost = append(lost, p)
			continue
		}
		a.queue = append(a.queue, p)
		select {
		case a.more <- struct{}{}:
		default:
		}
	}
	if len(lost) > 0 && !f.ended {
		f.run.Go(func() { // since it may wait for the source
			for _, p := range lost {
				f.miss(p)
			}
		})
	}
	f.mu.Unlock()
	return b
}

// of is the host at a place. The mutex is held.
func (f *Fetcher) of(at string) *asked {
	a := f.hosts[at]
	if a == nil {
		a = &asked{at: at, more: make(chan struct{}, 1)}
		f.hosts[at] = a
		if !f.ended {
			f.run.Go(func() { f.ask(f.ctx, a) })
		}
	}
	return a
}

// miss ends a part whose pages are not to be had.
func (f *Fetcher) miss(p part) {
	stream := p.refs[0].Stream
	f.mu.Lock()
	first := !f.missed[stream]
	f.missed[stream] = true
	f.mu.Unlock()
	if first && f.Miss != nil {
		f.Miss(stream)
	}
	p.end(false)
}

// end ends a part of the batch.
func (b *Batch) end(whole bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lacks = b.lacks || !whole
	if b.parts--; b.parts > 0 {
		return
	}
	if b.lacks {
		b.lack()
	}
	close(b.done)
}

// Page writes a page into dst, once it is here. It is not ok if it does not come.
func (b *Batch) Page(ctx context.Context, ref wan.Ref, dst *[4096]byte) (ok bool, err error) {
	select {
	case <-b.done:
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	page := b.pages[ref]
	if page == nil {
		return false, nil
	}
	*dst = *page
	return true, nil
}

// ask asks one host for all that is wanted of it, until it fails.
func (f *Fetcher) ask(ctx context.Context, a *asked) {
	conn, err := f.host.dial(ctx, a.at, f.say)
	if err == nil {
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		err = f.each(ctx, a, conn)
	}
	f.mu.Lock()
	a.dead = true
	queue := a.queue
	a.queue = nil
	f.mu.Unlock()
	if ctx.Err() == nil {
		f.host.Log.Warn("a neighbour is not asked for pages any more", "at", a.at, "error", err)
	}
	for _, p := range queue {
		f.miss(p)
	}
}

func (f *Fetcher) each(ctx context.Context, a *asked, conn net.Conn) error {
	in := bufio.NewReaderSize(conn, 256<<10)
	for {
		f.mu.Lock()
		var p part
		if len(a.queue) > 0 {
			p = a.queue[0]
		}
		lost := p.Batch != nil && f.missed[p.refs[0].Stream]
		f.mu.Unlock()
		switch {
		case p.Batch == nil:
			select {
			case <-a.more:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			continue
		case lost:
			f.miss(p)
		default:
			conn.SetDeadline(time.Now().Add(answerLimit))
			whole, err := p.fetch(conn, in)
			if err != nil {
				return err // with the part in the queue
			}
			if whole {
				p.end(true)
			} else {
				f.miss(p)
			}
		}
		f.mu.Lock()
		a.queue = a.queue[1:]
		f.mu.Unlock()
	}
}

// fetch has a part's pages.
func (p part) fetch(conn net.Conn, in *bufio.Reader) (whole bool, err error) {
	whole = true
	for rest := p.refs; len(rest) > 0; {
		some := rest[:min(len(rest), requestMost)]
		rest = rest[len(some):]
		if _, err := conn.Write(appendRequest(nil, some)); err != nil {
			return false, fmt.Errorf("ask for pages: %w", err)
		}
		all, err := readPages(in, some, p.take)
		if err != nil {
			return false, fmt.Errorf("read pages: %w", err)
		}
		whole = whole && all
	}
	return whole, nil
}

func (p part) take(ref wan.Ref, page *[pageBytes]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pages[ref] = page
}

// readPages reads the answer to a request.
func readPages(in io.Reader, refs []wan.Ref, take func(wan.Ref, *[pageBytes]byte)) (whole bool, err error) {
	has := make([]byte, len(refs))
	if _, err := io.ReadFull(in, has); err != nil {
		return false, err
	}
	whole = true
	for i, ref := range refs {
		switch has[i] {
		case 0:
			whole = false
			continue
		case 1:
		default:
			return false, fmt.Errorf("a page is said to be %d", has[i])
		}
		page := new([pageBytes]byte)
		if _, err := io.ReadFull(in, page[:]); err != nil {
			return false, noEOF(err)
		}
		take(ref, page)
	}
	return whole, nil
}
