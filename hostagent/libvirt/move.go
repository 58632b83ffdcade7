package libvirt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"

	"heliotrope"
	"heliotrope/migration"
)

// Description is what a source tells of a VM that is about to move.
type Description struct {
	XML    string
	Cookie []byte // for Prepare
	Disks  []migration.Disk
	// Partial says that of its disks only what their servers call allocated is copied; the
	// destination's keep what they have of the rest.
	Partial bool
}

// Incoming is what a destination needs to receive a VM.
type Incoming struct {
	VM     heliotrope.VMID
	Epoch  uint64 // of the permit under which the VM will run here; 0: the one in XML
	XML    string // from Begin
	Cookie []byte // from Begin
	Disks  []migration.Disk

	DiskDir      string // where all disks of XML must be
	LogDir       string // where its console's log must be; default /var/log/heliotrope
	MemorySocket string // QEMU listens here for memory
	DiskSocket   string // and here, by NBD, for disks
}

// session is this host's part of one move: the connection that libvirt ties it to.
type session struct {
	conn   *conn
	ref    rpc.Domain // source
	role   migration.Role
	begun  Description // source
	params []rpc.TypedParam
	flags  rpc.DomainMigrateFlags
	domain *libvirtxml.Domain
	epoch  uint64    // destination
	paused time.Time // source
}

// The connection must not change the domain under the move (ChangeProtection): libvirt
// ties the move to the connection of Begin by that.
const moveFlags = rpc.MigrateLive | rpc.MigratePersistDest | rpc.MigrateUndefineSource | rpc.MigrateChangeProtection

// sourceFlags are refused by Prepare and Finish.
const sourceFlags = rpc.MigrateAbortOnError

func text(field, value string) rpc.TypedParam {
	return rpc.TypedParam{Field: field, Value: *rpc.NewTypedParamValueString(value)}
}

// moveParams are the parameters that all steps share.
func moveParams(vm heliotrope.VMID, disks []migration.Disk, memory, disk string) []rpc.TypedParam {
	params := []rpc.TypedParam{text(rpc.MigrateParamDestName, string(vm))}
	if memory != "" {
		params = append(params, text(rpc.MigrateParamURI, "unix://"+memory))
	}
	for _, d := range disks {
		params = append(params, text(rpc.MigrateParamMigrateDisks, d.Target))
	}
	if disk != "" && len(disks) > 0 {
		params = append(params, text(rpc.MigrateParamDisksURI, "unix://"+disk))
	}
	return params
}

func flagsFor(disks []migration.Disk) rpc.DomainMigrateFlags {
	if len(disks) > 0 {
		// Not with synchronous writes: when such a mirror is cancelled with a write on its way,
		// QEMU 10.0 clears bits in memory that it has freed, and often dies. The relay answers
		// writes at once instead, so that a guest that goes on writing does not outrun a long way.
		return moveFlags | rpc.MigrateNonSharedDisk
	}
	return moveFlags
}

// session returns the live session of a VM's move, or nil. One whose connection has died
// is forgotten: libvirt has ended its part as the package comment says.
func (h *Hypervisor) session(vm heliotrope.VMID) *session {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.moves[vm]
	if s == nil {
		return nil
	}
	select {
	case <-s.conn.dead:
		delete(h.moves, vm)
		return nil
	default:
		return s
	}
}

// open connects for a new session.
func (h *Hypervisor) open(ctx context.Context, vm heliotrope.VMID, role migration.Role) (*session, error) {
	if h.session(vm) != nil {
		return nil, fmt.Errorf("open move of %s: another one is on", vm)
	}
	c, err := h.connect(ctx)
	if err != nil {
		return nil, err
	}
	s := &session{conn: c, role: role}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.moves[vm] != nil {
		return nil, errors.Join(fmt.Errorf("open move of %s: %w", vm, ErrClosed), c.close())
	}
	h.moves[vm] = s
	return s, nil
}

// end closes a session, and with it whatever libvirt still keeps of the move.
func (h *Hypervisor) end(vm heliotrope.VMID, s *session) {
	if s == nil {
		return
	}
	h.mu.Lock()
	if h.moves[vm] == s {
		delete(h.moves, vm)
	}
	h.mu.Unlock()
	if err := s.conn.close(); err != nil {
		h.log.Debug("close connection of a move", "vm", vm, "error", err)
	}
}

