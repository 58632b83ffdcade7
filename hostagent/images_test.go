package hostagent

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/libvirt"
	"heliotrope/imagesync/nbd"
	"heliotrope/imagesync/storetest"
)

// stored makes a store that has one image.
func stored(t *testing.T, image string, content []byte) string {
	t.Helper()
	dir := t.TempDir()
	storetest.Import(t, filepath.Join(dir, "store"), filepath.Join(dir, "keys"), image, content)
	return filepath.Join(dir, "store")
}

// The agent's program serves disks over images of a store, in a process that outlives the agent.
func TestDiskOverImageOfAStore(t *testing.T) {
	agent := program(t)
	content := make([]byte, 1<<20+4096)
	rand.NewChaCha8([32]byte{4}).Read(content)
	w := newWorld(t)
	h := w.hosts["a"]
	h.store(agent, stored(t, "debian", content)) // it begins anew with the store

	w.image(vm, "debian", "")
	first := w.images("a")
	t.Cleanup(func() { _ = syscall.Kill(first.PID, syscall.SIGTERM) })
	if len(first.Volumes) != 1 || first.Volumes[0].Base != "debian@1" || first.Volumes[0].Bytes != int64(len(content)) || first.Budget != 1<<30 {
		t.Fatalf("the host's images are %+v", first)
	}
	// The hypervisor of these tests makes no files.
	diskDir := h.config.diskDir()
	stand := libvirt.VolumeExport(diskDir, vm)
	if err := os.WriteFile(stand, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := readDisk(t, diskDir, 0, len(content)); !bytes.Equal(got, content) {
		t.Error("the disk is not the image")
	}
	if now := w.images("a"); now.Demand+now.Background == 0 || now.Fetched == 0 {
		t.Errorf("counted is %+v", now)
	}

	w.image(vm, "debian", "") // the agent adopts it
	h.kill()
	if got := readDisk(t, diskDir, 4096, 4096); !bytes.Equal(got, content[4096:8192]) {
		t.Error("the disk has gone with the agent")
	}
	w.image(vm, "debian", "")
	if now := w.images("a"); now.PID != first.PID {
		t.Errorf("the server of disks was process %d, and is %d after the agent's end", first.PID, now.PID)
	}

	// A server that dies is started again.
	if err := syscall.Kill(first.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for now := w.images("a"); now.PID == first.PID; now = w.images("a") {
		pause(t.Context(), 10*time.Millisecond)
	}
	again := w.images("a")
	t.Cleanup(func() { _ = syscall.Kill(again.PID, syscall.SIGTERM) })
	if len(again.Volumes) != 1 || again.Volumes[0].Error != "" {
		t.Errorf("after a restart the disks are %+v", again.Volumes)
	}

	w.image("other", "nix", "no such image")
	if err := os.Remove(stand); err != nil {
		t.Fatal(err)
	}
	err := w.insist("a", func(ctx context.Context, a *agentapi.Agent) error {
		return a.RemoveVM(ctx, agentapi.RemoveOrder{Term: 1, VM: vm, Epoch: 1})
	})
	if err != nil {
		t.Fatal(err)
	}
	if now := w.images("a"); len(now.Volumes) != 0 {
		t.Errorf("disks of a removed VM: %+v", now.Volumes)
	}
}

// image orders a VM of an image at host a; an error has to say what is wanted.
func (w *world) image(vm heliotrope.VMID, image, wrong string) {
	w.t.Helper()
	err := w.insist("a", func(ctx context.Context, a *agentapi.Agent) error {
		err := a.PutVM(ctx, agentapi.VMOrder{Term: 1, VM: vm, Epoch: 1, Spec: heliotrope.VM{Image: image}})
		if wrong != "" && err != nil && strings.Contains(err.Error(), wrong) {
			return nil
		}
		if err == nil && wrong != "" {
			w.t.Errorf("a VM of image %s was started", image)
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// images is what a host tells of its images.
func (w *world) images(h heliotrope.HostID) (s agentapi.ImageStatus) {
	w.t.Helper()
	err := w.insist(h, func(ctx context.Context, a *agentapi.Agent) error {
		all, err := a.Status(ctx)
		if err != nil {
			return err
		}
		if all.Images == nil {
			return agentapi.ErrBusy
		}
		s = *all.Images
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func readDisk(t *testing.T, diskDir string, off int64, n int) []byte {
	t.Helper()
	c, err := nbd.Dial(t.Context(), "unix", libvirt.VolumeSocket(diskDir), libvirt.VolumeExport(diskDir, vm))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, n)
	if err := c.Do(nbd.Op{Kind: nbd.Read, Offset: off, Length: n}, p); err != nil {
		t.Fatal(err)
	}
	return p
}
