package hostagent

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/durable"
	"heliotrope/hostagent/images"
	"heliotrope/hostagent/libvirt"
	"heliotrope/hostagent/paths"
)

const (
	orderLimit = 2 * time.Minute // a VM that has not started by then will not
	statusWait = 5 * time.Second // for libvirt, when somebody asks
)

var _ agentapi.Host = (*vms)(nil)

// vms carries out orders about VMs that are no moves, and says how the host is.
type vms struct {
	*images.Orders
	config  Config
	host    heliotrope.HostID
	boot    string
	log     *slog.Logger
	conn    *connection
	ledger  *durable.Ledger
	moves   *moves
	uplink  *uplink
	revoked *revoked
	paths   *paths.Paths

	known chan libvirt.Host // of size 1; holds what learn has learnt
}

// learn asks once what the host can do. That boots something under KVM, so it may take
// some seconds.
func (v *vms) learn(ctx context.Context) error {
	for {
		hv, err := v.conn.get(ctx)
		if err != nil {
			return err
		}
		host, err := hv.Host(ctx)
		if err == nil {
			if err := hv.Sweep(ctx, v.config.diskDir()); err != nil {
				v.log.Warn("disks of moves that were broken off remain", "error", err)
			}
			v.known <- host
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		v.log.Warn("cannot learn what the host can do", "error", err)
		pause(ctx, time.Second)
	}
}

// facts waits for what learn has learnt.
func (v *vms) facts(ctx context.Context) (libvirt.Host, error) {
	select {
	case host := <-v.known:
		v.known <- host
		return host, nil
	case <-ctx.Done():
		return libvirt.Host{}, fmt.Errorf("%w: the host is still being looked at: %w", agentapi.ErrBusy, ctx.Err())
	}
}

// PutVM makes sure that a VM runs here. What it began it goes on with even if the
// controller's connection ends.
func (v *vms) PutVM(ctx context.Context, o agentapi.VMOrder) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), orderLimit)
	defer cancel()
	if image := o.Spec.Image; filepath.Base(image) != image || !filepath.IsLocal(image) {
		return fmt.Errorf("%w: %q is no name of an image", agentapi.ErrInvalid, image)
	}
	release, err := v.take(o.Term, o.VM)
	if err != nil {
		return err
	}
	defer release()
	hv, d, err := v.conn.find(ctx, o.VM)
	if err != nil {
		return err
	}
	if err := mayOrder(d, o.VM); err != nil {
		return err
	}
	if err := v.ledger.Grant(o.VM, o.Epoch); err != nil {
		return err
	}
	switch d.State {
	case agentapi.VMPaused:
		// The order is the right to run it: no move of it is on.
		return hv.Resume(ctx, o.VM)
	case agentapi.VMIncoming:
		return fmt.Errorf("%w: %s is the rest of a move that is not known", agentapi.ErrBusy, o.VM)
	}
	host, err := v.facts(ctx)
	if err != nil {
		return err
	}
	return hv.Start(ctx, libvirt.Spec{
		VM: o.VM, Epoch: o.Epoch, What: o.Spec, Networks: o.Networks, KVM: host.KVM,
		ImageDir: filepath.Join(v.config.imageDir(), o.Spec.Image),
		DiskDir:  v.config.diskDir(), Bridge: v.config.Bridge,
	})
}

// RemoveVM makes sure that a VM is not here.
func (v *vms) RemoveVM(ctx context.Context, o agentapi.RemoveOrder) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), orderLimit)
	defer cancel()
	release, err := v.take(o.Term, o.VM)
	if err != nil {
		return err
	}
	defer release()
	if seen := v.ledger.Get(o.VM).Epoch; o.Epoch < seen {
		return fmt.Errorf("%w: epoch %d of %s is over here, %d was seen", agentapi.ErrStale, o.Epoch, o.VM, seen)
	}
	hv, d, err := v.conn.find(ctx, o.VM)
	if err != nil {
		return err
	}
	if err := mayOrder(d, o.VM); err != nil {
		return err
	}
	if d.State != agentapi.VMAbsent {
		if err := hv.Remove(ctx, o.VM); err != nil {
			return err
		}
	}
	return v.ledger.Forget(o.VM)
}

