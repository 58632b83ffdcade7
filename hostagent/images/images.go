// Package images gives a host's VMs disks over images of a store.
//
// # Who serves
//
// A process of its own serves the disks (Serve), over NBD on one unix socket, and outlives the
// agent: QEMU has its disks there, so its end stops every guest that reads or writes, and an agent
// is restarted far more often than there is a reason to restart a server of disks. The agent
// starts it, starts it again when it has ended, and puts a new one in its place once the agent's
// own program is another, or is told of another store or budget; guests wait meanwhile, for the ten minutes that their QEMUs try to
// connect again (package libvirt). The server needs nobody: when it begins it opens all volumes
// that there are, also where the store cannot be reached, because what a version consists of is
// kept beside what has come of it (package site).
//
// What a guest was told stays told, whoever dies. A write that was answered is in the kernel's
// cache and its place is written down (package volume/recent), so the next server has it; a
// request that was not answered gets no answer from a server that ends (nbd.Server.Cut), and QEMU
// asks the next one.
//
// # Which version
//
// A VM's image is a directory of the host where there is one of that name; else it is looked up
// in the store: IMAGE is the newest version, IMAGE@3 the third. The VM's disk stands on that
// version for good, whatever becomes of the image, and the store is told that it is needed
// (imagesync.Store.Need) until the disk is removed. An image of a store is a disk that boots by
// itself, from its boot sector, unless the host has a kernel for it: a directory IMAGE with a
// kernel, and in place of disk.img a file disk.store.
//
// # Along a chain of hosts
//
// A version that is pushed to several hosts of a site comes from the store to the first of them, and from
// each to the next while it comes (packages site and spread, peers.go). The controller says in what order. Who finds
// no host before it alive gets it from the store, so it comes as long as there is a way; a host that
// was away goes on where it was. Each chunk is checked against the signed manifest, which every host has from the store.
//
// # Links that images share
//
// An order may say that images share a link on the way from the store. Then the version waits until the controller
// lends it a part of that link (part.go), and again when that has ended; each time it is told what to take
// it answers what there is of the version, and whether it would take from the store. What waits has nothing under
// way. A guest's reads take no part and need none.
//
// # Moves
//
// The destination makes an empty volume on the same version, of its own store or the same one, and
// QEMU's mirror writes into it what the source has written; what nobody has written both stand on.
// The source keeps what its volume was when it left (Config.Kept bounds that), and when the VM comes
// back what it has written since crosses, and nothing else.
//
// It is the source's server that decides what is copied, by what it tells QEMU of allocation: a
// block that the destination has already is a hole to the mirror, and not zeros, so it neither
// reads nor writes it (libvirt's incremental copy, which is QEMU's mirror with sync=top). What the
// guest writes meanwhile is allocated from then on, and the mirror copies it as it always does. Of
// such a hole the mirror may discard a part at the destination: where a guest has discarded less
// than a block, which changes nothing here. Package relay does not send that on.
//
// The two ends agree before anything is copied, by notes in the hypervisors' cookies (moves.go):
//
//	source       Begin    a name for this move, and that by which the volume came here
//	destination  Prepare  what it has: the base, or the volume that left by that name
//	source       Perform  its server tells QEMU so, as long as Perform goes on
//	destination  Finish   the volume is marked: from here on the guest writes, and not the move
//	source       Confirm  the volume is kept, under the name of the move
//
// Where an end does not understand, or cannot do, its part, all of the disk is copied. A volume
// that comes back is one that has left no more before the first write to it, so a move that is broken
// off removes it; the next one copies what differs from the base. The VM is not started at the
// destination before its volume was marked: what it has written would be missing the next time.
// And it begins no move before what QEMU was told for another one has ended.
//
// # Snapshots
//
// A running VM's disk becomes a version of an image: the server takes a snapshot of the volume at once (package volume),
// and sends what is not the base's to the store while the VM writes on. It has no key of the store, so what it has sealed is
// published by the controller, which asks how it goes on (snapshots.go). A move that takes the VM away meanwhile does not end it: what is
// to become of the volume waits until it was read. The server writes down what became of its snapshots; one that was under
// way when a server ended has failed.
//
// # What is where
//
//	STATE/vm-volumes/        package site; agent.sock, by which agent and server talk; peers.sock, for other hosts
//	STATE/vm-volumes/snapshots/  what became of snapshots
//	STATE/disks/volumes.sock where QEMU connects
//	STATE/disks/VM.vol       stands for a VM's volume (package libvirt)
//	STATE/image-keys/        which key the store had when it was first seen
//
// What is in vm-volumes is the agent's: a volume there that no file stands for is the rest of a
// removal that was broken off, and goes when an agent starts.
package images

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/libvirt"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/site"
)

// Config is where a host has its images, and from where.
type Config struct {
	Store   string // a directory or a bucket's URL; empty: the host has no store
	Keys    string // directory of stores' keys
	Dir     string // of volumes and what has come of images
	DiskDir string // of the files that stand for volumes, and of the socket
	Cache   int64  // bytes that what has come of images may take; 0: no bound
	Kept    int64  // bytes that disks which have left may take; 0: none are kept
	User    string // whose QEMU connects; empty: root
	Host    string // the host's name, by which the store knows who needs a version
	Version string // of this program
	Log     *slog.Logger

	// Identity proves to other hosts who this one is; it is asked each time, for it is renewed.
	Identity func() (*agentapi.Identity, error) `json:"-"`

	silence time.Duration // package spread's; 0: its default
}

// Caches is where what has come of images is, by their roots (package pages); empty: the host has no store.
func (c Config) Caches() string {
	if c.Store == "" {
		return ""
	}
	return site.Caches(c.Dir)
}

func (c Config) controlSocket() string { return filepath.Join(c.Dir, "agent.sock") }

// base names a version for another host: IMAGE@VERSION ROOT.
func base(v manifest.Version) string { return v.Ref() + " " + v.Root.String() }

// parseBase reads what base wrote.
func parseBase(s string) (ref string, root manifest.ID, err error) {
	ref, hex, ok := strings.Cut(s, " ")
	image, _, exact := strings.Cut(ref, "@")
	if ok && exact && manifest.CheckName(image) == nil {
		root, err = manifest.ParseID(hex)
	}
	if !ok || !exact || err != nil || root.IsZero() {
		return "", root, fmt.Errorf("%.120q is no version of an image", s)
	}
	return ref, root, nil
}

// Root names the content of the image that a VM's disk stands on, by the domain's description; empty: it is none of a store.
func Root(description string) string {
	on, _, err := libvirt.VolumeBase(description)
	if err != nil {
		return ""
	}
	_, root, err := parseBase(on)
	if err != nil {
		return ""
	}
	return root.String()
}

// Bytes is a number of bytes as people write it: 20G, 500M. It is a flag.Value.
type Bytes int64

// Set implements flag.Value.
func (b *Bytes) Set(s string) error {
	n, err := site.ParseBytes(s)
	*b = Bytes(n)
	return err
}

// String implements flag.Value.
func (b Bytes) String() string { return strconv.FormatInt(int64(b), 10) }
