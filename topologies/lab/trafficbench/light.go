package trafficbench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler/traffic"
	"heliotrope/topologies"
	"heliotrope/topologies/lab"
)

// light is a lab of light VMs with a client of its controller.
type light struct {
	target lab.Target
	top    heliotrope.Topology
	api    *api.Client
}

// bringUp brings the lab of topologies/traffic.yaml up.
func bringUp(ctx context.Context, b *Bench, name string) (l light, err error) {
	data, err := topologies.Example("traffic")
	if err != nil {
		return l, err
	}
	l.target = lab.Target{Name: name}
	if l.top, err = topologies.Parse(data, "traffic.yaml", topologies.Options{}); err != nil {
		return l, err
	}
	file, err := os.CreateTemp("", "heliotrope-bench-*.yaml")
	if err != nil {
		return l, fmt.Errorf("write topology: %w", err)
	}
	defer os.Remove(file.Name())
	_, err = file.Write(data)
	if err := errors.Join(err, file.Close()); err != nil {
		return l, fmt.Errorf("write topology: %w", err)
	}
	err = lab.Up(ctx, lab.Options{Topology: l.top, TopologyFile: file.Name(), Name: name, Light: true, Patience: 2 * time.Minute,
		Progress: func(s string) { b.Say("  %s", s) }})
	if err != nil {
		return l, err
	}
	if l.api, err = api.Find(api.Place{Lab: name}); err != nil {
		return l, errors.Join(err, l.down(ctx))
	}
	return l, nil
}

func (l light) down(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return lab.Down(ctx, l.target)
}

// count has all hosts count in a way, and waits until they do.
func (l light) count(ctx context.Context, c heliotrope.Capture) error {
	t := l.top
	t.Capture = c
	text, err := topologies.Marshal(t)
	if err != nil {
		return err
	}
	plan, err := l.api.ApplyTopology(ctx, text, -1)
	if err != nil {
		return err
	}
	if c.Source == heliotrope.CaptureOff {
		return l.api.AwaitFlows(ctx, plan.Revision)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("the hosts do not count as they are told"))
	defer cancel()
	for applied := time.Now(); ; {
		r, err := l.api.TrafficReport(ctx, api.TrafficQuery{Window: time.Second})
		if err == nil && l.counting(r.Sources, c, applied) {
			return nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// settled waits for what was counted up to a time, and returns it.
func (l light) counted(ctx context.Context, from, to time.Time) (traffic.Matrix, error) {
	from, to = from.Truncate(time.Second), to.Truncate(time.Second).Add(time.Second)
	select {
	case <-time.After(time.Until(to.Add(time.Second))): // within a second of the bin's end
	case <-ctx.Done():
		return traffic.Matrix{}, context.Cause(ctx)
	}
	return l.api.TrafficMatrix(ctx, api.TrafficQuery{Window: to.Sub(from), End: to})
}

// vms are those of the topology, by name.
func (l light) vms() []heliotrope.VMID { return slices.Sorted(maps.Keys(l.top.VMs)) }
