package openflow

import (
	"encoding/binary"
	"errors"
	"fmt"

	"antrea.io/libOpenflow/openflow15"

	"heliotrope/flows"
)

// oxm is how a field is named on the wire: its class, its number and its value's bytes.
type oxm struct {
	class uint16
	field uint8
	bytes int
}

// The class of the two Ericsson fields of a neighbour message, which Open vSwitch has.
const classEricsson = 0x1000

// Numbers of OpenFlow 1.5 that libOpenflow does not have.
const (
	actionCopyField = 28
	noBuffer        = 0xffffffff
)

var oxms = [flows.NumFields]oxm{
	flows.InPort:     {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_IN_PORT, 4},
	flows.TunID:      {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_TUNNEL_ID, 8},
	flows.TunDst:     {openflow15.OXM_CLASS_NXM_1, openflow15.NXM_NX_TUN_IPV4_DST, 4},
	flows.TunDst6:    {openflow15.OXM_CLASS_NXM_1, openflow15.NXM_NX_TUN_IPV6_DST, 16},
	flows.Net:        {openflow15.OXM_CLASS_NXM_1, openflow15.NXM_NX_REG0, 4},
	flows.Domain:     {openflow15.OXM_CLASS_NXM_1, openflow15.NXM_NX_REG1, 4},
	flows.Side:       {openflow15.OXM_CLASS_NXM_1, openflow15.NXM_NX_REG2, 4},
	flows.OutPort:    {openflow15.OXM_CLASS_NXM_1, openflow15.NXM_NX_REG3, 4},
	flows.EthSrc:     {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_ETH_SRC, 6},
	flows.EthDst:     {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_ETH_DST, 6},
	flows.VLAN:       {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_VLAN_VID, 2},
	flows.EthType:    {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_ETH_TYPE, 2},
	flows.IPProto:    {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_IP_PROTO, 1},
	flows.TTL:        {openflow15.OXM_CLASS_NXM_1, openflow15.NXM_NX_IP_TTL, 1},
	flows.IPSrc:      {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_IPV4_SRC, 4},
	flows.IPDst:      {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_IPV4_DST, 4},
	flows.IP6Src:     {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_IPV6_SRC, 16},
	flows.IP6Dst:     {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_IPV6_DST, 16},
	flows.ICMPType:   {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_ICMPV4_TYPE, 1},
	flows.ICMP6Type:  {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_ICMPV6_TYPE, 1},
	flows.ARPOp:      {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_ARP_OP, 2},
	flows.ARPSPA:     {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_ARP_SPA, 4},
	flows.ARPTPA:     {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_ARP_TPA, 4},
	flows.ARPSHA:     {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_ARP_SHA, 6},
	flows.ARPTHA:     {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_ARP_THA, 6},
	flows.NDTarget:   {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_IPV6_ND_TARGET, 16},
	flows.NDSLL:      {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_IPV6_ND_SLL, 6},
	flows.NDTLL:      {openflow15.OXM_CLASS_OPENFLOW_BASIC, openflow15.OXM_FIELD_IPV6_ND_TLL, 6},
	flows.NDReserved: {classEricsson, 1, 4},
	flows.NDOption:   {classEricsson, 2, 1},
}

// fieldOf finds a field by its class and number.
var fieldOf = func() map[uint32]flows.Field {
	m := make(map[uint32]flows.Field, len(oxms))
	for f, o := range oxms {
		m[uint32(o.class)<<8|uint32(o.field)] = flows.Field(f)
	}
	return m
}()

var (
	errShort   = errors.New("message is cut short")
	errUnknown = errors.New("not in our vocabulary")
)

func appendHeader(b []byte, f flows.Field, masked bool) []byte {
	o := oxms[f]
	n, bit := o.bytes, uint8(0)
	if masked {
		n, bit = 2*n, 1
	}
	b = binary.BigEndian.AppendUint16(b, o.class)
	return append(b, o.field<<1|bit, uint8(n))
}

// appendValue appends the n lowest bytes of v.
func appendValue(b []byte, v flows.Value, n int) []byte {
	var all [16]byte
	binary.BigEndian.PutUint64(all[:8], v.Hi)
	binary.BigEndian.PutUint64(all[8:], v.Lo)
	return append(b, all[16-n:]...)
}

func value(b []byte) flows.Value {
	var all [16]byte
	copy(all[16-len(b):], b)
	return flows.Value{Hi: binary.BigEndian.Uint64(all[:8]), Lo: binary.BigEndian.Uint64(all[8:])}
}

