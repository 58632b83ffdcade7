package hostagent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope/hostagent/durable"
)

const (
	flowsQuiet    = 500 * time.Millisecond // after the controller's last change
	flowsCheck    = time.Second
	flowsHandsOff = 2 * time.Second // after the controller's last change
	flowsRedial   = 50 * time.Millisecond
	ofctlLimit    = 10 * time.Second
)

// flows keeps a copy of the bridge's flows and groups, and gives it back to a switch that
// has lost them.
//
// The copy is made when the controller has said nothing for a moment; what it says passes
// through the agent. It is given back when the bridge has no flow at all: at once after
// the switch has restarted, before the controller is let through to it again, so that
// nothing old is ever put on top of something new.
type flows struct {
	bridge string
	mgmt   string // path of the bridge's management socket
	file   string
	log    *slog.Logger

	changed chan struct{} // of size 1: the controller has changed something

	mu sync.Mutex // held while the switch is restored or copied

	// touched is when the controller last changed something, as a time.Time. It has no
	// lock: the controller must not wait for a copy.
	touched atomic.Value
}

func newFlows(c Config) *flows {
	f := &flows{
		bridge: c.Bridge, mgmt: c.mgmtSock(), file: filepath.Join(c.StateDir, "flows"),
		log: c.Log, changed: make(chan struct{}, 1),
	}
	f.touched.Store(time.Time{})
	return f
}

// run watches the switch until ctx ends.
func (f *flows) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.copyChanges(ctx) })
	g.Go(func() error { return f.watch(ctx) })
	return g.Wait()
}

// dial connects the controller to the switch, restored if need be.
func (f *flows) dial(ctx context.Context) (net.Conn, error) {
	if err := f.restore(ctx); err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", f.mgmt)
	if err != nil {
		return nil, err
	}
	return &writes{Conn: conn, changed: f.touch}, nil
}

func (f *flows) touch() {
	f.touched.Store(time.Now())
	f.kick()
}

func (f *flows) kick() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// watch looks at the switch each second, and at once when it has restarted.
func (f *flows) watch(ctx context.Context) error {
	told := ""
	for ctx.Err() == nil {
		err := f.watchOnce(ctx)
		if ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			f.log.Info("switch is not there", "bridge", f.bridge, "error", err)
		}
		pause(ctx, flowsRedial)
	}
	return context.Cause(ctx)
}

func (f *flows) watchOnce(ctx context.Context) error {
	c, err := dialMgmt(ctx, f.mgmt)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := f.restore(ctx); err != nil {
		return err
	}
	f.kick() // what is there now may be newer than the copy
	for xid := uint32(1); ; xid++ {
		n, err := c.flows(ctx, xid)
		if err != nil {
			return err
		}
		// While the controller is at work on the flows it may want none for a moment.
		if n == 0 && f.quietFor(flowsHandsOff) {
			if err := f.restore(ctx); err != nil {
				return err
			}
		}
		// The connection ends when the switch does, and that is seen at once.
		if err := c.idle(ctx, flowsCheck); err != nil {
			return err
		}
	}
}

func (f *flows) quietFor(d time.Duration) bool {
	return time.Since(f.touched.Load().(time.Time)) >= d
}

// restore gives the copy to a bridge that has no flows.
func (f *flows) restore(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := dialMgmt(ctx, f.mgmt)
	if err != nil {
		return err
	}
	defer c.Close()
	if n, err := c.flows(ctx, 1); err != nil || n > 0 {
		return err
	}
	saved, err := os.ReadFile(f.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read copy of flows: %w", err)
	}
	ports, lines, ok := strings.Cut(string(saved), "\n\n")
	now, err := f.ports(ctx)
	if err != nil {
		return err
	}
	if !ok || !samePorts(ports, now) {
		f.log.Warn("the bridge's ports have other numbers now: its flows are not put back", "bridge", f.bridge, "were", ports, "are", now)
		return nil
	}
	start := time.Now()
	if _, err := f.ofctl(ctx, lines, "bundle", f.bridge, "-"); err != nil {
		return fmt.Errorf("put flows back: %w", err)
	}
	f.log.Info("flows were put back", "bridge", f.bridge, "lines", strings.Count(lines, "\n"), "took", time.Since(start))
	return nil
}

