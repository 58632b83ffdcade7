package libvirt

import (
	"context"
	"fmt"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"heliotrope"
	"heliotrope/migration"
)

// Outgoing says how a source sends a VM.
type Outgoing struct {
	VM           heliotrope.VMID
	XML          string // from Begin; empty: as Begin said
	Cookie       []byte // from Prepare
	MemorySocket string // a relay to the destination's Incoming.MemorySocket listens here
	DiskSocket   string // a relay to its DiskSocket; needed where the VM has disks

	MaxDowntime time.Duration      // the VM is stopped when the rest would take no longer; 0: 300 ms
	MaxRate     heliotrope.BitRate // 0: unlimited; libvirt counts in steps of 8.39 Mbit/s
	MaxSlowdown int                // percent of its vCPUs' time that the guest may lose once Progress says so; 0: nothing
	// Progress is called every 100 ms, and at the end, and returns how to go on. Until it says so, a pause
	// may be of FirstDowntime. nil: of MaxDowntime.
	Progress func(migration.Progress) Course
	Paused   func(time.Time) // called once, when the vCPUs have stopped; may be nil
	_        struct{}        // fields are named
}

// Course is how a copy goes on.
type Course struct {
	Pause time.Duration // that may be from now on; 0: as before
	Slow  bool          // the guest is to do less, for else the copy will not come to an end
}

const progressEvery = 100 * time.Millisecond

// Perform sends the VM: its disks, then its memory while it runs, then what is left while
// it is stopped. When it returns without an error the VM runs nowhere, and the
// destination's QEMU has said that it has everything.
//
// After an error the VM runs here as before, unless the connection to libvirt died
// (ErrClosed): then the copy goes on by itself, see Abort.
//
// The end of ctx aborts the copy and Perform waits until that is done. If it comes too
// late Perform returns as if nothing had been. A disk copy to a peer that has stopped
// reading ends only when the relay closes its sockets.
func (h *Hypervisor) Perform(ctx context.Context, out Outgoing) (cookie []byte, err error) {
	s := h.session(out.VM)
	if s == nil || s.role != migration.Source || s.begun.XML == "" {
		return nil, fmt.Errorf("perform move of %s: it has not begun on this connection", out.VM)
	}
	if out.XML == "" {
		out.XML = s.begun.XML
	}
	if out.MaxDowntime <= 0 {
		out.MaxDowntime = DefaultDowntime
	}
	if err := h.limitDowntime(ctx, s, out.firstDowntime()); err != nil {
		return nil, fmt.Errorf("limit downtime of %s: %w", out.VM, err)
	}
	s.params = moveParams(out.VM, s.begun.Disks, out.MemorySocket, out.DiskSocket)
	if out.MaxRate > 0 {
		mib := (uint64(out.MaxRate)/8 + 1<<19) >> 20
		s.params = append(s.params, rpc.TypedParam{Field: rpc.MigrateParamBandwidth, Value: *rpc.NewTypedParamValueUllong(max(mib, 1))})
	}

	flags := s.flags
	if out.MaxSlowdown > 0 {
		if err := h.setThrottle(ctx, s.ref, heldThrottle); err != nil {
			h.log.Warn("a VM that does not come to an end will not be slowed down", "vm", out.VM, "error", err)
			out.MaxSlowdown = 0
		} else {
			flags |= rpc.MigrateAutoConverge
		}
	}

	// What watches the copy outlives ctx, because the copy does.
	watch, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	events, err := h.Events(watch)
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	params := append(s.params[:len(s.params):len(s.params)], text(rpc.MigrateParamDestXML, out.XML))
	begun := h.spawn(func() {
		c, err := do(watch, h, func() ([]byte, error) {
			return s.conn.DomainMigratePerform3Params(s.ref, nil, params, out.Cookie, flags)
		})
		cookie = c
		done <- err
	})
	if !begun {
		return nil, fmt.Errorf("perform move of %s: %w", out.VM, ErrClosed)
	}
	err = h.follow(ctx, watch, s, out, events, done)
	if err != nil {
		if flags != s.flags {
			if err := h.setThrottle(watch, s.ref, defaultThrottle); err != nil {
				h.log.Debug("reset throttle", "vm", out.VM, "error", err) // or the VM has ended, or this connection
			}
		}
		return nil, fmt.Errorf("perform move of %s: %w", out.VM, err)
	}
	return cookie, nil
}

