package openflow

import (
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"

	"antrea.io/libOpenflow/common"
	"antrea.io/libOpenflow/openflow15"

	"heliotrope/flows"
)

// message is one OpenFlow message as it stood on the wire, header included. It is valid
// only until the next one is read.
type message []byte

const headerLen = 8

func (m message) kind() uint8  { return m[1] }
func (m message) xid() uint32  { return binary.BigEndian.Uint32(m[4:]) }
func (m message) body() []byte { return m[headerLen:] }

// Error is an error message of a switch.
type Error struct{ Type, Code uint16 }

func (e *Error) Error() string {
	if name, ok := errorNames[[2]uint16{e.Type, e.Code}]; ok {
		return fmt.Sprintf("switch error %d/%d: %s", e.Type, e.Code, name)
	}
	return fmt.Sprintf("switch error %d/%d: %s", e.Type, e.Code, errorTypes[e.Type])
}

// Is makes a Role with an old generation ID an ErrStale.
func (e *Error) Is(target error) bool {
	return target == ErrStale && e.Type == openflow15.ET_ROLE_REQUEST_FAILED && e.Code == 0
}

// ErrStale is what a switch says to a controller whose generation ID is older than one it has seen.
var ErrStale = errors.New("generation is stale")

var errorTypes = map[uint16]string{
	openflow15.ET_HELLO_FAILED: "hello failed", openflow15.ET_BAD_REQUEST: "bad request", openflow15.ET_BAD_ACTION: "bad action",
	openflow15.ET_BAD_INSTRUCTION: "bad instruction", openflow15.PET_BAD_MATCH: "bad match",
	openflow15.ET_FLOW_MOD_FAILED: "flow change failed", openflow15.ET_ROLE_REQUEST_FAILED: "role request failed",
	openflow15.ET_BUNDLE_FAILED: "bundle failed",
}

var errorNames = map[[2]uint16]string{
	{openflow15.ET_BAD_REQUEST, openflow15.BRC_IS_SLAVE}:        "this controller may only read",
	{openflow15.ET_ROLE_REQUEST_FAILED, 0}:                      "generation is stale",
	{openflow15.ET_FLOW_MOD_FAILED, openflow15.FMFC_TABLE_FULL}: "table is full",
	{openflow15.ET_BUNDLE_FAILED, 13}:                           "a message of the bundle failed",
	{openflow15.ET_BUNDLE_FAILED, 9}:                            "message IDs of the bundle do not fit",
}

// parse lets libOpenflow read a message. It panics on truncated ones.
func parse(m message) (parsed any, err error) {
	defer func() {
		if r := recover(); r != nil {
			parsed, err = nil, fmt.Errorf("parse message of type %d: %v", m.kind(), r)
		}
	}()
	parsed, err = openflow15.Parse(m)
	if err != nil {
		return nil, fmt.Errorf("parse message of type %d: %w", m.kind(), err)
	}
	return parsed, nil
}

// parseError reads an error message.
func parseError(m message) error {
	parsed, err := parse(m)
	if err != nil {
		return err
	}
	switch e := parsed.(type) {
	case *openflow15.ErrorMsg:
		return &Error{e.Type, e.Code}
	case *openflow15.VendorError:
		return &Error{e.Type, e.Code}
	}
	return fmt.Errorf("parse error message: it is a %T", parsed)
}

// encode lets libOpenflow write a message, and gives it its ID.
func encode(m encoding.BinaryMarshaler, xid uint32) ([]byte, error) {
	b, err := m.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", m, err)
	}
	binary.BigEndian.PutUint32(b[4:], xid)
	return b, nil
}

// plain is a message without a body.
func plain(kind uint8, xid uint32) []byte {
	h := common.Header{Version: openflow15.VERSION, Type: kind, Length: headerLen, Xid: xid}
	b, _ := h.MarshalBinary() // writes eight bytes; cannot fail
	return b
}

// hello says that we speak OpenFlow 1.5 and nothing else.
func hello() ([]byte, error) {
	e := common.NewHelloElemVersionBitmap()
	e.Bitmaps = []uint32{1 << openflow15.VERSION}
	h := common.Hello{Header: common.Header{Version: openflow15.VERSION, Type: openflow15.Type_Hello}, Elements: []common.HelloElem{e}}
	return encode(&h, 0)
}

// checkHello says whether the peer that sent m speaks OpenFlow 1.5. libOpenflow never
// ends on an element that it does not know, so this is read here.
func checkHello(m message) error {
	if m.kind() == openflow15.Type_Error {
		return parseError(m)
	}
	if m.kind() != openflow15.Type_Hello {
		return fmt.Errorf("first message is of type %d, not a hello", m.kind())
	}
	for b := m.body(); len(b) >= 4; {
		n := int(binary.BigEndian.Uint16(b[2:]))
		if n < 4 || n > len(b) {
			return errShort
		}
		if binary.BigEndian.Uint16(b) == common.HelloElemType_VersionBitmap && n >= 8 {
			if binary.BigEndian.Uint32(b[4:])&(1<<openflow15.VERSION) == 0 {
				return errors.New("switch does not speak OpenFlow 1.5")
			}
			return nil
		}
		b = b[min((n+7)/8*8, len(b)):]
	}
	if m[0] != openflow15.VERSION {
		return fmt.Errorf("switch speaks OpenFlow version 0x%02x, not 1.5 (0x06)", m[0])
	}
	return nil
}

// flowMod is one change of a flow. raw, if there, is the match to use instead of the flow's.
type flowMod struct {
	command uint8
	flow    flows.Flow
	raw     []byte
}

// appendFlowMod appends the message for m. A deletion touches only a flow that is ours.
func appendFlowMod(b []byte, m flowMod, xid uint32) []byte {
	start := len(b)
	cookie, mask := m.flow.Cookie, uint64(0)
	if m.command == openflow15.FC_DELETE_STRICT {
		cookie, mask = flows.Owner, flows.OwnerMask
	}
	b = append(b, openflow15.VERSION, openflow15.Type_FlowMod, 0, 0)
	b = binary.BigEndian.AppendUint32(b, xid)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, mask)
	b = append(b, uint8(m.flow.Table), m.command, 0, 0, 0, 0) // no timeouts
	b = binary.BigEndian.AppendUint16(b, m.flow.Priority)
	b = binary.BigEndian.AppendUint32(b, noBuffer)
	b = binary.BigEndian.AppendUint32(b, openflow15.P_ANY)
	b = binary.BigEndian.AppendUint32(b, openflow15.OFPG_ANY)
	b = append(b, 0, 0, 0, 0) // flags, importance
	if m.raw != nil {
		b = append(b, m.raw...)
	} else {
		b = appendMatch(b, m.flow.Match)
	}
	if m.command != openflow15.FC_DELETE_STRICT {
		b = appendInstructions(b, m.flow.Actions)
	}
	binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start))
	return b
}

// appendBundled appends the message that puts a change into a bundle.
func appendBundled(b []byte, m flowMod, bundle, xid uint32) []byte {
	start := len(b)
	b = append(b, openflow15.VERSION, openflow15.Type_BundleAddMessage, 0, 0)
	b = binary.BigEndian.AppendUint32(b, xid)
	b = binary.BigEndian.AppendUint32(b, bundle)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, bundleFlags)
	b = appendFlowMod(b, m, xid) // a switch wants the same ID inside as outside
	binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start))
	return b
}
