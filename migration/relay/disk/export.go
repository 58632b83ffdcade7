package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Export is a disk as its NBD server's handshake tells of it.
type Export struct {
	Name       string    `json:"name"`
	Size       uint64    `json:"size"` // bytes
	Flags      uint16    `json:"flags"`
	Blocks     [3]uint32 `json:"blocks"`     // bytes: the least that a request may have, what suits, the most; 0: it did not say
	Structured bool      `json:"structured"` // its replies are structured ones
	Allocation bool      `json:"allocation"` // it tells what is allocated, in the context of this number
	Context    uint32    `json:"context"`
	Zeros      bool      `json:"zeros"` // all of it is
}

const (
	allocation = "base:allocation" // the context
	MaxExports = 256               // of a server, and chunks of one reply
	maxName    = 256               // bytes
)

// openExport is a client's part of the handshake.
func openExport(server io.ReadWriter, n int) (e Export, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open NBD export %d: %w", n, noEOF(err))
		}
	}()
	var greeting [nbdGreeting]byte
	if _, err := io.ReadFull(server, greeting[:]); err != nil {
		return e, err
	}
	if flags := greeting[nbdGreeting-1]; string(greeting[:16]) != nbdWelcome || flags&nbdFixedNewstyle == 0 {
		return e, errors.New("the server's greeting is not of the fixed newstyle")
	}
	if _, err := server.Write(binary.BigEndian.AppendUint32(nil, uint32(greeting[nbdGreeting-1]&(nbdFixedNewstyle|nbdNoZeroes)))); err != nil {
		return e, err
	}
	if e.Structured, err = ask(server, nbdOptStructured, nil, nil); err != nil {
		return e, err
	}
	if e.Name, err = exportName(server, n); err != nil {
		return e, err
	}
	named := append(binary.BigEndian.AppendUint32(nil, uint32(len(e.Name))), e.Name...)
	if e.Structured {
		query := binary.BigEndian.AppendUint32(slices.Clip(named), 1)
		query = append(binary.BigEndian.AppendUint32(query, uint32(len(allocation))), allocation...)
		_, err = ask(server, nbdOptSetContext, query, func(kind uint32, body []byte) error {
			if kind == nbdRepContext && len(body) >= 4 && string(body[4:]) == allocation {
				e.Allocation, e.Context = true, binary.BigEndian.Uint32(body)
			}
			return nil
		})
		if err != nil {
			return e, err
		}
	}
	has := false
	ok, err := ask(server, nbdOptGo, append(slices.Clip(named), 0, 1, 0, nbdInfoBlocks), func(kind uint32, body []byte) error {
		switch {
		case kind != nbdRepInfo || len(body) < 2:
		case binary.BigEndian.Uint16(body) == nbdInfoExport && len(body) == 12:
			has, e.Size, e.Flags = true, binary.BigEndian.Uint64(body[2:]), binary.BigEndian.Uint16(body[10:])
		case binary.BigEndian.Uint16(body) == nbdInfoBlocks && len(body) == 14:
			for i := range e.Blocks {
				e.Blocks[i] = binary.BigEndian.Uint32(body[2+4*i:])
			}
		}
		return nil
	})
	if err == nil && (!ok || !has) {
		err = fmt.Errorf("the server does not give %q", e.Name)
	}
	return e, err
}

// Open opens the n-th of a server's exports, counted from 1, and asks whether it is still zeros where it was
// made blank. What follows on the connection are requests.
func Open(server io.ReadWriter, n int, blank bool) (Export, error) {
	e, err := openExport(server, n)
	if err == nil && blank && e.Allocation {
		e.Zeros, err = e.zeros(server)
	}
	return e, err
}

