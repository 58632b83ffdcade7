package libvirt

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"libvirt.org/go/libvirtxml"

	"heliotrope"
)

// Spec says what VM to run, and with what of this host.
type Spec struct {
	VM       heliotrope.VMID
	Epoch    uint64 // of the permit
	What     heliotrope.VM
	Networks map[heliotrope.NetworkID]heliotrope.Network // those of its NICs
	KVM      bool                                        // else the emulator TCG
	ImageDir string                                      // vmlinuz, initrd.img, cmdline, disk.img or disk.store: each optional
	DiskDir  string                                      // where the VM's own disk is kept: the same path at each host
	Volume   *Volume                                     // the disk is that of the image store; nil: it is a copy of ImageDir's
	Bridge   string                                      // default br-int
	LogDir   string                                      // of the serial console's log; default /var/log/heliotrope
}

const (
	metadataKey = "heliotrope"
	metadataURI = "urn:heliotrope:domain:1"
	defaultMTU  = 1450 // 1500 less VXLAN's 50
	defaultRAM  = 256  // MiB
	maxXML      = 1 << 20

	defaultLogDir = "/var/log/heliotrope"
)

// TapName is the network device of a VM's i-th NIC on the host that runs it. It depends on
// the VM's name and i alone.
func TapName(vm heliotrope.VMID, i int) string {
	sum := sha256.Sum256([]byte(vm))
	return "ht" + hex.EncodeToString(sum[:])[:9] + "-" + strconv.Itoa(i) // at most 15 characters up to i = 99
}

func (s Spec) diskFile() string {
	if s.Volume != nil {
		return volumeFile(s.DiskDir, s.VM)
	}
	return filepath.Join(s.DiskDir, string(s.VM)+".img")
}

// xml describes the VM to libvirt; disk is the format of its disk, empty when it has none.
// The CPU model is the plainest, so that a VM may go to any host.
func (s Spec) xml(disk string) (string, error) {
	kind := "qemu"
	if s.KVM {
		kind = "kvm"
	}
	system, err := s.os()
	if err != nil {
		return "", err
	}
	d := libvirtxml.Domain{
		Type: kind, Name: string(s.VM), UUID: heliotrope.VMUUID(s.VM),
		Metadata: &libvirtxml.DomainMetadata{XML: fmt.Sprintf("<%s:vm xmlns:%s=%q epoch=\"%d\"/>", metadataKey, metadataKey, metadataURI, s.Epoch) + s.Volume.mark()},
		Memory:   &libvirtxml.DomainMemory{Value: uint(max(s.What.MemoryMiB, 0)), Unit: "MiB"},
		VCPU:     &libvirtxml.DomainVCPU{Value: uint(max(s.What.CPUs, 1))},
		OS:       system,
		Features: &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{}, APIC: &libvirtxml.DomainFeatureAPIC{}},
		CPU:      &libvirtxml.DomainCPU{Mode: "custom", Match: "exact", Check: "none", Model: &libvirtxml.DomainCPUModel{Fallback: "forbid", Value: "qemu64"}},
		Clock:    &libvirtxml.DomainClock{Offset: "utc"},
		OnCrash:  "destroy", OnReboot: "restart", OnPoweroff: "destroy",
		Devices: &libvirtxml.DomainDeviceList{
			Serials:    []libvirtxml.DomainSerial{s.serial()},
			MemBalloon: &libvirtxml.DomainMemBalloon{Model: "none"},
			RNGs:       []libvirtxml.DomainRNG{{Model: "virtio", Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}}}},
		},
	}
	if d.Memory.Value == 0 {
		d.Memory.Value = defaultRAM
	}
	if disk != "" {
		d.Devices.Disks = []libvirtxml.DomainDisk{s.disk(disk)}
	}
	for i := range s.What.NICs {
		nic, err := s.nic(i)
		if err != nil {
			return "", err
		}
		d.Devices.Interfaces = append(d.Devices.Interfaces, nic)
	}
	return d.Marshal()
}

// os lets a VM whose image has a kernel boot it directly, any other its disk.
func (s Spec) os() (*libvirtxml.DomainOS, error) {
	system := &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: "x86_64", Machine: "q35", Type: "hvm"}}
	kernel := filepath.Join(s.ImageDir, "vmlinuz")
	if _, err := os.Stat(kernel); errors.Is(err, os.ErrNotExist) {
		system.BootDevices = []libvirtxml.DomainBootDevice{{Dev: "hd"}}
		return system, nil
	} else if err != nil {
		return nil, fmt.Errorf("find kernel: %w", err)
	}
	system.Kernel = kernel
	initrd := filepath.Join(s.ImageDir, "initrd.img")
	if _, err := os.Stat(initrd); err == nil {
		system.Initrd = initrd
	}
	line, err := os.ReadFile(filepath.Join(s.ImageDir, "cmdline"))
	if errors.Is(err, os.ErrNotExist) {
		line, err = []byte("console=ttyS0 quiet panic=1"), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read kernel command line: %w", err)
	}
	system.Cmdline, err = s.cmdline(strings.TrimSpace(string(line)))
	return system, err
}

