package openflow

import (
	"bytes"
	"encoding/binary"
	"math"
	"testing"
	"time"

	"antrea.io/libOpenflow/openflow15"

	"heliotrope/flows"

	"pgregory.net/rapid"
)

// describe is a flow's description as a switch writes it in a dump.
func describe(f flows.Flow, hits Counter, age time.Duration) []byte {
	b := make([]byte, flowDescLen)
	b[4] = uint8(f.Table)
	binary.BigEndian.PutUint16(b[6:], f.Priority)
	binary.BigEndian.PutUint64(b[16:], f.Cookie)
	b = appendMatch(b, f.Match)
	b = append(b, 0, 0, 0, 40, 0x80, 2, openflow15.XST_OFB_DURATION<<1, 8)
	b = binary.BigEndian.AppendUint32(b, uint32(age/time.Second))
	b = binary.BigEndian.AppendUint32(b, uint32(age%time.Second))
	b = append(b, 0x80, 2, openflow15.XST_OFB_PACKET_COUNT<<1, 8)
	b = binary.BigEndian.AppendUint64(b, hits.Packets)
	b = append(b, 0x80, 2, openflow15.XST_OFB_BYTE_COUNT<<1, 8)
	b = binary.BigEndian.AppendUint64(b, hits.Bytes)
	b = appendInstructions(b, f.Actions)
	binary.BigEndian.PutUint16(b, uint16(len(b)))
	return b
}

func drawValue(t *rapid.T, f flows.Field) flows.Value {
	return flows.Value{Hi: rapid.Uint64().Draw(t, "high"), Lo: rapid.Uint64().Draw(t, "low")}.And(f.Ones())
}

func drawField(t *rapid.T) flows.Field {
	return flows.Field(rapid.IntRange(0, int(flows.NumFields)-1).Draw(t, "field"))
}

func drawMatch(t *rapid.T) flows.Match {
	var terms []flows.Term
	for f := range flows.NumFields {
		if rapid.IntRange(0, 4).Draw(t, "in match") != 0 {
			continue
		}
		term := flows.Is(f, drawValue(t, f))
		if rapid.Bool().Draw(t, "masked") {
			if mask := drawValue(t, f); mask != (flows.Value{}) {
				term.Mask, term.Value = mask, term.Value.And(mask)
			}
		}
		terms = append(terms, term)
	}
	return flows.When(terms...)
}

func drawActions(t *rapid.T) []flows.Action {
	var actions []flows.Action
	for range rapid.IntRange(0, 6).Draw(t, "actions") {
		f := drawField(t)
		actions = append(actions, rapid.SampledFrom([]flows.Action{
			flows.SetField(f, drawValue(t, f)), flows.MoveField(drawField(t), f), flows.DecTTL(),
			flows.OutputTo(rapid.Uint32Range(1, 0xfffffe00).Draw(t, "port")), flows.Reflect(),
		}).Draw(t, "action"))
	}
	if rapid.Bool().Draw(t, "goto") {
		actions = append(actions, flows.Goto(flows.TableID(rapid.IntRange(1, 254).Draw(t, "next"))))
	}
	return actions
}

func TestFlowRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := flows.Flow{Table: flows.TableID(rapid.Uint8().Draw(t, "table")), Priority: rapid.Uint16().Draw(t, "priority"),
			Match: drawMatch(t), Actions: drawActions(t), Cookie: rapid.Uint64().Draw(t, "cookie")}
		hits := Counter{rapid.Uint64().Draw(t, "packets"), rapid.Uint64().Draw(t, "bytes")}
		age := time.Duration(rapid.Int64Range(0, int64(time.Second)*math.MaxUint32).Draw(t, "age"))
		e, err := decodeEntry(describe(f, hits, age))
		if err != nil || e.bad != nil {
			t.Fatalf("decode %v: %v, %v", f, err, e.bad)
		}
		if !e.flow.Equal(f) || e.hits != hits || e.age != age {
			t.Fatalf("decoded %v (%v, %v), want %v (%v, %v)", e.flow, e.hits, e.age, f, hits, age)
		}
	})
}

// TestRegistersComeInPairs is how an OpenFlow 1.5 switch writes our registers.
func TestRegistersComeInPairs(t *testing.T) {
	b := []byte{0, 1, 0, 4 + 20 + 12,
		0x80, 1, 0<<1 | 1, 16, 0, 0, 0, 100, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0,
		0x80, 1, 1 << 1, 8, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0}
	m, err := decodeMatch(b)
	if err != nil || m.String() != ",reg0=0x64,reg2=0x2,reg3=0x7" {
		t.Errorf("decoded %v, %v", m, err)
	}
}

func FuzzEntry(f *testing.F) {
	match := flows.When(flows.Is(flows.EthType, flows.Uint(flows.EthARP)), flows.Is(flows.ARPTPA, flows.Uint(9)))
	good := describe(flows.Flow{Match: match, Actions: []flows.Action{flows.SetField(flows.Net, flows.Uint(1)),
		flows.MoveField(flows.TunID, flows.Net), flows.DecTTL(), flows.Reflect(), flows.Goto(3)}}, Counter{1, 2}, time.Minute)
	f.Add(good)
	f.Add(good[:flowDescLen+3])
	for i := range good {
		spoilt := bytes.Clone(good)
		spoilt[i] = 0
		f.Add(spoilt)
		spoilt[i] = 0xff
		f.Add(spoilt)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEntry(b)
		if err != nil || e.bad != nil {
			return
		}
		again, err := decodeEntry(describe(e.flow, e.hits, e.age))
		if err != nil || again.bad != nil || !again.flow.Equal(e.flow) {
			t.Fatalf("decoded %v, then %v (%v, %v)", e.flow, again.flow, err, again.bad)
		}
	})
}
