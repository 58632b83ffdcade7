// Package libvirt drives one host's hypervisor: it starts and stops VMs, and takes this
// host's part of a VM's move.
//
// It speaks libvirt's RPC over the daemon's unix socket instead of calling libvirt's C
// library, because only the RPC offers the five steps of a move one by one (the library
// runs them all inside one call):
//
//	source       Begin      describe the domain; nobody else may change it from now on
//	destination  Prepare    a QEMU that waits for the stream, its taps plugged
//	source       Perform    disks, then memory, while the VM runs; then its vCPUs stop and
//	                        the rest is sent. It returns when the destination's QEMU has
//	                        acknowledged everything: the VM now runs nowhere
//	---          our commit: the new owner is written down
//	destination  Finish     the vCPUs run
//	source       Confirm    the old QEMU and its disk are removed
//
// Finish and Confirm can also be cancelled, and then the source runs again, before and
// after the end of Perform alike. libvirt starts the destination in Finish and nowhere
// else, so at no time both run.
//
// Settle splits Finish: it ends the move at the destination without starting the vCPUs.
// It proves before the commit that the destination is able to run the VM, and from then
// on the VM there survives the death of the agent; Finish (or Resume) starts it.
//
// # When a connection dies
//
// A move belongs to the libvirt connection on which it began, so each has its own here.
// libvirt acts when that connection ends, for instance because the agent was killed:
//
//   - at the source before Perform: nothing, the VM runs.
//   - at the source in Perform: QEMU goes on and stops when all is sent. Abort cancels it
//     from a new connection.
//   - at the source after Perform: the VM stays stopped, no longer in a move. Resume or
//     Confirm decide.
//   - at the destination before Settle or Finish: the incoming QEMU is killed. The source
//     still has everything, so an owner may be given back to it.
//
// # Packets
//
// What arrives for a VM while its vCPUs are stopped waits in its tap, but for one frame
// which QEMU takes out of the queue and never delivers. Catch brings back both.
// QEMU itself announces the VM's MAC addresses (five RARP frames from each network card)
// when its vCPUs start at the destination, so nothing here does.
package libvirt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"

	"heliotrope"
)

var (
	// ErrForeign is the answer to an order about a domain that Heliotrope did not define.
	ErrForeign = errors.New("domain is not Heliotrope's")
	// ErrAbsent means that the host has no such domain.
	ErrAbsent = errors.New("no such domain")
	// ErrPaused is Start's answer for a VM that is here but stopped, or on its way:
	// to let it run is Resume's or Finish's decision.
	ErrPaused = errors.New("domain is paused")
	// ErrRunning refuses to throw away a VM whose vCPUs run here.
	ErrRunning = errors.New("domain is running")
	// ErrClosed means that the connection to libvirt is gone.
	ErrClosed = errors.New("connection to libvirt is closed")
)

// Hypervisor is a connection to one libvirt daemon. Make it with Dial.
type Hypervisor struct {
	socket  string
	log     *slog.Logger
	control *conn          // for everything but the steps of moves
	calls   sync.WaitGroup // every goroutine of ours

	mu          sync.Mutex
	closed      bool
	moves       map[heliotrope.VMID]*session
	subscribers map[chan Event]struct{}
}

// conn is one RPC connection. go-libvirt matches answers to calls by their serials, so a
// long call does not hold up others, but libvirtd works on five calls of one connection
// at a time: that is why each move has one of its own.
type conn struct {
	*rpc.Libvirt
	sock net.Conn
	dead chan struct{} // closed when the socket is
}

// watchedConn closes dead once its socket has failed.
type watchedConn struct {
	net.Conn
	once *sync.Once
	dead chan struct{}
}

func (c watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.once.Do(func() { close(c.dead) })
	}
	return n, err
}

// Dial connects to the libvirt daemon that listens at socket, normally
// /run/libvirt/libvirt-sock. It does not reconnect: when Done is closed, dial anew.
func Dial(ctx context.Context, socket string, log *slog.Logger) (*Hypervisor, error) {
	h := &Hypervisor{
		socket: socket, log: log,
		moves:       make(map[heliotrope.VMID]*session),
		subscribers: make(map[chan Event]struct{}),
	}
	control, err := h.connect(ctx)
	if err != nil {
		return nil, err
	}
	h.control = control
	if err := h.listen(ctx); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// connect opens one more connection to the daemon.
func (h *Hypervisor) connect(ctx context.Context) (*conn, error) {
	var d net.Dialer
	sock, err := d.DialContext(ctx, "unix", h.socket)
	if err != nil {
		return nil, fmt.Errorf("dial libvirt: %w", err)
	}
	watched := watchedConn{Conn: sock, once: new(sync.Once), dead: make(chan struct{})}
	c := &conn{Libvirt: rpc.NewWithDialer(dialers.NewAlreadyConnected(watched)), sock: sock, dead: watched.dead}
	_, err = do(ctx, h, func() (struct{}, error) { return struct{}{}, c.Connect() })
	if err != nil {
		sock.Close()
		return nil, fmt.Errorf("open hypervisor: %w", err)
	}
	return c, nil
}

// Done is closed when the connection to libvirt has ended. Moves end as the package
// comment says; VMs go on.
func (h *Hypervisor) Done() <-chan struct{} { return h.control.dead }

// Close ends all connections, and with them the moves of this Hypervisor, and waits for
// what it started.
func (h *Hypervisor) Close() error {
	h.mu.Lock()
	h.closed = true
	conns := []*conn{h.control}
	for vm, s := range h.moves {
		conns = append(conns, s.conn)
		delete(h.moves, vm)
	}
	h.mu.Unlock()
	var errs error
	for _, c := range conns {
		errs = errors.Join(errs, c.close())
	}
	h.calls.Wait()
	if errs != nil {
		return fmt.Errorf("close libvirt: %w", errs)
	}
	return nil
}

func (c *conn) close() error {
	select {
	case <-c.dead:
		return nil
	default:
	}
	// A daemon that hangs would let us wait for good.
	late := time.AfterFunc(2*time.Second, func() { c.sock.Close() })
	defer late.Stop()
	err := c.Disconnect()
	select {
	case <-c.dead:
		return nil // it died while we said goodbye
	default:
		return err
	}
}

// do runs one RPC call. go-libvirt's calls know no context: when ctx ends do returns its
// cause at once, and the call runs on to its end, or the connection's.
func do[T any](ctx context.Context, h *Hypervisor, call func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	var none T
	if !h.spawn(func() {
		v, err := call()
		done <- result{v, err}
	}) {
		return none, ErrClosed
	}
	select {
	case r := <-done:
		switch {
		case errors.Is(r.err, rpc.ErrInterrupted):
			return r.value, ErrClosed
		case rpc.IsNotFound(r.err):
			return r.value, fmt.Errorf("%w: %w", ErrAbsent, r.err)
		}
		return r.value, r.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}

// spawn starts a goroutine that Close waits for, unless Close was called already.
func (h *Hypervisor) spawn(f func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.calls.Go(f)
	return true
}

// do0 is do for a call without a value.
func do0(ctx context.Context, h *Hypervisor, call func() error) error {
	_, err := do(ctx, h, func() (struct{}, error) { return struct{}{}, call() })
	return err
}

// pidFile is where libvirt keeps the process number of a domain's QEMU.
func (h *Hypervisor) pidFile(name string) string {
	return filepath.Join(filepath.Dir(h.socket), "qemu", name+".pid")
}
