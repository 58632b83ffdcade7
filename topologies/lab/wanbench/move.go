package wanbench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
)

// mode is a way to move a guest's memory.
type mode struct {
	name     string
	both     []string       // capabilities of both ends
	params   map[string]any // of both ends
	downtime int            // milliseconds of pause that the source aims at
	postcopy bool
	mirror   int // pages; 0: no codec of ours
	vm       heliotrope.VMID
	pages    *[2]string                                                                        // what the sites have kept; nil: nothing
	images   *[2]string                                                                        // the sites' caches of images; nil: none
	image    string                                                                            // that of the guest's disk
	run      func(*yard, context.Context, *field, []*machine, link) ([]*machine, moved, error) // nil: migrate
}

var modes = []mode{
	{name: "plain", downtime: 300},
	{name: "xbzrle", both: []string{"xbzrle"}, params: map[string]any{"xbzrle-cache-size": guestMiB << 20}, downtime: 300},
	{name: "auto-converge", both: []string{"auto-converge"}, downtime: 300},
	{name: "multifd+zstd", both: []string{"multifd"}, params: map[string]any{"multifd-channels": 2, "multifd-compression": "zstd", "multifd-zstd-level": 1}, downtime: 300},
	{name: "post-copy", both: []string{"postcopy-ram"}, downtime: 300, postcopy: true},
	ours,
	{name: oursImage, run: (*yard).overImage},
	{name: oursSite, run: (*yard).whereOtherWas},
	{name: oursBack, run: (*yard).andBack},
}

// move moves guests in a mode, all at once.
func (y *yard) move(ctx context.Context, f *field, ms []*machine, md mode, l link) ([]*machine, moved, error) {
	if md.run != nil {
		return md.run(y, ctx, f, ms, l)
	}
	return y.migrate(ctx, f, ms, md, l)
}

var ours = mode{name: "ours", downtime: 30, mirror: guestMiB << 20 >> 12, vm: "guest"}

const (
	oursImage = "ours+image"
	oursSite  = "ours+site"
	oursBack  = "ours+back"
)

// patience is how long a migration may go on before it is made to end, whatever pause that
// costs: in some modes it would never.
const patience = 45 * time.Second

// moved is what a migration did.
type moved struct {
	Guest  string            `json:"guest"`
	Mode   string            `json:"mode"`
	Link   link              `json:"link"`
	Wire   uint64            `json:"wire_bytes"` // both directions, by the WAN's meter
	Total  float64           `json:"seconds"`
	Pause  float64           `json:"pause_ms"`
	Rounds int               `json:"rounds"`
	Forced bool              `json:"forced,omitempty"` // it did not converge
	Drops  uint64            `json:"queue_drops,omitempty"`
	QEMU   float64           `json:"source_qemu_cpu_s"`
	Relay  float64           `json:"source_relay_cpu_s,omitempty"`
	There  float64           `json:"destination_relay_cpu_s,omitempty"`
	RSS    float64           `json:"source_relay_rss_mib,omitempty"`
	Stream uint64            `json:"stream_bytes,omitempty"` // QEMU's
	Class  map[string]uint64 `json:"wire_by_class,omitempty"`
}

// migrate moves guests to the other site at the same time, and returns them there.
func (y *yard) migrate(ctx context.Context, f *field, from []*machine, md mode, l link) (to []*machine, r moved, err error) {
	r = moved{Guest: nameOf(from), Mode: md.name, Link: l}
	if err := y.shape(l); err != nil {
		return nil, r, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("migrate %s by %s over %s: %w", r.Guest, md.name, l, err), killAll(to))
			to = nil
		}
	}()
	for _, m := range from {
		there, err := y.launch(ctx, f, 1-m.site, m.work, true)
		if err != nil {
			return to, r, err
		}
		to = append(to, there)
	}
	incoming, outgoing, stop, err := y.way(ctx, from, to, md)
	if err != nil {
		return to, r, err
	}
	for i := range from {
		if err := prepare(ctx, from[i], to[i], md, incoming[i]); err != nil {
			return to, r, errors.Join(err, stop(&r))
		}
	}
	before, dropped := y.meter()
	err = y.migrateNow(ctx, from, to, md, outgoing, &r)
	err = errors.Join(err, stop(&r))
	after, now := y.meter()
	if r.Wire, r.Drops = after-before, now-dropped; err != nil {
		return to, r, err
	}
	for i, m := range from {
		ticks := m.ticks()
		if err := to[i].says(ctx, 30*time.Second, func(console string) bool { return lastTick(console) > ticks+2 }); err != nil {
			return to, r, fmt.Errorf("the guest is dead: %w", err)
		}
	}
	return to, r, killAll(from)
}

// migrateNow starts all and waits for all. The longest of what each takes is what it takes.
func (y *yard) migrateNow(ctx context.Context, from, to []*machine, md mode, outgoing []string, r *moved) error {
	var g errgroup.Group
	each := make([]moved, len(from))
	for i, m := range from {
		g.Go(func() error {
			cpu, seen, began := m.cpu(), m.seen(), time.Now()
			_, err := m.do(ctx, "migrate", map[string]any{"uri": outgoing[i]})
			if err == nil {
				err = y.watch(ctx, m, to[i], md, seen, began, &each[i])
			}
			each[i].QEMU = (m.cpu() - cpu).Seconds()
			return err
		})
	}
	err := g.Wait()
	for _, e := range each {
		r.Total, r.Pause, r.Rounds = max(r.Total, e.Total), max(r.Pause, e.Pause), max(r.Rounds, e.Rounds)
		r.QEMU, r.Forced = r.QEMU+e.QEMU, r.Forced || e.Forced
	}
	return err
}

