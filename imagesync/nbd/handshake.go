package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
)

const (
	optionLimit = 64 << 10 // bytes, of what is read of an option; what is longer is refused
	nameLimit   = 4096     // bytes, of the protocol's strings
)

// handshake is what a client and the server agree on.
type handshake struct {
	server *Server
	conn   net.Conn // TLS, once that has begun
	secure bool
	out    []byte // replies to the option at hand

	noZeroes   bool // the client needs no padding
	structured bool
	contexts   []uint32 // chosen metadata contexts, by number
	chosenFor  string   // the export that they were chosen for

	name   string // of the export
	export Export
	opened bool
}

// errRefused ends an option that has been answered with an error; the client may go on.
var errRefused = errors.New("option refused")

// run shakes hands until the client has an export. It returns false without an error where
// the client only had a look.
func (h *handshake) run(ctx context.Context) (agreed bool, err error) {
	if err := h.greet(); err != nil {
		if gone(err) {
			return false, nil // somebody tried whether anyone listens
		}
		return false, fmt.Errorf("greet NBD client: %w", err)
	}
	for {
		option, body, err := h.option()
		if gone(err) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read NBD option: %w", err)
		}
		if option == optAbort {
			h.reply(option, repAck)
			h.send() // the client need not wait for it
			return false, nil
		}
		agreed, err := h.answer(ctx, option, body)
		if err != nil && !errors.Is(err, errRefused) {
			return false, fmt.Errorf("answer NBD option %d: %w", option, err)
		}
		if err := h.send(); err != nil {
			if gone(err) {
				return false, nil
			}
			return false, fmt.Errorf("answer NBD option %d: %w", option, err)
		}
		if agreed {
			return true, nil
		}
	}
}

func (h *handshake) greet() error {
	b := binary.BigEndian.AppendUint64(nil, magicServer)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint16(b, handshakeFixed|handshakeNoZeroes)
	if _, err := h.conn.Write(b); err != nil {
		return err
	}
	var client [4]byte
	if _, err := io.ReadFull(h.conn, client[:]); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(client[:])
	if unknown := flags &^ (handshakeFixed | handshakeNoZeroes); unknown != 0 {
		return fmt.Errorf("it has flags that nobody offered: %#x", unknown)
	}
	h.noZeroes = flags&handshakeNoZeroes != 0
	return nil
}

// option reads one option. Nothing behind it is read: it may be the beginning of TLS. The
// body of one that is too long is nil.
func (h *handshake) option() (option uint32, body []byte, err error) {
	var head [16]byte
	if _, err := io.ReadFull(h.conn, head[:]); err != nil {
		return 0, nil, err
	}
	if magic := binary.BigEndian.Uint64(head[:]); magic != magicOption {
		return 0, nil, fmt.Errorf("magic %#x", magic)
	}
	option = binary.BigEndian.Uint32(head[8:])
	n := binary.BigEndian.Uint32(head[12:])
	if n > optionLimit {
		_, err := io.CopyN(io.Discard, h.conn, int64(n)) // for no longer than a handshake may take
		return option, nil, err
	}
	body = make([]byte, n)
	_, err = io.ReadFull(h.conn, body)
	return option, body, err
}

// answer answers one option; agreed says that requests begin.
func (h *handshake) answer(ctx context.Context, option uint32, body []byte) (agreed bool, err error) {
	plain := h.server.tls != nil && !h.secure
	switch {
	case option == optExportName && (plain || body == nil):
		return false, errors.New("the client asks for an export in a way that cannot be refused") // the protocol has no reply to it
	case plain && option != optStartTLS:
		return false, h.refuse(option, repErrTLSRequired, "this server speaks TLS only")
	case body == nil:
		return false, h.refuse(option, repErrTooBig, fmt.Sprintf("an option may have %d bytes", optionLimit))
	}
	switch option {
	case optExportName:
		return true, h.exportName(ctx, string(body))
	case optList:
		return false, h.list(ctx, body)
	case optStartTLS:
		return false, h.startTLS(ctx, body)
	case optInfo, optGo:
		err := h.info(ctx, option, body)
		return err == nil && option == optGo, err
	case optStructuredReply:
		if len(body) > 0 {
			return false, h.refuse(option, repErrInvalid, "this option has no data")
		}
		h.structured = true
		h.reply(option, repAck)
		return false, nil
	case optListMeta, optSetMeta:
		return false, h.meta(ctx, option, body)
	}
	return false, h.refuse(option, repErrUnsupported, "")
}

// reply adds a reply.
func (h *handshake) reply(option, kind uint32, payload ...byte) {
	h.out = binary.BigEndian.AppendUint64(h.out, magicReply)
	for _, n := range []uint32{option, kind, uint32(len(payload))} {
		h.out = binary.BigEndian.AppendUint32(h.out, n)
	}
	h.out = append(h.out, payload...)
}

func (h *handshake) refuse(option, kind uint32, why string) error {
	h.reply(option, kind, []byte(why)...)
	return errRefused
}

func (h *handshake) send() error {
	_, err := h.conn.Write(h.out)
	h.out = nil
	return err
}

func (h *handshake) release() {
	if h.opened {
		h.export.release()
	}
}

// open opens an export; the error has been said to the client's peer only.
func (h *handshake) open(ctx context.Context, name string) (Export, error) {
	if len(name) > nameLimit {
		return Export{}, ErrNoExport
	}
	e, err := h.server.exports.Export(ctx, name)
	if err != nil {
		if !errors.Is(err, ErrNoExport) {
			h.server.log.Error("cannot open an export", "export", name, "error", err)
		}
		return Export{}, err
	}
	if size := e.Device.Size(); size < 0 {
		e.release()
		return Export{}, fmt.Errorf("a device of %d bytes", size)
	}
	return e, nil
}