// Begin describes a running VM for its destination, and from now on keeps others from
// changing it. Repeated before Perform, it returns the same again.
// If the move goes no further, end it by a cancelled Confirm.
func (h *Hypervisor) Begin(ctx context.Context, vm heliotrope.VMID) (Description, error) {
	if s := h.session(vm); s != nil && s.role == migration.Source && s.begun.XML != "" {
		return s.begun, nil
	}
	d, err := h.lookup(ctx, vm)
	if err != nil {
		return Description{}, err
	}
	if d.State != heliotrope.VMRunning {
		return Description{}, fmt.Errorf("begin move of %s: it is %s", vm, d.State)
	}
	disks, err := describeDisks(d.parsed)
	if err != nil {
		return Description{}, fmt.Errorf("begin move of %s: %w", vm, err)
	}
	s, err := h.open(ctx, vm, migration.Source)
	if err != nil {
		return Description{}, err
	}
	s.ref, s.domain, s.flags = d.ref, d.parsed, flagsFor(disks)|sourceFlags
	partial := h.copiesPartly(ctx, d)
	if partial {
		s.flags = s.flags&^rpc.MigrateNonSharedDisk | rpc.MigrateNonSharedInc
	}
	s.params = moveParams(vm, disks, "", "")
	begun, err := do(ctx, h, func() (Description, error) {
		cookie, xml, err := s.conn.DomainMigrateBegin3Params(d.ref, s.params, uint32(s.flags))
		return Description{XML: xml, Cookie: cookie, Disks: disks, Partial: partial}, err
	})
	if err != nil {
		h.end(vm, s)
		return Description{}, fmt.Errorf("begin move of %s: %w", vm, err)
	}
	s.begun = begun
	return begun, nil
}

// Prepare starts a QEMU that waits for the VM, plugged into the bridge but stopped, and
// makes empty disks for it; disks that are there from an earlier stay are overwritten.
// The cookie is for Perform.
func (h *Hypervisor) Prepare(ctx context.Context, in Incoming) (cookie []byte, err error) {
	parsed, err := parseDomain(in.VM, in.XML, in.DiskDir, cmp.Or(in.LogDir, defaultLogDir))
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", in.VM, err)
	}
	d, err := h.lookup(ctx, in.VM)
	if err == nil && d.State != heliotrope.VMShutOff && d.State != heliotrope.VMCrashed {
		return nil, fmt.Errorf("prepare %s: it is here already, %s", in.VM, d.State)
	}
	if err != nil && !errors.Is(err, ErrAbsent) {
		return nil, err
	}
	if err := makeEmptyDisks(parsed, in.Disks); err != nil {
		return nil, fmt.Errorf("prepare %s: %w", in.VM, err)
	}
	s, err := h.open(ctx, in.VM, migration.Destination)
	if err != nil {
		return nil, err
	}
	if s.epoch, _ = epochOf(parsed); in.Epoch != 0 {
		s.epoch = in.Epoch
	}
	s.domain, s.flags = parsed, flagsFor(in.Disks)
	s.params = moveParams(in.VM, in.Disks, in.MemorySocket, in.DiskSocket)
	params := append(s.params[:len(s.params):len(s.params)], text(rpc.MigrateParamDestXML, withEpoch(in.XML, s.epoch)))
	cookie, err = do(ctx, h, func() ([]byte, error) {
		out, _, err := s.conn.DomainMigratePrepare3Params(params, in.Cookie, uint32(s.flags))
		return out, err
	})
	if err == nil {
		err = lengthenQueues(tapsOf(parsed))
	}
	if err != nil {
		h.end(in.VM, s)
		return nil, errors.Join(fmt.Errorf("prepare %s: %w", in.VM, err), removeDisks(parsed))
	}
	return cookie, nil
}

// Receives says whether a VM is on its way here: its vCPUs have not run here yet.
func (h *Hypervisor) Receives(vm heliotrope.VMID) bool {
	s := h.session(vm)
	return s != nil && s.role == migration.Destination
}

// Settle ends the stream at the destination once Perform has returned at the source, and
// leaves the VM stopped. It fails if the destination could not run the VM. Afterwards the
// VM here outlives the agent; Finish lets it run or throws it away. Settle may be left out.
// cookie is Perform's.
func (h *Hypervisor) Settle(ctx context.Context, vm heliotrope.VMID, cookie []byte) error {
	s := h.session(vm)
	if s == nil {
		d, err := h.lookup(ctx, vm)
		if err == nil && d.State != heliotrope.VMPaused {
			err = fmt.Errorf("it is %s, and not in a move", d.State)
		}
		if err != nil {
			return fmt.Errorf("settle %s: %w", vm, err)
		}
		return nil
	}
	if err := h.finish(ctx, s, cookie, rpc.MigratePaused, 0); err != nil {
		return fmt.Errorf("settle %s: %w", vm, err)
	}
	return h.arrived(ctx, vm, s)
}

