// Package ovsdb keeps one host's Open vSwitch at what is wanted: br-int, its patch to
// br-phy, and the tunnels of the mesh.
//
// The host dials the controller, and Connect takes the connection that the controller
// accepted. libovsdb can only dial; so a private unix socket stands between, with a guard
// on it that bounds what a host may send (guard.go). libovsdb neither reconnects here nor
// keeps a replica: both have failed people silently. A dead connection closes Done, and the
// owner makes a new Switch from the host's next one. Every reading is a fresh select; the
// monitor only says that something changed (Options.OnChange).
//
// Nothing counts as done before ovs-vswitchd has done it: Apply waits until cur_cfg has
// reached its next_cfg, each port has an ofport, and no error is set. What is ours is
// marked in external_ids:heliotrope; what is not is reported by Ports and left alone.
//
// Each transaction waits on the external_ids of the Open_vSwitch row that it was made from,
// and these hold the term of the newest leader that wrote. A controller that lost its
// leadership without knowing is refused with ErrStaleTerm.
package ovsdb

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
	libovsdb "github.com/ovn-kubernetes/libovsdb/ovsdb"
	"golang.org/x/sync/errgroup"

	"heliotrope/ovsdb/vswitch"
)

var (
	// ErrStaleTerm is returned when a newer leader has written to the switch.
	ErrStaleTerm = errors.New("a newer leader manages this switch")
	// ErrClosed is Err's answer after Close.
	ErrClosed = errors.New("switch closed")

	errInnerClosed = errors.New("OVSDB client closed")
)

// Options of a Switch; the zero value of each field takes its default.
type Options struct {
	Term     uint64        // the leader's; an older one than the switch has seen is refused
	OnChange func()        // told that something changed; must return at once
	Timeout  time.Duration // of one transaction, and of waiting for ovs-vswitchd; default 10 s
	Echo     time.Duration // between two proofs of life, and how long one may take; default 5 s
	_        struct{}      // fields are named
}

// Switch is the Open vSwitch of one host, over one connection. Its owner calls Close.
type Switch struct {
	opts   Options
	client client.Client
	cache  *cache.TableCache // for its schema and mapper only
	stop   context.CancelCauseFunc
	done   chan struct{}
	err    error // set before done is closed

	mu      sync.Mutex
	changed chan struct{} // closed at the next change
	round   *tables       // that Wanted has read, for Observe
}

// Connect speaks OVSDB over conn, which it then owns. ctx bounds connecting only.
func Connect(ctx context.Context, conn net.Conn, opts Options) (*Switch, error) {
	opts.Timeout = cmp.Or(opts.Timeout, 10*time.Second)
	opts.Echo = cmp.Or(opts.Echo, 5*time.Second)
	if opts.OnChange == nil {
		opts.OnChange = func() {}
	}
	life, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	s := &Switch{opts: opts, stop: stop, done: make(chan struct{}), changed: make(chan struct{})}
	socket, ln, err := privateSocket()
	if err != nil {
		stop(err)
		conn.Close()
		return nil, err
	}
	defer os.RemoveAll(filepath.Dir(socket))
	group, life := errgroup.WithContext(life)
	group.Go(func() error { return s.splice(life, conn, ln) })
	connected := make(chan error, 1)
	group.Go(func() error { return s.run(ctx, life, socket, connected) })
	go func() {
		_ = group.Wait() // the first error is life's cause, unless Close or the watchdog came before
		s.err = context.Cause(life)
		close(s.done)
	}()
	if err := <-connected; err != nil {
		s.Close()
		if !errors.Is(s.err, ErrClosed) && !errors.Is(s.err, errInnerClosed) {
			err = s.err // why libovsdb was cut off says more than that it was
		}
		return nil, fmt.Errorf("connect to switch: %w", err)
	}
	return s, nil
}

// privateSocket listens where only this process's user can connect.
func privateSocket() (string, net.Listener, error) {
	dir, err := os.MkdirTemp("", "heliotrope-ovsdb-")
	if err != nil {
		return "", nil, fmt.Errorf("make socket directory: %w", err)
	}
	path := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		os.RemoveAll(dir)
		return "", nil, fmt.Errorf("listen on private socket: %w", err)
	}
	return path, ln, nil
}

