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
// into the card's ring of used buffers). When all is over, a frame of its own makes sure
// that QEMU has taken its last; what is missing in the accounts are then the records that
// precede what the queue holds.
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

// keepBooks balances the accounts again and again as long as the VM runs: the newer the
// last balance, the less may have happened since that it does not know.
func (c *Catch) keepBooks(ctx context.Context) {
	tick := time.NewTicker(balanceEvery)
	defer tick.Stop()
	for {
		for _, r := range c.taps {
			if err := c.balance(ctx, r); err != nil {
				c.h.log.Debug("balance a tap", "vm", c.vm, "tap", r.tap.Name, "error", err)
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
	lost, certain := c.lost(ctx, r) // before we read, which the accounts would hold against QEMU
	queued, err := CaughtPackets(c.pid, r.tap.Name)
	if err != nil {
		return nil, err
	}
	taken, err := r.takenByQEMU(queued, lost)
	if err != nil || !certain {
		// Better all but one than none.
		c.h.log.Warn("a packet of a stopped VM may be lost", "vm", c.vm, "tap", r.tap.Name, "error", err)
	}
	c.h.log.Debug("caught packets", "vm", c.vm, "tap", r.tap.Name, "taken", len(taken), "queued", len(queued))
	return append(taken, queued...), nil
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