// DefaultDowntime is the longest pause that may be where nobody said another.
const DefaultDowntime = 300 * time.Millisecond

// FirstDowntime is the pause that any guest may make: one that is still needs no longer one.
const FirstDowntime = 20 * time.Millisecond

func (o Outgoing) firstDowntime() time.Duration {
	if o.Progress == nil {
		return o.MaxDowntime
	}
	return min(FirstDowntime, o.MaxDowntime)
}

func (h *Hypervisor) limitDowntime(ctx context.Context, s *session, limit time.Duration) error {
	return do0(ctx, h, func() error {
		return h.control.DomainMigrateSetMaxDowntime(s.ref, uint64(max(limit.Milliseconds(), 1)), 0)
	})
}

// follow reports a copy's progress and pause until it is done, and aborts it when ctx ends.
func (h *Hypervisor) follow(ctx, watch context.Context, s *session, out Outgoing, events <-chan Event, done <-chan error) error {
	paused := func(at time.Time) {
		if s.paused.IsZero() {
			s.paused = at
			if out.Paused != nil {
				out.Paused(at)
			}
		}
	}
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	allowed := Course{Pause: out.firstDowntime()}
	cancelled := ctx.Done()
	for {
		select {
		case <-cancelled:
			cancelled = nil
			h.abort(watch, s.ref, out.VM)
		case err := <-done:
			if err != nil {
				return err
			}
			paused(time.Now()) // in case its event was lost
			h.report(watch, s, out, true)
			return nil
		case e, ok := <-events:
			if !ok {
				events = nil // the control connection died; done tells the rest
			} else if e.VM == out.VM && e.What == EventReleased {
				paused(e.At)
			}
		case <-tick.C:
			if ctx.Err() != nil {
				h.abort(watch, s.ref, out.VM)
				continue
			}
			h.steer(watch, s, out, h.report(watch, s, out, false), &allowed)
		}
	}
}

// steer passes on how a copy is to go on, if that is not what it was told before. What fails is asked again at the
// next tick.
func (h *Hypervisor) steer(ctx context.Context, s *session, out Outgoing, to Course, told *Course) {
	if to.Pause > 0 && to.Pause != told.Pause {
		if err := h.limitDowntime(ctx, s, to.Pause); err != nil {
			h.log.Debug("allow another pause", "vm", out.VM, "error", err)
		} else {
			told.Pause = to.Pause
		}
	}
	if to.Slow && !told.Slow && out.MaxSlowdown > 0 {
		if err := h.setThrottle(ctx, s.ref, throttleTo(out.MaxSlowdown)); err != nil {
			h.log.Debug("slow guest down", "vm", out.VM, "error", err)
		} else {
			told.Slow = true
			h.log.Info("slow VM down", "vm", out.VM, "most_percent", out.MaxSlowdown)
		}
	}
}

// abort asks libvirt to end a copy. It refuses in the moments when a copy begins or ends,
// so one asks again as long as there is one.
func (h *Hypervisor) abort(ctx context.Context, ref rpc.Domain, vm heliotrope.VMID) {
	if err := do0(ctx, h, func() error { return h.control.DomainAbortJob(ref) }); err != nil {
		h.log.Debug("abort copy", "vm", vm, "error", err)
	}
}

