package rest

import (
	"errors"
	"flag"
	"io"
	"net/http"
	"os"
	"reflect"
	"strings"
	"testing"

	"heliotrope"
	"heliotrope/controller/api"
)

var rewrite = flag.Bool("rewrite", false, "write docs/openapi.json anew")

func TestTopology(t *testing.T) {
	s := serve(t, Options{})
	c := s.client(t)
	_, _, err := c.Topology(t.Context())
	var p *api.Problem
	if !errors.As(err, &p) || p.Type != api.TypeNotFound {
		t.Errorf("before the first: %v", err)
	}
	yaml := s.example(t)
	topology, rev, err := c.Topology(t.Context())
	if err != nil || rev == 0 || len(topology.VMs) == 0 {
		t.Fatalf("%v at %d, %v", topology.Name, rev, err)
	}
	text, err := c.TopologyYAML(t.Context())
	if err != nil || !strings.Contains(string(text), "sites:") {
		t.Errorf("%s, %v", text, err)
	}
	if a := s.ask(t, "GET", "/v1/topology", map[string]string{"If-None-Match": api.ETag(rev)}, nil); a.StatusCode != http.StatusNotModified || len(a.body) != 0 {
		t.Errorf("If-None-Match: %d %s", a.StatusCode, a.body)
	}
	plan, err := c.ApplyTopology(t.Context(), yaml, rev)
	if err != nil || !plan.Applied || plan.Revision <= rev {
		t.Errorf("%+v, %v", plan, err)
	}
	_, err = c.ApplyTopology(t.Context(), yaml, rev)
	if !errors.As(err, &p) || p.Type != api.TypeStale {
		t.Errorf("stale: %v", err)
	}
	dry := s.ask(t, "PUT", "/v1/topology?dry_run=true", map[string]string{"Content-Type": asYAML}, strings.NewReader(string(yaml)))
	if dry.StatusCode != 200 || dry.Header.Get("ETag") != api.ETag(plan.Revision) {
		t.Errorf("dry run: %d %s", dry.StatusCode, dry.body)
	}
	check, err := c.ValidateTopology(t.Context(), yaml)
	if err != nil || !check.Valid || check.VMs == 0 {
		t.Errorf("%+v, %v", check, err)
	}
	diff, err := c.DiffTopology(t.Context(), yaml)
	if err != nil || len(diff.Changes) != 0 {
		t.Errorf("%+v, %v", diff, err)
	}
	_, err = c.PlanTopology(t.Context(), []byte("version: 1\nname: x\nhosts: {a: {sit: us}}\n"))
	if !errors.As(err, &p) || len(p.Errors) < 2 || p.Errors[0].Line == 0 {
		t.Errorf("wrong: %v", err)
	}
}

// A peer's password is never shown, and not lost when what was shown is applied.
func TestPasswords(t *testing.T) {
	s := serve(t, Options{})
	s.example(t)
	set := func() (heliotrope.PeerID, string) {
		for name, p := range s.memory.topology.Peers {
			p.Password = "hunter2"
			s.memory.topology.Peers[name] = p
			return name, p.Password
		}
		t.Fatal("no peers")
		return "", ""
	}
	name, password := set()
	c := s.client(t)
	text, err := c.TopologyYAML(t.Context())
	if err != nil || strings.Contains(string(text), password) {
		t.Fatalf("%s, %v", text, err)
	}
	if a := s.ask(t, "GET", "/v1/topology", nil, nil); strings.Contains(string(a.body), password) {
		t.Errorf("%s", a.body)
	}
	if _, err := c.ApplyTopology(t.Context(), text, -1); err != nil {
		t.Fatal(err)
	}
	if got := s.memory.topology.Peers[name].Password; got != password {
		t.Errorf("password is %q", got)
	}
}

// The client's every method, against the server's every route.
func TestClient(t *testing.T) {
	s := serve(t, Options{Version: api.Version{Version: "test"}})
	s.example(t)
	unix := s.client(t)
	tcp, err := api.NewClient(api.Credentials{Server: s.tcp, CA: s.ca, Token: testToken})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tcp.Close)
	for name, c := range map[string]*api.Client{"unix": unix, "tcp": tcp} {
		t.Run(name, func(t *testing.T) { everyMethod(t, s, c) })
	}
}