// copyChanges copies the flows whenever the controller has changed them and is quiet.
func (f *flows) copyChanges(ctx context.Context) error {
	for {
		select {
		case <-f.changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		pause(ctx, flowsQuiet)
		if !f.quietFor(flowsQuiet) {
			f.kick()
			continue
		}
		f.mu.Lock()
		err := f.copy(ctx)
		f.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			f.log.Warn("flows are not copied", "bridge", f.bridge, "error", err)
		}
	}
}

// copy writes down what the bridge has. A bridge without flows has lost them: that is no
// state to come back to.
func (f *flows) copy(ctx context.Context) error {
	ports, err := f.ports(ctx)
	if err != nil {
		return err
	}
	groups, err := f.ofctl(ctx, "", "dump-groups", f.bridge)
	if err != nil {
		return fmt.Errorf("copy groups: %w", err)
	}
	rules, err := f.ofctl(ctx, "", "--no-stats", "dump-flows", f.bridge)
	if err != nil {
		return fmt.Errorf("copy flows: %w", err)
	}
	// Whoever deleted the flows may have left the groups.
	group, flow := bundleLines("group add_or_mod", groups), bundleLines("flow add", rules)
	if flow == "" {
		return nil
	}
	content := []byte(ports + "\n\n" + group + flow)
	if old, err := os.ReadFile(f.file); err == nil && bytes.Equal(old, content) {
		return nil
	}
	return durable.WriteFile(f.file, content, 0o600)
}

// bundleLines makes lines for ovs-ofctl bundle, each beginning with what is to be done,
// out of what dump-groups or dump-flows wrote.
func bundleLines(do, dump string) string {
	var b strings.Builder
	for line := range strings.Lines(dump) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "OFPST_") || strings.HasPrefix(line, "NXST_") {
			continue
		}
		fmt.Fprintf(&b, "%s %s\n", do, line)
	}
	return b.String()
}

// ports is one line "name=number,…" of the bridge's ports, by name.
func (f *flows) ports(ctx context.Context) (string, error) {
	out, err := f.ofctl(ctx, "", "dump-ports-desc", f.bridge)
	if err != nil {
		return "", fmt.Errorf("list ports: %w", err)
	}
	var ports []string
	for line := range strings.Lines(out) {
		// " 1(vm-web-0): addr:…"
		number, rest, ok := strings.Cut(strings.TrimSpace(line), "(")
		name, _, ok2 := strings.Cut(rest, "):")
		if ok && ok2 && !strings.ContainsAny(number, " :") {
			ports = append(ports, name+"="+number)
		}
	}
	slices.Sort(ports)
	return strings.Join(ports, ","), nil
}

// samePorts says that every port that was there and still is has the number it had.
func samePorts(were, are string) bool {
	now := map[string]string{}
	for p := range strings.SplitSeq(are, ",") {
		name, number, _ := strings.Cut(p, "=")
		now[name] = number
	}
	for p := range strings.SplitSeq(were, ",") {
		name, number, _ := strings.Cut(p, "=")
		if n, ok := now[name]; ok && n != number {
			return false
		}
	}
	return true
}

// ofctl runs ovs-ofctl with input and returns what it wrote.
func (f *flows) ofctl(ctx context.Context, input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, ofctlLimit)
	defer cancel()
	// The path of the socket instead of the bridge's name: it may not be in the usual place.
	for i, a := range args {
		if a == f.bridge {
			args[i] = "unix:" + f.mgmt
		}
	}
	cmd := exec.CommandContext(ctx, "ovs-ofctl", append([]string{"-O", "OpenFlow15"}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("ovs-ofctl: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}
