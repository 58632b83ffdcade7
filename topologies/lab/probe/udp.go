package probe

import (
	"context"
	"errors"
	"net"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// restLook is how often a probe that rests looks whether it is to go on.
const restLook = 10 * time.Millisecond

// sendUDP sends one probe per interval, at times that follow from the first alone, or from
// the last change of the pace.
func (p *Probe) sendUDP(ctx context.Context, conn *net.UDPConn) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer hasten()()
	message := make([]byte, datagramSize)
	next := now()
	for ctx.Err() == nil {
		rate := p.rate.Load()
		if rate == 0 {
			next = now() + int64(restLook)
			sleepUntil(next)
			continue
		}
		interval := int64(time.Second) / rate
		sleepUntil(next)
		at := now()
		skipped := int((at - next) / interval)
		next += int64(skipped+1) * interval
		p.mu.Lock()
		number := p.udp.send(at, skipped)
		p.mu.Unlock()
		putDatagram(message, p.run, number, at)
		conn.Write(message) // what cannot be sent is lost, and so the ledger says
	}
	return nil
}

// sleepUntil sleeps to a time of the monotonic clock.
func sleepUntil(at int64) {
	t := unix.NsecToTimespec(at)
	for errors.Is(unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &t, nil), unix.EINTR) {
	}
}

// hasten gives the calling thread exact timers and priority over guests that keep every core
// busy. The returned function takes both back.
func hasten() (restore func()) {
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	tid := unix.Gettid()
	before, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	if err == nil {
		unix.Setpriority(unix.PRIO_PROCESS, tid, -20) // only root may: without it more probes are skipped under load
	}
	return func() {
		unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0)
		if err == nil {
			unix.Setpriority(unix.PRIO_PROCESS, tid, 20-before) // the raw call answers 20-nice
		}
	}
}

// stampArrivals makes the kernel note when each datagram came.
func stampArrivals(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20),
		)
	})
	return errors.Join(err, failed)
}

func (p *Probe) receiveUDP(conn *net.UDPConn) error {
	buffer, control := make([]byte, 2048), make([]byte, 256)
	for {
		n, c, _, _, err := conn.ReadMsgUDPAddrPort(buffer, control)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			continue // an ICMP error: the target's port or network was not there for a moment
		}
		number, ok := datagramNumber(buffer[:n], p.run)
		if !ok {
			continue
		}
		mono, real := bothClocks()
		at := arrival(control[:c], mono, real)
		p.mu.Lock()
		p.udp.receive(number, at)
		p.mu.Unlock()
	}
}

// bothClocks reads the monotonic and the real-time clock at the same time: again where this
// thread was interrupted between them.
func bothClocks() (mono, real int64) {
	for range 5 {
		before := now()
		real = time.Now().UnixNano()
		after := now()
		mono = before + (after-before)/2
		if after-before < int64(20*time.Microsecond) {
			break
		}
	}
	return mono, real
}

// arrival is when the kernel received a datagram on the monotonic clock, given both clocks
// now; the kernel stamps with the other one.
func arrival(control []byte, mono, real int64) int64 {
	for len(control) >= unix.SizeofCmsghdr {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		if header.Level == unix.SOL_SOCKET && header.Type == unix.SCM_TIMESTAMPNS && len(data) >= int(unsafe.Sizeof(unix.Timespec{})) {
			stamp := (*unix.Timespec)(unsafe.Pointer(&data[0])).Nano()
			if age := real - stamp; age >= 0 && age < int64(10*time.Second) { // else somebody set the clock
				return mono - age
			}
		}
		control = rest
	}
	return mono
}
