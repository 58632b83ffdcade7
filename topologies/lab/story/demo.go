// Package story tells what Heliotrope does, in the lab: the demo that make demo shows.
// It ends with one line of JSON that says what was measured,
// and whether what must hold held.
package story

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/topologies"
	"heliotrope/topologies/lab"
	"heliotrope/topologies/lab/claim"
	"heliotrope/topologies/lab/probe"
)

// Demo brings up three clouds, has a client on the internet talk to a VM, and moves the VM
// around the world meanwhile.
type Demo struct {
	stage
	File  string // topology; default: the built-in three-clouds
	Rate  int    // probes a second
	Route []heliotrope.HostID

	probe   *probe.Client
	visitor *visitor
	routers *routers
	written string // topology file of our own, removed once the lab has read it
}

// maxLost is how many probes a move may lose; the aim is none.
const maxLost = 3

// Run tells the story. It fails if something did not hold, and says what.
func (d *Demo) Run(ctx context.Context) (err error) {
	d.started = time.Now()
	topology, err := d.load()
	if err != nil {
		return err
	}
	err = d.up(ctx, topology, d.File)
	if d.written != "" {
		err = errors.Join(err, os.Remove(d.written))
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.down(ctx)) }()
	stop, err := d.watch(ctx, topology)
	if err != nil {
		return err
	}
	defer stop()
	if err := d.counted(ctx); err != nil {
		return err
	}
	begin := time.Now().Truncate(time.Second)
	var legs []leg
	for _, to := range d.Route {
		l, err := d.move(ctx, to)
		legs = append(legs, l)
		if err != nil {
			return errors.Join(err, d.conclude(ctx, legs, likeness{}, census{}, pilot{}, gallery{}))
		}
	}
	taken, err := d.snapshot(ctx)
	if err != nil {
		return errors.Join(err, d.conclude(ctx, legs, taken, census{}, pilot{}, gallery{}))
	}
	counted, err := d.census(ctx, begin)
	if err != nil {
		return errors.Join(err, d.conclude(ctx, legs, taken, counted, pilot{}, gallery{}))
	}
	flown, err := d.fly(ctx, topology)
	if err != nil {
		return errors.Join(err, d.conclude(ctx, legs, taken, counted, flown, gallery{}))
	}
	shown, err := d.images(ctx)
	return errors.Join(err, d.conclude(ctx, legs, taken, counted, flown, shown))
}

// load reads the topology and fills in what of the route is not said.
func (d *Demo) load() (heliotrope.Topology, error) {
	data, err := topologies.Example("three-clouds")
	if d.File != "" {
		data, err = os.ReadFile(d.File)
	}
	if err != nil {
		return heliotrope.Topology{}, fmt.Errorf("read topology: %w", err)
	}
	t, err := topologies.Parse(data, d.File, topologies.Options{})
	if err != nil {
		return t, err
	}
	vm, ok := t.VMs[d.VM]
	if !ok || !vm.NICs[0].Public.IsValid() {
		return t, fmt.Errorf("the demo needs a VM %q with a public address", d.VM)
	}
	d.public = vm.NICs[0].Public
	if d.File == "" {
		file, err := os.CreateTemp("", "heliotrope-demo-*.yaml")
		if err != nil {
			return t, fmt.Errorf("write topology: %w", err)
		}
		_, err = file.Write(data)
		d.File, d.written = file.Name(), file.Name()
		if err := errors.Join(err, file.Close()); err != nil {
			return t, fmt.Errorf("write topology: %w", err)
		}
	}
	return t, nil
}

// watch starts everything that looks on: the client's probe, a reader of the guest's own
// account, and a listener in every router.
func (d *Demo) watch(ctx context.Context, t heliotrope.Topology) (stop func(), err error) {
	status, err := lab.Read(ctx, d.target)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(status.Nodes, func(n lab.NodeStatus) bool { return n.Kind == lab.KindClient })
	if i < 0 {
		return nil, errors.New("the demo needs a client in its topology")
	}
	client := status.Nodes[i]
	d.visitor = &visitor{pid: client.PID, guest: d.public}
	up, cancelUp := context.WithTimeout(ctx, 60*time.Second)
	defer cancelUp()
	if err := d.until(up, func(ctx context.Context) error { _, err := d.visitor.account(ctx); return err }); err != nil {
		return nil, fmt.Errorf("wait for the guest: %w", err)
	}
	if d.routers, err = listenRouters(status, d.public); err != nil {
		return nil, err
	}
	end, err := d.probeFrom(ctx, client.Name, d.Rate, &d.probe)
	stop = func() { end(); d.routers.close() }
	if err != nil {
		stop()
		return nil, err
	}
	d.say("%s on the internet has a TCP connection to %s (VM %s) and sends it %d probes a second", client.Name, d.public, d.VM, d.Rate)
	return stop, nil
}

