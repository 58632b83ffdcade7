package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// What has to be known of the NBD protocol (doc/proto.md of the NBD project): the
// fixed newstyle handshake with NBD_OPT_GO (export.go), compact requests, simple and structured replies.
const (
	nbdGreeting       = 18 // bytes: two magics and the server's flags
	nbdWelcome        = "NBDMAGICIHAVEOPT"
	nbdFixedNewstyle  = 1 << 0 // of the server's flags, and the client's
	nbdNoZeroes       = 1 << 1
	nbdOptionMagic    = 0x49484156454f5054
	nbdReplyMagic     = 0x0003e889045565a9
	nbdRequestMagic   = 0x25609513
	nbdSimpleMagic    = 0x67446698
	nbdChunkMagic     = 0x668e33ef
	nbdOptExportName  = 1
	nbdOptAbort       = 2
	nbdOptList        = 3
	nbdOptInfo        = 6
	nbdOptGo          = 7
	nbdOptStructured  = 8
	nbdOptListContext = 9
	nbdOptSetContext  = 10
	nbdOptExtended    = 11
	nbdRepAck         = 1
	nbdRepServer      = 2
	nbdRepInfo        = 3
	nbdRepContext     = 4
	nbdInfoExport     = 0
	nbdInfoBlocks     = 3
	nbdRepErrorBit    = 1 << 31
	nbdRepUnsupported = 1<<31 + 1
	nbdRepUnknown     = 1<<31 + 6

	nbdRead        = 0
	nbdWrite       = 1
	nbdDisconnect  = 2
	nbdFlush       = 3
	nbdTrim        = 4
	nbdWriteZeroes = 6
	nbdBlockStatus = 7

	nbdSendFUA      = 1 << 3 // of an export: it knows FUA
	nbdFlagFUA      = 1 << 0 // of a request: the reply is to mean that it is on the disk
	nbdFlagDone     = 1 << 0 // of a chunk: it is the reply's last
	nbdErrorChunk   = 1 << 15
	nbdChunkStatus  = 5
	nbdStateZero    = 1 << 1
	nbdOptionLimit  = 64 << 10 // bytes, of an option and of each of its replies
	nbdPayloadLimit = 64 << 20 // bytes; clients split at 32 MiB
)

// nbdRequest is a request of the client, with the data of a write.
type nbdRequest struct {
	flags, kind uint16
	cookie      uint64 // the client's
	offset      uint64 // bytes
	length      uint32 // bytes
	data        []byte
	answered    bool   // the client has been told that it is done
	failed      bool   // a chunk of the server's reply says so
	covers      uint64 // of a flush: how many of the stream's changes were sent before it
}

// changes says whether the request changes the disk.
func (r *nbdRequest) changes() bool {
	return r.kind == nbdWrite || r.kind == nbdTrim || r.kind == nbdWriteZeroes
}

// mayWait says whether the client may be told that a request is done before it is: whoever
// has to know that it really is asks for a flush, or sets FUA.
func (r *nbdRequest) mayWait() bool { return r.changes() && r.flags&nbdFlagFUA == 0 }

func (r *nbdRequest) overlaps(o *nbdRequest) bool {
	return r.offset < o.offset+uint64(o.length) && o.offset < r.offset+uint64(r.length)
}

// readRequest reads a compact request. io.EOF means that the client ended between two.
func readRequest(in io.Reader) (*nbdRequest, error) {
	var h [28]byte
	if _, err := io.ReadFull(in, h[:]); err != nil {
		if err == io.EOF {
			return nil, err
		}
		return nil, fmt.Errorf("read NBD request: %w", err)
	}
	if magic := binary.BigEndian.Uint32(h[:]); magic != nbdRequestMagic {
		return nil, fmt.Errorf("read NBD request: magic %#x", magic)
	}
	r := &nbdRequest{flags: binary.BigEndian.Uint16(h[4:]), kind: binary.BigEndian.Uint16(h[6:]), cookie: binary.BigEndian.Uint64(h[8:]),
		offset: binary.BigEndian.Uint64(h[16:]), length: binary.BigEndian.Uint32(h[24:])}
	if r.kind != nbdWrite {
		return r, nil
	}
	if r.length > nbdPayloadLimit {
		return nil, fmt.Errorf("read NBD request: a write of %d bytes", r.length)
	}
	// The buffer grows with what comes, not by what was announced.
	var data bytes.Buffer
	if _, err := io.CopyN(&data, in, int64(r.length)); err != nil {
		return nil, fmt.Errorf("read NBD write: %w", noEOF(err))
	}
	r.data = data.Bytes()
	return r, nil
}

