package trafficbench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/topologies/lab"
	"heliotrope/topologies/lab/claim"
	"heliotrope/topologies/lab/endpoints"
)

const foreignTime = 8 * time.Second

// foreignFigures are both totals of one VM's port.
type foreignFigures struct {
	VM             heliotrope.VMID `json:"vm"`
	Packets        float64         `json:"packets"`
	Bytes          float64         `json:"bytes"`
	ForeignPackets float64         `json:"softflowd_packets"`
	ForeignBytes   float64         `json:"softflowd_bytes"`
}

// foreign has softflowd look at a VM's port while we count, and nfdump add up what it told.
func foreign(ctx context.Context, b *Bench) (claims []claim.Claim, figures any, err error) {
	l, err := bringUp(ctx, b, "bench-foreign")
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, l.down(ctx)) }()
	if err := l.count(ctx, heliotrope.Capture{Source: "packets", Sampling: 1, Budget: 1}); err != nil {
		return nil, nil, err
	}
	vms := l.vms()
	hub := vms[0]
	flows, err := l.watch(ctx, hub)
	if err != nil {
		return nil, nil, err
	}
	fleet, err := endpoints.Start(ctx, l.target, vms[:8])
	if err != nil {
		return nil, nil, errors.Join(err, flows.stop())
	}
	defer fleet.Close()
	plan, _, err := endpoints.Pattern{Kind: pattern.Star, VMs: vms[:8], Rate: 4_000_000, Skew: 0.4, UDP: 0.3, For: foreignTime, Seed: b.Seed}.Plan()
	if err != nil {
		return nil, nil, errors.Join(err, flows.stop())
	}
	truth, err := fleet.Drive(ctx, plan)
	if err != nil {
		return nil, nil, errors.Join(err, flows.stop())
	}
	m, err := l.counted(ctx, truth.From.Add(-2*time.Second), truth.To)
	if err = errors.Join(err, flows.stop()); err != nil {
		return nil, nil, err
	}
	f := foreignFigures{VM: hub}
	for _, c := range m.Cells {
		if c.Src == traffic.VM(hub) || c.Dst == traffic.VM(hub) {
			f.Packets, f.Bytes = f.Packets+c.Packets, f.Bytes+c.Bytes
		}
	}
	if f.ForeignPackets, f.ForeignBytes, err = flows.total(ctx); err != nil {
		return nil, f, err
	}
	fmt.Fprintf(b.Out, "\nthe port of %s: %.0f packets and %.0f bytes by us; %.0f and %.0f by softflowd and nfdump\n\n", hub, f.Packets, f.Bytes, f.ForeignPackets, f.ForeignBytes)
	off := func(a, b float64) float64 { return math.Abs(a-b) / max(b, 1) }
	return []claim.Claim{
		claim.New("bytes of a port, off from softflowd and nfdump", off(f.Bytes, f.ForeignBytes), "<=", 0.01),
		claim.New("packets of a port, off from softflowd and nfdump", off(f.Packets, f.ForeignPackets), "<=", 0.01),
	}, f, nil
}

// watcher is softflowd and nfcapd at a VM's host.
type watcher struct {
	dir    string
	cancel context.CancelFunc
	ended  chan error
}

// watch starts both in the network of the VM's host. softflowd tells its flows when it ends.
func (l light) watch(ctx context.Context, vm heliotrope.VMID) (*watcher, error) {
	dir, err := os.MkdirTemp("", "heliotrope-bench-flows-")
	if err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	running, cancel := context.WithCancel(ctx)
	w := &watcher{dir: dir, cancel: cancel, ended: make(chan error, 1)}
	host := string(l.top.VMs[vm].Host)
	var found bytes.Buffer
	// The port's name, as the switch has it.
	code, err := lab.Exec(ctx, l.target, host, []string{"ovs-vsctl", "--bare", "--columns=name", "find", "interface",
		"external_ids:iface-id=" + heliotrope.InterfaceID(vm, 0)}, lab.Stdio{Out: &found, Err: os.Stderr})
	device := strings.TrimSpace(found.String())
	if err != nil || code != 0 || device == "" {
		cancel()
		return nil, errors.Join(fmt.Errorf("find port of %s: exit code %d", vm, code), err, os.RemoveAll(dir))
	}
	// nfcapd ends after softflowd, by which it is told of the last flows.
	script := `mkdir "$1/flows"; nfcapd -p 9995 -b 127.0.0.1 -w "$1/flows" -t 3600 >"$1/nfcapd.log" 2>&1 & collector=$!
softflowd -d -i "$2" -n 127.0.0.1:9995 -v 9 -t maxlife=3600 -p "$1/pid" -c "$1/ctl" >"$1/softflowd.log" 2>&1 & exporter=$!
trap 'softflowctl -c "$1/ctl" expire-all >>"$1/softflowd.log" 2>&1; softflowctl -c "$1/ctl" statistics >>"$1/softflowd.log" 2>&1; sleep 1; kill -TERM $exporter; wait $exporter; sleep 1; kill -TERM $collector; wait $collector; exit 0' TERM
touch "$1/started"; while read line; do :; done; kill -TERM $$; wait`
	in, keep, err := os.Pipe()
	if err != nil {
		cancel()
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	go func() {
		defer in.Close()
		_, err := lab.Exec(context.WithoutCancel(ctx), l.target, host, []string{"sh", "-c", script, "sh", dir, device}, lab.Stdio{In: in, Out: os.Stderr, Err: os.Stderr})
		w.ended <- err
	}()
	stop := w.cancel
	w.cancel = func() { keep.Close(); stop() }
	for {
		if _, err := os.Stat(filepath.Join(dir, "started")); err == nil {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case err := <-w.ended:
			return nil, errors.Join(errors.New("softflowd did not start"), err)
		case <-running.Done():
			return nil, context.Cause(running)
		}
	}
	select {
	case <-time.After(time.Second): // to open the device
		return w, nil
	case <-ctx.Done():
		return nil, errors.Join(context.Cause(ctx), w.stop())
	}
}

func (w *watcher) stop() error {
	w.cancel()
	return <-w.ended
}

// total adds up what the collector wrote down.
func (w *watcher) total(ctx context.Context) (packets, bytes float64, err error) {
	defer os.RemoveAll(w.dir)
	data, err := exec.CommandContext(ctx, "nfdump", "-R", filepath.Join(w.dir, "flows"), "-o", "csv", "-q", "-N").Output()
	if err != nil {
		return 0, 0, fmt.Errorf("run nfdump: %w", err)
	}
	out := string(data)
	for line := range strings.Lines(out) {
		fields := strings.Split(strings.TrimSpace(line), ",")
		const ipkt, ibyt = 11, 12 // nfdump(1): csv
		if len(fields) <= ibyt {
			continue
		}
		p, err1 := strconv.ParseFloat(fields[ipkt], 64)
		n, err2 := strconv.ParseFloat(fields[ibyt], 64)
		if err1 == nil && err2 == nil {
			packets, bytes = packets+p, bytes+n
		}
	}
	if packets == 0 {
		said, _ := exec.CommandContext(ctx, "sh", "-c", "cat "+w.dir+"/*.log").Output()
		return 0, 0, fmt.Errorf("nfdump tells of no flow: %.300s\n%.2000s", out, said)
	}
	return packets, bytes, nil
}
