package libvirt

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"heliotrope/hostagent/libvirt/lost"
)

// tapRecord remembers the newest frames that went into a tap: as many as its queue
// holds, and one.
type tapRecord struct {
	tap    Tap
	socket *os.File
	reader sync.WaitGroup
	looks  []lost.Look // the accounts' keeper's, until it has ended
	found  bool        // what QEMU took has been found: it takes no more

	mu     sync.Mutex
	frames [][]byte
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
	r.mu.Lock()
	defer r.mu.Unlock()
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

// takenByQEMU finds the last n frames that QEMU took, given what is left in the queue.
func (r *tapRecord) takenByQEMU(queued [][]byte, n int) ([][]byte, error) {
	if err := r.stop(); err != nil {
		return nil, err
	}
	r.found = true
	frames, err := precede(r.frames, queued, n)
	r.frames = nil
	return frames, err
}

// precede returns the last n records before those of queued, or as many as there are but
// one at least, searching from the newest backwards. Records that are not in queued did not
// fit in.
func precede(records, queued [][]byte, n int) ([][]byte, error) {
	left := make(map[string]int, len(queued))
	for _, frame := range queued {
		left[string(frame)]++
	}
	missing, i := len(queued), len(records)
	for ; i > 0 && missing > 0; i-- {
		if frame := string(records[i-1]); left[frame] > 0 {
			left[frame]--
			missing--
		}
	}
	if missing > 0 || i == 0 {
		return nil, fmt.Errorf("match %d queued frames and %d before them with %d records: %d are unknown", len(queued), n, len(records), missing)
	}
	return records[max(0, i-n):i:i], nil
}

func (r *tapRecord) close() error {
	err := r.socket.Close()
	r.reader.Wait()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