// write sends the request under another cookie.
func (r *nbdRequest) write(w io.Writer, cookie uint64) error {
	h := binary.BigEndian.AppendUint32(make([]byte, 0, 28), nbdRequestMagic)
	h = binary.BigEndian.AppendUint16(h, r.flags)
	h = binary.BigEndian.AppendUint16(h, r.kind)
	h = binary.BigEndian.AppendUint64(h, cookie)
	h = binary.BigEndian.AppendUint64(h, r.offset)
	h = binary.BigEndian.AppendUint32(h, r.length)
	_, err := w.Write(h)
	if err == nil && len(r.data) > 0 {
		_, err = w.Write(r.data)
	}
	return err
}

// nbdReply is the beginning of a simple reply, or of one chunk of a structured one.
type nbdReply struct {
	head    []byte // as it came; the cookie stands at 8
	failed  bool
	done    bool   // no more of it follows
	payload uint32 // bytes that follow the head; those of a simple reply to a read are not counted
}

func (r *nbdReply) cookie() uint64    { return binary.BigEndian.Uint64(r.head[8:]) }
func (r *nbdReply) address(to uint64) { binary.BigEndian.PutUint64(r.head[8:], to) }
func simpleReply(cookie uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0}, cookie)
}

// readReply reads the beginning of a reply. io.EOF means that the server ended between two.
func readReply(in io.Reader) (*nbdReply, error) {
	head := make([]byte, 16, 20)
	if _, err := io.ReadFull(in, head); err != nil {
		if err == io.EOF {
			return nil, err
		}
		return nil, fmt.Errorf("read NBD reply: %w", err)
	}
	switch magic := binary.BigEndian.Uint32(head); magic {
	case nbdSimpleMagic:
		return &nbdReply{head: head, failed: binary.BigEndian.Uint32(head[4:]) != 0, done: true}, nil
	case nbdChunkMagic:
		head = head[:20]
		if _, err := io.ReadFull(in, head[16:]); err != nil {
			return nil, fmt.Errorf("read NBD reply: %w", noEOF(err))
		}
		r := &nbdReply{head: head, payload: binary.BigEndian.Uint32(head[16:]),
			done: binary.BigEndian.Uint16(head[4:])&nbdFlagDone != 0, failed: binary.BigEndian.Uint16(head[6:])&nbdErrorChunk != 0}
		if r.payload > nbdPayloadLimit {
			return nil, fmt.Errorf("read NBD reply: a chunk of %d bytes", r.payload)
		}
		return r, nil
	default:
		return nil, fmt.Errorf("read NBD reply: magic %#x", magic)
	}
}

func pass(to io.Writer, from io.Reader, n int64) error {
	_, err := io.CopyN(to, from, n)
	return noEOF(err)
}

// readOption reads one option of the client; body is all of it, as it came.
func readOption(in io.Reader) (option uint32, body []byte, err error) {
	body = make([]byte, 16)
	if _, err := io.ReadFull(in, body); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(body[12:])
	if magic := binary.BigEndian.Uint64(body); magic != nbdOptionMagic || n > nbdOptionLimit {
		return 0, nil, fmt.Errorf("magic %#x, %d bytes", magic, n)
	}
	body = append(body, make([]byte, n)...)
	_, err = io.ReadFull(in, body[16:])
	return binary.BigEndian.Uint32(body[8:]), body, err
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
