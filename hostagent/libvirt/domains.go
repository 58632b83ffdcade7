package libvirt

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	rpc "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"

	"heliotrope"
)

// Domain is a virtual machine of the host, ours or foreign.
type Domain struct {
	Name    string // heliotrope.VMID where it is ours
	UUID    string
	State   heliotrope.VMState
	Epoch   uint64 // of the permit under which it was last started here
	Foreign bool   // Heliotrope did not define it
	Taps    []Tap  // of a domain that has a QEMU
	PID     int    // of its QEMU, in the caller's process namespace; 0 where it has none
}

// Tap is the host's end of a VM's network card.
type Tap struct {
	NIC  int // index in heliotrope.VM.NICs
	Name string
	MAC  heliotrope.MAC
}

// domain is a Domain with libvirt's own view of it.
type domain struct {
	Domain
	ref        rpc.Domain
	parsed     *libvirtxml.Domain
	persistent bool
}

// Domains returns every domain that the daemon knows.
func (h *Hypervisor) Domains(ctx context.Context) ([]Domain, error) {
	refs, err := do(ctx, h, func() ([]rpc.Domain, error) {
		refs, _, err := h.control.ConnectListAllDomains(1, rpc.ConnectListDomainsActive|rpc.ConnectListDomainsInactive)
		return refs, err
	})
	if err != nil {
		return nil, fmt.Errorf("list domains: %w", err)
	}
	var all []Domain
	for _, ref := range refs {
		d, err := h.inspect(ctx, ref)
		if errors.Is(err, ErrAbsent) {
			continue // gone since it was listed
		}
		if err != nil {
			return nil, fmt.Errorf("inspect domain %s: %w", ref.Name, err)
		}
		all = append(all, d.Domain)
	}
	return all, nil
}

// lookup finds vm's domain, and refuses a foreign one.
func (h *Hypervisor) lookup(ctx context.Context, vm heliotrope.VMID) (domain, error) {
	// By name, so that a foreign domain of this name is seen too.
	ref, err := do(ctx, h, func() (rpc.Domain, error) { return h.control.DomainLookupByName(string(vm)) })
	if err != nil {
		return domain{}, fmt.Errorf("find domain %s: %w", vm, err)
	}
	d, err := h.inspect(ctx, ref)
	if err != nil {
		return domain{}, fmt.Errorf("inspect domain %s: %w", vm, err)
	}
	if d.Foreign || d.UUID != heliotrope.VMUUID(vm) {
		return domain{}, fmt.Errorf("find domain %s: %w", vm, ErrForeign)
	}
	return d, nil
}

func (h *Hypervisor) inspect(ctx context.Context, ref rpc.Domain) (domain, error) {
	type answer struct {
		state, reason int32
		persistent    bool
		xml           string
	}
	a, err := do(ctx, h, func() (a answer, err error) {
		if a.state, a.reason, err = h.control.DomainGetState(ref, 0); err != nil {
			return a, err
		}
		persistent, err := h.control.DomainIsPersistent(ref)
		a.persistent = persistent != 0
		if err != nil || mayBeIncoming(rpc.DomainState(a.state), a.persistent) {
			return a, err
		}
		a.xml, err = h.control.DomainGetXMLDesc(ref, 0)
		return a, err
	})
	if err != nil {
		return domain{}, err
	}
	d := domain{ref: ref, parsed: new(libvirtxml.Domain), persistent: a.persistent}
	d.Name, d.UUID = ref.Name, uuid(ref.UUID)
	if mayBeIncoming(rpc.DomainState(a.state), a.persistent) {
		return h.inspectIncoming(ctx, d)
	}
	if err := d.parsed.Unmarshal(a.xml); err != nil {
		return domain{}, fmt.Errorf("read description: %w", err)
	}
	var ours bool
	d.Epoch, ours = epochOf(d.parsed)
	d.Foreign = !ours
	d.State = stateOf(rpc.DomainState(a.state), a.reason)
	if d.State != heliotrope.VMShutOff && d.State != heliotrope.VMCrashed {
		d.Taps = tapsOf(d.parsed)
		d.PID = h.pid(d.Name)
	}
	return d, nil
}

