// Command disks is what an agent does about disks over images of a store, without the agent: it
// starts the server of disks, which stays, and asks it.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"heliotrope"
	"heliotrope/hostagent/images"
	"heliotrope/hostagent/libvirt"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "disks:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, store, verb string, args []string) error {
	c := images.Config{Store: store, Keys: "/run/keys", Dir: "/run/volumes", DiskDir: "/run/disks", Host: "test", Version: "test",
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if verb == "serve" {
		return images.Serve(ctx, c)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := images.New(c, func() *exec.Cmd { return exec.Command("/proc/self/exe", store, "serve") })
	go d.Run(ctx)
	asked := &asked{}
	over := images.Over{Hypervisor: asked, Disks: d}
	switch verb {
	case "make":
		vm := heliotrope.VMID(args[0])
		err := over.Start(ctx, libvirt.Spec{VM: vm, DiskDir: c.DiskDir, ImageDir: filepath.Join("/nowhere", args[1]), What: heliotrope.VM{Image: args[1]}})
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(asked.spec.Volume)
	case "receive":
		text, err := os.ReadFile(args[1])
		if err != nil {
			return err
		}
		_, err = over.Prepare(ctx, libvirt.Incoming{VM: heliotrope.VMID(args[0]), XML: string(text)})
		return err
	case "settle":
		return over.Remove(ctx, heliotrope.VMID(args[0]))
	case "status":
		s, trouble := d.Status(ctx)
		if len(trouble) > 0 {
			return fmt.Errorf("%v", trouble)
		}
		return json.NewEncoder(os.Stdout).Encode(s)
	}
	return fmt.Errorf("%s?", verb)
}

// asked is a hypervisor that only notes what it is asked for.
type asked struct{ spec libvirt.Spec }

func (*asked) Domains(context.Context) ([]libvirt.Domain, error) { return nil, nil }
func (a *asked) Start(_ context.Context, s libvirt.Spec) error {
	a.spec = s
	return nil
}
func (*asked) Remove(context.Context, heliotrope.VMID) error                { return nil }
func (*asked) Prepare(context.Context, libvirt.Incoming) ([]byte, error)    { return nil, nil }
func (*asked) Finish(context.Context, heliotrope.VMID, []byte, bool) error  { return nil }
func (*asked) Confirm(context.Context, heliotrope.VMID, []byte, bool) error { return nil }
func (*asked) Sweep(context.Context, string) error                          { return nil }