// pad appends zeros until what follows b[start:] is aligned to 8 bytes.
func pad(b []byte, start int) []byte {
	for (len(b)-start)%8 != 0 {
		b = append(b, 0)
	}
	return b
}

func appendMatch(b []byte, m flows.Match) []byte {
	start := len(b)
	b = append(b, 0, openflow15.MatchType_OXM, 0, 0)
	for _, t := range m {
		masked := t.Mask != t.Field.Ones()
		b = appendHeader(b, t.Field, masked)
		b = appendValue(b, t.Value, oxms[t.Field].bytes)
		if masked {
			b = appendValue(b, t.Mask, oxms[t.Field].bytes)
		}
	}
	binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start)) // without the padding
	return pad(b, start)
}

// cutMatch splits the match off b. raw is the match as it stood there, padding included.
func cutMatch(b []byte) (raw, rest []byte, err error) {
	if len(b) < 4 {
		return nil, nil, errShort
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	padded := (n + 7) / 8 * 8
	if n < 4 || padded > len(b) {
		return nil, nil, errShort
	}
	return b[:padded], b[padded:], nil
}

func decodeMatch(raw []byte) (flows.Match, error) {
	if binary.BigEndian.Uint16(raw) != openflow15.MatchType_OXM {
		return nil, errUnknown
	}
	m := make(flows.Match, 0, 8) // few have more
	for b := raw[4:binary.BigEndian.Uint16(raw[2:])]; len(b) > 0; {
		if len(b) < 4 || len(b) < 4+int(b[3]) {
			return nil, errShort
		}
		var err error
		if m, err = appendTerm(m, b[:4], b[4:4+int(b[3])]); err != nil {
			return nil, err
		}
		b = b[4+int(b[3]):]
	}
	return flows.When(m...), nil
}

// appendTerm appends what one TLV of a match asks to m.
func appendTerm(m flows.Match, header, body []byte) (flows.Match, error) {
	if binary.BigEndian.Uint16(header) == openflow15.OXM_CLASS_PACKET_REGS {
		return appendRegisters(m, header, body)
	}
	f, masked, err := decodeHeader(header)
	if err != nil {
		return nil, err
	}
	t := flows.Term{Field: f, Mask: f.Ones()}
	if masked {
		t.Mask = value(body[len(body)/2:])
		body = body[:len(body)/2]
	}
	t.Value = value(body)
	return append(m, t), nil
}

// decodeHeader reads which field a TLV is about and whether a mask follows its value.
func decodeHeader(h []byte) (f flows.Field, masked bool, err error) {
	f, ok := fieldOf[uint32(binary.BigEndian.Uint16(h))<<8|uint32(h[2]>>1)]
	if !ok {
		return 0, false, fmt.Errorf("field %x: %w", h, errUnknown)
	}
	masked = h[2]&1 == 1
	want := oxms[f].bytes
	if masked {
		want *= 2
	}
	if int(h[3]) != want {
		return 0, false, fmt.Errorf("field %v of %d bytes: %w", f, h[3], errUnknown)
	}
	return f, masked, nil
}

// appendRegisters appends what one TLV of a 64-bit packet register asks to m. An OpenFlow
// 1.5 switch writes two of our registers as one of these.
func appendRegisters(m flows.Match, header, body []byte) (flows.Match, error) {
	pair := header[2] >> 1
	if pair > 1 || (header[2]&1 == 0 && len(body) != 8) || (header[2]&1 == 1 && len(body) != 16) {
		return nil, fmt.Errorf("field %x: %w", header, errUnknown)
	}
	for i := range 2 {
		t := flows.Term{Field: flows.Net + flows.Field(2*int(pair)+i), Value: value(body[4*i : 4*i+4])}
		t.Mask = t.Field.Ones()
		if len(body) == 16 {
			t.Mask = value(body[8+4*i : 12+4*i])
		}
		if t.Mask != (flows.Value{}) {
			m = append(m, t)
		}
	}
	return m, nil
}

func appendInstructions(b []byte, actions []flows.Action) []byte {
	apply := actions
	last := len(actions) - 1
	hasGoto := last >= 0 && actions[last].Kind == flows.GotoKind
	if hasGoto {
		apply = actions[:last]
	}
	if len(apply) > 0 {
		start := len(b)
		b = append(b, 0, openflow15.InstrType_APPLY_ACTIONS, 0, 0, 0, 0, 0, 0)
		for _, a := range apply {
			b = appendAction(b, a)
		}
		binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start))
	}
	if hasGoto {
		b = append(b, 0, openflow15.InstrType_GOTO_TABLE, 0, 8, uint8(actions[last].Table), 0, 0, 0)
	}
	return b
}