// arrived makes an incoming VM one of this host.
func (h *Hypervisor) arrived(ctx context.Context, vm heliotrope.VMID, s *session) error {
	defer h.end(vm, s)
	return errors.Join(h.setEpoch(ctx, s.ref, s.epoch), unmarkDisks(s.domain))
}

func (h *Hypervisor) finish(ctx context.Context, s *session, cookie []byte, flags rpc.DomainMigrateFlags, cancelled int32) error {
	if s.role != migration.Destination {
		return errors.New("this host is the source")
	}
	// Only when the cookie tells it of disks does libvirt close the server that received
	// them; left open, it makes the VM's next move fail.
	if cancelled == 0 && len(cookie) == 0 {
		return errors.New("the source's cookie is missing")
	}
	ref, err := do(ctx, h, func() (rpc.Domain, error) {
		ref, _, err := s.conn.DomainMigrateFinish3Params(s.params, cookie, uint32(s.flags|flags), cancelled)
		return ref, err
	})
	s.ref = ref
	return err
}

// Finish is the destination's last step. Not cancelled, it lets the VM run here: call it
// under a permit only. Cancelled, it throws the incoming VM and its disks away, but never
// one that runs (ErrRunning). Both may be repeated, and both work after Settle and after
// a restart of the agent, as far as libvirt has kept the VM. cookie is Perform's, and is
// needed unless the move is cancelled or settled.
func (h *Hypervisor) Finish(ctx context.Context, vm heliotrope.VMID, cookie []byte, cancelled bool) error {
	s := h.session(vm)
	if cancelled {
		return h.discard(ctx, vm, s)
	}
	if s == nil {
		return h.Resume(ctx, vm)
	}
	if err := h.finish(ctx, s, cookie, 0, 0); err != nil {
		return fmt.Errorf("finish %s: %w", vm, err)
	}
	return h.arrived(ctx, vm, s)
}

func (h *Hypervisor) discard(ctx context.Context, vm heliotrope.VMID, s *session) error {
	if s != nil {
		// A cancelled Finish answers with an error when it has done what it should:
		// what counts is what is there afterwards.
		if err := h.finish(ctx, s, nil, 0, 1); err != nil && ctx.Err() != nil {
			return fmt.Errorf("discard %s: %w", vm, err)
		}
		h.end(vm, s)
	}
	d, err := h.lookup(ctx, vm)
	switch {
	case errors.Is(err, ErrAbsent) && s != nil:
		return removeDisks(s.domain)
	case errors.Is(err, ErrAbsent):
		return nil
	case err != nil:
		return err
	case d.State == heliotrope.VMRunning:
		return fmt.Errorf("discard %s: %w", vm, ErrRunning)
	}
	return h.Remove(ctx, vm)
}

// Confirm is the source's last step. Not cancelled, it removes the stopped VM and its
// disk from this host: call it when the VM runs elsewhere. Cancelled, it gives up the move
// wherever it stands, and the VM runs here. Both may be repeated, and both work after a
// restart of the agent. cookie may be nil.
func (h *Hypervisor) Confirm(ctx context.Context, vm heliotrope.VMID, cookie []byte, cancelled bool) error {
	s := h.session(vm)
	if s != nil && s.role != migration.Source {
		return fmt.Errorf("confirm %s: this host is the destination", vm)
	}
	if cancelled {
		return h.rollBack(ctx, vm, s)
	}
	d, err := h.lookup(ctx, vm)
	if errors.Is(err, ErrAbsent) {
		h.end(vm, s)
		return nil
	}
	if err != nil {
		return err
	}
	if d.State == heliotrope.VMRunning {
		return fmt.Errorf("confirm %s: %w", vm, ErrRunning)
	}
	if s != nil {
		if err := markDisks(s.domain); err != nil {
			return fmt.Errorf("mark disks of %s: %w", vm, err)
		}
		err = do0(ctx, h, func() error {
			return s.conn.DomainMigrateConfirm3Params(s.ref, s.params, cookie, uint32(s.flags), 0)
		})
		if err != nil {
			return fmt.Errorf("confirm %s: %w", vm, err)
		}
		h.end(vm, s)
		return removeDisks(s.domain)
	}
	return h.Remove(ctx, vm)
}

// rollBack makes a VM run at its source again.
func (h *Hypervisor) rollBack(ctx context.Context, vm heliotrope.VMID, s *session) error {
	if s != nil {
		// After a Perform that failed libvirt has ended the move by itself, and refuses.
		err := do0(ctx, h, func() error {
			return s.conn.DomainMigrateConfirm3Params(s.ref, s.params, nil, uint32(s.flags), 1)
		})
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("roll back %s: %w", vm, err)
		}
		h.end(vm, s)
	}
	if err := h.Abort(ctx, vm); err != nil {
		return err
	}
	return h.Resume(ctx, vm)
}
