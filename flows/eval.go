package flows

import (
	"cmp"
	"slices"
)

// Packet is a packet as a switch sees it: what each field holds, 0 where it has no such field.
type Packet [NumFields]Value

// String writes the packet as ofproto/trace reads it.
func (p Packet) String() string {
	var m Match
	for f := range NumFields {
		if p[f] != (Value{}) {
			m = append(m, Is(f, p[f]))
		}
	}
	b := m.appendTo(nil)
	if len(b) > 0 {
		b = b[1:]
	}
	return string(b)
}

// Output is a packet that leaves a switch.
type Output struct {
	Port   uint32
	Packet Packet
}

// Eval says what a switch with these flows sends when p comes in by port inPort.
func Eval(flows []Flow, p Packet, inPort uint32) []Output {
	outputs, _ := NewSwitch(flows).Trace(p, inPort)
	return outputs
}

// Switch is a set of flows, ordered to be looked up in.
type Switch struct{ tables [NumTables][]Flow }

// NewSwitch returns a switch with these flows.
func NewSwitch(flows []Flow) *Switch {
	s := &Switch{}
	for _, f := range flows {
		s.tables[f.Table] = append(s.tables[f.Table], f)
	}
	for _, t := range s.tables {
		sortFlows(t)
	}
	return s
}

// Trace says what the switch sends when p comes in by port inPort, and which flows p met.
func (s *Switch) Trace(p Packet, inPort uint32) (outputs []Output, path []Flow) {
	p[InPort] = Uint(inPort)
	for t := Classify; t < NumTables; {
		i := slices.IndexFunc(s.tables[t], func(f Flow) bool { return f.Match.Covers(&p) })
		if i < 0 {
			return outputs, path
		}
		path = append(path, s.tables[t][i])
		sent, next, on := p.apply(s.tables[t][i].Actions)
		outputs = append(outputs, sent...)
		if !on {
			return outputs, path
		}
		t = next
	}
	return outputs, path
}

// apply carries out actions; on says whether the packet goes on to table next.
func (p *Packet) apply(actions []Action) (sent []Output, next TableID, on bool) {
	for _, a := range actions {
		switch a.Kind {
		case SetKind:
			p[a.Dst] = a.Value
		case MoveKind:
			p[a.Dst] = p[a.Src].And(a.Dst.Ones())
		case DecTTLKind:
			if p[TTL].Lo <= 1 {
				return sent, 0, false
			}
			p[TTL].Lo--
		case OutputKind:
			if a.Port != uint32(p[InPort].Lo) {
				sent = append(sent, Output{a.Port, *p})
			}
		case ReflectKind:
			sent = append(sent, Output{uint32(p[InPort].Lo), *p})
		case GotoKind:
			return sent, a.Table, true
		}
	}
	return sent, 0, false
}

// sortFlows orders flows by table and priority, highest first, then by key.
func sortFlows(flows []Flow) {
	slices.SortStableFunc(flows, func(a, b Flow) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(b.Priority, a.Priority), compareMatch(a.Match, b.Match))
	})
}

func compareMatch(a, b Match) int {
	return slices.CompareFunc(a, b, func(x, y Term) int {
		return cmp.Or(cmp.Compare(x.Field, y.Field), cmp.Compare(x.Value.Hi, y.Value.Hi), cmp.Compare(x.Value.Lo, y.Value.Lo),
			cmp.Compare(x.Mask.Hi, y.Mask.Hi), cmp.Compare(x.Mask.Lo, y.Mask.Lo))
	})
}
