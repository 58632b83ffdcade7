package hostagent

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"

	"heliotrope/hostagent/libvirt"
)

// A copy whose disk did not arrive whole is no copy, whatever the hypervisor says: it
// believes the relay, which has answered a write that the destination never confirms.
func TestLostWriteIsNoCopy(t *testing.T) {
	w := newWorld(t)
	w.start(vm, "a", 1)
	w.hosts["a"].writes, w.hosts["b"].forgets = true, true
	if at := w.drive(); at != "a" {
		t.Errorf("the VM is at %s", at)
	}
	w.settled("a")
}

// Of NBD: options, and what is answered to them.
const (
	nbdList = 3
	nbdGo   = 7

	nbdAck         = 1
	nbdServer      = 2
	nbdInfo        = 3
	nbdUnsupported = 1<<31 + 1
)

// forget is an NBD server of one disk, called a, that takes requests and answers none.
func (m *machine) forget(in libvirt.Incoming) error {
	l, err := net.Listen("unix", in.DiskSocket)
	if err != nil {
		return err
	}
	m.world.wait.Go(func() {
		defer l.Close()
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		conn.Write([]byte("NBDMAGICIHAVEOPT\x00\x03"))
		io.CopyN(io.Discard, conn, 4) // the client's flags
		for head := make([]byte, 16); ; {
			if _, err := io.ReadFull(conn, head); err != nil {
				m.t.Error(err)
				return
			}
			option := binary.BigEndian.Uint32(head[8:])
			io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(head[12:])))
			switch option {
			case nbdList:
				conn.Write(append(nbdReply(option, nbdServer, "\x00\x00\x00\x01a"), nbdReply(option, nbdAck, "")...))
			case nbdGo:
				conn.Write(append(nbdReply(option, nbdInfo, "\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01"), nbdReply(option, nbdAck, "")...))
				io.Copy(io.Discard, conn)
				return
			default:
				conn.Write(nbdReply(option, nbdUnsupported, ""))
			}
		}
	})
	return nil
}

func nbdReply(option, kind uint32, body string) []byte {
	b := binary.BigEndian.AppendUint64(nil, 0x0003e889045565a9)
	for _, n := range []uint32{option, kind, uint32(len(body))} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	return append(b, body...)
}

// writeDisk is a mirror's one write, and its end.
func writeDisk(socket string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	const name = "\x00\x00\x00\x01a\x00\x00"
	hello := binary.BigEndian.AppendUint64([]byte{0, 0, 0, 3}, 0x49484156454f5054)
	hello = append(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(hello, nbdGo), uint32(len(name))), name...)
	write := binary.BigEndian.AppendUint32(nil, 0x25609513)
	write = append(append(write, 0, 0, 0, 1), make([]byte, 8+8)...) // flags, type, cookie, offset
	write = append(binary.BigEndian.AppendUint32(write, 512), make([]byte, 512)...)
	_, err = io.ReadFull(conn, make([]byte, 18))
	for _, step := range []struct {
		send   []byte
		answer int
	}{{hello, 32 + 20}, {write, 16}} {
		_, sent := conn.Write(step.send)
		_, got := io.ReadFull(conn, make([]byte, step.answer))
		err = errors.Join(err, sent, got)
	}
	return err
}
