package agentapi

import (
	"errors"
	"heliotrope/scheduler/traffic"
	"slices"
	"testing"
	"time"
)

// TestBins resumes where it stopped, and begins anew with an agent that has restarted.
func TestBins(t *testing.T) {
	r, c, h := newRegistry(t), newController(), newHost()
	addr, _ := listen(t, "127.0.0.1:0", r.ca, c.acceptor(r))
	dial(t, addr, r, h)
	a := c.agent(t, 10*time.Second)
	ctx := within(t, 20*time.Second)

	order := CaptureOrder{Term: 3, Orders: traffic.Orders{Ports: []traffic.Port{{Device: "tap0", VM: "web"}}}}
	for range 3 {
		if err := a.Count(ctx, order); err != nil {
			t.Fatal(err)
		}
	}
	enough := errors.New("enough")
	read := func(boot string, after uint64, n int) (seqs []uint64) {
		t.Helper()
		err := a.Bins(ctx, boot, after, func(b traffic.Bin) error {
			if b.Host != "paris-1" {
				t.Errorf("a bin says it is of %s: the certificate says whose it is", b.Host)
			}
			if seqs = append(seqs, b.Seq); len(seqs) == n {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) {
			t.Fatalf("Bins: %v", err)
		}
		return seqs
	}
	if got := read("b", 1, 2); !slices.Equal(got, []uint64{2, 3}) {
		t.Errorf("after 1: bins %v, want 2 and 3", got)
	}
	if got := read("before it restarted", 7, 3); !slices.Equal(got, []uint64{1, 2, 3}) {
		t.Errorf("another boot: bins %v, want all", got)
	}
	if err := a.Count(ctx, order); err != nil {
		t.Fatal(err)
	}
	if got := read("b", 3, 1); !slices.Equal(got, []uint64{4}) {
		t.Errorf("after 3: bins %v, want the new one", got)
	}
}
