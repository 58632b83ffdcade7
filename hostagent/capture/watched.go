package capture

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"heliotrope/scheduler/traffic"
)

// mode is how packets are counted.
type mode struct {
	source   traffic.Source // empty: not at all
	sampling uint32
}

// phase is a time from which on a port's packets are counted in a mode.
type phase struct {
	mode
	since int64 // nanoseconds since 1970
}

// watched is a port whose packets are counted.
type watched struct {
	port
	ring   *ring // nil while there is no such device
	index  int   // the device's
	links  [2]link.Link
	phases [4]phase // the latest first: what is read from the ring may be of one before
	shed   uint64   // packets that did not fit into the ring
	said   string   // the last complaint
}

// at is the mode in which packets of a time were counted.
func (w *watched) at(nanos int64) mode {
	for _, p := range w.phases[:len(w.phases)-1] {
		if nanos >= p.since {
			return p.mode
		}
	}
	return w.phases[len(w.phases)-1].mode
}

func (w *watched) begin(m mode) {
	copy(w.phases[1:], w.phases[:])
	w.phases[0] = phase{m, now()}
}

// open begins to count in mode m.
func (w *watched) open(index, ringSize int, m mode, k *kernel) error {
	r, err := openRing(ringSize, nobody())
	if err != nil {
		return err
	}
	w.ring, w.index, w.phases = r, index, [4]phase{}
	if err := w.enter(m, k); err != nil {
		w.close()
		return err
	}
	return nil
}

// enter changes the mode. Whatever the VM sends meanwhile is counted in one of both, but for
// the microseconds between two system calls; what it gets may be counted in both for the
// milliseconds that the kernel takes to attach a program.
func (w *watched) enter(m mode, k *kernel) (err error) {
	was := w.phases[0].mode
	if m == was {
		return nil
	}
	if err := w.count(); err != nil {
		return err
	}
	if m.source == traffic.SourceEBPF {
		if was.source == traffic.SourceEBPF {
			if err := k.update(w.links); err != nil {
				return kernelError{err}
			}
			w.begin(m)
			return nil
		}
		if w.links, err = k.attach(w.index); err != nil {
			return kernelError{err}
		}
		w.begin(m)
		return errors.Join(attachFilter(w.ring.fd, nobody()), w.ring.listen(w.index, false))
	}
	if was.source != traffic.SourcePackets {
		if err := w.ring.listen(w.index, true); err != nil {
			return err
		}
	}
	if err := attachFilter(w.ring.fd, everyone(m.sampling)); err != nil {
		return err
	}
	w.begin(m)
	w.detach()
	return nil
}

// count takes in what did not fit into the ring since it was last called.
func (w *watched) count() error {
	dropped, err := w.ring.dropped()
	w.shed += dropped
	return err
}

// kernelError is that the kernel cannot count.
type kernelError struct{ error }

func (e kernelError) Unwrap() error { return e.error }

func (w *watched) detach() {
	detach(w.links)
	w.links = [2]link.Link{}
}

// leave ends counting. What was counted until now is still to be read.
func (w *watched) leave() {
	if w.ring != nil {
		_ = w.count() // what it cannot say is not known
		w.begin(mode{})
		w.detach()
	}
}

func (w *watched) close() {
	w.detach()
	if w.ring != nil {
		w.ring.close()
		w.ring = nil
	}
}

// deviceIndex is the index of a device; 0: there is none with that name.
func deviceIndex(socket int, name string) (int, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("name device %s: %w", name, err)
	}
	err = unix.IoctlIfreq(socket, unix.SIOCGIFINDEX, request)
	if err == unix.ENODEV {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("find device %s: %w", name, err)
	}
	return int(request.Uint32()), nil
}