// zeros asks a server whether all of the export is zeros. Of one in many pieces nobody says so.
func (e Export) zeros(server io.ReadWriter) (bool, error) {
	at := uint64(0)
	for range 16 {
		if at >= e.Size {
			return true, nil
		}
		r := nbdRequest{kind: nbdBlockStatus, offset: at, length: uint32(min(e.Size-at, 1<<30))}
		if err := r.write(server, at); err != nil {
			return false, err
		}
		n, err := e.zerosAt(server, at)
		if err != nil || n == 0 {
			return false, err
		}
		at += n
	}
	return false, nil
}

// zerosAt reads the reply to what the status is at an offset: how many bytes from there on are zeros.
func (e Export) zerosAt(server io.Reader, at uint64) (zeros uint64, err error) {
	for range MaxExports {
		reply, err := readReply(server)
		if err != nil {
			return 0, err
		}
		var body bytes.Buffer
		if _, err := io.CopyN(&body, server, int64(reply.payload)); err != nil {
			return 0, err
		}
		if reply.cookie() != at || len(reply.head) != 20 {
			return 0, errors.New("read NBD block status: another reply came")
		}
		if b := body.Bytes(); binary.BigEndian.Uint16(reply.head[6:]) == nbdChunkStatus && len(b) >= 4 && binary.BigEndian.Uint32(b) == e.Context {
			for b = b[4:]; len(b) >= 8 && b[7]&nbdStateZero != 0; b = b[8:] {
				zeros += uint64(binary.BigEndian.Uint32(b))
			}
		}
		if reply.done {
			return zeros, nil
		}
	}
	return 0, errors.New("read NBD block status: it has no end")
}

// exportName is the name of a server's n-th export.
func exportName(server io.ReadWriter, n int) (name string, err error) {
	var names []string
	ok, err := ask(server, nbdOptList, nil, func(kind uint32, body []byte) error {
		if kind != nbdRepServer || len(body) < 4 {
			return nil
		}
		size := binary.BigEndian.Uint32(body)
		if len(names) == MaxExports || size > maxName || int(size) > len(body)-4 {
			return fmt.Errorf("a name of %d bytes, after %d names", size, len(names))
		}
		names = append(names, string(body[4:4+size]))
		return nil
	})
	if err == nil && (!ok || n < 1 || n > len(names)) {
		err = fmt.Errorf("the server lists %q", names)
	}
	if err != nil {
		return "", err
	}
	return names[n-1], nil
}

// ask asks a server for one option and gives it each reply before the last, which says whether it is granted.
func ask(server io.ReadWriter, option uint32, body []byte, reply func(kind uint32, body []byte) error) (granted bool, err error) {
	o := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, nbdOptionMagic), option)
	if _, err := server.Write(append(binary.BigEndian.AppendUint32(o, uint32(len(body))), body...)); err != nil {
		return false, err
	}
	for range MaxExports + 16 {
		var head [20]byte
		if _, err := io.ReadFull(server, head[:]); err != nil {
			return false, err
		}
		kind, n := binary.BigEndian.Uint32(head[12:]), binary.BigEndian.Uint32(head[16:])
		if magic, of := binary.BigEndian.Uint64(head[:]), binary.BigEndian.Uint32(head[8:]); magic != nbdReplyMagic || of != option || n > nbdOptionLimit {
			return false, fmt.Errorf("read reply to NBD option %d: magic %#x, to option %d, %d bytes", option, magic, of, n)
		}
		var body bytes.Buffer
		if _, err := io.CopyN(&body, server, int64(n)); err != nil {
			return false, err
		}
		switch {
		case kind == nbdRepAck || kind&nbdRepErrorBit != 0:
			return kind == nbdRepAck, nil
		case reply != nil:
			if err := reply(kind, body.Bytes()); err != nil {
				return false, fmt.Errorf("read reply to NBD option %d: %w", option, err)
			}
		}
	}
	return false, fmt.Errorf("read replies to NBD option %d: they have no end", option)
}

