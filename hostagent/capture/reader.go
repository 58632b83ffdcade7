package capture

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope/scheduler/traffic"
)

const (
	settle     = 150 * time.Millisecond // after the end of a second, until its packets have been read
	pause      = 10 * time.Millisecond  // between two looks at the rings while there is little in them
	busy       = 1024                   // packets of a look that is followed by another one at once
	blocksOnce = 8                      // of a ring, before the next ring's turn
	stalled    = 60                     // seconds; after a longer gap counting begins anew
)

// reader is the thread that counts.
type reader struct {
	*Capture
	epoll, wake, socket int

	meter    *meter
	governor governor
	kernel   *kernel
	mode     mode

	watched  []*watched
	leaving  []*watched // are not counted any more; what was until then is still to be read
	numbers  uint32
	counting bool // bins are made
	cpu      time.Duration
	setup    time.Duration // a part of the bin's that does not come again
	began    time.Time     // when cpu was
	events   [64]unix.EpollEvent
}

func newReader(c *Capture) (_ *reader, err error) {
	r := &reader{Capture: c, epoll: -1, wake: -1, socket: -1, meter: newMeter(), governor: governor{kernel: true}}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if r.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make epoll: %w", err)
	}
	if r.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make eventfd: %w", err)
	}
	if r.socket, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	return r, r.listen(r.wake)
}

func (r *reader) listen(fd int) error {
	if err := unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("add to epoll: %w", err)
	}
	return nil
}

func (r *reader) close() {
	for w := range r.all() {
		w.close()
	}
	r.closeKernel()
	for _, fd := range []int{r.epoll, r.wake, r.socket} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// all are the ports of which there may be packets, those that left first.
func (r *reader) all() iter.Seq[*watched] {
	return func(yield func(*watched) bool) {
		for _, ports := range [][]*watched{r.leaving, r.watched} {
			for _, w := range ports {
				if !yield(w) {
					return
				}
			}
		}
	}
}

func (r *reader) closeKernel() {
	if r.kernel != nil {
		r.kernel.close()
		r.kernel = nil
	}
}

// turn waits for something to do, and does it.
func (r *reader) turn() error {
	if err := r.wait(); err != nil {
		return err
	}
	if o := r.take(); o != nil {
		r.order(*o)
	}
	packets := 0
	for w := range r.all() {
		packets += r.read(w)
	}
	packets += r.readHandshakes()
	used := processorTime() - r.cpu - r.setup
	if r.counting {
		used += time.Duration(r.meter.tallies[0].looked) * ringPacket
	}
	if r.governor.overrun(used, time.Since(r.began)) {
		r.enter()
	}
	r.endBins()
	if packets < busy && r.counting { // let more come: waking up is what costs
		unix.Nanosleep(&unix.Timespec{Nsec: int64(pause)}, nil)
	}
	return nil
}

// wait returns when there are packets or orders, and no later than a bin is to be closed.
func (r *reader) wait() error {
	timeout := -1
	if r.counting {
		due := r.meter.tallies[0].second*1e9 + int64(traffic.BinLength+settle)
		timeout = min(max(int((due-now())/1e6)+1, 0), 1200) // the clock may be stepped
	}
	n, err := unix.EpollWait(r.epoll, r.events[:], timeout)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for packets: %w", err)
	}
	for _, e := range r.events[:max(n, 0)] {
		if int(e.Fd) == r.wake {
			unix.Read(r.wake, make([]byte, 8))
		} else if e.Events&unix.EPOLLERR != 0 { // the device is down; asking makes epoll forget it
			unix.GetsockoptInt(int(e.Fd), unix.SOL_SOCKET, unix.SO_ERROR)
		}
	}
	return nil
}