func appendAction(b []byte, a flows.Action) []byte {
	start := len(b)
	kind := func(t uint16) { b = append(binary.BigEndian.AppendUint16(b, t), 0, 0) }
	switch a.Kind {
	case flows.SetKind:
		kind(openflow15.ActionType_SetField)
		b = appendHeader(b, a.Dst, false)
		b = appendValue(b, a.Value, oxms[a.Dst].bytes)
	case flows.MoveKind:
		kind(actionCopyField)
		b = binary.BigEndian.AppendUint16(b, uint16(min(a.Src.Bits(), a.Dst.Bits())))
		b = append(b, 0, 0, 0, 0, 0, 0) // both offsets, padding
		b = appendHeader(b, a.Src, false)
		b = appendHeader(b, a.Dst, false)
	case flows.DecTTLKind:
		kind(openflow15.ActionType_DecNwTtl)
	case flows.OutputKind:
		kind(openflow15.ActionType_Output)
		b = binary.BigEndian.AppendUint32(b, a.Port)
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	case flows.ReflectKind:
		kind(openflow15.ActionType_Output)
		b = binary.BigEndian.AppendUint32(b, openflow15.P_IN_PORT)
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	b = pad(b, start)
	binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start))
	return b
}

// nextTLV splits off b what starts with a type and a length of 2 bytes each.
func nextTLV(b []byte) (kind uint16, body, rest []byte, err error) {
	if len(b) < 8 {
		return 0, nil, nil, errShort
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	if n < 8 || n%8 != 0 || n > len(b) {
		return 0, nil, nil, errShort
	}
	return binary.BigEndian.Uint16(b), b[4:n], b[n:], nil
}

func decodeInstructions(b []byte) ([]flows.Action, error) {
	var actions []flows.Action
	for len(b) > 0 {
		kind, body, rest, err := nextTLV(b)
		if err != nil {
			return nil, err
		}
		if n := len(actions); n > 0 && actions[n-1].Kind == flows.GotoKind {
			return nil, errUnknown
		}
		switch kind {
		case openflow15.InstrType_APPLY_ACTIONS:
			for acts := body[4:]; len(acts) > 0; {
				var a flows.Action
				if a, acts, err = decodeAction(acts); err != nil {
					return nil, err
				}
				actions = append(actions, a)
			}
		case openflow15.InstrType_GOTO_TABLE:
			actions = append(actions, flows.Goto(flows.TableID(body[0])))
		default:
			return nil, fmt.Errorf("instruction %d: %w", kind, errUnknown)
		}
		b = rest
	}
	return actions, nil
}

func decodeAction(b []byte) (a flows.Action, rest []byte, err error) {
	kind, body, rest, err := nextTLV(b)
	if err != nil {
		return a, nil, err
	}
	switch {
	case kind == openflow15.ActionType_SetField:
		f, masked, err := decodeHeader(body[:4])
		if err != nil || masked || 4+oxms[f].bytes > len(body) {
			return a, nil, errors.Join(errUnknown, err)
		}
		return flows.SetField(f, value(body[4:4+oxms[f].bytes])), rest, nil
	case kind == actionCopyField && len(body) >= 16:
		a, err = decodeMove(body)
		return a, rest, err
	case kind == openflow15.ActionType_DecNwTtl:
		return flows.DecTTL(), rest, nil
	case kind == openflow15.ActionType_Output && len(body) >= 12:
		if port := binary.BigEndian.Uint32(body); port != openflow15.P_IN_PORT {
			return flows.OutputTo(port), rest, nil
		}
		return flows.Reflect(), rest, nil
	}
	return a, nil, fmt.Errorf("action %d: %w", kind, errUnknown)
}

func decodeMove(body []byte) (flows.Action, error) {
	src, masked1, err1 := decodeHeader(body[8:12])
	dst, masked2, err2 := decodeHeader(body[12:16])
	if err := errors.Join(err1, err2); err != nil {
		return flows.Action{}, err
	}
	bits, offsets := binary.BigEndian.Uint16(body), binary.BigEndian.Uint32(body[2:])
	if masked1 || masked2 || offsets != 0 || int(bits) != min(src.Bits(), dst.Bits()) {
		return flows.Action{}, fmt.Errorf("copy of part of a field: %w", errUnknown)
	}
	return flows.MoveField(src, dst), nil
}
