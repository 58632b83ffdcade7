package relay

import (
	"bytes"
	"encoding/json"
	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"
	"testing"
)

// Streams take of the room what there is, and give it back.
func TestRoom(t *testing.T) {
	e := &Encoding{MirrorPages: 60, Room: NewRoom(100)}
	a, doneA := e.offer("a", 1<<20, share.Way{})
	b, doneB := e.offer("b", 1<<20, share.Way{})
	c, doneC := e.offer("c", 1<<20, share.Way{})
	if a.MirrorPages != 60 || b.MirrorPages != 40 || c.MirrorPages != 0 {
		t.Errorf("offered %d, %d and %d pages of 100", a.MirrorPages, b.MirrorPages, c.MirrorPages)
	}
	doneC()
	doneA()
	taken, _, done := e.take(Header{Kind: Memory, VM: "d", Codec: Offer{Version: codecVersion, MirrorPages: 50}}, "src")
	if taken.MirrorPages != 50 {
		t.Errorf("took %d", taken.MirrorPages)
	}
	doneB()
	done()
	if e.Room.left != 100 {
		t.Errorf("%d are left of 100", e.Room.left)
	}
	if o, done := (&Encoding{MirrorPages: 60}).offer("a", 1<<20, share.Way{}); o.MirrorPages != 60 {
		t.Errorf("without a room: %d", o.MirrorPages)
	} else {
		done()
	}
}

// offerV3 is what an agent knows of an Offer that cannot ask its neighbours; it refuses headers with more.
type offerV3 struct {
	Version     int             `json:"version"`
	MirrorPages int             `json:"mirrorPages"`
	Seed        uint64          `json:"seed"`
	PageSeed    uint64          `json:"pageSeed"`
	Kept        string          `json:"kept,omitempty"`
	Share       int             `json:"share,omitempty"`
	Packed      bool            `json:"packed,omitempty"`
	Export      json.RawMessage `json:"export,omitzero"`
	Site        int             `json:"site,omitempty"`
	Key         string          `json:"key,omitempty"`
}

// TestOlderAgentsUnderstand: an offer has nothing that they do not know, and an answer nothing that they need.
func TestOlderAgentsUnderstand(t *testing.T) {
	e := neighbourly()
	o, done := e.offer("a", 1<<10, share.Way{Host: "c", Site: "eu", Seed: 7})
	defer done()
	body, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var old offerV3
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&old); err != nil || old.PageSeed != 7 || old.Version != 3 {
		t.Errorf("%s: %v", body, err)
	}
	taken, has, done := e.take(Header{Kind: Memory, VM: "a", Codec: o}, "src")
	defer done()
	if body, err = json.Marshal(taken); err != nil {
		t.Fatal(err)
	}
	old = offerV3{}
	if err := json.Unmarshal(body, &old); err != nil || has.share == nil || !taken.Near || old.Seed != o.Seed || old.Share == 0 || old.Version != 3 {
		t.Errorf("%s: %v", body, err)
	}
}

// TestFirstPass: it ends where pages come again, or where there can be no more.
func TestFirstPass(t *testing.T) {
	of := func(zero, same, delta, literal uint64) (s wan.Stats) {
		s.Pages[wan.Zero], s.Pages[wan.Same], s.Pages[wan.Delta], s.Pages[wan.Literal] = zero, same, delta, literal
		return s
	}
	for name, c := range map[string]struct {
		guest   int
		batches []wan.Stats
		ends    int // with which batch; 0: with none
	}{
		"pages that are new":          {0, []wan.Stats{of(1000, 0, 0, 100), of(0, 0, 0, 128)}, 0},
		"one that comes again":        {0, []wan.Stats{of(0, 1, 2, 100)}, 0},
		"many that come again":        {0, []wan.Stats{of(0, 0, 0, 100), of(0, 30, 60, 10), of(0, 0, 0, 100)}, 2},
		"as many as the guest has":    {1000, []wan.Stats{of(900, 0, 0, 50), of(0, 0, 0, 50), of(0, 0, 0, 9)}, 2},
		"fewer than the guest has":    {2000, []wan.Stats{of(900, 0, 0, 50), of(0, 0, 0, 50)}, 0},
		"a VM that comes back: known": {1000, []wan.Stats{of(0, 100, 0, 0)}, 1},
	} {
		var p firstPass
		ends := 0
		for i, s := range c.batches {
			if p.ended(&s, c.guest) && ends == 0 {
				ends = i + 1
			}
		}
		if ends != c.ends || ends > 0 && !p.over {
			t.Errorf("%s: it ends with batch %d, want %d", name, ends, c.ends)
		}
	}
}