// order makes the ports those of o.
func (r *reader) order(o traffic.Orders) {
	if o.Source == traffic.SourceCounters { // the switch counts
		o.Ports = nil
	}
	r.governor.order(o)
	r.meter.order(o)
	var stay []*watched
	for _, w := range r.watched {
		if slices.Contains(o.Ports, w.Port) {
			stay = append(stay, w)
			continue
		}
		w.leave()
		r.leaving = append(r.leaving, w)
	}
	for _, p := range o.Ports {
		if !slices.ContainsFunc(stay, func(w *watched) bool { return w.Port == p }) {
			r.numbers++
			stay = append(stay, &watched{port: port{p, r.numbers}})
		}
	}
	r.watched = stay
	if !r.counting && len(r.watched) > 0 {
		r.counting = true
		r.begin()
	}
	r.enter()
	r.lookAtDevices()
}

func (r *reader) begin() {
	r.meter.begin(now() / 1e9)
	r.cpu, r.setup, r.began = processorTime(), 0, time.Now()
}

// enter brings all ports into the governor's mode.
func (r *reader) enter() {
	if err := r.tryEnter(mode{r.governor.source, r.governor.sampling}); err != nil {
		r.refuse(err)
	}
}

func (r *reader) refuse(err error) {
	r.log.Warn("the kernel does not count packets: they are looked at", "reason", err)
	r.governor.refuse()
	r.enter()
}

// tryEnter fails where the kernel cannot count; it never does for the other source.
func (r *reader) tryEnter(m mode) (err error) {
	if r.governor.mayUseKernel() && r.kernel == nil && len(r.watched) > 0 {
		// Before it is needed: that takes a while, in which the rings would overflow.
		start := processorTime()
		if r.kernel, err = openKernel(); err == nil {
			r.governor.dice = r.kernel.dice
			err = r.listen(r.kernel.syns.FD())
		}
		r.setup += processorTime() - start
		if err != nil {
			return err
		}
	}
	if m.source == traffic.SourceEBPF && m.sampling != r.kernel.sampling {
		start := processorTime()
		err := r.kernel.sample(m.sampling)
		r.setup += processorTime() - start
		if err != nil {
			return err
		}
	}
	for _, w := range r.watched {
		if w.ring == nil {
			continue
		}
		if err := w.enter(m, r.kernel); errors.As(err, new(kernelError)) {
			return err
		} else if err != nil {
			r.complain(w, err)
			w.close()
		}
	}
	if m != r.mode && len(r.watched) > 0 {
		r.log.Info("packets are counted", "source", m.source, "sampling", m.sampling)
	}
	r.mode = m
	return nil
}

// lookAtDevices opens the rings of devices that have come, and closes those of others.
func (r *reader) lookAtDevices() {
	for _, w := range r.watched {
		index, err := deviceIndex(r.socket, w.Device)
		if err == nil && w.ring != nil && index != w.index {
			w.close()
		}
		if err == nil && w.ring == nil {
			err = r.open(w, index)
		}
		if errors.As(err, new(kernelError)) {
			r.refuse(err)
			err = r.open(w, index)
		}
		if err != nil {
			r.complain(w, err)
		} else {
			w.said = ""
		}
	}
}

func (r *reader) open(w *watched, index int) error {
	if index == 0 {
		return fmt.Errorf("no device %s", w.Device)
	}
	size := min(max(ringsSize/len(r.watched), ringMin), ringMax)
	if err := w.open(index, size, r.mode, r.kernel); err != nil {
		return err
	}
	return r.listen(w.ring.fd)
}

// complain says once what is wrong with a port.
func (r *reader) complain(w *watched, err error) {
	if w.said != err.Error() {
		w.said = err.Error()
		r.log.Warn("port is not counted", "device", w.Device, "vm", w.VM, "reason", err)
	}
}

// read counts what is in a port's ring.
func (r *reader) read(w *watched) int {
	if w.ring == nil {
		return 0
	}
	var h header
	return w.ring.read(blocksOnce, func(p captured) {
		m := w.at(p.time)
		if m.source != traffic.SourcePackets {
			return
		}
		switch h.decode(p.frame, p.wire) {
		case unreadable:
			r.meter.at(p.time).unreadable += uint64(m.sampling)
			return
		case foreign:
			return
		}
		direction := fromVM
		if p.sent {
			direction = toVM
		}
		r.meter.packet(&w.port, &h, direction, p.time, m.sampling)
	})
}