// report passes the counters of a copy on, and returns how it is to go on.
// A poll that fails is made good by the next.
func (h *Hypervisor) report(ctx context.Context, s *session, out Outgoing, ended bool) Course {
	params, err := do(ctx, h, func() ([]rpc.TypedParam, error) {
		_, params, err := h.control.DomainGetJobStats(s.ref, 0)
		return params, err
	})
	if err != nil {
		h.log.Debug("read progress", "vm", out.VM, "error", err)
		return Course{}
	}
	p := progressOf(params)
	if !ended {
		p.Downtime = 0 // only QEMU's limit until then
	}
	if out.Progress == nil {
		return Course{}
	}
	return out.Progress(p)
}

func progressOf(params []rpc.TypedParam) migration.Progress {
	n, throttle := make(map[string]uint64, len(params)), int32(0)
	for _, p := range params {
		switch v := p.Value.I.(type) {
		case uint64:
			n[p.Field] = v
		case int32:
			if p.Field == "auto_converge_throttle" && v > int32(heldThrottle.most) {
				throttle = v
			}
		}
	}
	return migration.Progress{
		TotalBytes:     n["data_total"],
		DoneBytes:      n["data_processed"],
		RemainingBytes: n["data_remaining"],
		Rounds:         n["memory_iteration"],
		BytesPerSecond: n["memory_bps"] + n["disk_bps"],
		DirtyPerSecond: n["memory_dirty_rate"] * n["memory_page_size"],
		Downtime:       time.Duration(n["downtime"]) * time.Millisecond,
		Slowed:         int(throttle),
	}
}

// DiskCounters is what QEMU has counted of all disks of a VM since it was started.
type DiskCounters struct {
	Writes, Flushes      uint64
	WriteTime, FlushTime time.Duration // all of them together, each from the guest's request to its answer
}

// DiskCounters reads them, also during a move. A VM without a disk has none.
func (h *Hypervisor) DiskCounters(ctx context.Context, vm heliotrope.VMID) (DiskCounters, error) {
	d, err := h.lookup(ctx, vm)
	if err != nil {
		return DiskCounters{}, err
	}
	if len(d.parsed.Devices.Disks) == 0 {
		return DiskCounters{}, nil
	}
	params, err := do(ctx, h, func() ([]rpc.TypedParam, error) {
		_, n, err := h.control.DomainBlockStatsFlags(d.ref, "", 0, 0) // of all disks; so many parameters there are
		if err != nil {
			return nil, err
		}
		params, _, err := h.control.DomainBlockStatsFlags(d.ref, "", n, 0)
		return params, err
	})
	if err != nil {
		return DiskCounters{}, fmt.Errorf("read disk counters of %s: %w", vm, err)
	}
	n := make(map[string]uint64, len(params))
	for _, p := range params {
		if v, ok := p.Value.I.(int64); ok {
			n[p.Field] = uint64(v)
		}
	}
	return DiskCounters{
		Writes: n["wr_operations"], WriteTime: time.Duration(n["wr_total_times"]),
		Flushes: n["flush_operations"], FlushTime: time.Duration(n["flush_total_times"]),
	}, nil
}

// Abort ends a copy out of this host that goes on, whoever began it, and waits until the
// VM is in no move any more; a VM that is in none is left as it is. After a restart
// of the agent it finds out how a copy ended: the VM then runs, or is paused for Resume or
// Confirm to decide.
func (h *Hypervisor) Abort(ctx context.Context, vm heliotrope.VMID) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		d, err := h.lookup(ctx, vm)
		if err != nil {
			return err
		}
		if d.State != heliotrope.VMRunning && d.State != heliotrope.VMPaused {
			return nil
		}
		kind, err := do(ctx, h, func() (rpc.DomainJobType, error) {
			kind, _, err := h.control.DomainGetJobStats(d.ref, 0)
			return rpc.DomainJobType(kind), err
		})
		if err != nil {
			return fmt.Errorf("abort copy of %s: %w", vm, err)
		}
		if kind == rpc.DomainJobNone {
			return nil
		}
		h.abort(ctx, d.ref, vm)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("abort copy of %s: %w", vm, context.Cause(ctx))
		}
	}
}