// cmdline tells the guest its addresses and metadata behind the image's own words.
func (s Spec) cmdline(image string) (string, error) {
	words := []string{image}
	for i, nic := range s.What.NICs {
		network, ok := s.Networks[nic.Network]
		if !ok {
			return "", fmt.Errorf("describe NIC %d: network %q is unknown", i, nic.Network)
		}
		address := netip.PrefixFrom(nic.Address, network.Subnet.Bits())
		words = append(words, fmt.Sprintf("heliotrope.nic=%s,%s,%s,%d", s.mac(i), address, network.Gateway, mtu(network)))
	}
	keys := make([]string, 0, len(s.What.Metadata))
	for k := range s.What.Metadata {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		word := "heliotrope." + k + "=" + s.What.Metadata[k]
		if strings.ContainsAny(word, " \t\r\n\"'") {
			return "", fmt.Errorf("describe metadata %q: a kernel command line takes no blanks and no quotes", k)
		}
		words = append(words, word)
	}
	return strings.Join(words, " "), nil
}

func (s Spec) mac(i int) heliotrope.MAC {
	if m := s.What.NICs[i].MAC; !m.IsZero() {
		return m
	}
	return heliotrope.NICMAC(s.VM, i)
}

func mtu(n heliotrope.Network) int { return cmp.Or(n.MTU, defaultMTU) }

// nic is a virtio card on the bridge. Offloads are off: the userspace datapath of Open
// vSwitch does not finish checksums and segments that a guest leaves to it. The receive
// ring has its greatest size, because QEMU forgets the frame that waits for a free slot
// when a VM stops.
func (s Spec) nic(i int) (libvirtxml.DomainInterface, error) {
	network, ok := s.Networks[s.What.NICs[i].Network]
	if !ok {
		return libvirtxml.DomainInterface{}, fmt.Errorf("describe NIC %d: network %q is unknown", i, s.What.NICs[i].Network)
	}
	return libvirtxml.DomainInterface{
		MAC:    &libvirtxml.DomainInterfaceMAC{Address: s.mac(i).String()},
		Source: &libvirtxml.DomainInterfaceSource{Bridge: &libvirtxml.DomainInterfaceSourceBridge{Bridge: cmp.Or(s.Bridge, "br-int")}},
		VirtualPort: &libvirtxml.DomainInterfaceVirtualPort{Params: &libvirtxml.DomainInterfaceVirtualPortParams{
			OpenVSwitch: &libvirtxml.DomainInterfaceVirtualPortParamsOpenVSwitch{InterfaceID: heliotrope.InterfaceID(s.VM, i)},
		}},
		Target: &libvirtxml.DomainInterfaceTarget{Dev: TapName(s.VM, i)},
		Model:  &libvirtxml.DomainInterfaceModel{Type: "virtio"},
		MTU:    &libvirtxml.DomainInterfaceMTU{Size: uint(mtu(network))},
		Driver: &libvirtxml.DomainInterfaceDriver{
			Name: "qemu", RXQueueSize: 1024,
			Host:  &libvirtxml.DomainInterfaceDriverHost{CSum: "off", GSO: "off", TSO4: "off", TSO6: "off", ECN: "off", UFO: "off"},
			Guest: &libvirtxml.DomainInterfaceDriverGuest{CSum: "off", TSO4: "off", TSO6: "off", ECN: "off", UFO: "off"},
		},
	}, nil
}

func (s Spec) disk(format string) libvirtxml.DomainDisk {
	if s.Volume != nil {
		return s.volumeDisk(format)
	}
	return libvirtxml.DomainDisk{
		Device: "disk",
		Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: format, Cache: "none"},
		Source: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: s.diskFile()}},
		Target: &libvirtxml.DomainDiskTarget{Dev: "vda", Bus: "virtio"},
	}
}

func (s Spec) serial() libvirtxml.DomainSerial {
	return libvirtxml.DomainSerial{
		Source: &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}},
		Log:    &libvirtxml.DomainChardevLog{File: filepath.Join(cmp.Or(s.LogDir, defaultLogDir), string(s.VM)+".console"), Append: "on"},
	}
}

// epochOf reads our mark in a domain's description; ours is false where there is none.
func epochOf(d *libvirtxml.Domain) (epoch uint64, ours bool) {
	if d.Metadata == nil {
		return 0, false
	}
	dec := xml.NewDecoder(strings.NewReader(d.Metadata.XML))
	for {
		token, err := dec.Token()
		if err != nil {
			return 0, false
		}
		e, ok := token.(xml.StartElement)
		if !ok || e.Name.Space != metadataURI || e.Name.Local != "vm" {
			continue
		}
		for _, a := range e.Attr {
			if a.Name.Local == "epoch" {
				epoch, err = strconv.ParseUint(a.Value, 10, 64)
				return epoch, err == nil
			}
		}
		return 0, false
	}
}