func everyMethod(t *testing.T, s testServer, c *api.Client) {
	ctx := t.Context()
	ok := func(what string, err error, good bool) {
		t.Helper()
		if err != nil || !good {
			t.Errorf("%s: %v, good %v", what, err, good)
		}
	}
	version, err := c.Version(ctx)
	ok("version", err, version.Version == "test")
	status, err := c.Status(ctx)
	ok("status", err, status.Ready && status.Leader == "ctl-1" && status.HostsUp > 0 && status.Hosts > 0)
	checks, err := c.Ready(ctx)
	ok("ready", err, len(checks) == 1)
	sites, err := c.Sites(ctx)
	ok("sites", err, len(sites) > 0 && sites[0].Underlay.IsValid() && len(sites[0].Hosts) > 0)
	networks, err := c.Networks(ctx)
	ok("networks", err, len(networks) > 0 && networks[0].VNI > 0)
	hosts, err := c.Hosts(ctx)
	ok("hosts", err, len(hosts) > 0)
	host, err := c.Host(ctx, hosts[0].Name)
	ok("host", err, reflect.DeepEqual(host, hosts[0]))
	vms, err := c.VMs(ctx)
	ok("vms", err, len(vms) > 0)
	vm, err := c.VM(ctx, vms[0].Name)
	ok("vm", err, vm.Name == vms[0].Name && len(vm.NICs) > 0)
	token, err := c.CreateToken(ctx, hosts[0].Name, "")
	ok("token", err, token.Token != "")
	ok("revoke", c.RevokeHost(ctx, hosts[0].Name), true)
	preview, err := c.PreviewMigration(ctx, api.MigrationRequest{VM: vm.Name, To: "eu"})
	ok("preview", err, preview.OK && preview.ETAS == 4)
	m, err := c.StartMigration(ctx, api.MigrationRequest{VM: vm.Name, To: "eu"}, "")
	ok("start", err, strings.HasPrefix(string(m.ID), "m-") && m.Phase == "Pending")
	got, err := c.Migration(ctx, m.ID)
	ok("migration", err, got.ID == m.ID)
	all, err := c.Migrations(ctx, vm.Name, true)
	ok("migrations", err, len(all) == 1)
	m, err = c.AbortMigration(ctx, m.ID)
	ok("abort", err, m.Phase == api.PhaseRolledBack)
	_, err = c.AbortMigration(ctx, m.ID)
	var p *api.Problem
	ok("abort again", nil, errors.As(err, &p) && p.Type == api.TypeConflict)
	routes, err := c.Routes(ctx)
	ok("routes", err, len(routes) > 0)
	why, err := c.WhyRoute(ctx, routes[0].Prefix.Addr())
	ok("why", err, why.Verdict != "")
	mesh, err := c.Mesh(ctx)
	ok("mesh", err, len(mesh.Links) == 2)
	proof, err := c.VerifyMesh(ctx, 1400)
	ok("verify", err, proof.OK)
	flows, err := c.Flows(ctx, hosts[0].Name)
	ok("flows", err, len(flows.Flows) == 1)
	diff, err := c.FlowDiff(ctx, hosts[0].Name)
	ok("flow diff", err, diff.Host == hosts[0].Name)
	ok("flows reached", c.AwaitFlows(ctx, 1), true)
	id := s.memory.happen("vm", "started")
	page, err := c.Events(ctx, 0, 10)
	ok("events", err, len(page.Events) > 0 && page.Events[len(page.Events)-1].ID == id)
}

func TestDescription(t *testing.T) {
	s := serve(t, Options{})
	got := s.ask(t, "GET", "/openapi.json", nil, nil).body
	const file = "../../docs/openapi.json"
	if *rewrite {
		if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != string(got)+"\n" {
		t.Error("docs/openapi.json is not what the server answers: go test ./controller/rest -rewrite")
	}
	if !strings.Contains(string(got), `"openapi": "3.1.0"`) {
		t.Error("not OpenAPI 3.1.0")
	}
	metrics := s.ask(t, "GET", "/metrics", nil, nil)
	if body, err := io.ReadAll(strings.NewReader(string(metrics.body))); err != nil || !strings.Contains(string(body), "heliotrope_up") {
		t.Errorf("metrics: %s, %v", body, err)
	}
}
