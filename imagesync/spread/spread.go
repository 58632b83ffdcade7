// Package spread brings an image's content from one host to many, at many sites: across each
// WAN link once, and inside a site along a chain of hosts, so that N hosts take about as long as
// one. It survives the death of any host of the chain.
//
// # What is spread
//
// An ordered sequence of pieces: opaque bytes, up to 4 MiB each. The Outline has each piece's
// length and BLAKE3 hash. It comes from the image's signed manifest, so nothing that a host says
// of a piece is believed: a piece is stored when its bytes hash to what the Outline says. An
// Outline's ID is the hash of its encoding, and names the content on the wire.
//
// # Who gets it from whom
//
// Plan says it, as data: each host has a list of feeders, the one that it is to get pieces from
// and then its fallbacks, up the chain to the source. Hosts pull. A host dials its feeder and
// says which pieces it misses; the feeder sends those that it has and goes on with those that
// come in. So there is no state to be repaired after a death: the successor dials its next
// fallback and says what it misses then. A feeder is dead when its connection breaks and cannot
// be dialled again, or when nothing at all has come from it for Config.Silence. A feeder with
// nothing to send says how it stands several times in that time, so that one death makes one
// host look for another feeder, and not the whole tail behind it: a host that has lost its
// feeder is no feeder that is lost. Only one that has found none for long is passed over.
//
// A host fed by a fallback looks from time to time whether a feeder that is better placed lives
// again, and goes back to it: else a short interruption would have a WAN crossed twice for the
// rest of the image.
//
// Lists go up the chain only, and behind the source to hosts that precede in the plan, which may have
// what the source took with it. Whom a host gets from always precedes it, so hosts never wait
// for each other in a ring. This also decides what happens to a slow host: it is not
// moved to the end, where those that follow it by an old plan and it itself by a new one could
// make such a ring; its successor passes it over and takes from the host before it. The slow one
// is then a leaf that nobody waits for. That costs the host before it a second feed of its link, so at worst
// the rest of the chain goes at half of the rate, however slow the slow one is. It is gone back to
// once, if it has kept up, because a stall looks the same. When rates are known beforehand, Plan
// puts slow hosts last, which costs nothing. A site's head is never passed over for being slow: that
// would be a second crossing of the WAN.
//
// A chain, not a tree or a swarm: with equal links a chain carries the content once over each
// link in each direction, which is the least there is, and takes the time of one copy and one
// fragment per hop. A tree of degree k takes k times as long on the same links. A swarm comes
// close to the chain and needs to know who has what.
//
// The source need not be a host of a plan. A host whose list is empty gets the content otherwise,
// as does one that is Alone, because none of its list lives; both say so (Share.Source) and tell of what
// came (Share.Refresh). Then a list goes up the chain and ends, and whoever stands first of those that
// live brings the content to all behind it.
//
// # Pieces in passing
//
// A host sends a piece on while it still comes in, in fragments of 128 KiB. Waiting for whole
// pieces would cost the time of a piece per hop: 0.34 s at 100 Mbit/s, a quarter of the time of
// 256 MB at the end of 16 hops. But a fragment cannot be checked alone, for only the piece has
// a hash. So the last fragment of a piece is held back until the piece is checked. If it is
// right, the fragment goes on; if not, the piece is declared void to those who were getting
// it, dropped, and fetched again. A wrong piece so never becomes whole at a second host: who
// finds one knows that the host before it or the line between them is at fault, strikes it, and
// passes it over if that happens again. What comes from an honest host is wrong nowhere behind it.
//
// # Bounds
//
// Pieces are in the Store, not in memory: a host holds the one that comes in, and one for each
// host that it feeds. A slow successor slows its own connection, and nobody else. A Limit bounds the
// bytes a second towards a destination; it can be changed at any time, and lets those who wait for
// the content (Demand) before those who do not (Background).
//
// The package speaks over any net.Conn. Peers are authenticated by whoever brings it; an
// Outline's ID is no secret, so who may have which image is decided there, too.
package spread

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"heliotrope"
)

