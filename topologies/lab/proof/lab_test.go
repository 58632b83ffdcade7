//go:build lab

package proof

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/migration"
	"heliotrope/topologies/lab"
	"heliotrope/topologies/lab/probe"
)

// in runs a command in a node and returns what it printed.
func in(ctx context.Context, node string, argv ...string) (string, error) {
	var out bytes.Buffer
	if err := enter(ctx, &out, node, argv...); err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(out.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

func mustIn(t *testing.T, node string, argv ...string) string {
	t.Helper()
	out, err := in(t.Context(), node, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// until waits for do to succeed, fails the test if it does not within limit, and returns
// how long it took.
func until(t *testing.T, limit time.Duration, do func(context.Context) error) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	began := time.Now()
	if err := poll(ctx, func() error { return do(ctx) }); err != nil {
		t.Fatalf("after %v: %v", time.Since(began).Round(time.Millisecond), err)
	}
	return time.Since(began)
}

// calm waits until all is well, brings web home if it is elsewhere, and takes care that
// all is well again when the test has ended.
func calm(t *testing.T) {
	t.Helper()
	until(t, 60*time.Second, well)
	if vm := vm(t); vm.Host != here {
		if m := move(t, here); m.Phase != api.PhaseSucceeded {
			t.Fatalf("web does not come home: %s: %s", m.Phase, m.Error)
		}
		until(t, 30*time.Second, well)
	}
}

// well says what is not as it should be, everywhere.
func well(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	hosts, err := world.client.Hosts(ctx)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		if h.State != api.HostUp || len(h.Warnings) > 0 || len(h.Unmanaged) > 0 {
			return fmt.Errorf("host %s is %s, warnings %q, unmanaged %q", h.Name, h.State, h.Warnings, h.Unmanaged)
		}
		d, err := world.client.FlowDiff(ctx, h.Name)
		if err != nil {
			return err
		}
		if len(d.Missing)+len(d.Extra)+len(d.Foreign) > 0 {
			return fmt.Errorf("flows of %s differ: missing %v, extra %v, foreign %v", h.Name, d.Missing, d.Extra, d.Foreign)
		}
	}
	return errors.Join(vmsWell(ctx), pathsWell(ctx), heard(ctx))
}

// heard says whether the client has answers again, by TCP too: after a long silence its
// next try is long in coming.
func heard(ctx context.Context) error {
	now := time.Now()
	r, err := world.probe.Window(ctx, now.Add(-500*time.Millisecond), now)
	if err == nil && (r.UDP.Answered == 0 || r.TCP.Echoed == 0) {
		err = fmt.Errorf("the client has no answer: %+v", r)
	}
	return err
}

func vmsWell(ctx context.Context) error {
	vms, err := world.client.VMs(ctx)
	if err != nil {
		return err
	}
	for _, vm := range vms {
		if vm.State != string(heliotrope.VMRunning) || vm.Migration != "" || len(vm.Warnings) > 0 {
			return fmt.Errorf("VM %s is %s at %s, in migration %q, warnings %q", vm.Name, vm.State, vm.Host, vm.Migration, vm.Warnings)
		}
	}
	return nil
}

// pathsWell looks at tunnels and at what every router was told of web.
func pathsWell(ctx context.Context) error {
	mesh, err := world.client.Mesh(ctx)
	if err != nil {
		return err
	}
	for _, l := range mesh.Links {
		if l.State != "up" {
			return fmt.Errorf("the tunnel from %s to %s is %s: %s", l.From, l.To, l.State, l.Error)
		}
	}
	vm, err := world.client.VM(ctx, web)
	if err != nil {
		return err
	}
	why, err := world.client.WhyRoute(ctx, vm.NICs[0].Public)
	if err != nil {
		return err
	}
	if why.Verdict != "ok" || why.Host != vm.Host {
		return fmt.Errorf("the route to web is %q: %q", why.Verdict, why.Explanation)
	}
	return routersAgree(ctx, vm.NICs[0].Public.String(), why.NextHop.String())
}

// routersAgree asks each router where it believes web to be.
func routersAgree(ctx context.Context, public, nextHop string) error {
	for _, router := range []string{"router-left", "router-right", "router-internet"} {
		says, err := in(ctx, router, "birdc", "show", "route", "all", "for", public+"/32")
		if err != nil {
			return err
		}
		if !strings.Contains(says, "BGP.next_hop: "+nextHop+"\n") {
			return fmt.Errorf("%s should send what is for web to %s: %s", router, nextHop, says)
		}
	}
	return nil
}

func vm(t *testing.T) api.VM {
	t.Helper()
	vm, err := world.client.VM(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// start begins a move of web.
func start(t *testing.T, to heliotrope.HostID) api.Migration {
	t.Helper()
	m, err := world.client.StartMigration(t.Context(), api.MigrationRequest{VM: web, To: string(to)}, "")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// reach waits until a migration satisfies ok, or has ended.
func reach(t *testing.T, id heliotrope.MoveID, ok func(api.Migration) bool) api.Migration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var m api.Migration
	for !ok(m) && !m.Ended() {
		next, err := world.client.AwaitMigration(ctx, id, m.Revision)
		switch {
		case ctx.Err() != nil:
			t.Fatalf("the migration stands at %s: %v", m.Phase, context.Cause(ctx))
		case err == nil:
			m = next
		}
	}
	return m
}

func ended(api.Migration) bool { return false }

// entered says that a migration is in phase p.
func entered(p migration.Phase) func(api.Migration) bool {
	return func(m api.Migration) bool { return m.Phase == string(p) }
}

// copying says that memory is on its way.
func copying(m api.Migration) bool {
	return m.Phase == string(migration.PreCopy) && m.Measured.MemoryBytes > 0
}

// move moves web and waits for the end.
func move(t *testing.T, to heliotrope.HostID) api.Migration {
	t.Helper()
	return reach(t, start(t, to).ID, ended)
}

// story is a migration's phases in words.
func story(m api.Migration) string {
	var b strings.Builder
	for _, p := range m.Phases {
		fmt.Fprintf(&b, "%s %.2fs ", p.Phase, p.TookS)
	}
	if m.Error != "" {
		fmt.Fprintf(&b, "(%s)", m.Error)
	}
	return b.String()
}

// whole is what the link between the two clouds has of the topology.
func whole() lab.LinkChange {
	c := lab.LinkChange{Link: between, Down: new(bool), Rate: new(heliotrope.BitRate)}
	*c.Rate = 465_000_000
	return c
}

// link changes the link between the two clouds until the test has ended.
func link(t *testing.T, c lab.LinkChange) {
	t.Helper()
	c.Link = between
	t.Cleanup(func() {
		if _, err := lab.Change(context.WithoutCancel(t.Context()), world.target, whole()); err != nil {
			t.Error(err)
		}
	})
	if _, err := lab.Change(t.Context(), world.target, c); err != nil {
		t.Fatal(err)
	}
}

// slow leaves the link as little as makes a copy last for long.
func slow(t *testing.T) {
	t.Helper()
	narrow := heliotrope.BitRate(40_000_000)
	link(t, lab.LinkChange{Rate: &narrow})
}

// kill sends SIGKILL to a daemon and waits until its successor answers.
func kill(t *testing.T, node, daemon string) {
	t.Helper()
	before := daemonOf(t, node, daemon)
	if err := lab.Kill(t.Context(), world.target, lab.KillOrder{Node: node, Daemon: daemon, Signal: unix.SIGKILL}); err != nil {
		t.Fatal(err)
	}
	until(t, 20*time.Second, func(context.Context) error {
		if d := daemonOf(t, node, daemon); !d.Ready || d.Restarts == before.Restarts {
			return fmt.Errorf("%s of %s has not come back: %+v", daemon, node, d)
		}
		return nil
	})
}

func daemonOf(t *testing.T, node, daemon string) lab.DaemonStatus {
	t.Helper()
	status, err := lab.Read(t.Context(), world.target)
	if err != nil {
		t.Fatal(err)
	}
	n, _ := status.Node(node)
	d, ok := n.Daemon(daemon)
	if !ok {
		t.Fatalf("%s has no daemon %s", node, daemon)
	}
	return d
}

// watch begins to count what the client sees; the function it returns ends that.
func watch(t *testing.T) (see func() probe.Report) {
	t.Helper()
	name := fmt.Sprintf("%s-%d", strings.NewReplacer(" ", "-", "/", "-").Replace(t.Name()), time.Now().UnixNano())
	if _, err := world.probe.Mark(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return func() probe.Report {
		t.Helper()
		r, err := world.probe.Settle(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("client: %d probes, %d lost (%d in a row), %d doubled, %d skipped, longest gap %.0f ms, TCP stalled %.0f ms", r.UDP.Sent,
			r.UDP.Lost, r.UDP.LongestLoss.Probes, r.UDP.Duplicated, r.UDP.Skipped, r.UDP.LongestGap.MS, r.TCP.LongestStall.MS)
		if status, err := lab.Read(t.Context(), world.target); err == nil && r.UDP.Lost > 0 && status.Drops() != "" {
			t.Log(status.Drops())
		}
		if r.TCP.Broken || !r.TCP.Connected {
			t.Errorf("the TCP connection broke: %s", r.TCP.Error)
		}
		if r.UDP.Duplicated > 0 {
			t.Errorf("%d probes were answered twice", r.UDP.Duplicated)
		}
		return r
	}
}

// account is what the guest says of itself.
type account struct {
	BootID  string `json:"boot_id"`
	Ticks   int64  `json:"ticks"`
	Pages   int    `json:"pages"`
	Records uint64 `json:"records"`
}

// ask has the guest verify its memory and its disk.
func ask(t *testing.T) account {
	t.Helper()
	var a account
	for _, page := range []string{"ticks", "checksum", "disk"} {
		text := mustIn(t, visitor, world.self, "get", "http://"+vm(t).NICs[0].Public.String()+"/"+page)
		var bad struct {
			Bad int `json:"bad"`
		}
		if err := errors.Join(json.Unmarshal([]byte(text), &a), json.Unmarshal([]byte(text), &bad)); err != nil {
			t.Fatalf("the guest answers to /%s: %s: %v", page, text, err)
		}
		if bad.Bad != 0 {
			t.Errorf("the guest says of its %s: %s", page, text)
		}
	}
	return a
}

// sameGuest says whether the guest is the one that it was, and went on all the time.
func sameGuest(t *testing.T, before account) {
	t.Helper()
	after := ask(t)
	if after.BootID != before.BootID || after.Ticks <= before.Ticks || after.Pages != before.Pages || after.Records < before.Records {
		t.Errorf("the guest was %+v and is %+v", before, after)
	}
}
