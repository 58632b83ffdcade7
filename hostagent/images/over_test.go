package images

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"heliotrope"
	"heliotrope/hostagent/libvirt"
)

// starter is a hypervisor that has no VMs and remembers what it was to start.
type starter struct {
	Hypervisor
	spec libvirt.Spec
}

func (s *starter) Domains(context.Context) ([]libvirt.Domain, error) { return nil, nil }
func (s *starter) Start(_ context.Context, spec libvirt.Spec) error  { s.spec = spec; return nil }

// Which directory has a VM's kernel, and who its disk.
func TestWhoseDisk(t *testing.T) {
	h := newHost(t)
	h.image("debian", 1, 1)
	h.image("debian", 2, 1)
	h.image("whole", 3, 1)
	_, stop := h.serve()
	images := filepath.Join(filepath.Dir(h.c.Dir), "images")
	for _, file := range []string{"debian/vmlinuz", "debian/disk.store", "bare/vmlinuz", "none/vmlinuz", "none/disk.store", "whole/vmlinuz", "whole/disk.img", "files/other", "odd@1/disk.img"} {
		h.must(os.MkdirAll(filepath.Dir(filepath.Join(images, file)), 0o755))
		h.must(os.WriteFile(filepath.Join(images, file), nil, 0o644))
	}
	d := New(h.c, func() *exec.Cmd { t.Error("a server is started"); return exec.Command("false") })
	d.set(true)
	start := func(vm, image string) (s starter, err error) {
		spec := libvirt.Spec{VM: heliotrope.VMID(vm), What: heliotrope.VM{Image: image}, ImageDir: filepath.Join(images, image), DiskDir: h.c.DiskDir}
		err = Over{Hypervisor: &s, Disks: d}.Start(t.Context(), spec)
		return s, err
	}
	for _, c := range []struct{ image, dir, base, wrong string }{
		{image: "debian", dir: "debian", base: "debian@2 "},
		{image: "debian@1", dir: "debian", base: "debian@1 "},
		{image: "debian@7", wrong: "debian@7 is no directory, and the image store has no such image"},
		{image: "bare", dir: "bare"},
		{image: "none", wrong: "make disk of none: the image store has no such image"},
		{image: "bare@1", wrong: "bare@1 is no directory"},
		{image: "whole", dir: "whole"},
		{image: "whole@1", dir: "whole", base: "whole@1 "},
		{image: "files", dir: "files"},
		{image: "odd@1", dir: "odd@1"},
		{image: "nix", wrong: "nix is no directory, and the image store has no such image"},
	} {
		s, err := start(strings.ReplaceAll(c.image, "@", "-"), c.image)
		if c.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%s: got %v, want %q", c.image, err, c.wrong)
			}
			continue
		}
		base := ""
		if s.spec.Volume != nil {
			base = s.spec.Volume.Base
		}
		if err != nil || filepath.Base(s.spec.ImageDir) != c.dir || (base == "") != (c.base == "") || !strings.HasPrefix(base, c.base) {
			t.Errorf("%s: directory %s, disk on %q, %v; want %s, %q", c.image, s.spec.ImageDir, base, err, c.dir, c.base)
		}
	}
	// A VM whose disk is the store's does not start without it.
	stop()
	h.must(os.Rename(h.c.Store, h.c.Store+".away"))
	h.serve()
	if _, err := start("late", "debian"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("without a store: %v", err)
	}
	d.c.Store = ""
	if s, err := start("late", "debian"); err != nil || s.spec.Volume != nil { // package libvirt knows what to do
		t.Errorf("a host that has none: %+v, %v", s.spec.Volume, err)
	}
}
