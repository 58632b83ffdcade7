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
	"strconv"
	"strings"
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
	c := images.Config{Store: store, Keys: "/run/keys", Dir: "/run/volumes", DiskDir: "/run/disks", Kept: 1 << 30, Host: "test", Version: "test",
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
	case "begin": // says what the destination's Prepare is told
		d, err := over.Begin(ctx, heliotrope.VMID(args[0]))
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(d.Cookie)
	case "receive": // says what the source's Perform is told
		text, err := os.ReadFile(args[1])
		if err != nil {
			return err
		}
		cookie, err := over.Prepare(ctx, libvirt.Incoming{VM: heliotrope.VMID(args[0]), XML: string(text), Cookie: parse(args[2])})
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(cookie)
	case "perform": // until it is told that the hypervisor has done so, by FIFOs
		_, err := over.Perform(ctx, libvirt.Outgoing{VM: heliotrope.VMID(args[0]), Cookie: parse(args[1])})
		return err
	case "arrive":
		return over.Finish(ctx, heliotrope.VMID(args[0]), nil, false)
	case "left":
		return over.Confirm(ctx, heliotrope.VMID(args[0]), nil, false)
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

// parse reads a cookie as it was said.
func parse(text string) (cookie []byte) {
	if err := json.Unmarshal([]byte(text), &cookie); err != nil {
		panic(err)
	}
	return cookie
}

// asked is a hypervisor that only notes what it is asked for.
type asked struct{ spec libvirt.Spec }

func (*asked) Domains(context.Context) (all []libvirt.Domain, err error) {
	files, err := filepath.Glob("/run/libvirt/qemu/*.pid")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			return nil, err
		}
		all = append(all, libvirt.Domain{Name: strings.TrimSuffix(filepath.Base(file), ".pid"), PID: pid})
	}
	return all, err
}

func (a *asked) Start(_ context.Context, s libvirt.Spec) error {
	a.spec = s
	return nil
}
func (*asked) Begin(context.Context, heliotrope.VMID) (libvirt.Description, error) {
	return libvirt.Description{Partial: true}, nil
}

// Perform is the test's, which hears by one FIFO that it may, and says by the other that it has.
func (*asked) Perform(context.Context, libvirt.Outgoing) ([]byte, error) {
	if err := os.WriteFile("/run/performing", []byte("now"), 0); err != nil {
		return nil, err
	}
	_, err := os.ReadFile("/run/performed")
	return nil, err
}
func (*asked) Receives(heliotrope.VMID) bool                                { return true }
func (*asked) Remove(context.Context, heliotrope.VMID) error                { return nil }
func (*asked) Prepare(context.Context, libvirt.Incoming) ([]byte, error)    { return nil, nil }
func (*asked) Finish(context.Context, heliotrope.VMID, []byte, bool) error  { return nil }
func (*asked) Confirm(context.Context, heliotrope.VMID, []byte, bool) error { return nil }
func (*asked) Sweep(context.Context, string) error                          { return nil }
