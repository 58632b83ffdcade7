// Package memory says how VMs' memory is sent from a host and to it: by the relay's codec
// (package migration/wan), with as much of the host's own memory as it may take.
package memory

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/migration"
	"heliotrope/migration/relay"
	"heliotrope/migration/relay/kept"
	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"
)

const pageBytes = 4096

// DefaultMoves is what moves may take of a host's memory together that nobody said anything else of.
const DefaultMoves = 1 << 30 // bytes

// perMove is the part of it that one move may take.
const perMove = 2

// Encoding is how memory is sent; nil: as the hypervisor sends it, since a move may take nothing.
// Pages, in bytes, is what may be kept in dir of VMs that moved; somebody must run the Site. caches is the directory of
// what has come of images; empty: there is none.
func Encoding(moves, pages int64, dir, caches string, log *slog.Logger) (*relay.Encoding, error) {
	if moves <= 0 {
		return nil, nil
	}
	e := &relay.Encoding{MirrorPages: int(moves / perMove / pageBytes), Room: relay.NewRoom(int(moves / pageBytes)), Share: share.New()}
	if pages > 0 {
		var err error
		if e.Site, err = kept.New(dir, int(pages/pageBytes), log); err != nil {
			return nil, fmt.Errorf("keep pages: %w", err)
		}
	}
	if caches != "" {
		e.Images = NewImages(caches, log)
	}
	return e, nil
}

// longWay is the round trip from which on a way is one between sites, whose bytes are few and
// cost money: then all that crosses it is compressed. Within a site a wire that is faster than
// the codec is left alone.
const longWay = 2 * time.Millisecond

// Towards is the encoding for the way to peer, as it was measured lately.
func Towards(peer heliotrope.HostID, measured []agentapi.Path, e *relay.Encoding) *relay.Encoding {
	i := slices.IndexFunc(measured, func(p agentapi.Path) bool { return p.Peer == peer })
	if e == nil || i < 0 || measured[i].RTT < longWay {
		return e
	}
	long := *e
	long.Least = wan.Fast
	return &long
}

// kinds are those of a stream's parts, in the order of how little each costs.
var kinds = [wan.Classes]wan.Class{wan.Zero, wan.Same, wan.Dup, wan.Image, wan.Site, wan.Peer, wan.Delta, wan.Literal, wan.Noise, wan.Verbatim}

// Parts are what a stream of memory, or of disks, consisted of.
func Parts(s wan.Stats) (all []migration.Encoded) {
	for _, c := range kinds {
		if s.Pages[c] > 0 {
			all = append(all, migration.Encoded{Kind: c.String(), Pages: s.Pages[c], Stream: s.In[c], Wire: s.Out[c]})
		}
	}
	if len(all) > 0 {
		all = append(all, migration.Encoded{Kind: "heads", Wire: s.Heads})
	}
	return all
}
