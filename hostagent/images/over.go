package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/libvirt"
	"heliotrope/migration"
)

// Hypervisor is what VMs' disks have to do with.
type Hypervisor interface {
	Domains(ctx context.Context) ([]libvirt.Domain, error)
	Start(ctx context.Context, spec libvirt.Spec) error
	Remove(ctx context.Context, vm heliotrope.VMID) error
	Begin(ctx context.Context, vm heliotrope.VMID) (libvirt.Description, error)
	Prepare(ctx context.Context, in libvirt.Incoming) ([]byte, error)
	Perform(ctx context.Context, out libvirt.Outgoing) ([]byte, error)
	Receives(vm heliotrope.VMID) bool
	Finish(ctx context.Context, vm heliotrope.VMID, cookie []byte, cancelled bool) error
	Confirm(ctx context.Context, vm heliotrope.VMID, cookie []byte, cancelled bool) error
	Sweep(ctx context.Context, diskDir string) error
}

// Over is a hypervisor some of whose VMs have disks of the image store: each is there before its
// VM needs it, and goes once its VM has gone for good.
type Over struct {
	Hypervisor Hypervisor
	Disks      *Disks
}

// Start starts a VM. If there is no directory of its image, or that says so, and it has no disk yet, its
// disk becomes one over an image of the store.
func (o Over) Start(ctx context.Context, spec libvirt.Spec) error {
	defer o.Disks.hold(spec.VM)()
	volume, err := o.volume(ctx, spec)
	if err != nil {
		return fmt.Errorf("make disk of %s: %w", spec.VM, err)
	}
	if spec.Volume = volume; volume != nil {
		spec.ImageDir = kernelDir(spec.ImageDir)
	}
	return o.Hypervisor.Start(ctx, spec)
}

// kernelDir is where a VM's kernel is: its image's directory, or for IMAGE@VERSION, which is
// no directory's name, that of IMAGE if it has a kernel.
func kernelDir(dir string) string {
	image, _, exact := strings.Cut(filepath.Base(dir), "@")
	if at := filepath.Join(filepath.Dir(dir), image); exact && !has(dir) && has(filepath.Join(at, kernelFile)) {
		return at
	}
	return dir
}

// kernelFile is the kernel of an image's directory.
const kernelFile = "vmlinuz"