var epochMark = regexp.MustCompile(`(<` + metadataKey + `:vm\s[^>]*epoch=)["'][0-9]*["']`)

// withEpoch returns a domain's description with another epoch. The rest stays as libvirt
// wrote it, because the two ends of a move must agree on every device.
func withEpoch(text string, epoch uint64) string {
	return epochMark.ReplaceAllString(text, fmt.Sprintf(`${1}"%d"`, epoch))
}

// parseDomain reads a description of vm that came from another host, and refuses one
// that reaches for more of this host than a VM of ours ever does.
func parseDomain(vm heliotrope.VMID, text, diskDir, logDir string) (*libvirtxml.Domain, error) {
	if len(text) > maxXML {
		return nil, fmt.Errorf("read domain: %d bytes are too many", len(text))
	}
	d := new(libvirtxml.Domain)
	if err := d.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("read domain: %w", err)
	}
	if _, ours := epochOf(d); !ours || d.Name != string(vm) || d.UUID != heliotrope.VMUUID(vm) {
		return nil, fmt.Errorf("read domain: %q (%s) is not VM %q: %w", d.Name, d.UUID, vm, ErrForeign)
	}
	if err := modest(d, filepath.Clean(diskDir), filepath.Clean(logDir)); err != nil {
		return nil, fmt.Errorf("read domain: %w", err)
	}
	return d, nil
}

// modest refuses programs, devices and files of the host other than the VM's own.
func modest(d *libvirtxml.Domain, diskDir, logDir string) error {
	dev := d.Devices
	if dev == nil {
		return errors.New("it has no devices")
	}
	if dev.Emulator != "" && dev.Emulator != "/usr/bin/qemu-system-x86_64" {
		return fmt.Errorf("it wants to run %q", dev.Emulator)
	}
	if d.QEMUCommandline != nil || d.QEMUOverride != nil || d.OS == nil || d.OS.Loader != nil || d.OS.NVRam != nil ||
		len(dev.Hostdevs)+len(dev.Filesystems)+len(dev.Shmems)+len(dev.Channels)+len(dev.Parallels)+len(dev.RedirDevs)+len(dev.TPMs) > 0 {
		return errors.New("it wants devices of the host")
	}
	for i := range dev.Disks {
		disk := &dev.Disks[i]
		if file := diskSource(disk); filepath.Dir(file) != diskDir {
			return fmt.Errorf("disk %q is not in %s", file, diskDir)
		}
		if err := modestVolume(disk, diskDir, heliotrope.VMID(d.Name)); err != nil {
			return err
		}
		if disk.Driver == nil || disk.Driver.Type != "raw" || disk.Mirror != nil {
			return fmt.Errorf("disk %q is not a raw file", diskSource(disk))
		}
	}
	lines := make([]libvirtxml.DomainChardevSource, 0, 4)
	logs := make([]*libvirtxml.DomainChardevLog, 0, 4)
	for _, c := range dev.Serials {
		lines, logs = append(lines, source(c.Source)), append(logs, c.Log)
	}
	for _, c := range dev.Consoles {
		lines, logs = append(lines, source(c.Source)), append(logs, c.Log)
	}
	for i := range lines {
		if lines[i].Pty == nil {
			return errors.New("its console is no terminal")
		}
		if logs[i] != nil && filepath.Dir(logs[i].File) != logDir {
			return fmt.Errorf("log %q is not in %s", logs[i].File, logDir)
		}
	}
	return nil
}

func source(s *libvirtxml.DomainChardevSource) libvirtxml.DomainChardevSource {
	if s == nil {
		return libvirtxml.DomainChardevSource{}
	}
	return *s
}

// diskSource is a disk's file, or the one that stands for its volume; empty where it is neither.
func diskSource(d *libvirtxml.DomainDisk) string {
	switch {
	case d.Source == nil:
		return ""
	case d.Source.Network != nil && d.Source.Network.Protocol == "nbd":
		return d.Source.Network.Name
	case d.Source.File == nil:
		return ""
	}
	return d.Source.File.File
}

// MemoryPages is how many pages of 4 KiB the domain of an XML that libvirt made may have; 0: it
// does not say.
func MemoryPages(xml string) int {
	var d libvirtxml.Domain
	if err := d.Unmarshal(xml); err != nil || d.Memory == nil || d.Memory.Unit != "KiB" {
		return 0
	}
	kib := uint64(d.Memory.Value)
	if d.MaximumMemory != nil && d.MaximumMemory.Unit == "KiB" {
		kib = max(kib, uint64(d.MaximumMemory.Value))
	}
	return int(min(kib/4, math.MaxInt32))
}