// settled is how long the probe goes on after a move before it is judged.
const settled = 1500 * time.Millisecond

// move moves the VM and returns what everybody saw of it.
func (d *Demo) move(ctx context.Context, to heliotrope.HostID) (leg, error) {
	l := leg{To: to}
	before, err := d.visitor.account(ctx)
	if err != nil {
		return l, err
	}
	meters, err := lab.Read(ctx, d.target)
	if err != nil {
		return l, err
	}
	window := fmt.Sprintf("to-%s-%d", to, time.Now().UnixNano())
	if _, err := d.probe.Mark(ctx, window); err != nil {
		return l, err
	}
	m, err := d.client.StartMigration(ctx, api.MigrationRequest{VM: d.VM, To: string(to)}, window)
	if err != nil {
		return l, err
	}
	l.From = m.From
	d.say("moving %s from %s to %s", d.VM, m.From, to)
	if m, err = d.client.WatchMigration(ctx, m.ID, func(api.Migration) {}); err != nil {
		return l, err
	}
	l.Migration = m
	if m.Phase != api.PhaseSucceeded {
		return l, fmt.Errorf("the move to %s ended as %s: %s", to, m.Phase, m.Error)
	}
	select {
	case <-time.After(settled):
	case <-ctx.Done():
		return l, context.Cause(ctx)
	}
	if l.Client, err = d.probe.Settle(ctx, window); err != nil {
		return l, err
	}
	after, err := d.visitor.account(ctx)
	if err != nil {
		return l, err
	}
	now, err := lab.Read(ctx, d.target)
	if err != nil {
		return l, err
	}
	l.Guest = compare(before, after)
	l.WANBytes = wanBytes(now) - wanBytes(meters)
	l.RouteMS = d.routers.convergedAfter(commitTime(m))
	d.say("  %s", l)
	return l, nil
}

// commitTime is when the owner had changed.
func commitTime(m api.Migration) time.Time {
	for _, p := range m.Phases {
		if p.Phase == "Activate" {
			return p.At
		}
	}
	return m.CreatedAt
}

// wanBytes is all that crossed the links between sites so far, both ways.
func wanBytes(s lab.Status) (sum uint64) {
	for _, l := range s.Links {
		sum += l.Meter.Bytes
	}
	return sum
}

// conclude prints the table and the JSON line and says what did not hold.
func (d *Demo) conclude(ctx context.Context, legs []leg, taken likeness, counted census, flown pilot, shown gallery) error {
	total, err := d.probe.Total(ctx)
	if err != nil {
		return err
	}
	claims := append(append(judge(legs, total, len(d.Route)), taken.claims()...), counted.claims()...)
	claims = append(append(claims, flown.claims()...), shown.claims()...)
	writeTable(d.Out, legs)
	counted.tell(d)
	if status, err := lab.Read(ctx, d.target); err == nil && status.Drops() != "" {
		fmt.Fprintln(d.Out, status.Drops()) // a loss may be the lab's own
	}
	line, err := json.Marshal(struct {
		Bench   string        `json:"bench"`
		Seconds float64       `json:"seconds"`
		Claims  []claim.Claim `json:"claims"`
		Moves   []leg         `json:"moves"`
		Client  probe.Report  `json:"client"`
		Taken   likeness      `json:"snapshot"`
		Traffic census        `json:"traffic"`
		Pilot   pilot         `json:"autopilot"`
		Images  gallery       `json:"images"`
	}{"demo", time.Since(d.started).Seconds(), claims, legs, total, taken, counted, flown, shown})
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	fmt.Fprintln(d.Out, string(line))
	return claim.Failed(claims)
}
