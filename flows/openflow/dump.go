package openflow

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"antrea.io/libOpenflow/common"
	"antrea.io/libOpenflow/openflow15"
	"antrea.io/libOpenflow/util"

	"heliotrope"
	"heliotrope/flows"
)

// Counter counts packets and bytes.
type Counter struct{ Packets, Bytes uint64 }

// Port is a port of the switch.
type Port struct {
	Number uint32
	Name   string
	MAC    heliotrope.MAC
	Up     bool // link and configuration
}

// PortCounter counts what went through a port. Rx came into the switch.
type PortCounter struct {
	Rx, Tx                                   Counter
	RxDropped, TxDropped, RxErrors, TxErrors uint64
}

// Stats are a switch's counters since its flows and ports were made.
type Stats struct {
	Flows map[uint64]Counter // by cookie, all flows of one cookie together
	Ports map[uint32]PortCounter
}

// entry is one flow of a dump. Where flow's match or actions cannot be read, bad says why.
type entry struct {
	flow flows.Flow
	raw  []byte // the match
	bad  error
	hits Counter
	age  time.Duration
}

// DumpFlows returns all flows of the switch that are ours, and how many others it has.
// A flow that bears our mark but is in no vocabulary of ours counts as one of the others.
func (c *Conn) DumpFlows(ctx context.Context) (ours []flows.Flow, foreign int, err error) {
	entries, err := c.dump(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, e := range entries {
		if flows.Owned(e.flow.Cookie) && e.bad == nil {
			ours = append(ours, e.flow)
		} else {
			foreign++
		}
	}
	return ours, foreign, nil
}

func (c *Conn) dump(ctx context.Context) ([]entry, error) {
	request := openflow15.NewFlowStatsRequest()
	request.TableId = openflow15.OFPTT_ALL
	var all []entry
	err := c.flows(ctx, request, func(e entry) { all = append(all, e) })
	if err != nil {
		return nil, fmt.Errorf("dump flows: %w", err)
	}
	return all, nil
}

// flows gives each flow that the request asks for.
func (c *Conn) flows(ctx context.Context, request *openflow15.FlowStatsRequest, each func(entry)) error {
	return c.multipart(ctx, openflow15.MultipartType_FlowDesc, request, func(b []byte) (int, error) {
		return nextEntry(b, each)
	})
}

// nextEntry gives the first flow in b and returns its length.
func nextEntry(b []byte, each func(entry)) (int, error) {
	if len(b) < 2 {
		return 0, errShort
	}
	n := int(binary.BigEndian.Uint16(b))
	if n > len(b) {
		return 0, errShort
	}
	e, err := decodeEntry(b[:n])
	if err == nil {
		each(e)
	}
	return n, err
}

// flowDescLen is the length of a flow's description before its match.
const flowDescLen = 24

// decodeEntry reads one flow. An error means that b makes no sense at all.
func decodeEntry(b []byte) (e entry, err error) {
	if len(b) < flowDescLen {
		return e, errShort
	}
	e.flow.Table, e.flow.Priority = flows.TableID(b[4]), binary.BigEndian.Uint16(b[6:])
	e.flow.Cookie = binary.BigEndian.Uint64(b[16:])
	match, rest, err := cutMatch(b[flowDescLen:])
	if err != nil {
		return e, fmt.Errorf("match: %w", err)
	}
	stats, instructions, err := cutMatch(rest) // has the same frame
	if err != nil {
		return e, fmt.Errorf("statistics: %w", err)
	}
	e.hits, e.age = decodeStatistics(stats)
	if e.flow.Match, e.bad = decodeMatch(match); e.bad == nil {
		e.flow.Actions, e.bad = decodeInstructions(instructions)
	}
	if e.bad == nil && binary.BigEndian.Uint64(b[8:]) != 0 {
		e.bad = fmt.Errorf("timeouts, flags or importance: %w", errUnknown)
	}
	if e.bad != nil {
		e.raw = bytes.Clone(match)
	}
	return e, nil
}

// decodeStatistics finds packet and byte counts and the duration among a flow's statistics.
func decodeStatistics(b []byte) (hits Counter, age time.Duration) {
	b = b[4:min(int(binary.BigEndian.Uint16(b[2:])), len(b))]
	for len(b) >= 4 && len(b) >= 4+int(b[3]) {
		body := b[4 : 4+int(b[3])]
		if binary.BigEndian.Uint16(b) == openflow15.XSC_OPENFLOW_BASIC && len(body) == 8 {
			switch b[2] >> 1 {
			case openflow15.XST_OFB_DURATION: // seconds and nanoseconds
				age = time.Duration(binary.BigEndian.Uint32(body))*time.Second + time.Duration(binary.BigEndian.Uint32(body[4:]))
			case openflow15.XST_OFB_PACKET_COUNT:
				hits.Packets = binary.BigEndian.Uint64(body)
			case openflow15.XST_OFB_BYTE_COUNT:
				hits.Bytes = binary.BigEndian.Uint64(body)
			}
		}
		b = b[4+len(body):]
	}
	return hits, age
}

// multipart asks for a list and gives what is left of each part to next, which says how
// many bytes its first element has.
func (c *Conn) multipart(ctx context.Context, kind uint16, body util.Message, next func([]byte) (int, error)) error {
	return c.call(ctx, func(xid uint32) ([]byte, error) {
		h := common.Header{Version: openflow15.VERSION, Type: openflow15.Type_MultiPartRequest}
		return encode(&openflow15.MultipartRequest{Header: h, Type: kind, Body: []util.Message{body}}, xid)
	}, func(m message) (bool, error) {
		if err := eachPart(m, kind, next); err != nil {
			return false, err
		}
		return binary.BigEndian.Uint16(m.body()[2:])&openflow15.OFPMPF_REPLY_MORE == 0, nil
	})
}

// eachPart gives next what is left of a reply's part until nothing is.
func eachPart(m message, kind uint16, next func([]byte) (int, error)) error {
	b := m.body()
	if m.kind() != openflow15.Type_MultiPartReply || len(b) < 8 || binary.BigEndian.Uint16(b) != kind {
		return unexpected(m)
	}
	for b = b[8:]; len(b) > 0; {
		n, err := next(b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

const (
	portLen      = 40 // without properties
	portStatsLen = 80
)

// Ports lists the ports of the switch.
func (c *Conn) Ports(ctx context.Context) ([]Port, error) {
	var ports []Port
	request := openflow15.NewPortMultipartRequest(openflow15.P_ANY)
	err := c.multipart(ctx, openflow15.MultipartType_PortDesc, request, func(b []byte) (int, error) {
		if len(b) < portLen {
			return 0, errShort
		}
		n := int(binary.BigEndian.Uint16(b[4:]))
		if n < portLen || n > len(b) {
			return 0, errShort
		}
		name, _, _ := bytes.Cut(b[16:32], []byte{0})
		config, state := binary.BigEndian.Uint32(b[32:]), binary.BigEndian.Uint32(b[36:])
		ports = append(ports, Port{Number: binary.BigEndian.Uint32(b), Name: string(name), MAC: heliotrope.MAC(b[8:14]),
			Up: config&openflow15.PC_PORT_DOWN == 0 && state&openflow15.PS_LINK_DOWN == 0})
		return n, nil
	})
	if err != nil {
		return nil, fmt.Errorf("list ports: %w", err)
	}
	return ports, nil
}

// Stats reads the switch's counters.
func (c *Conn) Stats(ctx context.Context) (Stats, error) {
	s := Stats{Flows: map[uint64]Counter{}, Ports: map[uint32]PortCounter{}}
	entries, err := c.dump(ctx)
	if err != nil {
		return Stats{}, err
	}
	for _, e := range entries {
		sum := s.Flows[e.flow.Cookie]
		s.Flows[e.flow.Cookie] = Counter{sum.Packets + e.hits.Packets, sum.Bytes + e.hits.Bytes}
	}
	request := openflow15.NewPortStatsRequest(openflow15.P_ANY)
	err = c.multipart(ctx, openflow15.MultipartType_Port, request, func(b []byte) (int, error) {
		if len(b) < portStatsLen {
			return 0, errShort
		}
		n := int(binary.BigEndian.Uint16(b))
		if n < portStatsLen || n > len(b) {
			return 0, errShort
		}
		count := func(i int) uint64 { return binary.BigEndian.Uint64(b[16+8*i:]) }
		s.Ports[binary.BigEndian.Uint32(b[4:])] = PortCounter{
			Rx: Counter{count(0), count(2)}, Tx: Counter{count(1), count(3)},
			RxDropped: count(4), TxDropped: count(5), RxErrors: count(6), TxErrors: count(7)}
		return n, nil
	})
	if err != nil {
		return Stats{}, fmt.Errorf("read port counters: %w", err)
	}
	return s, nil
}
