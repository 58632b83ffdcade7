//go:build lab

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/topologies"
)

// bringLight brings a light lab with a controller and agents up.
func bringLight(t *testing.T) (Target, heliotrope.Topology) {
	t.Helper()
	const file = "testdata/light.yaml"
	top, err := topologies.LoadFile(file, topologies.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", dir, "heliotrope/cmd/heliotrope", "heliotrope/cmd/heliotrope-agent").CombinedOutput(); err != nil {
		t.Fatalf("build programs: %v: %s", err, out)
	}
	target := Target{Name: "light", Dir: filepath.Join(dir, "light")}
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, target)
		}
		if err := Down(context.Background(), target); err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	err = Up(t.Context(), Options{
		Topology: top, TopologyFile: file, Name: target.Name, Dir: target.Dir, Light: true, Binary: filepath.Join(dir, "heliotrope"),
		Progress: func(what string) { t.Logf("%v: %s", time.Since(began).Round(time.Millisecond), what) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return target, top
}

func TestLightLab(t *testing.T) {
	lab, top := bringLight(t)
	t.Run("status shows VMs", func(t *testing.T) {
		s, err := Read(t.Context(), lab)
		if err != nil {
			t.Fatal(err)
		}
		n, ok := s.Node("db-2")
		if !ok || n.Kind != KindVM || n.VM != "db-2" || n.Host != "right-1" || n.Site != "right" || !n.Up || n.Address.String() != "10.2.0.12" {
			t.Errorf("status of db-2: %+v", n)
		}
	})
	t.Run("each reaches each by name", func(t *testing.T) { testLightMesh(t, lab, top) })
	t.Run("packets as large as the network allows pass", func(t *testing.T) {
		whole := fmt.Sprint(top.Networks["web"].MTU - 28)
		if out, err := in(t, lab, "web-1", "ping", "-c1", "-W5", "-M", "do", "-s", whole, "db-2"); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("TCP passes between hosts and networks", func(t *testing.T) { testLightTCP(t, lab) })
	t.Run("a client reaches the public address", func(t *testing.T) {
		eventually(t, func() error { // once the router has heard of it, and the host of the router
			got, err := rtt(t, lab, "visitor", "203.0.113.11")
			t.Logf("round trip %v", got)
			return err
		})
	})
	t.Run("flows are as wanted", func(t *testing.T) {
		client := api.NewUnixClient(filepath.Join(lab.Dir, "controller", "api.sock"))
		defer client.Close()
		for h := range top.Hosts {
			d, err := client.FlowDiff(t.Context(), h)
			if err != nil || len(d.Missing)+len(d.Extra) != 0 {
				t.Errorf("flows of %s: %v, missing %v, extra %v", h, err, d.Missing, d.Extra)
			}
		}
	})
	t.Run("nothing remains", func(t *testing.T) {
		had := population(t, lab)
		if err := Down(t.Context(), lab); err != nil {
			t.Fatal(err)
		}
		expectNothing(t, lab, had)
	})
}

func testLightMesh(t *testing.T, lab Target, top heliotrope.Topology) {
	var group errgroup.Group
	for from := range top.VMs {
		for to := range top.VMs {
			group.Go(func() error {
				var out bytes.Buffer
				code, err := Exec(t.Context(), lab, string(from), []string{"ping", "-c1", "-W5", string(to)}, Stdio{Out: &out, Err: &out})
				if err = errors.Join(err, exitError(code)); err != nil {
					return fmt.Errorf("%s to %s: %w: %s", from, to, err, strings.TrimSpace(out.String()))
				}
				return nil
			})
		}
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

func testLightTCP(t *testing.T, lab Target) {
	group, ctx := errgroup.WithContext(t.Context())
	group.Go(func() error {
		code, err := Exec(ctx, lab, "db-2", []string{self(t), "serve", ":9"}, Stdio{})
		return errors.Join(err, exitError(code))
	})
	group.Go(func() error {
		var out bytes.Buffer
		code, err := Exec(ctx, lab, "web-1", []string{self(t), "send", "10.2.0.12:9"}, Stdio{Out: &out, Err: &out})
		t.Logf("web-1 to db-2: %s", strings.TrimSpace(out.String()))
		return errors.Join(err, exitError(code))
	})
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

func TestLightNeedsAController(t *testing.T) {
	err := Up(t.Context(), Options{Name: "light-refused", Dir: filepath.Join(t.TempDir(), "light-refused"), Light: true, WithoutControl: true})
	if err == nil || !strings.Contains(err.Error(), "need a controller") {
		t.Errorf("light without control: %v", err)
	}
}

func TestPlansOfLightVMs(t *testing.T) {
	top, err := topologies.LoadFile("../traffic.yaml", topologies.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ps, err := plans(config{Name: "x", Dir: "/x", Topology: top, Light: true, WithoutLibvirt: true})
	if err != nil {
		t.Fatal(err)
	}
	taps := map[string]bool{}
	for vm := range top.VMs {
		i := slices.IndexFunc(ps, func(p plan) bool { return p.VM == vm })
		if i < 0 {
			t.Fatalf("no node for VM %s", vm)
		}
		p := ps[i]
		if p.Kind != KindVM || p.Host != top.VMs[vm].Host || len(p.Addresses) != 1 || len(p.Routes) != 1 ||
			!strings.Contains(p.Hosts, "10.1.0.11 vm-01\n") || strings.Contains(p.Hosts, "controller") {
			t.Errorf("plan of %s: %+v", vm, p)
		}
		for _, c := range vmCards(top, vm) {
			if len(c.Tap) > 15 || taps[c.Tap] {
				t.Errorf("%s has no name of its own: %s", vm, c.Tap)
			}
			taps[c.Tap] = true
		}
	}
	for _, p := range ps {
		if p.Kind == KindHost && strings.Contains(p.Hosts, "vm-01") {
			t.Errorf("host %s resolves a name that it cannot reach", p.Node)
		}
	}
}
