package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
)

var rewrite = flag.Bool("rewrite", false, "write testdata anew")

// result is what a command did.
type result struct {
	out, err string
	code     int
}

// execute runs a command line in this process.
func execute(ctx context.Context, root, stdin string, args ...string) result {
	a := &app{version: "1.2.3", place: api.Place{Root: root, Home: filepath.Join(root, "home")}}
	cmd := a.command()
	var out, errs bytes.Buffer
	cmd.SetArgs(args)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	err := cmd.ExecuteContext(ctx)
	code := exitCode(&errs, err)
	return result{out.String(), errs.String(), code}
}

// Each line of a script is a command; "@" lines change what the controller is like.
const script = `
@ a controller without a topology
status
topology get
topology plan testdata/small.yaml
topology apply testdata/small.yaml --dry-run
topology apply testdata/small.yaml
topology apply testdata/small.yaml -o yaml
topology diff testdata/small.yaml --exit-code
topology diff testdata/changed.yaml --exit-code
topology diff testdata/small.yaml testdata/changed.yaml
topology validate testdata/small.yaml
topology validate testdata/small.yaml -o json
topology validate testdata/wrong.yaml
topology validate testdata/wrong.yaml -o json
topology validate testdata/nowhere.yaml
topology apply testdata/wrong.yaml
topology get
site list
site bench
sites bench --host us-1
site bench --host us-1 -o json
site bench --host mars
site bench --run
site bench --run --host us-1 -o yaml
site bench --run --host eu-1
site bench --run --host mars
host list
host show us-1
host show mars
host token create eu-1
host token create mars
host remove eu-1
host remove us-1
network list
network list -o yaml
vm list
vm list -o json
vm show web
vm migrate web
vm migrate web --to eu --check
vm migrate web --to asia --check
vm migrate web --to asia --dry-run
vm migrate web --to eu
vm migrate web --to eu --wait
vm migrate web --to eu --wait -o json
vm migrate mars --to eu
vm snapshots
vm snapshot web
vm snapshot web --as copy --dry-run
vm snapshot web --as copy --dry-run -o json
vm snapshot web --as copy
vm snapshots
vm snapshot web --as copy --wait
vm snapshots -o json
vm snapshot web --as full --wait
vm snapshots
vm snapshots --drop s-1
vm snapshots --drop s-0123456789abcdef
vm snapshot web --as debian
vm snapshot mars --as copy
vm snapshot
migration list
migration show m-1
migration show m-2
migration abort m-1
@ moves fail
vm migrate web --to eu --wait
@ moves succeed
route list
route why 198.51.100.10
route why 192.0.2.1
route why web
mesh status
mesh verify
mesh verify --packet-size 9000
mesh verify --packet-size 9
flows list us-1
flows diff us-1
plan simulate
plan simulate --policy cheapest --max-moves 1 -o json
plan simulate --policy dearest
policy list
policy show evacuate
policy show dearest
plan simulate --window 10ms
plan simulate --price eu
plan simulate --down mars
plan create --pool none
plan create --dry-run
plan create
plan list
plan show p-1
plan show p-2
plan show p-2 -o csv
plan explain p-2
plan diff p-1 p-2
plan diff p-1 p-9
plan apply p-1
plan apply p-2 --wait
plan apply p-3
plan abort p-1
pool list
pool show shop
pool show mars
stub list
stub show scanner
stub show tape
stub show mars
host drain us-1 --reason maintenance --deadline 60s
host drain mars
host undrain us-1 -o json
traffic report
traffic report --top 1 -o json
traffic report -o csv
traffic report --window 10ms
traffic report --end noon
traffic report --site mars
traffic top
traffic top --by vms
traffic top --by services -o csv
traffic top --by pairs -o csv
traffic top --by colour
traffic top -o xml
traffic matrix --vm web
traffic matrix -o csv
traffic matrix --top 0
traffic patterns
traffic patterns --explain
traffic patterns -o csv
traffic diff --before 10m --after now
traffic diff --before 10m -o csv
traffic diff --before 1m --after 2m
traffic diff --before yesterday
traffic watch --count 2 --interval 1ms
traffic watch --count 1 --interval 1ms -o json --top 1 --vm mars
@ broken
flows diff us-1
traffic report
status
@ whole
events
events --kind vm -o json
events -o yaml --limit 1
version
vm
vm lst
vm show
vm show web db
vms
vm list --color
vm list -o xml
--lab two vm list
--server ftp://x vm list
topology
`