func (h *handshake) agree(name string, e Export) {
	h.name, h.export, h.opened = name, e, true
	if h.chosenFor != name {
		h.contexts = nil
	}
}

// exportName is the option of old clients.
func (h *handshake) exportName(ctx context.Context, name string) error {
	e, err := h.open(ctx, name)
	if err != nil {
		return err
	}
	h.out = binary.BigEndian.AppendUint64(h.out, uint64(e.Device.Size()))
	h.out = binary.BigEndian.AppendUint16(h.out, e.flags(h.structured))
	if !h.noZeroes {
		h.out = append(h.out, make([]byte, 124)...)
	}
	h.agree(name, e)
	return nil
}

func (h *handshake) list(ctx context.Context, body []byte) error {
	if len(body) > 0 {
		return h.refuse(optList, repErrInvalid, "this option has no data")
	}
	names, err := h.server.exports.Names(ctx)
	if err != nil {
		h.server.log.Error("cannot list exports", "error", err)
		return h.refuse(optList, repErrPolicy, "exports cannot be listed now")
	}
	for _, name := range names {
		h.reply(optList, repServer, append(binary.BigEndian.AppendUint32(nil, uint32(len(name))), name...)...)
	}
	h.reply(optList, repAck)
	return nil
}

func (h *handshake) startTLS(ctx context.Context, body []byte) error {
	switch {
	case len(body) > 0 || h.secure:
		return h.refuse(optStartTLS, repErrInvalid, "TLS begins once, and without data")
	case h.server.tls == nil:
		return h.refuse(optStartTLS, repErrPolicy, "this server does not speak TLS")
	}
	h.reply(optStartTLS, repAck)
	if err := h.send(); err != nil {
		return err
	}
	conn := tls.Server(h.conn, h.server.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("start TLS: %w", err)
	}
	h.conn, h.secure = conn, true
	return nil
}

// info answers NBD_OPT_INFO and NBD_OPT_GO.
func (h *handshake) info(ctx context.Context, option uint32, body []byte) error {
	p := parser{body}
	name := p.text()
	var asked []uint16
	for range p.uint16() {
		asked = append(asked, p.uint16())
		if p.failed() {
			break
		}
	}
	if !p.done() {
		return h.refuse(option, repErrInvalid, "malformed")
	}
	e, err := h.open(ctx, name)
	if err != nil {
		return h.refuse(option, repErrUnknown, "there is no such export")
	}
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Device.Size()))
	h.reply(option, repInfo, binary.BigEndian.AppendUint16(b, e.flags(h.structured))...)
	b = binary.BigEndian.AppendUint16(nil, infoBlockSize)
	for _, n := range []uint32{minBlock, preferredBlock, MaxRequest} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	h.reply(option, repInfo, b...)
	if slices.Contains(asked, infoName) {
		h.reply(option, repInfo, append([]byte{0, infoName}, name...)...)
	}
	if slices.Contains(asked, infoDescription) && e.Description != "" {
		h.reply(option, repInfo, append([]byte{0, infoDescription}, e.Description[:min(len(e.Description), nameLimit)]...)...)
	}
	h.reply(option, repAck)
	if option == optInfo {
		e.release()
		return nil
	}
	h.agree(name, e)
	return nil
}

// meta lists metadata contexts, or sets those that the client wants.
func (h *handshake) meta(ctx context.Context, option uint32, body []byte) error {
	if option == optSetMeta {
		h.contexts, h.chosenFor = nil, ""
	}
	p := parser{body}
	name := p.text()
	n := p.uint32()
	var queries []string
	for range n {
		queries = append(queries, p.text())
		if p.failed() {
			break
		}
	}
	switch {
	case !p.done():
		return h.refuse(option, repErrInvalid, "malformed")
	case !h.structured:
		return h.refuse(option, repErrInvalid, "metadata needs structured replies")
	}
	e, err := h.open(ctx, name)
	if err != nil {
		return h.refuse(option, repErrUnknown, "there is no such export")
	}
	defer e.release()
	there := []uint32{idAllocation}
	if _, ok := e.Device.(Tracker); ok {
		there = append(there, idDirty)
	}
	for _, id := range there {
		context := contextName(id)
		if !slices.ContainsFunc(queries, func(q string) bool { return matches(context, q, option == optListMeta) }) && (option == optSetMeta || n > 0) {
			continue
		}
		h.reply(option, repMetaContext, append(binary.BigEndian.AppendUint32(nil, id), context...)...)
		if option == optSetMeta {
			h.contexts = append(h.contexts, id)
		}
	}
	h.reply(option, repAck)
	if option == optSetMeta {
		h.chosenFor = name
	}
	return nil
}

func contextName(id uint32) string {
	if id == idDirty {
		return contextDirty
	}
	return contextAllocation
}

// matches says whether a query means a context. A list may ask for all of a namespace, as
// "base:".
func matches(context, query string, list bool) bool {
	space, _, _ := strings.Cut(context, ":")
	return query == context || list && query == space+":"
}

// parser takes an option's data apart. What is missing reads as nothing.
type parser struct{ rest []byte }

// failed says that there was less than was asked for.
func (p *parser) failed() bool { return p.rest == nil }

// done says that all has been read, and was there.
func (p *parser) done() bool { return p.rest != nil && len(p.rest) == 0 }

func (p *parser) take(n uint32) []byte {
	if uint64(len(p.rest)) < uint64(n) {
		p.rest = nil
		return nil
	}
	b := p.rest[:n]
	p.rest = p.rest[n:]
	return b
}

func (p *parser) uint16() uint16 {
	if b := p.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (p *parser) uint32() uint32 {
	if b := p.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (p *parser) text() string { return string(p.take(p.uint32())) }
