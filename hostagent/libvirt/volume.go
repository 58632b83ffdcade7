package libvirt

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"libvirt.org/go/libvirtxml"

	"heliotrope"
)

// Volume is a VM's disk that is served to its QEMU by NBD, at VolumeSocket.
//
// In the directory of disks an empty file as long as the disk stands for it, VM.vol; the export is
// called by that file's path. So what holds of files of disks holds of volumes: one that is
// marked as void is worth nothing unless its VM is defined here, and where the file is not there,
// nobody needs the volume. What the volume stands on is in the domain's metadata, for the
// destination of a move.
type Volume struct {
	Bytes int64  // of the disk
	Base  string // what it stands on, as its server has it
}

const (
	volumeEnding = ".vol"
	volumeURI    = "urn:heliotrope:volume:1"

	// reconnectFor is how many seconds QEMU waits for its disk when the server has gone, before
	// the guest gets an error. Until then the guest's reads and writes wait, and are asked for
	// again when there is a server.
	reconnectFor = 600
)

// VolumeSocket is where a host's volumes are served, given its directory of disks. Like that it
// is the same at each host.
func VolumeSocket(diskDir string) string { return filepath.Join(diskDir, "volumes.sock") }

func volumeFile(diskDir string, vm heliotrope.VMID) string {
	return filepath.Join(diskDir, string(vm)+volumeEnding)
}

// VolumeExport is what a VM's volume is called by NBD.
func VolumeExport(diskDir string, vm heliotrope.VMID) string { return volumeFile(diskDir, vm) }

// VolumeName is the VM whose volume an export's name means.
func VolumeName(diskDir, export string) (vm heliotrope.VMID, ok bool) {
	name, ok := strings.CutSuffix(filepath.Base(export), volumeEnding)
	return heliotrope.VMID(name), ok && filepath.Dir(export) == filepath.Clean(diskDir)
}

// HasVolume says whether a VM has a volume here that is its own. Whether the VM is defined here
// decides about one that is marked as void.
func HasVolume(diskDir string, vm heliotrope.VMID, defined bool) bool {
	return ownDisk(volumeFile(diskDir, vm), defined)
}

// HasFile says whether a VM has a disk of its own here that is a file.
func HasFile(diskDir string, vm heliotrope.VMID, defined bool) bool {
	return ownDisk(Spec{VM: vm, DiskDir: diskDir}.diskFile(), defined)
}

// KnowsVolume says whether there is anything of a VM's volume here, its own or not.
func KnowsVolume(diskDir string, vm heliotrope.VMID) (bool, error) {
	for _, ending := range []string{"", voidMark} {
		_, err := os.Lstat(volumeFile(diskDir, vm) + ending)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err == nil, err
		}
	}
	return false, nil
}

// VolumeBase is what the volume stands on that a domain's description tells of; empty: it has none.
func VolumeBase(text string) (base string, bytes int64, err error) {
	if len(text) > maxXML {
		return "", 0, fmt.Errorf("read domain: %d bytes are too many", len(text))
	}
	d := new(libvirtxml.Domain)
	if err := d.Unmarshal(text); err != nil {
		return "", 0, fmt.Errorf("read domain: %w", err)
	}
	if d.Metadata == nil {
		return "", 0, nil
	}
	dec := xml.NewDecoder(strings.NewReader(d.Metadata.XML))
	for {
		token, err := dec.Token()
		if err != nil {
			return "", 0, nil // that is all there is
		}
		e, ok := token.(xml.StartElement)
		if !ok || e.Name.Space != volumeURI || e.Name.Local != "volume" {
			continue
		}
		for _, a := range e.Attr {
			switch a.Name.Local {
			case "base":
				base = a.Value
			case "bytes":
				if bytes, err = strconv.ParseInt(a.Value, 10, 64); err != nil || bytes < 0 {
					return "", 0, fmt.Errorf("read domain: a volume of %q bytes", a.Value)
				}
			}
		}
		return base, bytes, nil
	}
}

// mark is the domain's metadata.
func (v *Volume) mark() string {
	if v == nil {
		return ""
	}
	var base strings.Builder
	_ = xml.EscapeText(&base, []byte(v.Base)) // a Builder takes all
	return fmt.Sprintf("<volume:volume xmlns:volume=%q base=\"%s\" bytes=\"%d\"/>", volumeURI, base.String(), v.Bytes)
}

// volumeDisk is the disk to libvirt. Space that the guest gives back is given back.
func (s Spec) volumeDisk(format string) libvirtxml.DomainDisk {
	return libvirtxml.DomainDisk{
		Device: "disk",
		Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: format, Cache: "none", Discard: "unmap"},
		Source: &libvirtxml.DomainDiskSource{Network: &libvirtxml.DomainDiskSourceNetwork{
			Protocol: "nbd", Name: s.diskFile(),
			Hosts:     []libvirtxml.DomainDiskSourceHost{{Transport: "unix", Socket: VolumeSocket(s.DiskDir)}},
			Reconnect: &libvirtxml.DomainDiskSourceNetworkReconnect{Delay: strconv.Itoa(reconnectFor)},
		}},
		Target: &libvirtxml.DomainDiskTarget{Dev: "vda", Bus: "virtio"},
	}
}

// lastMajor and lastMinor are the newest QEMU of which it is known that it copies no more than what is allocated:
// up to 10.0, a mirror with sync=top looks at the allocation of a disk without a backing file, and
// does not write zeros to the target before. What another one makes of it would have to be looked
// at (package images has a test of it).
const lastMajor, lastMinor = 10, 0

// copiesPartly says whether a copy of a VM's disks may leave out what the destination has. They
// are volumes, since a file's holes are zeros.
func (h *Hypervisor) copiesPartly(ctx context.Context, d domain) bool {
	for i := range d.parsed.Devices.Disks {
		if s := d.parsed.Devices.Disks[i].Source; s == nil || s.Network == nil {
			return false
		}
	}
	text, err := h.monitor(ctx, d.ref, `{"execute":"query-version"}`) // the VM's may be older than the host's
	var v struct {
		Return struct{ QEMU struct{ Major, Minor int } }
	}
	if err != nil || json.Unmarshal([]byte(text), &v) != nil {
		return false
	}
	major, minor := v.Return.QEMU.Major, v.Return.QEMU.Minor
	return len(d.parsed.Devices.Disks) > 0 && major > 0 && (major < lastMajor || major == lastMajor && minor <= lastMinor)
}

// makeVolume makes the file that stands for a volume, unless the VM has it already.
func (s Spec) makeVolume(defined bool) error {
	file := s.diskFile()
	if ownDisk(file, defined) {
		return nil
	}
	if err := os.MkdirAll(s.DiskDir, diskDirMode); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(s.Volume.Bytes), f.Sync(), f.Close()); err != nil {
		return err
	}
	return removeIfThere(file + voidMark)
}

// modestVolume refuses what reaches for more by NBD than the VM's own volume.
func modestVolume(disk *libvirtxml.DomainDisk, diskDir string, vm heliotrope.VMID) error {
	n := disk.Source.Network
	if n == nil {
		return nil
	}
	if n.Protocol != "nbd" || n.Name != volumeFile(diskDir, vm) || len(n.Hosts) != 1 || n.Hosts[0].Transport != "unix" ||
		n.Hosts[0].Socket != VolumeSocket(diskDir) || n.TLS != "" && n.TLS != "no" || n.Identity != nil || n.Auth != nil || n.Config != nil {
		return fmt.Errorf("disk %q is not the volume of %s", n.Name, vm)
	}
	return nil
}