// mayBeIncoming is true of a domain that waits for its stream. Ours are persistent at all
// other times.
func mayBeIncoming(state rpc.DomainState, persistent bool) bool {
	return state == rpc.DomainPaused && !persistent
}

// inspectIncoming asks no more than libvirt tells of an incoming domain: for its
// description it would let us wait 30 s, and then refuse.
func (h *Hypervisor) inspectIncoming(ctx context.Context, d domain) (domain, error) {
	mark, err := do(ctx, h, func() (string, error) {
		return h.control.DomainGetMetadata(d.ref, int32(rpc.DomainMetadataElement), rpc.OptString{metadataURI}, 0)
	})
	if refused := (rpc.Error{}); errors.As(err, &refused) && refused.Code == uint32(rpc.ErrNoDomainMetadata) {
		d.Foreign, d.State = true, heliotrope.VMPaused
		return d, nil
	}
	if err != nil {
		return domain{}, err
	}
	d.State, d.PID = heliotrope.VMIncoming, h.pid(d.Name)
	d.parsed.Metadata = &libvirtxml.DomainMetadata{XML: mark}
	d.Epoch, _ = epochOf(d.parsed)
	if s := h.session(heliotrope.VMID(d.Name)); s != nil && s.domain != nil {
		d.parsed = s.domain
		d.Taps = tapsOf(s.domain)
	}
	return d, nil
}

// stateOf translates libvirt's state.
func stateOf(state rpc.DomainState, reason int32) heliotrope.VMState {
	switch state {
	case rpc.DomainRunning, rpc.DomainBlocked, rpc.DomainShutdown:
		return heliotrope.VMRunning
	case rpc.DomainPaused, rpc.DomainPmsuspended:
		return heliotrope.VMPaused
	case rpc.DomainCrashed:
		return heliotrope.VMCrashed
	case rpc.DomainShutoff:
		if rpc.DomainShutoffReason(reason) == rpc.DomainShutoffCrashed {
			return heliotrope.VMCrashed
		}
	}
	return heliotrope.VMShutOff
}

func tapsOf(d *libvirtxml.Domain) []Tap {
	if d.Devices == nil {
		return nil
	}
	var taps []Tap
	for i, nic := range d.Devices.Interfaces {
		tap := Tap{NIC: i}
		if nic.Target != nil {
			tap.Name = nic.Target.Dev
		}
		if nic.MAC != nil {
			if err := tap.MAC.UnmarshalText([]byte(nic.MAC.Address)); err != nil {
				continue // a foreign domain's own idea of a card
			}
		}
		taps = append(taps, tap)
	}
	return taps
}

func (h *Hypervisor) pid(name string) int {
	text, err := os.ReadFile(h.pidFile(name))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	return pid
}

