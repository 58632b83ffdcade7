package site

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"heliotrope/imagesync/spread"
	"heliotrope/imagesync/volume"
	"heliotrope/imagesync/volume/bitmap"
)

// pieces are the version as package spread has it: a piece is a chunk that is not zeros, and its
// hash the chunk's name, which the signed manifest has. So what a host says of a chunk is not believed.
type pieces struct {
	*Site
	count  *Counters
	chunks []int // by piece

	mu   sync.Mutex // guards what follows
	here bitmap.Set // chunks, as of the last look
	owed int        // chunks that came since the last sync
}

// pieces are those that the version consists of, and what describes them.
func (s *Site) pieces() (*pieces, *spread.Outline, error) {
	b, ok := s.base.(*storeBase)
	if !ok {
		return nil, nil, errors.New("what it consists of is not known")
	}
	p := &pieces{Site: s, count: &b.source.Counters}
	var all []spread.Piece
	for i, id := range b.Content() {
		all = append(all, spread.Piece{Length: volume.ChunkSize, Hash: spread.Hash(id)})
		p.chunks = append(p.chunks, i)
	}
	o, err := spread.NewOutline(all)
	return p, o, err
}

// look takes in what is here.
func (p *pieces) look() {
	here := p.cache.Here()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.here = here
}

// Has implements spread.Store, as do Put and Get: of what was here at the last look.
func (p *pieces) Has(piece int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.here.Has(int64(p.chunks[piece]))
}

func (p *pieces) Put(piece int, data []byte) error {
	if !p.mayCome() {
		return errNoRoom
	}
	p.count.Hosts.Add(int64(len(data))) // before it is seen to be there
	if err := p.cache.Give(p.chunks[piece], data); err != nil {
		p.count.Hosts.Add(-int64(len(data)))
		return err
	}
	p.mu.Lock()
	p.owed++
	due := p.owed >= syncEvery
	if due {
		p.owed = 0
	}
	p.mu.Unlock()
	if due {
		return p.cache.Sync()
	}
	return nil
}

// Get reads what is here. A bit that the disk has flipped is found by who gets it.
func (p *pieces) Get(piece int) ([]byte, error) {
	data := make([]byte, volume.ChunkSize)
	if !p.cache.ReadNow(data, int64(p.chunks[piece])*volume.ChunkSize) {
		return nil, fmt.Errorf("chunk %d of %s is here no more", p.chunks[piece], p.Version.Ref())
	}
	return data, nil
}

const (
	syncEvery = 1024                   // chunks that came from hosts: 64 MiB, which a crash may make come again
	lookEvery = 100 * time.Millisecond // at what came from the store, for those who get it from here
)

// Along lets the version come from other hosts, the first of these feeders that lives, while what
// comes is passed on to those who ask node. Who has no feeder gets it from the store (Fill), as does
// who finds none alive. It goes on passing on until ctx ends.
func (s *Site) Along(ctx context.Context, node *spread.Node, feeders []spread.Feeder) error {
	p, o, err := s.pieces()
	if err != nil {
		return fmt.Errorf("pass %s on: %w", s.Version.Ref(), err)
	}
	p.look()
	share, err := node.Offer(o, p)
	if err != nil {
		return fmt.Errorf("pass %s on: %w", s.Version.Ref(), err)
	}
	defer share.Close()
	if !share.Progress().Done() {
		s.come(ctx, share, p, feeders)
	}
	if ctx.Err() == nil {
		s.failed(nil)
		s.index(ctx)
		s.o.Log.Info("all of the image is here, and passed on", "image", s.Version.Ref(), "sessions", share.Progress().Feeders)
		<-ctx.Done()
	}
	return context.Cause(ctx)
}

// come returns once all has come, or ctx has ended.
func (s *Site) come(ctx context.Context, share *spread.Share, p *pieces, feeders []spread.Feeder) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	if len(feeders) > 0 {
		wg.Go(func() { s.receive(ctx, share, p, feeders) })
	}
	var filling context.CancelFunc // while it comes from the store
	var filled chan struct{}       // closed when all has
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for !share.Progress().Done() {
		if !s.mayCome() || s.held.Load() {
			share.Rest()
		}
		fill := len(feeders) == 0 || share.Alone()
		switch {
		case fill && filling == nil:
			var life context.Context
			life, filling = context.WithCancel(ctx)
			filled = make(chan struct{})
			share.Source(true)
			wg.Go(func() { defer close(filled); s.Fill(life) })
		case !fill && filling != nil:
			filling()
			<-filled
			filling, filled = nil, nil
			share.Source(false)
		}
		select {
		case <-ctx.Done():
			if filling != nil {
				filling()
			}
			return
		case <-tick.C:
		}
		p.look()
		share.Refresh()
		select {
		case <-filled: // if that is not all, some of it was dropped meanwhile
			filling()
			filling, filled = nil, nil
		default:
		}
	}
	if filling != nil {
		filling()
	}
}

// mayCome says whether what nobody waits for may come now.
func (s *Site) mayCome() bool { return s.o.Room == nil || s.o.Room() }

// receive gets it from hosts, as long as there is room for it.
func (s *Site) receive(ctx context.Context, share *spread.Share, p *pieces, feeders []spread.Feeder) {
	for {
		if s.mayCome() {
			err := share.Receive(ctx, feeders, spread.Background)
			if err == nil {
				err = s.cache.Sync()
			}
			if err == nil || ctx.Err() != nil {
				return
			}
			s.failed(nil)
			if !errors.Is(err, errNoRoom) {
				s.failed(err)
				s.o.Log.Warn("the image does not come from other hosts; trying again", "image", s.Version.Ref(), "error", err)
			}
		}
		if !sleep(ctx, retry) {
			return
		}
	}
}
