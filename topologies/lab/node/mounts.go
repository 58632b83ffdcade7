package node

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Dir is where a node sees its own directory.
const Dir = "/run/lab"

// Dirs are the directories that each node has of its own: target inside the node ->
// name in the node's directory outside.
var Dirs = map[string]string{
	"/etc/bird":            "etc-bird",
	"/etc/heliotrope":      "etc-heliotrope",
	"/etc/libvirt":         "etc-libvirt",
	"/etc/openvswitch":     "etc-openvswitch",
	"/run/heliotrope":      "run-heliotrope",
	"/run/libvirt":         "run-libvirt",
	"/run/openvswitch":     "run-openvswitch",
	"/var/cache/libvirt":   "var-cache-libvirt",
	"/var/lib/heliotrope":  "var-lib-heliotrope",
	"/var/lib/libvirt":     "var-lib-libvirt",
	"/var/lib/openvswitch": "var-lib-openvswitch",
	"/var/log/heliotrope":  "var-log-heliotrope",
	"/var/log/libvirt":     "var-log-libvirt",
	"/var/log/openvswitch": "var-log-openvswitch",
}

// Files are single files of the same kind.
var Files = map[string]string{
	"/etc/hostname":      "hostname",
	"/etc/hosts":         "hosts",
	"/etc/nsswitch.conf": "nsswitch.conf",
}

// isolate makes the calling process's mount namespace the node's: nothing that the node
// writes below /etc, /var and /run reaches the machine, and nothing is made on the
// machine for the node to mount on.
func isolate(p Plan) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	trees, err := detach(p)
	if err != nil {
		return err
	}
	if err := mountKernel(); err != nil {
		return err
	}
	if err := overlay(p.Dir, "/etc", "/var"); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := os.MkdirAll("/run/bird", 0o755); err != nil {
		return fmt.Errorf("make /run/bird: %w", err)
	}
	if err := trees[Dir].attach(Dir); err != nil {
		return err
	}
	for target, name := range Dirs {
		if err := bind(filepath.Join(Dir, name), target); err != nil {
			return err
		}
	}
	for target, name := range Files {
		if err := bindFile(filepath.Join(Dir, name), target); err != nil {
			return err
		}
	}
	delete(trees, Dir)
	for _, target := range slices.Sorted(maps.Keys(trees)) {
		if err := trees[target].attach(target); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte(p.Node)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return sysctls(p.Sysctls)
}

// tree is a detached copy of a mount: it can be attached after its source has gone from sight.
type tree struct {
	fd       int
	readOnly bool
}

// detach takes hold of all that the node needs from outside, before /run is covered.
func detach(p Plan) (map[string]tree, error) {
	sources := map[string]string{Dir: p.Dir}
	maps.Copy(sources, p.Trees)
	images := map[string]bool{}
	for image, dir := range p.Images {
		target := "/var/lib/heliotrope/images/" + image
		sources[target], images[target] = dir, true
	}
	trees := map[string]tree{}
	for target, dir := range sources {
		fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", dir, err)
		}
		trees[target] = tree{fd: fd, readOnly: images[target]}
	}
	return trees, nil
}

func (t tree) attach(target string) error {
	defer unix.Close(t.fd)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	if !t.readOnly {
		return nil
	}
	if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", target, err)
	}
	return nil
}

// mountKernel shows the node its own processes and its own network in /proc and /sys.
func mountKernel() error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", flags, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", flags, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	return nil
}

// overlay lets the node write into dirs without anybody else seeing it. A kernel without
// overlayfs is no obstacle: mount points are then made on the machine itself.
func overlay(scratch string, dirs ...string) error {
	if err := unix.Mount("tmpfs", scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount scratch: %w", err)
	}
	for _, dir := range dirs {
		upper, work := scratch+dir+"/upper", scratch+dir+"/work"
		if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
			return fmt.Errorf("make overlay: %w", err)
		}
		err := unix.Mount("overlay", dir, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work))
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("mount overlay on %s: %w", dir, err)
		}
	}
	if err := unix.Unmount(scratch, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount scratch: %w", err)
	}
	return nil
}

func bind(source, target string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", target, err)
	}
	return nil
}

func bindFile(source, target string) error {
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	if err := errors.Join(f.Close(), unix.Mount(source, target, "", unix.MS_BIND, "")); err != nil {
		return fmt.Errorf("bind %s: %w", target, err)
	}
	return nil
}

// sysctls sets what is the network namespace's; /proc must be mounted.
func sysctls(values map[string]string) error {
	for name, value := range values {
		err := os.WriteFile("/proc/sys/"+name, []byte(value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // IPv6 may be off altogether
			return fmt.Errorf("set sysctl: %w", err)
		}
	}
	return nil
}