// splice joins the host's connection to the one that libovsdb dials at ln, until life ends
// or either side closes. It returns why.
func (s *Switch) splice(life context.Context, host net.Conn, ln net.Listener) error {
	defer host.Close()
	release := context.AfterFunc(life, func() { ln.Close() })
	defer release()
	inner, err := ln.Accept()
	ln.Close()
	if err != nil {
		return cmp.Or(context.Cause(life), err)
	}
	defer inner.Close()
	group, life := errgroup.WithContext(life)
	defer context.AfterFunc(life, func() { host.Close(); inner.Close() })()
	group.Go(func() error {
		g := guard{r: bufio.NewReaderSize(host, 64<<10), changed: s.announce}
		err := g.copyTo(inner)
		if errors.Is(err, io.EOF) {
			err = errors.New("host closed its OVSDB connection")
		}
		return err
	})
	group.Go(func() error {
		_, err := io.Copy(host, inner)
		return cmp.Or(err, errInnerClosed)
	})
	return group.Wait()
}

// announce tells those who wait, and the owner, that the database changed.
func (s *Switch) announce() {
	s.mu.Lock()
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	s.opts.OnChange()
}

func (s *Switch) nextChange() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// run connects libovsdb, reports that to connected, and proves the host alive until life ends.
func (s *Switch) run(ctx, life context.Context, socket string, connected chan<- error) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	if err := s.dial(ctx, socket); err != nil {
		connected <- err
		return err
	}
	gone := s.client.DisconnectNotify()
	connected <- nil
	tick := time.NewTicker(s.opts.Echo)
	defer tick.Stop()
	for {
		select {
		case <-gone:
			return errors.New("OVSDB connection lost")
		case <-life.Done():
			s.client.Close()
			select { // libovsdb takes its goroutines down; it may have told so before we listened
			case <-gone:
			case <-time.After(time.Second):
			}
			return context.Cause(life)
		case <-tick.C:
			if err := s.echo(life); err != nil {
				return err
			}
		}
	}
}

// echo asks the host for a sign of life. libovsdb may block in a write that no context
// ends; closing the connections does.
func (s *Switch) echo(life context.Context) error {
	silent := fmt.Errorf("host silent for %v", s.opts.Echo)
	watchdog := time.AfterFunc(s.opts.Echo, func() { s.stop(silent) })
	defer watchdog.Stop()
	ctx, cancel := context.WithTimeout(life, s.opts.Echo)
	defer cancel()
	if err := s.client.Echo(ctx); err != nil {
		return cmp.Or(context.Cause(life), silent)
	}
	return nil
}

// dial connects libovsdb to the private socket and subscribes to changes.
func (s *Switch) dial(ctx context.Context, socket string) (err error) {
	defer recovered(&err)
	db, err := model.NewClientDBModel("Open_vSwitch", map[string]model.Model{
		"Open_vSwitch": &vswitch.OpenvSwitch{},
		"Bridge":       &vswitch.Bridge{},
		"Port":         &vswitch.Port{},
		"Interface":    &vswitch.Interface{},
	})
	if err != nil {
		return fmt.Errorf("describe database: %w", err)
	}
	s.client, err = client.NewOVSDBClient(db, client.WithEndpoint("unix:"+socket))
	if err != nil {
		return fmt.Errorf("make OVSDB client: %w", err)
	}
	if err := s.client.Connect(ctx); err != nil {
		return err
	}
	s.cache = s.client.Cache()
	var (
		root   vswitch.OpenvSwitch
		bridge vswitch.Bridge
		port   vswitch.Port
		iface  vswitch.Interface
	)
	monitor := s.client.NewMonitor(
		client.WithTable(&root, &root.Bridges, &root.CurCfg, &root.ExternalIDs),
		client.WithTable(&bridge, &bridge.Name, &bridge.DatapathType, &bridge.FailMode, &bridge.Protocols, &bridge.OtherConfig, &bridge.ExternalIDs, &bridge.Ports),
		client.WithTable(&port, &port.Name, &port.Interfaces),
		client.WithTable(&iface, &iface.Name, &iface.Type, &iface.Options, &iface.ExternalIDs, &iface.Ofport, &iface.Error, &iface.LinkState, &iface.BFD, &iface.BFDStatus),
	)
	monitor.Method = libovsdb.ConditionalMonitorRPC
	if _, err := s.client.Monitor(ctx, monitor); err != nil {
		return fmt.Errorf("monitor database: %w", err)
	}
	return nil
}

// Done is closed when the connection is dead; Err then says why.
func (s *Switch) Done() <-chan struct{} { return s.done }

// Err is nil while the connection lives, and ErrClosed after Close.
func (s *Switch) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Close ends the connection and waits for everything that Connect started.
func (s *Switch) Close() {
	s.stop(ErrClosed)
	<-s.done
}