// readHandshakes takes in the SYNs that the kernel has counted.
func (r *reader) readHandshakes() int {
	if r.kernel == nil || !r.counting || r.kernel.told.AvailableBytes() == 0 {
		return 0
	}
	ports := r.byIndex()
	n, err := r.kernel.handshakes(func(s *kernelSYN, at int64) {
		if w := ports[s.Key.Index]; w != nil {
			h := s.Key.header()
			h.flags = uint8(s.Flags)
			r.meter.handshake(&w.port, &h, int(s.Key.Direction&1), at, s.Key.Sampling)
		}
	})
	if err != nil {
		r.log.Warn("connections that begin cannot be read", "reason", err)
	}
	return n
}

// byIndex are the ports by their devices.
func (r *reader) byIndex() map[uint32]*watched {
	ports := map[uint32]*watched{}
	for w := range r.all() {
		if w.ring != nil {
			ports[uint32(w.index)] = w
		}
	}
	return ports
}

// endBins closes and publishes the bins of seconds that are over.
func (r *reader) endBins() {
	if !r.counting {
		return
	}
	second := now() / 1e9
	if open := r.meter.tallies[0].second; second < open-1 || second > open+stalled {
		r.log.Warn("the clock was stepped: counting begins anew", "from", time.Unix(open, 0), "to", time.Unix(second, 0))
		r.begin()
	}
	for r.counting && now() >= r.meter.tallies[0].second*1e9+int64(traffic.BinLength+settle) {
		r.endBin()
	}
}

func (r *reader) endBin() {
	end := (r.meter.tallies[0].second + 1) * 1e9
	open := r.meter.tallies[0]
	ports := 0
	for w := range r.all() {
		if w.ring == nil {
			continue
		}
		ports++
		if err := w.count(); err != nil {
			r.complain(w, err)
		}
		open.shed += w.shed
		w.shed = 0
	}
	r.readKernel(open)
	t, b := r.meter.end()
	cpu := processorTime()
	b.Source, b.Ports, b.CPU = r.mode.source, ports, cpu-r.cpu+time.Duration(t.looked)*ringPacket
	b.CPU += t.inKernel
	b.Sampling = max(b.Sampling, r.mode.sampling)
	r.governor.ended(b.CPU-r.setup, t.passed, t.looked)
	r.cpu, r.setup, r.began = cpu, 0, time.Now()
	r.publish(b)

	r.leaving = slices.DeleteFunc(r.leaving, func(w *watched) bool {
		gone := w.phases[0].since < end
		if gone {
			w.close()
		}
		return gone
	})
	r.counting = len(r.watched)+len(r.leaving) > 0
	if !r.counting {
		r.closeKernel()
		return
	}
	r.enter()
	r.lookAtDevices()
}

// readKernel takes what the kernel has counted in the second of t.
func (r *reader) readKernel(t *tally) {
	if r.kernel == nil {
		return
	}
	ports := r.byIndex()
	middle := t.second*1e9 + int64(traffic.BinLength)/2
	lost, bad, err := r.kernel.read(t.second, func(k *kernelKey, v kernelValue) {
		t.inKernel += r.governor.inKernel(v.Packets*uint64(k.Sampling), k.Sampling)
		if w := ports[k.Index]; w != nil {
			h := k.header()
			r.meter.many(&w.port, &h, int(k.Direction&1), middle, v, k.Sampling)
		}
	})
	if err == nil {
		err = r.kernel.setClock()
	}
	if err != nil {
		r.log.Warn("what the kernel counted cannot be read", "reason", err)
	}
	r.programs.Store(int64(r.kernel.spent()))
	r.guessed.Add(int64(t.inKernel))
	t.shed += lost
	t.unreadable += bad * uint64(r.kernel.sampling)
}

// processorTime is what this thread has used.
func processorTime() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}

// now is the wall clock's time, in nanoseconds since 1970, as the kernel stamps packets.
func now() int64 {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_REALTIME, &t)
	return t.Nano()
}