func has(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// volume is a VM's disk in the image store; nil: it is none of that.
func (o Over) volume(ctx context.Context, spec libvirt.Spec) (*libvirt.Volume, error) {
	domains, err := o.Hypervisor.Domains(ctx)
	if err != nil {
		return nil, err
	}
	defined, alive := false, false
	for _, d := range domains {
		if heliotrope.VMID(d.Name) == spec.VM {
			defined, alive = true, d.State != agentapi.VMShutOff && d.State != agentapi.VMCrashed
		}
	}
	own := libvirt.HasVolume(spec.DiskDir, spec.VM, defined)
	if !own {
		if alive || libvirt.HasFile(spec.DiskDir, spec.VM, defined) { // it has what it needs
			return nil, nil
		}
		_, err := os.Stat(spec.ImageDir)
		switch {
		case err != nil && !errors.Is(err, os.ErrNotExist):
			return nil, err
		case o.Disks.c.Store == "", err == nil && !has(filepath.Join(spec.ImageDir, libvirt.StoredDisk)):
			return nil, nil
		}
	}
	// What there is of a VM that the host does not have is the rest of an earlier stay.
	v, _, err := o.Disks.put(ctx, spec.VM, wanted{Image: spec.What.Image, Fresh: !own && !defined})
	if errors.Is(err, ErrNoImage) && !has(spec.ImageDir) {
		err = fmt.Errorf("%s is no directory, and %w", spec.ImageDir, err)
	}
	return v, err
}

// Remove removes a VM and its disk.
func (o Over) Remove(ctx context.Context, vm heliotrope.VMID) error {
	if err := o.Hypervisor.Remove(ctx, vm); err != nil {
		return err
	}
	o.Disks.settle(ctx, vm)
	return nil
}

// Begin describes a VM for its destination; of a volume, by what its copies will know each other.
func (o Over) Begin(ctx context.Context, vm heliotrope.VMID) (libvirt.Description, error) {
	d, err := o.Hypervisor.Begin(ctx, vm)
	if err != nil || !d.Partial {
		return d, err
	}
	var n note
	err = o.Disks.soon(ctx, func(ctx context.Context) (err error) {
		n.Leaving, err = o.Disks.client.leave(ctx, string(vm))
		return err
	})
	if err != nil {
		return d, fmt.Errorf("begin move of %s: %w", vm, err)
	}
	d.Cookie = withNote(d.Cookie, n)
	return d, nil
}

// Prepare waits for a VM of another host. A disk that stands on a version of an image there gets
// a volume on the same one here.
func (o Over) Prepare(ctx context.Context, in libvirt.Incoming) ([]byte, error) {
	var n note
	in.Cookie, n = splitNote(in.Cookie)
	on, bytes, err := libvirt.VolumeBase(in.XML)
	if err != nil || on == "" {
		if err != nil {
			err = fmt.Errorf("prepare %s: %w", in.VM, err)
			return nil, err
		}
		return o.Hypervisor.Prepare(ctx, in)
	}
	defer o.Disks.hold(in.VM)()
	if o.Disks.c.Store == "" {
		return nil, fmt.Errorf("prepare %s: %w: its disk stands on %s, and this host has no image store (--image-store)", in.VM, agentapi.ErrInvalid, on)
	}
	move := n.Leaving.Move
	volume, has, err := o.Disks.put(ctx, in.VM, wanted{Base: on, Fresh: true, Move: move, Came: n.Leaving.Came})
	if err != nil {
		return nil, fmt.Errorf("prepare %s: make disk: %w", in.VM, err)
	}
	var cookie []byte
	if volume.Bytes != bytes {
		err = fmt.Errorf("prepare %s: its disk has %d bytes, one made of %s here %d", in.VM, bytes, on, volume.Bytes)
	} else {
		cookie, err = o.Hypervisor.Prepare(ctx, in)
	}
	if err != nil {
		o.Disks.settle(ctx, in.VM)
		return nil, err
	}
	if move != "" {
		cookie = withNote(cookie, note{Telling: telling{Move: move, Has: has}})
	}
	return cookie, nil
}

// Perform sends a VM, and of its volume only what the destination does not have.
func (o Over) Perform(ctx context.Context, out libvirt.Outgoing) ([]byte, error) {
	var n note
	if out.Cookie, n = splitNote(out.Cookie); n.Telling.Move == "" {
		return o.Hypervisor.Perform(ctx, out)
	}
	var t told
	end := func() {}
	pid, err := o.process(ctx, out.VM)
	if n.Telling.QEMU = pid; err == nil {
		err = o.Disks.soon(ctx, func(context.Context) (err error) { // it holds until end
			t, end, err = o.Disks.client.tell(context.WithoutCancel(ctx), string(out.VM), n.Telling)
			return err
		})
	}
	if err != nil {
		o.Disks.log.Warn("all of a disk is copied", "vm", out.VM, "error", err)
		return o.Hypervisor.Perform(ctx, out)
	}
	defer end()
	o.Disks.log.Info("only what differs of a disk is copied", "vm", out.VM, "destination_has", n.Telling.Has, "spared_bytes", t.Spared)
	if progress := out.Progress; progress != nil {
		out.Progress = func(p migration.Progress) libvirt.Course {
			p.SparedBytes = uint64(t.Spared)
			return progress(p)
		}
	}
	return o.Hypervisor.Perform(ctx, out)
}

// process is a VM's QEMU.
func (o Over) process(ctx context.Context, vm heliotrope.VMID) (pid int, err error) {
	domains, err := o.Hypervisor.Domains(ctx)
	for _, d := range domains {
		if heliotrope.VMID(d.Name) == vm {
			pid = d.PID
		}
	}
	if err == nil && pid == 0 {
		err = fmt.Errorf("%s has no QEMU", vm)
	}
	return pid, err
}

// Finish is the destination's last step.
func (o Over) Finish(ctx context.Context, vm heliotrope.VMID, cookie []byte, cancelled bool) error {
	if !cancelled {
		if err := o.arrive(ctx, vm); err != nil {
			return fmt.Errorf("finish %s: %w", vm, err)
		}
	}
	if err := o.Hypervisor.Finish(ctx, vm, cookie, cancelled); err != nil {
		return err
	}
	if cancelled {
		o.Disks.settle(ctx, vm)
	}
	return nil
}

// arrive marks the volume of a VM that is about to run here for the first time. Where that is not
// certain it is not marked, and the way back copies what differs from the base.
func (o Over) arrive(ctx context.Context, vm heliotrope.VMID) error {
	m, err := o.Disks.moves(vm)
	if err != nil || m.Came == "" || !o.Hypervisor.Receives(vm) {
		return nil
	}
	return o.Disks.soon(ctx, func(ctx context.Context) error { return o.Disks.client.arrive(ctx, string(vm)) })
}

// Confirm is the source's last step.
func (o Over) Confirm(ctx context.Context, vm heliotrope.VMID, cookie []byte, cancelled bool) error {
	if err := o.Hypervisor.Confirm(ctx, vm, cookie, cancelled); err != nil {
		return err
	}
	if !cancelled {
		o.Disks.left(ctx, vm)
		return nil
	}
	if m, err := o.Disks.moves(vm); err == nil && m.Leaves != "" {
		if err := o.Disks.soon(ctx, func(ctx context.Context) error { return o.Disks.client.stay(ctx, string(vm)) }); err != nil {
			o.Disks.log.Warn("a disk that stays is still said to leave; its next move says otherwise", "vm", vm, "error", err)
		}
	}
	return nil
}

// Sweep removes what moves and removals that were broken off have left.
func (o Over) Sweep(ctx context.Context, diskDir string) error {
	return errors.Join(o.Hypervisor.Sweep(ctx, diskDir), o.Disks.sweep(ctx))
}
