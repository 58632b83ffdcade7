package spread

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/internal/accept"
)

// Over real connections, whose buffers hold what is under way, with a death in the middle.
func TestOverTCP(t *testing.T) {
	c := even(t, 40, 8, 3_000_000)
	ids := names('a', 6)
	addresses := map[heliotrope.HostID]string{}
	dial := func(ctx context.Context, id heliotrope.HostID) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addresses[id])
	}
	var parts sync.WaitGroup
	defer parts.Wait()
	nodes, ends := map[heliotrope.HostID]*Node{}, map[heliotrope.HostID]context.CancelFunc{}
	contexts := map[heliotrope.HostID]context.Context{}
	for _, id := range ids {
		var lc net.ListenConfig
		l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addresses[id] = l.Addr().String()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		node := NewNode(Config{Dial: dial})
		nodes[id], ends[id], contexts[id] = node, cancel, ctx
		limit := NewLimit(60_000_000)
		serve := func(ctx context.Context, conn net.Conn, _ func()) error { return node.Serve(ctx, conn, limit) }
		parts.Go(func() { accept.Loop{Who: "host", Log: slog.New(slog.DiscardHandler), Serve: serve}.Run(ctx, l) })
	}
	if _, err := nodes[ids[0]].Offer(c.outline, newShelf(c, true)); err != nil {
		t.Fatal(err)
	}
	var hosts []Host
	for _, id := range ids[1:] {
		hosts = append(hosts, Host{ID: id})
	}
	hops, err := Plan(Host{ID: ids[0]}, hosts, nil)
	if err != nil {
		t.Fatal(err)
	}
	victim := ids[1+rand.IntN(len(hosts))]
	var receivers sync.WaitGroup
	for _, h := range hops {
		st := newShelf(c, false)
		s, err := nodes[h.Host].Offer(c.outline, st)
		if err != nil {
			t.Fatal(err)
		}
		receivers.Go(func() {
			err := s.Receive(contexts[h.Host], h.From, Background)
			switch {
			case h.Host == victim:
			case err != nil || !st.full():
				t.Errorf("%s has not all, with %s dead: %v, %+v", h.Host, victim, err, s.Progress())
			}
		})
		if h.Host == victim {
			receivers.Go(func() {
				for s.Progress().Pieces < 4 {
					s.mu.Lock()
					changed := s.changed
					s.mu.Unlock()
					<-changed
				}
				ends[victim]()
			})
		}
	}
	receivers.Wait()
}

func TestProgress(t *testing.T) {
	o := even(t, 41, 4, 100).outline
	plan := []Hop{{Host: "a0", Site: "a"}, {Host: "a1", Site: "a"}, {Host: "b0", Site: "b"}}
	sites := BySite(plan, map[heliotrope.HostID]Progress{
		"a0": {Pieces: 4, AllPieces: 4, Bytes: 400, AllBytes: 400}, "b0": {Pieces: 1, AllPieces: 4, Bytes: 100, AllBytes: 400, Rate: 50},
	}, o)
	if a := sites["a"]; a.Bytes != 400 || a.AllBytes != 800 || a.Done() {
		t.Errorf("site a: %+v", a)
	}
	if eta, ok := sites["a"].ETA(); ok {
		t.Errorf("site a is done in %v", eta)
	}
	if eta, ok := sites["b"].ETA(); !ok || eta != 6*time.Second {
		t.Errorf("site b is done in %v, %t", eta, ok)
	}
	now := time.Now()
	var p pace
	p.start(now, 1000)
	for i := range int64(3000) {
		now = now.Add(10 * time.Millisecond)
		p.add(now, 1000+(i+1)*10)
	}
	if r := p.rate(now, 31_000); r < 990 || r > 1010 || len(p.marks) > 2*paceMarks {
		t.Errorf("the rate is %v, of %d marks", r, len(p.marks))
	}
	if r := p.rate(now.Add(100*time.Second), 31_000); r > 1 {
		t.Errorf("long after the end the rate is %v", r)
	}
}
