package libvirt

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"heliotrope"
	"heliotrope/hostagent/libvirt/lost"
)

// Catch brings back every packet that reached a VM's taps and not its guest, because the
// guest's vCPUs had stopped for good. Begin it before Perform; ask for the frames once the
// switch sends nothing to these taps any more.
//
// Reading the tap's queue (CaughtPackets) is not enough. A stopped QEMU still takes one
// frame out of it, finds that the guest cannot receive, keeps the frame and stops reading.
// And a frame that it takes while its vCPUs are just stopping it throws away, and takes one
// more. (Measured with QEMU 10 and 1,000 packets a second: one frame always, two in a quarter of
// the moves.)
//
// To bring these back Catch records what goes into the tap, and keeps accounts of what
// QEMU has taken out of it (the kernel counts that) and given to the guest (QEMU's index
// into the card's ring of used buffers), less what the card drops by its filter. When all is
// over, a frame of its own makes sure that QEMU has taken its last; what is missing in the
// accounts are then the records that precede what the queue holds.
type Catch struct {
	h    *Hypervisor
	ref  rpc.Domain
	vm   heliotrope.VMID
	pid  int
	taps []*tapRecord

	stop  context.CancelFunc // ends the keeping of accounts
	books sync.WaitGroup
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
	c := &Catch{h: h, ref: d.ref, vm: vm, pid: d.PID, stop: func() {}}
	for _, tap := range d.Taps {
		r, err := recordTap(tap)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("catch packets of %s: %w", vm, err), c.Close())
		}
		c.taps = append(c.taps, r)
	}
	ctx, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	c.books.Go(func() { c.keepBooks(ctx) })
	return c, nil
}

// keepBooks looks at the accounts again and again as long as the VM runs.
func (c *Catch) keepBooks(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		for _, r := range c.taps {
			if err := c.look(ctx, r); err != nil && ctx.Err() == nil {
				c.h.log.Debug("look at a tap", "vm", c.vm, "tap", r.tap.Name, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Close ends the recording.
func (c *Catch) Close() error {
	c.stop()
	c.books.Wait()
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
	c.stop()
	c.books.Wait()
	probe := newProbe()
	for _, r := range c.taps {
		if err := Inject(r.tap.Name, [][]byte{probe}); err != nil {
			return nil, fmt.Errorf("catch packets of %s: %w", c.vm, err)
		}
	}
	// The first answer may come from the round of QEMU's main loop that was under way,
	// the second from the one that first sees the probe; the third shows that it is over.
	for range 3 {
		if _, err := c.running(ctx); err != nil {
			return nil, fmt.Errorf("wait for QEMU of %s: %w", c.vm, err)
		}
	}
	var frames []Frame
	for _, r := range c.taps {
		got, err := c.take(ctx, r)
		for _, data := range got {
			if !isProbe(data) {
				frames = append(frames, Frame{NIC: r.tap.NIC, Data: data})
			}
		}
		if err != nil {
			return frames, fmt.Errorf("catch packets of %s: %w", c.vm, err)
		}
	}
	return frames, nil
}

// take returns what QEMU has lost of a tap's frames, the first time, and what waits in
// its queue.
func (c *Catch) take(ctx context.Context, r *tapRecord) ([][]byte, error) {
	if r.found {
		return CaughtPackets(c.pid, r.tap.Name)
	}
	read, used, filter, err := c.settle(ctx, r) // before we read, which the kernel would count as well
	queued, readErr := CaughtPackets(c.pid, r.tap.Name)
	if readErr != nil {
		return nil, readErr
	}
	n := 1
	if len(r.looks) > 0 && err == nil {
		n = max(n, int(read-r.looks[0].Before))
	}
	taken, recordErr := r.takenByQEMU(queued, n)
	missing, certain := lost.Frames(taken, read, used, r.looks, filter)
	if err = errors.Join(err, recordErr); err != nil || !certain {
		// Better all but one than none.
		c.h.log.Warn("a packet of a stopped VM may be lost", "vm", c.vm, "tap", r.tap.Name, "looks", len(r.looks), "taken", len(taken), "of", n, "error", err)
	}
	c.h.log.Debug("caught packets", "vm", c.vm, "tap", r.tap.Name, "lost", len(missing), "queued", len(queued), "looks", len(r.looks), "taken", len(taken))
	return append(missing, queued...), nil
}

// settle reads the accounts of a VM that has stopped, and what its card drops.
func (c *Catch) settle(ctx context.Context, r *tapRecord) (read uint64, used uint16, filter *lost.Filter, err error) {
	if read, err = readByQEMU(r.tap.Name); err != nil {
		return 0, 0, nil, err
	}
	if used, err = c.used(ctx, r.tap.NIC); err != nil {
		return 0, 0, nil, err
	}
	filter, err = c.filter(ctx, r.tap.NIC)
	return read, used, filter, err
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