// Store keeps the pieces of one image by their number. Its methods are called by several
// goroutines at once.
type Store interface {
	// Has says whether a piece is there. It is asked once, by Offer.
	Has(piece int) bool
	// Put stores a piece that has been checked. It must not change data nor keep it.
	Put(piece int, data []byte) error
	// Get returns a piece. What it returns is only read.
	Get(piece int) ([]byte, error)
}

// Config is how a host takes part.
type Config struct {
	// Dial opens a connection to the Serve of another host. It must return when ctx ends; the
	// connection must live on.
	Dial func(ctx context.Context, host heliotrope.HostID) (net.Conn, error)
	// Silence is how long nothing may come from a feeder before it counts as dead; 2 s if it
	// is 0. All other times are multiples of it. It must be the same at all hosts, within a
	// factor of three.
	Silence time.Duration
	Log     *slog.Logger // nil: nothing is logged
}

const defaultSilence = 2 * time.Second

// Node is a host's part in all that is spread. It must not be copied.
type Node struct {
	dial    func(context.Context, heliotrope.HostID) (net.Conn, error)
	silence time.Duration
	log     *slog.Logger

	mu        sync.Mutex
	shares    map[ID]*Share
	withdrawn map[ID]bool   // were offered once: nobody needs to wait for them
	offered   chan struct{} // closed and renewed with each Offer
}

// NewNode returns a node that offers nothing yet.
func NewNode(c Config) *Node {
	if c.Silence == 0 {
		c.Silence = defaultSilence
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Node{dial: c.Dial, silence: c.Silence, log: c.Log, shares: map[ID]*Share{}, withdrawn: map[ID]bool{}, offered: make(chan struct{})}
}

// The times that follow from Silence.

func (n *Node) beat() time.Duration       { return n.silence / 4 }  // between words on how a feeder stands
func (n *Node) alone() time.Duration      { return 2 * n.silence }  // without a live feeder, before it is to come otherwise
func (n *Node) orphaned() time.Duration   { return 5 * n.silence }  // how long a feeder may be without one of its own
func (n *Node) lookBack() time.Duration   { return 4 * n.silence }  // between looks at feeders that are better placed
func (n *Node) slowWindow() time.Duration { return 3 * n.silence }  // over which a feeder is held against its own
func (n *Node) patience() time.Duration   { return 15 * n.silence } // for a successor that takes nothing

var (
	// ErrOffered says that a content is offered already.
	ErrOffered = errors.New("this content is offered already")
	// ErrWithdrawn says that a Share was closed.
	ErrWithdrawn = errors.New("this content is not offered any more")
)

// maxWithdrawn bounds what is remembered of the past.
const maxWithdrawn = 4096

// Offer makes the content that o describes available to others, as far as st has it and as it
// comes in by Receive. The Share must be closed.
func (n *Node) Offer(o *Outline, st Store) (*Share, error) {
	s := newShare(n, o, st)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.shares[o.ID()] != nil {
		return nil, fmt.Errorf("offer %v: %w", o.ID(), ErrOffered)
	}
	n.shares[o.ID()] = s
	delete(n.withdrawn, o.ID())
	close(n.offered)
	n.offered = make(chan struct{})
	return s, nil
}

func (n *Node) withdraw(id ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.shares, id)
	if len(n.withdrawn) >= maxWithdrawn {
		clear(n.withdrawn)
	}
	n.withdrawn[id] = true
}

// await returns what is offered under id, once it is. A host may be told of an image a little
// later than its successor, which should wait and not go across the WAN.
func (n *Node) await(ctx context.Context, id ID) (*Share, error) {
	late := time.NewTimer(n.orphaned())
	defer late.Stop()
	for {
		n.mu.Lock()
		s, was, offered := n.shares[id], n.withdrawn[id], n.offered
		n.mu.Unlock()
		switch {
		case s != nil:
			return s, nil
		case was:
			return nil, ErrWithdrawn
		}
		select {
		case <-offered:
		case <-late.C:
			return nil, fmt.Errorf("%v is not known here", id)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