func (f *fake) change(how string) {
	switch how {
	case "moves fail":
		f.ends = api.PhaseRolledBack
	case "moves succeed":
		f.ends = api.PhaseSucceeded
	case "broken":
		f.broken = true
	case "whole":
		f.broken = false
	}
}

func TestGolden(t *testing.T) {
	root := shortDir(t)
	f := &fake{ends: api.PhaseSucceeded, events: []api.Event{
		{ID: 40, At: noon, Kind: "host", Subject: "us-1", Message: "joined"},
		{ID: 41, At: noon.Add(time.Second), Kind: "vm", Subject: "web", Message: "runs at us-1"}}}
	serve(t, f, root)
	var got strings.Builder
	for line := range strings.Lines(strings.TrimSpace(script)) {
		line = strings.TrimSpace(line)
		if how, ok := strings.CutPrefix(line, "@ "); ok {
			f.change(how)
			fmt.Fprintf(&got, "# %s\n\n", how)
			continue
		}
		r := execute(t.Context(), root, "", strings.Fields(line)...)
		fmt.Fprintf(&got, "$ heliotrope %s\n%s", line, r.out)
		for l := range strings.Lines(r.err) {
			fmt.Fprintf(&got, "! %s", l)
		}
		fmt.Fprintf(&got, "[exit %d]\n\n", r.code)
	}
	golden(t, "testdata/cli.golden", strings.ReplaceAll(got.String(), root, "ROOT"))
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range g {
		if i >= len(w) || g[i] != w[i] {
			t.Fatalf("line %d of %s differs (go test -rewrite, then read the diff)\n got %s\nwant %s", i+1, file, g[i], strings.Join(w[min(i, len(w)-1):min(i+1, len(w))], ""))
		}
	}
	t.Fatalf("%s has %d lines, got %d", file, len(w), len(g))
}

// Every command has a one-line description, an own help, and an example somewhere above.
func TestHelp(t *testing.T) {
	var walk func(cmd *cobra.Command, example bool)
	walk = func(cmd *cobra.Command, example bool) {
		example = example || cmd.Example != ""
		if cmd.Short == "" || !example || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: short %q, example %v", cmd.CommandPath(), cmd.Short, example)
		}
		for _, sub := range cmd.Commands() {
			walk(sub, cmd.Parent() != nil && example)
		}
	}
	for _, cmd := range (&app{}).command().Commands() {
		if len(cmd.Commands()) > 0 {
			walk(cmd, false)
		}
	}
	r := execute(t.Context(), t.TempDir(), "", "vm", "migrate", "--help")
	if r.code != 0 || !strings.Contains(r.out, "--max-downtime") || !strings.Contains(r.out, "heliotrope vm migrate web --to eu --wait") {
		t.Errorf("%+v", r)
	}
	r = execute(t.Context(), t.TempDir(), "", "completion", "bash")
	if r.code != 0 || !strings.Contains(r.out, "complete") {
		t.Errorf("completion: %d %s", r.code, r.err)
	}
}

func TestEnvironment(t *testing.T) {
	root := shortDir(t)
	serve(t, &fake{}, root)
	t.Setenv("HELIOTROPE_OUTPUT", "json")
	if r := execute(t.Context(), root, "", "vm", "list"); !strings.HasPrefix(r.out, "[") {
		t.Errorf("%+v", r)
	}
	if r := execute(t.Context(), root, "", "vm", "list", "-o", "table"); !strings.HasPrefix(r.out, "VM ") {
		t.Errorf("the flag does not win: %+v", r)
	}
	t.Setenv("HELIOTROPE_PACKET_SIZE", "1400")
	if r := execute(t.Context(), root, "", "mesh", "verify"); !strings.Contains(r.out, `"packet_size": 1400`) {
		t.Errorf("%+v", r)
	}
	t.Setenv("HELIOTROPE_PACKET_SIZE", "large")
	if r := execute(t.Context(), root, "", "mesh", "verify"); r.code != codeUsage || !strings.Contains(r.err, "HELIOTROPE_PACKET_SIZE") {
		t.Errorf("%+v", r)
	}
}