// way makes what is between the QEMUs: TCP, or the relay with the codec.
func (y *yard) way(ctx context.Context, from, to []*machine, md mode) (incoming, outgoing []string, stop func(*moved) error, err error) {
	if md.mirror == 0 {
		for i, m := range to {
			incoming = append(incoming, "tcp:"+netip.AddrPortFrom(address(m.site), 4444+uint16(i)).String())
		}
		return incoming, incoming, func(*moved) error { return nil }, nil
	}
	site := from[0].site
	source, destination, err := pair(site, md)
	if err != nil {
		return nil, nil, nil, err
	}
	for i := range from {
		in, out := filepath.Join(from[i].dir, "relay"), filepath.Join(to[i].dir, "memory")
		move, vm := heliotrope.MoveID(fmt.Sprint("bench-", i)), md.vm
		if len(from) > 1 {
			vm = heliotrope.VMID(fmt.Sprint(vm, "-", i))
		}
		source.Streams = append(source.Streams, endStream{move, vm, in})
		destination.Streams = append(destination.Streams, endStream{move, vm, out})
		incoming, outgoing = append(incoming, "unix:"+out), append(outgoing, "unix:"+in)
	}
	there, err := y.startEnd(ctx, 1-site, destination)
	if err != nil {
		return nil, nil, nil, err
	}
	here, err := y.startEnd(ctx, site, source)
	if err != nil {
		_, stopped := there.stop()
		return nil, nil, nil, errors.Join(err, stopped)
	}
	return incoming, outgoing, func(r *moved) error { return stopEnds(here, there, r) }, nil
}

func stopEnds(here, there *end, r *moved) error {
	a, err := here.stop()
	b, err2 := there.stop()
	r.Relay, r.There, r.RSS = a.CPU, b.CPU, a.RSS
	if s := a.Stats; s != nil {
		r.Stream, _ = s.Total()
		r.Class = map[string]uint64{"heads": s.Heads}
		for c, n := range s.Out {
			r.Class[classOf(c)] = n
		}
	}
	for _, said := range []string{a.Error, b.Error} {
		if said != "" {
			err = errors.Join(err, errors.New(said))
		}
	}
	return errors.Join(err, err2)
}

func prepare(ctx context.Context, from, to *machine, md mode, incoming string) error {
	params := map[string]any{"max-bandwidth": 0, "multifd-compression": "none"}
	for k, v := range md.params {
		params[k] = v
	}
	for _, m := range []*machine{to, from} {
		if err := m.capabilities(ctx, md.both...); err != nil {
			return err
		}
		if m == from {
			params["downtime-limit"] = md.downtime
		}
		if _, err := m.do(ctx, "migrate-set-parameters", params); err != nil {
			return err
		}
	}
	_, err := to.do(ctx, "migrate-incoming", map[string]any{"uri": incoming})
	return err
}

// watch follows a migration to its end.
func (y *yard) watch(ctx context.Context, from, to *machine, md mode, seen int, began time.Time, r *moved) error {
	if md.postcopy {
		// After the first round; what is dirty then is fetched when it is missed.
		if _, err := from.wait(ctx, seen, secondPass(seen, from)); err != nil {
			return err
		}
		if _, err := from.do(ctx, "migrate-start-postcopy", nil); err != nil {
			return err
		}
	}
	limit, cancel := context.WithTimeoutCause(ctx, patience, errPatience)
	end, err := from.wait(limit, seen, migrated)
	cancel()
	if errors.Is(err, errPatience) {
		r.Forced = true
		if _, err := from.do(ctx, "migrate-set-parameters", map[string]any{"downtime-limit": 60_000}); err != nil {
			return err
		}
		end, err = from.wait(ctx, seen, migrated)
	}
	if err != nil {
		return err
	}
	if end.Data.Status != "completed" {
		return fmt.Errorf("the migration has %s", end.Data.Status)
	}
	stopped, err := from.wait(ctx, seen, is("STOP"))
	if err != nil {
		return err
	}
	resumed, err := to.wait(ctx, 0, is("RESUME"))
	if err != nil {
		return err
	}
	r.Pause = float64(resumed.at().Sub(stopped.at()).Microseconds()) / 1e3
	r.Total = max(end.at().Sub(began), resumed.at().Sub(began)).Seconds()
	from.mu.Lock()
	defer from.mu.Unlock()
	for _, m := range from.events[seen:] {
		if m.Event == "MIGRATION_PASS" {
			r.Rounds++
		}
	}
	return nil
}

var errPatience = errors.New("the migration does not converge")

// secondPass is wanted of the second round's beginning, or of an end before there was one.
func secondPass(seen int, m *machine) func(qmpMessage) bool {
	passes := 0
	return func(e qmpMessage) bool {
		if e.Event == "MIGRATION_PASS" {
			passes++
		}
		return passes >= 2 || migrated(e)
	}
}
