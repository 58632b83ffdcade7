package flows

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
)

// Term is one condition of a Match: the field under Mask equals Value.
type Term struct {
	Field       Field
	Value, Mask Value
}

// Is is the condition that f holds exactly v.
func Is(f Field, v Value) Term { return Term{f, v, f.Ones()} }

// Within is the condition that the address in f is in p.
func Within(f Field, p netip.Prefix) Term {
	return Term{f, AddrValue(p.Masked().Addr()), prefixMask(f, p.Bits())}
}

// Match is a set of conditions, ordered by field. Make it with When.
type Match []Term

// When returns the Match of all terms.
func When(terms ...Term) Match {
	m := Match(terms)
	slices.SortFunc(m, func(a, b Term) int { return cmp.Compare(a.Field, b.Field) })
	return m
}

// Get returns the value that m asks of f exactly.
func (m Match) Get(f Field) (Value, bool) {
	for _, t := range m {
		if t.Field == f && t.Mask == f.Ones() {
			return t.Value, true
		}
	}
	return Value{}, false
}

// Covers says whether packet p meets every condition.
func (m Match) Covers(p *Packet) bool {
	for _, t := range m {
		if p[t.Field].And(t.Mask) != t.Value {
			return false
		}
	}
	return true
}

// Kind says what an Action does.
type Kind uint8

// The kinds of Action.
const (
	SetKind     Kind = iota + 1 // Dst = Value
	MoveKind                    // Dst = Src, as many bits as both have
	DecTTLKind                  // one hop less; a packet on its last hop is dropped
	OutputKind                  // to Port, unless the packet came from there
	ReflectKind                 // to the port that the packet came from
	GotoKind                    // on to Table; always the last action
)

// Action is one step of what a flow does with a packet. Actions run in order, at once.
type Action struct {
	Kind  Kind
	Table TableID
	Dst   Field
	Src   Field
	Port  uint32
	Value Value
}

// SetField writes v to f.
func SetField(f Field, v Value) Action { return Action{Kind: SetKind, Dst: f, Value: v} }

// MoveField copies field src to field dst.
func MoveField(src, dst Field) Action { return Action{Kind: MoveKind, Src: src, Dst: dst} }

// DecTTL takes one hop off.
func DecTTL() Action { return Action{Kind: DecTTLKind} }

// OutputTo sends the packet to an OpenFlow port.
func OutputTo(port uint32) Action { return Action{Kind: OutputKind, Port: port} }

// Reflect sends the packet back to where it came from.
func Reflect() Action { return Action{Kind: ReflectKind} }

// SendBack are the last two actions of a flow that answers a packet.
func SendBack() []Action { return []Action{SetField(OutPort, Uint(uint32(Back))), Goto(Out)} }

// Goto hands the packet to a later table.
func Goto(t TableID) Action { return Action{Kind: GotoKind, Table: t} }

// Flow is one entry of a switch's flow table. Table, Priority and Match identify it; no
// Actions drop the packet.
type Flow struct {
	Table    TableID
	Priority uint16
	Match    Match
	Actions  []Action
	Cookie   uint64
}

// Equal says whether two flows are the same in every part.
func (f Flow) Equal(g Flow) bool {
	return f.Table == g.Table && f.Priority == g.Priority && f.Cookie == g.Cookie &&
		same(f.Match, g.Match) && same(f.Actions, g.Actions)
}

// same is slices.Equal, which is told at a glance where both are one slice: flows are
// compared by the thousand, and few of them ever change.
func same[T comparable](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b))
}

// Key identifies the flow within a switch: table, priority and match.
func (f Flow) Key() string { return string(f.appendKey(make([]byte, 0, 96))) }

// String writes the flow as ovs-ofctl reads it.
func (f Flow) String() string {
	b := make([]byte, 0, 256)
	b = strconv.AppendUint(append(b, "cookie=0x"...), f.Cookie, 16)
	b = f.appendKey(append(b, ", "...))
	b = append(b, " actions="...)
	if len(f.Actions) == 0 {
		return string(append(b, "drop"...))
	}
	for i, a := range f.Actions {
		if i > 0 {
			b = append(b, ',')
		}
		b = a.appendTo(b)
	}
	return string(b)
}

func (f Flow) appendKey(b []byte) []byte {
	b = strconv.AppendUint(append(b, "table="...), uint64(f.Table), 10)
	b = strconv.AppendUint(append(b, ",priority="...), uint64(f.Priority), 10)
	return f.Match.appendTo(b)
}

func (m Match) String() string { return string(m.appendTo(nil)) }

// appendTo writes each condition with a comma before it.
func (m Match) appendTo(b []byte) []byte {
	word, covered := m.protocol()
	if word != "" {
		b = append(append(b, ','), word...)
	}
	for _, t := range m {
		if covered.Has(t.Field) {
			continue
		}
		b = append(append(append(b, ','), t.Field.String()...), '=')
		b = t.Field.appendValue(b, t.Value)
		if t.Mask != t.Field.Ones() {
			b = t.Field.appendMask(append(b, '/'), t.Mask)
		}
	}
	return b
}

// protocol is ovs-ofctl's word for the packets of m, and the fields that the word covers.
func (m Match) protocol() (string, FieldSet) {
	et, ok := m.Get(EthType)
	if !ok {
		return "", 0
	}
	proto, ok := m.Get(IPProto)
	switch {
	case ok && et.Lo == EthIPv4 && proto.Lo == ProtoICMP:
		return "icmp", fieldSet(EthType, IPProto)
	case ok && et.Lo == EthIPv6 && proto.Lo == ProtoICM6:
		return "icmp6", fieldSet(EthType, IPProto)
	case et.Lo == EthIPv4:
		return "ip", fieldSet(EthType)
	case et.Lo == EthIPv6:
		return "ipv6", fieldSet(EthType)
	case et.Lo == EthARP:
		return "arp", fieldSet(EthType)
	}
	return "", 0
}

func (a Action) String() string { return string(a.appendTo(nil)) }

func (a Action) appendTo(b []byte) []byte {
	switch a.Kind {
	case SetKind:
		b = a.Dst.appendValue(append(b, "set_field:"...), a.Value)
		return append(append(b, "->"...), a.Dst.String()...)
	case MoveKind:
		n := min(a.Src.Bits(), a.Dst.Bits())
		b = appendSlice(append(b, "move:"...), a.Src, n)
		return appendSlice(append(b, "->"...), a.Dst, n)
	case DecTTLKind:
		return append(b, "dec_ttl"...)
	case OutputKind:
		return strconv.AppendUint(append(b, "output:"...), uint64(a.Port), 10)
	case ReflectKind:
		return append(b, "IN_PORT"...)
	case GotoKind:
		return strconv.AppendUint(append(b, "goto_table:"...), uint64(a.Table), 10)
	}
	return append(b, "unknown"...)
}

// appendSlice writes the n lowest bits of f as ovs-ofctl's move does.
func appendSlice(b []byte, f Field, n int) []byte {
	if f >= NumFields {
		return append(b, f.String()...)
	}
	b = append(append(b, fieldInfos[f].move...), '[')
	if n < f.Bits() {
		b = strconv.AppendInt(append(b, "0.."...), int64(n-1), 10)
	}
	return append(b, ']')
}