func uuid(u rpc.UUID) string {
	s := hex.EncodeToString(u[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// Start makes sure that the VM runs: it adopts one that does, and else defines it anew
// and starts it. It never restarts a running VM, and never lets a stopped one run
// (ErrPaused). A foreign domain of this name is left alone (ErrForeign).
func (h *Hypervisor) Start(ctx context.Context, spec Spec) error {
	d, err := h.lookup(ctx, spec.VM)
	switch {
	case errors.Is(err, ErrAbsent):
	case err != nil:
		return err
	case d.State == heliotrope.VMPaused || d.State == heliotrope.VMIncoming:
		return fmt.Errorf("start %s: %w", spec.VM, ErrPaused)
	case d.State == heliotrope.VMRunning:
		if d.Epoch != spec.Epoch {
			if err := h.setEpoch(ctx, d.ref, spec.Epoch); err != nil {
				return fmt.Errorf("adopt %s: %w", spec.VM, err)
			}
		}
		return lengthenQueues(d.Taps)
	}
	format, err := spec.makeDisk(err == nil)
	if err != nil {
		return fmt.Errorf("make disk of %s: %w", spec.VM, err)
	}
	text, err := spec.xml(format)
	if err != nil {
		return fmt.Errorf("describe %s: %w", spec.VM, err)
	}
	ref, err := do(ctx, h, func() (rpc.Domain, error) { return h.control.DomainDefineXML(text) })
	if err != nil {
		return fmt.Errorf("define %s: %w", spec.VM, err)
	}
	if err := do0(ctx, h, func() error { return h.control.DomainCreate(ref) }); err != nil {
		return fmt.Errorf("start %s: %w", spec.VM, err)
	}
	if d, err = h.lookup(ctx, spec.VM); err != nil {
		return err
	}
	return lengthenQueues(d.Taps)
}

func lengthenQueues(taps []Tap) error {
	for _, tap := range taps {
		if err := SetTapQueue(tap.Name, QueuePackets); err != nil {
			return err
		}
	}
	return nil
}

// setEpoch notes the permit's epoch in a domain that runs or is defined.
func (h *Hypervisor) setEpoch(ctx context.Context, ref rpc.Domain, epoch uint64) error {
	mark := fmt.Sprintf("<vm epoch=\"%d\"/>", epoch)
	err := do0(ctx, h, func() error {
		return h.control.DomainSetMetadata(ref, int32(rpc.DomainMetadataElement), rpc.OptString{mark},
			rpc.OptString{metadataKey}, rpc.OptString{metadataURI}, rpc.DomainAffectLive|rpc.DomainAffectConfig)
	})
	if err != nil {
		return fmt.Errorf("set epoch: %w", err)
	}
	return nil
}

// Remove destroys and undefines the VM and deletes its disk. One that is not there is
// removed already.
func (h *Hypervisor) Remove(ctx context.Context, vm heliotrope.VMID) error {
	d, err := h.lookup(ctx, vm)
	if errors.Is(err, ErrAbsent) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := markDisks(d.parsed); err != nil {
		return fmt.Errorf("mark disks of %s: %w", vm, err)
	}
	if d.State != heliotrope.VMShutOff && d.State != heliotrope.VMCrashed {
		err := do0(ctx, h, func() error { return h.control.DomainDestroy(d.ref) })
		if err != nil && !errors.Is(err, ErrAbsent) {
			return fmt.Errorf("destroy %s: %w", vm, err)
		}
	}
	if d.persistent {
		err := do0(ctx, h, func() error { return h.control.DomainUndefine(d.ref) })
		if err != nil && !errors.Is(err, ErrAbsent) {
			return fmt.Errorf("undefine %s: %w", vm, err)
		}
	}
	return removeDisks(d.parsed)
}

// Resume lets a stopped VM run. A running one is left as it is.
func (h *Hypervisor) Resume(ctx context.Context, vm heliotrope.VMID) error {
	d, err := h.lookup(ctx, vm)
	if err != nil {
		return err
	}
	if d.State == heliotrope.VMRunning {
		return nil
	}
	if err := do0(ctx, h, func() error { return h.control.DomainResume(d.ref) }); err != nil {
		return fmt.Errorf("resume %s: %w", vm, err)
	}
	return nil
}

// Suspend stops a VM's vCPUs. A stopped one is left as it is.
func (h *Hypervisor) Suspend(ctx context.Context, vm heliotrope.VMID) error {
	d, err := h.lookup(ctx, vm)
	if err != nil {
		return err
	}
	if d.State == heliotrope.VMPaused {
		return nil
	}
	if err := do0(ctx, h, func() error { return h.control.DomainSuspend(d.ref) }); err != nil {
		return fmt.Errorf("suspend %s: %w", vm, err)
	}
	return nil
}