func (v *vms) take(term uint64, vm heliotrope.VMID) (release func(), err error) {
	if v.config.Libvirt == NoLibvirt { // there is nobody to wait for
		return nil, fmt.Errorf("%w: host %s runs no VMs: its agent was started with --libvirt %s", agentapi.ErrInvalid, v.host, NoLibvirt)
	}
	if err := v.ledger.Fence(term); err != nil {
		return nil, err
	}
	return v.moves.exclude(vm)
}

func mayOrder(d libvirt.Domain, vm heliotrope.VMID) error {
	if d.Foreign {
		return fmt.Errorf("%w: a domain %s is here that Heliotrope did not define", agentapi.ErrInvalid, vm)
	}
	return nil
}

// Status says how the host is. It is an error, not an empty list, if libvirt does not
// tell which VMs there are.
func (v *vms) Status(ctx context.Context) (agentapi.HostStatus, error) {
	if v.config.Libvirt == NoLibvirt {
		s := agentapi.HostStatus{Host: v.host, Version: Version, Boot: v.boot, NoVMs: true, Paths: v.paths.Measured(), Warnings: v.uplink.warnings(), Revocation: v.revoked.now()}
		s.GatewayMAC, s.UnderlayMTU = v.uplink.gateway()
		return s, nil
	}
	ctx, cancel := context.WithTimeout(ctx, statusWait)
	defer cancel()
	hv, err := v.conn.get(ctx)
	if err != nil {
		return agentapi.HostStatus{}, fmt.Errorf("%w: %w", agentapi.ErrBusy, err)
	}
	host, err := v.facts(ctx)
	if err != nil {
		return agentapi.HostStatus{}, err
	}
	domains, err := hv.Domains(ctx)
	if err != nil {
		return agentapi.HostStatus{}, err
	}
	s := agentapi.HostStatus{
		Host: v.host, Version: Version, Boot: v.boot,
		CPUs: host.CPUs, MemoryMiB: host.MemoryMiB, KVM: host.KVM, QEMU: host.QEMU, Libvirt: host.Libvirt,
		Paths: v.paths.Measured(), Warnings: v.uplink.warnings(), Revocation: v.revoked.now(),
	}
	s.GatewayMAC, s.UnderlayMTU = v.uplink.gateway()
	var trouble []string
	s.Images, trouble = v.Disks.Status(ctx)
	s.Warnings = append(s.Warnings, trouble...)
	for _, d := range domains {
		s.VMs = append(s.VMs, v.status(d))
	}
	if major := majorOf(host.QEMU); !s.KVM && major > 0 && major < 8 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("QEMU %s without KVM corrupts the memory of VMs that it moves: use QEMU 8 or newer", host.QEMU))
	}
	return s, nil
}

func (v *vms) status(d libvirt.Domain) agentapi.VMStatus {
	vm := heliotrope.VMID(d.Name)
	s := agentapi.VMStatus{VM: vm, UUID: d.UUID, State: d.State, Epoch: d.Epoch, Foreign: d.Foreign}
	if !d.Foreign {
		s.Move = v.moves.live(vm)
		if p := v.ledger.Get(vm); p.Held {
			s.Epoch = p.Epoch
		}
	}
	return s
}

// Probe measures the paths to peers.
func (v *vms) Probe(ctx context.Context, o agentapi.ProbeOrder) ([]agentapi.Path, error) {
	return v.paths.Probe(ctx, o)
}

// majorOf is the first number of a version, 0 if it has none.
func majorOf(version string) (major int) {
	if _, err := fmt.Sscanf(version, "%d.", &major); err != nil {
		return 0
	}
	return major
}
