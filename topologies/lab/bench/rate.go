package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"heliotrope"
	"heliotrope/arpproxy"
	"heliotrope/flows"
	"heliotrope/flows/openflow"
	"heliotrope/topologies/lab"
)

// Rate compares how fast one switch takes flows from us and from ovs-ofctl, medians of
// rounds that took turns.
type Rate struct {
	Flows  int       `json:"flows"`
	Rounds int       `json:"rounds"`
	Ours   float64   `json:"ours_flows_per_s"`
	Ofctl  float64   `json:"ofctl_flows_per_s"` // its start and its reading of the file included
	Ratio  float64   `json:"ratio"`
	All    []float64 `json:"ratios"` // of each round
	Error  string    `json:"error,omitempty"`
}

const (
	rateHosts = 600 // whose 6,000 VMs come to some 20,000 flows in a switch
	bridge    = "br-bench"
)

// rate brings one host up without a controller and fills a bridge of it again and again.
func (f *Fabric) rate(ctx context.Context) (r Rate, err error) {
	target := lab.Target{Name: f.Name + "-rate"}
	err = lab.Up(ctx, lab.Options{Topology: fabric(1), Name: target.Name, WithoutControl: true, WithoutLibvirt: true})
	if err != nil {
		return r, err
	}
	defer func() {
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, lab.Down(down, target))
	}()
	s, err := newSwitch(ctx, target)
	if err != nil {
		return r, err
	}
	defer s.conn.Close()
	r.Flows = len(s.flows)
	var ours, ofctl []float64
	for range f.Rounds {
		for _, way := range []struct {
			put   func(context.Context) error
			rates *[]float64
		}{{s.bundle, &ours}, {s.addFlows, &ofctl}} {
			if err := s.ofctl(ctx, "del-flows", s.mgmt); err != nil {
				return r, err
			}
			began := time.Now()
			if err := way.put(ctx); err != nil {
				return r, err
			}
			*way.rates = append(*way.rates, float64(r.Flows)/time.Since(began).Seconds())
		}
	}
	for i := range ours {
		r.All = append(r.All, ours[i]/ofctl[i])
	}
	r.Rounds, r.Ours, r.Ofctl = f.Rounds, median(ours), median(ofctl)
	r.Ratio = r.Ours / r.Ofctl
	f.say("%d flows into one switch, %d times in turns: %.0f flows/s by us, %.0f by ovs-ofctl --bundle", r.Flows, r.Rounds, r.Ours, r.Ofctl)
	return r, nil
}

func median(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	if len(sorted) == 0 {
		return 0
	}
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// bareSwitch is a bridge of the userspace datapath that nobody else writes to.
type bareSwitch struct {
	mgmt  string // as ovs-ofctl wants it
	file  string
	flows []flows.Flow
	conn  *openflow.Conn
}

func newSwitch(ctx context.Context, target lab.Target) (*bareSwitch, error) {
	status, err := lab.Read(ctx, target)
	if err != nil {
		return nil, err
	}
	dir := ovsDir(status.Dir, host(0))
	err = vsctl(ctx, dir, "add-br", bridge, "--", "set", "Bridge", bridge, "datapath_type=netdev", "fail_mode=secure", "protocols=OpenFlow15")
	if err != nil {
		return nil, err
	}
	s := &bareSwitch{mgmt: "unix:" + filepath.Join(dir, bridge+".mgmt"), file: filepath.Join(status.Dir, "flows")}
	if s.flows, err = manyFlows(); err != nil {
		return nil, err
	}
	var text strings.Builder
	for _, f := range s.flows {
		fmt.Fprintln(&text, f)
	}
	if err := os.WriteFile(s.file, []byte(text.String()), 0o644); err != nil {
		return nil, fmt.Errorf("write flows: %w", err)
	}
	nc, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, bridge+".mgmt"))
	if err != nil {
		return nil, fmt.Errorf("dial switch: %w", err)
	}
	s.conn, err = openflow.New(ctx, nc, openflow.Options{})
	return s, err
}

// manyFlows are those that a host of a large fabric has.
func manyFlows() ([]flows.Flow, error) {
	t := fabric(rateHosts)
	v := flows.View{Host: host(0), Topology: t, Placements: map[heliotrope.VMID]heliotrope.Placement{},
		Ports: flows.Ports{FlowTunnel: 1, Uplink: 2}}
	for id, spec := range t.VMs {
		v.Placements[id] = heliotrope.Placement{VM: id, Host: spec.Host, Epoch: 1}
	}
	return flows.Compile(v, arpproxy.Flows)
}

func (s *bareSwitch) bundle(ctx context.Context) error { return s.conn.Bundle(ctx, s.flows, nil) }

func (s *bareSwitch) addFlows(ctx context.Context) error {
	return s.ofctl(ctx, "--bundle", "add-flows", s.mgmt, s.file)
}

func (s *bareSwitch) ofctl(ctx context.Context, args ...string) error {
	return command(ctx, "ovs-ofctl", append([]string{"-O", "OpenFlow15"}, args...)...)
}

// ovsDir is where the sockets of a host's Open vSwitch are, seen from outside.
func ovsDir(lab string, h heliotrope.HostID) string {
	return filepath.Join(lab, "nodes", string(h), "run-openvswitch")
}

func vsctl(ctx context.Context, dir string, args ...string) error {
	return command(ctx, "ovs-vsctl", append([]string{"--timeout=20", "--db=unix:" + filepath.Join(dir, "db.sock")}, args...)...)
}

// command runs a program.
func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s %s: %w: %s", name, args[0], err, bytes.TrimSpace(out))
	}
	return nil
}