// Answer is a server's part of the handshake, for servers that have told of exports. It returns which
// of them the client wants, from 0 on; what follows on the connection are its requests.
func Answer(client io.ReadWriter, exports []Export) (n int, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("shake hands with the NBD client: %w", noEOF(err))
		}
	}()
	if _, err := client.Write(append([]byte(nbdWelcome), 0, nbdFixedNewstyle|nbdNoZeroes)); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(client, make([]byte, 4)); err != nil {
		return 0, err
	}
	h := handshake{exports: exports}
	for {
		option, body, err := readOption(client)
		if err != nil {
			return 0, err
		}
		h.out = h.out[:0]
		n, done, err := h.answer(option, body[16:])
		if err != nil {
			return 0, err
		}
		if _, err := client.Write(h.out); err != nil {
			return 0, err
		}
		if done {
			return n, nil
		}
	}
}

// handshake is with one client.
type handshake struct {
	exports    []Export
	structured bool // the client has asked for structured replies
	out        []byte
}

// answer answers one option; done says that the client has what it wants.
func (h *handshake) answer(option uint32, body []byte) (n int, done bool, err error) {
	switch option {
	case nbdOptAbort:
		return 0, false, errors.New("the client gave up")
	case nbdOptExportName:
		return 0, false, errors.New("the client is too old: it does not ask for NBD_OPT_GO")
	case nbdOptStructured:
		if h.structured = !slices.ContainsFunc(h.exports, func(e Export) bool { return !e.Structured }); h.structured {
			h.reply(option, nbdRepAck, nil)
			return 0, false, nil
		}
	case nbdOptList:
		for _, e := range h.exports {
			h.reply(option, nbdRepServer, append(binary.BigEndian.AppendUint32(nil, uint32(len(e.Name))), e.Name...))
		}
		h.reply(option, nbdRepAck, nil)
		return 0, false, nil
	case nbdOptSetContext, nbdOptListContext:
		if n := h.named(body); n >= 0 {
			e := h.exports[n]
			if e.Allocation && bytes.Contains(body[4+len(e.Name):], []byte(allocation)) {
				h.reply(option, nbdRepContext, append(binary.BigEndian.AppendUint32(nil, e.Context), allocation...))
			}
			h.reply(option, nbdRepAck, nil)
			return 0, false, nil
		}
	case nbdOptGo, nbdOptInfo:
		n := h.named(body)
		if n < 0 {
			h.reply(option, nbdRepUnknown, nil)
			return 0, false, nil
		}
		e := h.exports[n]
		if option == nbdOptGo && e.Structured != h.structured {
			return 0, false, errors.New("the client does not take structured replies")
		}
		info := binary.BigEndian.AppendUint64([]byte{0, nbdInfoExport}, e.Size)
		h.reply(option, nbdRepInfo, binary.BigEndian.AppendUint16(info, e.Flags))
		if e.Blocks != [3]uint32{} {
			info := []byte{0, nbdInfoBlocks}
			for _, b := range e.Blocks {
				info = binary.BigEndian.AppendUint32(info, b)
			}
			h.reply(option, nbdRepInfo, info)
		}
		h.reply(option, nbdRepAck, nil)
		return n, option == nbdOptGo, nil
	}
	// Extended headers and TLS too: the stream could not be read on with them.
	h.reply(option, nbdRepUnsupported, nil)
	return 0, false, nil
}

func (h *handshake) reply(option, kind uint32, body []byte) {
	h.out = binary.BigEndian.AppendUint64(h.out, nbdReplyMagic)
	for _, n := range []uint32{option, kind, uint32(len(body))} {
		h.out = binary.BigEndian.AppendUint32(h.out, n)
	}
	h.out = append(h.out, body...)
}

// named is which export an option's body begins with; -1: none.
func (h *handshake) named(body []byte) int {
	if len(body) < 4 || uint64(binary.BigEndian.Uint32(body)) > uint64(len(body)-4) {
		return -1
	}
	name := string(body[4 : 4+binary.BigEndian.Uint32(body)])
	return slices.IndexFunc(h.exports, func(e Export) bool { return e.Name == name })
}
