//go:build lab

package proof

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/topologies"
	"heliotrope/topologies/lab"
	"heliotrope/topologies/lab/probe"
)

const (
	topologyFile = "testdata/proof.yaml"
	rate         = 100 // probes a second

	// The parts of the topology that the tests name.
	web     heliotrope.VMID   = "web"
	here    heliotrope.HostID = "left-1"  // where web is at home
	there   heliotrope.HostID = "right-1" // in the other cloud
	between heliotrope.LinkID = "left-right"
	visitor                   = "visitor"
)

// world is the one lab that all tests share, and those who look on.
var world struct {
	target lab.Target
	client *api.Client
	probe  *probe.Client
	self   string // this program, which also runs inside nodes
}

// The test's program is also what asks the guest for pages inside the client's node.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "get" {
		if err := get(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func get(url string) error {
	client := http.Client{Timeout: 20 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, io.LimitReader(resp.Body, 1<<20))
	return err
}

// run brings the lab up, runs the tests and takes it down.
func run(m *testing.M) (code int, err error) {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "heliotrope-proof-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if out, err := exec.Command("go", "build", "-o", dir, "heliotrope/cmd/heliotrope", "heliotrope/cmd/heliotrope-agent").CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build programs: %w: %s", err, out)
	}
	top, err := topologies.LoadFile(topologyFile, topologies.Options{})
	if err != nil {
		return 1, err
	}
	world.target = lab.Target{Name: "proof", Dir: filepath.Join(dir, "proof")}
	defer func() { err = errors.Join(err, lab.Down(ctx, world.target)) }()
	err = lab.Up(ctx, lab.Options{Topology: top, TopologyFile: topologyFile, Name: world.target.Name, Dir: world.target.Dir,
		Binary: filepath.Join(dir, "heliotrope")})
	if err != nil {
		return 1, err
	}
	world.client = api.NewUnixClient(filepath.Join(world.target.Dir, "controller", "api.sock"))
	if world.self, err = os.Executable(); err != nil {
		return 1, err
	}
	stop, err := startProbe(ctx, top.VMs[web].NICs[0].Public.String(), dir)
	if err != nil {
		return 1, err
	}
	defer stop()
	code = m.Run()
	if code != 0 {
		showLogs(world.target.Dir)
	}
	return code, nil
}

// startProbe has the client on the internet probe web from now on.
func startProbe(ctx context.Context, address, dir string) (stop func(), err error) {
	up, cancelUp := context.WithTimeout(ctx, 90*time.Second)
	defer cancelUp()
	err = poll(up, func() error { return enter(up, io.Discard, visitor, world.self, "get", "http://"+address+"/ticks") })
	if err != nil {
		return nil, fmt.Errorf("wait for the guest: %w", err)
	}
	socket := filepath.Join(dir, "probe.sock")
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		done <- enter(ctx, os.Stderr, visitor, filepath.Join(dir, "heliotrope"), "lab", "probe", "--target", address, "--rate", fmt.Sprint(rate), "--socket", socket)
	}()
	stop = func() { cancel(); <-done }
	err = poll(up, func() error {
		if world.probe, err = probe.Dial(up, socket); err != nil {
			return err
		}
		r, err := world.probe.Total(up)
		if err == nil && (!r.TCP.Connected || r.UDP.Answered == 0) {
			err = errors.New("the client has no answer yet")
		}
		return err
	})
	if err != nil {
		stop()
	}
	return stop, err
}

// enter runs a command in a node.
func enter(ctx context.Context, out io.Writer, node string, argv ...string) error {
	code, err := lab.Exec(ctx, world.target, node, argv, lab.Stdio{Out: out, Err: out})
	if err == nil && code != 0 {
		err = fmt.Errorf("%s in %s exited with %d", argv[0], node, code)
	}
	return err
}

// poll tries do until it succeeds, or says why it did not by the time that ctx ends: what
// was wrong before the try that ctx cut short, since that one says only that it was.
func poll(ctx context.Context, do func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var before error
	for {
		err := do()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
			before = err
		case <-ctx.Done():
			return errors.Join(cmp.Or(before, err), context.Cause(ctx))
		}
	}
}

// showLogs prints what the daemons that are ours said last.
func showLogs(dir string) {
	paths, _ := filepath.Glob(dir + "/nodes/*/log/agent.log")
	paths = append(paths, dir+"/nodes/controller/log/controller.log", dir+"/supervisor.log")
	for _, path := range paths {
		text, _ := os.ReadFile(path)
		fmt.Printf("%s:\n%s\n", path, text[max(0, len(text)-8000):])
	}
}
