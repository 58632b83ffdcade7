package libvirt

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
	"unsafe"

	rpc "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"

	"heliotrope"
)

// Catch brings back every packet that reached a VM's taps and not its guest, because the
// guest's vCPUs had stopped for good. Begin it before Perform; ask for the frames once the
// switch sends nothing to these taps any more.
//
// Reading the tap's queue (CaughtPackets) is not enough. A stopped QEMU still takes one
// frame out of it, finds that the guest cannot receive, keeps the frame and stops reading
// (measured with QEMU 10: one frame per pause, each time). To know which, Catch records
// what goes into the tap. After it has sent a frame of its own, and QEMU's main loop has
// gone round, QEMU has taken exactly one: the record that precedes what the queue holds.
type Catch struct {
	h    *Hypervisor
	ref  rpc.Domain
	vm   heliotrope.VMID
	pid  int
	taps []*tapRecord
}

// Frame is an Ethernet frame for a VM's network card.
type Frame struct {
	NIC  int // index in heliotrope.VM.NICs
	Data []byte
}

// Catch begins to record what goes to the VM's taps.
func (h *Hypervisor) Catch(ctx context.Context, vm heliotrope.VMID) (*Catch, error) {
	d, err := h.lookup(ctx, vm)
	if err != nil {
		return nil, err
	}
	if d.PID == 0 {
		return nil, fmt.Errorf("catch packets of %s: it has no QEMU", vm)
	}
	c := &Catch{h: h, ref: d.ref, vm: vm, pid: d.PID}
	for _, tap := range d.Taps {
		r, err := recordTap(tap)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("catch packets of %s: %w", vm, err), c.Close())
		}
		c.taps = append(c.taps, r)
	}
	return c, nil
}

// Close ends the recording.
func (c *Catch) Close() error {
	var errs error
	for _, r := range c.taps {
		errs = errors.Join(errs, r.close())
	}
	return errs
}

// Frames takes the frames that the stopped VM has not received, oldest first per card.
// They are gone from here then; asked again, it returns what has come since.
// If the VM is to run here after all, do not ask: QEMU still has them all.
func (c *Catch) Frames(ctx context.Context) ([]Frame, error) {
	probe := newProbe()
	for _, r := range c.taps {
		if err := Inject(r.tap.Name, [][]byte{probe}); err != nil {
			return nil, fmt.Errorf("catch packets of %s: %w", c.vm, err)
		}
	}
	// The first answer may come from the round of QEMU's main loop that was under way,
	// the second from the one that first sees the probe; the third shows that it is over.
	for range 3 {
		if _, err := c.h.monitor(ctx, c.ref, `{"execute":"query-status"}`); err != nil {
			return nil, fmt.Errorf("wait for QEMU of %s: %w", c.vm, err)
		}
	}
	var frames []Frame
	for _, r := range c.taps {
		queued, err := CaughtPackets(c.pid, r.tap.Name)
		if err != nil {
			return frames, err
		}
		taken, err := r.takenByQEMU(queued)
		if err != nil {
			// Better all but one than none.
			c.h.log.Warn("one packet of a stopped VM may be lost", "vm", c.vm, "tap", r.tap.Name, "error", err)
		}
		for _, data := range append(taken, queued...) {
			if !isProbe(data) {
				frames = append(frames, Frame{NIC: r.tap.NIC, Data: data})
			}
		}
	}
	return frames, nil
}

// monitor passes a QMP command to a domain's QEMU.
func (h *Hypervisor) monitor(ctx context.Context, ref rpc.Domain, command string) (string, error) {
	return do(ctx, h, func() (string, error) { return h.control.QEMUDomainMonitorCommand(ref, command, 0) })
}

// A probe is a frame of the type that IEEE set aside for experiments, from and to nobody.
var probeHead = []byte{0x02, 'p', 'r', 'o', 'b', 'e', 0x02, 'h', 'e', 'l', 'i', 'o', 0x88, 0xb6}

func newProbe() []byte {
	frame := make([]byte, 60)
	rand.Read(frame[copy(frame, probeHead):])
	return frame
}

func isProbe(frame []byte) bool { return bytes.HasPrefix(frame, probeHead) }

// tapRecord remembers the newest frames that went into a tap: as many as its queue
// holds, and one.
type tapRecord struct {
	tap    Tap
	socket *os.File
	reader sync.WaitGroup
	frames [][]byte // the reader's until it has ended
	known  bool     // QEMU's frame has been found: it takes only one
}

const keepFrames = QueuePackets + 16

// outgoing lets a packet socket see only what is sent to the device, not what it sends.
var outgoing = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 0xfffff004}, // SKF_AD_OFF + SKF_AD_PKTTYPE
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.PACKET_OUTGOING, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 18},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
}

func recordTap(tap Tap) (*tapRecord, error) {
	fd, err := packetSocket(tap.Name, unix.ETH_P_ALL)
	if err != nil {
		return nil, fmt.Errorf("open packet socket on %s: %w", tap.Name, err)
	}
	program := &unix.SockFprog{Len: uint16(len(outgoing)), Filter: (*unix.SockFilter)(unsafe.Pointer(&outgoing[0]))}
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, program),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
		unix.SetNonblock(fd, true))
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up packet socket on %s: %w", tap.Name, err)
	}
	r := &tapRecord{tap: tap, socket: os.NewFile(uintptr(fd), tap.Name)}
	r.reader.Go(r.read)
	return r, nil
}

func (r *tapRecord) read() {
	buf := make([]byte, 1<<16)
	for {
		n, err := r.socket.Read(buf)
		if err != nil {
			return // the deadline, or closed
		}
		r.add(buf[:n])
	}
}

func (r *tapRecord) add(frame []byte) {
	if len(r.frames) >= 2*keepFrames {
		r.frames = append(r.frames[:0], r.frames[len(r.frames)-keepFrames:]...)
	}
	r.frames = append(r.frames, bytes.Clone(frame))
}

// stop ends the reader and adds what the kernel has recorded up to now.
func (r *tapRecord) stop() error {
	if err := r.socket.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return err
	}
	r.reader.Wait()
	if err := r.socket.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	raw, err := r.socket.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	return errors.Join(raw.Read(func(fd uintptr) bool {
		for {
			n, readErr := unix.Read(int(fd), buf)
			switch {
			case readErr == unix.EINTR:
			case readErr == unix.EAGAIN:
				return true
			case readErr != nil:
				err = readErr
				return true
			default:
				r.add(buf[:n])
			}
		}
	}), err)
}

// takenByQEMU finds the frame that QEMU took, given the rest of the queue.
func (r *tapRecord) takenByQEMU(queued [][]byte) ([][]byte, error) {
	if r.known {
		return nil, nil
	}
	if err := r.stop(); err != nil {
		return nil, err
	}
	r.known = true
	frame, err := precedes(r.frames, queued)
	r.frames = nil
	return frame, err
}

// precedes returns the last record before those of queued, from the newest backwards.
// Records that are not in queued did not fit in.
func precedes(records, queued [][]byte) ([][]byte, error) {
	left := make(map[string]int, len(queued))
	for _, frame := range queued {
		left[string(frame)]++
	}
	missing := len(queued)
	for i := len(records) - 1; i >= 0; i-- {
		if missing == 0 {
			return records[i : i+1], nil
		}
		if left[string(records[i])] > 0 {
			left[string(records[i])]--
			missing--
		}
	}
	return nil, fmt.Errorf("match %d queued frames with %d recorded ones: %d are unknown", len(queued), len(records), missing)
}

func (r *tapRecord) close() error {
	err := r.socket.Close()
	r.reader.Wait()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
