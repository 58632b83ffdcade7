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

const nbdGo = 7

// forget is an NBD server that takes requests and answers none.
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
		conn.Write(make([]byte, 18))
		var option [4 + 16]byte // the client's flags, and NBD_OPT_GO without data
		if _, err := io.ReadFull(conn, option[:]); err != nil {
			m.t.Error(err)
		}
		ack := binary.BigEndian.AppendUint64(nil, 0x0003e889045565a9)
		for _, n := range []uint32{nbdGo, 1, 0} {
			ack = binary.BigEndian.AppendUint32(ack, n)
		}
		conn.Write(ack)
		io.Copy(io.Discard, conn)
	})
	return nil
}

// writeDisk is a mirror's one write, and its end.
func writeDisk(socket string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	hello := binary.BigEndian.AppendUint64(make([]byte, 4), 0x49484156454f5054)
	hello = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(hello, nbdGo), 0)
	write := binary.BigEndian.AppendUint32(nil, 0x25609513)
	write = append(append(write, 0, 0, 0, 1), make([]byte, 8+8)...) // flags, type, cookie, offset
	write = append(binary.BigEndian.AppendUint32(write, 512), make([]byte, 512)...)
	_, err = io.ReadFull(conn, make([]byte, 18))
	for _, step := range []struct {
		send   []byte
		answer int
	}{{hello, 20}, {write, 16}} {
		_, sent := conn.Write(step.send)
		_, got := io.ReadFull(conn, make([]byte, step.answer))
		err = errors.Join(err, sent, got)
	}
	return err
}