func TestStdin(t *testing.T) {
	data, err := os.ReadFile("testdata/small.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if r := execute(t.Context(), t.TempDir(), string(data), "topology", "validate", "-"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if r := execute(t.Context(), t.TempDir(), "version: [", "topology", "validate", "-"); r.code != codeUsage || !strings.Contains(r.err, "standard input:") {
		t.Errorf("%+v", r)
	}
	if r := execute(t.Context(), t.TempDir(), "", "topology", "schema"); r.code != 0 || !strings.Contains(r.out, "json-schema.org") {
		t.Errorf("%+v", r)
	}
}

// The server is found by the labs that run, and chosen where there are several.
func TestFindLab(t *testing.T) {
	root := shortDir(t)
	ask := func(args ...string) result { return execute(t.Context(), root, "", append(args, "version")...) }
	if r := execute(t.Context(), root, "", "vm", "list"); r.code != codeFailed || !strings.Contains(r.err, "lab up") {
		t.Errorf("no server: %+v", r)
	}
	lab := func(name string) {
		h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, `{"version":%q,"go":"x"}`, name) })
		listenAt(t, filepath.Join(root, "run/heliotrope-lab", name, "controller/api.sock"), h, nil)
	}
	lab("one")
	if r := ask(); !strings.Contains(r.out, "one") {
		t.Errorf("the only lab: %+v", r)
	}
	lab("two")
	if r := execute(t.Context(), root, "", "vm", "list"); r.code != codeFailed || !strings.Contains(r.err, "one, two") || !strings.Contains(r.err, "--lab") {
		t.Errorf("two labs: %+v", r)
	}
	if r := ask("--lab", "two"); !strings.Contains(r.out, "two") {
		t.Errorf("--lab two: %+v", r)
	}
	if r := ask("--server", "unix://"+filepath.Join(root, "run/heliotrope-lab/one/controller/api.sock")); !strings.Contains(r.out, "one") {
		t.Errorf("--server: %+v", r)
	}
	err := api.WriteCredentials(filepath.Join(root, "home/.config/heliotrope/config"), api.Credentials{Server: filepath.Join(root, "run/heliotrope-lab/two/controller/api.sock")})
	if err != nil {
		t.Fatal(err)
	}
	if r := ask(); !strings.Contains(r.out, "two") {
		t.Errorf("configured: %+v", r)
	}
}

// --follow prints what is kept and what comes, until it is interrupted, which is no error.
func TestFollow(t *testing.T) {
	root := shortDir(t)
	serve(t, &fake{events: []api.Event{{ID: 40, At: noon, Kind: "vm", Message: "runs"}}}, root)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a := &app{place: api.Place{Root: root}}
	cmd := a.command()
	var out bytes.Buffer
	seen := writerFunc(func(p []byte) (int, error) {
		n, err := out.Write(p)
		if strings.Contains(out.String(), `"id":140`) {
			cancel()
		}
		return n, err
	})
	cmd.SetOut(seen)
	cmd.SetArgs([]string{"events", "--follow", "-o", "json"})
	if err := cmd.ExecuteContext(ctx); err != nil {
		t.Fatal(err)
	}
	if ok, err := regexp.MatchString(`(?s)"id":40,.*\n.*"id":140,`, out.String()); !ok || err != nil {
		t.Errorf("got %s, %v", out.String(), err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// On a terminal a move is a bar that is drawn over itself.
func TestProgressBar(t *testing.T) {
	var b bytes.Buffer
	p := newProgress(&output.Printer{Err: &b, Terminal: true})
	p.update(api.Migration{VM: "web", From: "a", To: "b", Phase: "PreCopy", Progress: 0.5, ETAS: 2})
	p.update(api.Migration{VM: "web", From: "a", To: "b", Phase: "Succeeded", Progress: 1})
	p.end()
	want := "\r\x1b[Kweb a → b [███████████████···············]  50% PreCopy, 2.0 s left" +
		"\r\x1b[Kweb a → b [██████████████████████████████] 100% Succeeded\n"
	if b.String() != want {
		t.Errorf("got %q\nwant %q", b.String(), want)
	}
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
	}{
		{nil, 0}, {errors.New("x"), 1}, {usagef("x"), 2}, {fmt.Errorf("x: %w", usagef("y")), 2}, {silentError{errors.New("x")}, 1},
		{api.NotFound("vm", "x"), 3}, {api.Invalid("x"), 2}, {api.Conflict("x", ""), 1}, {api.Unavailable("x"), 1},
	} {
		var b bytes.Buffer
		if got := exitCode(&b, c.err); got != c.code {
			t.Errorf("%v: %d, want %d", c.err, got, c.code)
		}
	}
}
