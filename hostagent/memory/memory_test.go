package memory

import (
	"log/slog"
	"testing"
	"time"

	"heliotrope/hostagent/agentapi"
	"heliotrope/migration/relay"
	"heliotrope/migration/wan"
)

func TestTowards(t *testing.T) {
	e := &relay.Encoding{MirrorPages: 5}
	measured := []agentapi.Path{{Peer: "eu-1", RTT: 80 * time.Millisecond}, {Peer: "us-2", RTT: 200 * time.Microsecond}}
	if got := Towards("eu-1", measured, e); got.Least != wan.Fast || got.MirrorPages != 5 || e.Least != 0 {
		t.Errorf("a long way: %+v, %+v", got, e)
	}
	if got := Towards("us-2", measured, e); got != e {
		t.Errorf("a short way: %+v", got)
	}
	if got := Towards("asia-1", measured, e); got != e {
		t.Errorf("a way that was not measured: %+v", got)
	}
	if got := Towards("eu-1", measured, nil); got != nil {
		t.Errorf("no codec: %+v", got)
	}
}

// What a host keeps of VMs that moved is off unless it was given room; a move's own is on.
func TestEncoding(t *testing.T) {
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	if e, err := Encoding(DefaultMoves, 0, "", "", log); err != nil || e.MirrorPages != DefaultMoves/perMove/pageBytes || e.Site != nil || e.Images != nil {
		t.Errorf("by default: %+v, %v", e, err)
	}
	if e, err := Encoding(DefaultMoves, 1<<30, t.TempDir(), t.TempDir(), log); err != nil || e.Site == nil || e.Images == nil {
		t.Errorf("with a page cache: %+v, %v", e, err)
	}
	if e, err := Encoding(0, 1<<30, "", "", log); err != nil || e != nil {
		t.Errorf("without: %+v, %v", e, err)
	}
}

// What a stream consisted of adds up.
func TestParts(t *testing.T) {
	if got := Parts(wan.Stats{}); got != nil {
		t.Errorf("of nothing: %+v", got)
	}
	var s wan.Stats
	s.Pages[wan.Zero], s.In[wan.Zero] = 9, 81
	s.Pages[wan.Delta], s.In[wan.Delta], s.Out[wan.Delta], s.Heads = 1, 4104, 60, 7
	in, out := uint64(0), uint64(0)
	for _, k := range Parts(s) {
		in, out = in+k.Stream, out+k.Wire
	}
	if wantIn, wantOut := s.Total(); in != wantIn || out != wantOut {
		t.Errorf("%d became %d, want %d and %d", in, out, wantIn, wantOut)
	}
}
