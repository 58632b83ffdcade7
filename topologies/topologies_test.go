package topologies

import (
	"flag"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"heliotrope"
)

var update = flag.Bool("update", false, "write schema.json and the golden files anew")

// examples are the topologies that we ship.
var examples = []string{"three-clouds.yaml", "two-sites.yaml", "backbone.yaml", "traffic.yaml", "sun.yaml"}

func load(t *testing.T, file string) heliotrope.Topology {
	t.Helper()
	topo, err := LoadFile(file, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return topo
}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob("*.yaml")
	if err != nil || len(files) != len(examples) {
		t.Errorf("files are %v (%v), want %v", files, err, examples)
	}
	for _, file := range examples {
		t.Run(file, func(t *testing.T) {
			topo := load(t, file)
			if topo.Name+".yaml" != file {
				t.Errorf("name is %q", topo.Name)
			}
			if problems := Validate(topo); problems != nil {
				t.Errorf("Validate: %v", problems)
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(string(text), "# yaml-language-server: $schema=schema.json\n") {
				t.Error("the editor's header is missing")
			}
			roundTrip(t, topo)
		})
	}
}

// TestBackboneDelays holds the file to the formula in its comment.
func TestBackboneDelays(t *testing.T) {
	topo := load(t, "backbone.yaml")
	if len(topo.Sites) < 9 || len(topo.Hosts) != len(topo.Sites) {
		t.Errorf("%d sites and %d hosts, want one each of at least 9", len(topo.Sites), len(topo.Hosts))
	}
	for id, l := range topo.Links {
		km := distance(topo.Sites[l.Between[0]], topo.Sites[l.Between[1]])
		want := time.Duration(km / 200 * 1.3 * float64(time.Millisecond))
		if off := (time.Duration(l.Delay) - want).Abs(); off > 100*time.Microsecond {
			t.Errorf("link %s: delay %s, want %s for %.0f km", id, l.Delay, want, km)
		}
	}
}

// distance is along the great circle, in km.
func distance(a, b heliotrope.Site) float64 {
	rad := func(deg float64) float64 { return deg * math.Pi / 180 }
	h := math.Pow(math.Sin(rad(b.Latitude-a.Latitude)/2), 2) +
		math.Cos(rad(a.Latitude))*math.Cos(rad(b.Latitude))*math.Pow(math.Sin(rad(b.Longitude-a.Longitude)/2), 2)
	return 2 * 6371 * math.Asin(math.Sqrt(h))
}

func TestDefaults(t *testing.T) {
	text := `
version: 1
name: d
defaults:
  links: {delay: 5ms, jitter: 1ms, loss: 0.1, rate: 1Gbit, queue: 9ms, price_per_gb: 0.5}
  hosts: {cpus: 4, memory_mib: 4096}
  networks: {mtu: 1400}
  vms: {cpus: 2}
controller: {site: a, address: 10.0.1.5, as: 64512}
sites: {a: {underlay: 10.0.1.0/24}, b: {underlay: 10.0.2.0/24, router: 10.0.2.254}}
links:
  a-b: {between: [a, b], jitter: 0s, rate: 64kbit}
hosts:
  a-1: {site: a, address: 10.0.1.11, public: 10.0.1.111, cpus: 1}
networks:
  n: {vni: 0x10, subnet: 10.1.0.0/24, gateway: 10.1.0.1}
  m: {vni: 17, subnet: 10.2.0.0/24, gateway: 10.2.0.1, mtu: 1280}
vms:
  v: {host: a-1, nics: [{network: n, address: 10.1.0.2}], metadata: {count: 017, yes: true}}
clients:
`
	topo, err := Parse([]byte(text), "d.yaml", Options{})
	if err != nil {
		t.Fatal(err)
	}
	ms := heliotrope.Duration(time.Millisecond)
	link := heliotrope.Link{Between: [2]heliotrope.SiteID{"a", "b"}, Delay: 5 * ms, Loss: 0.1, Rate: 64000, Queue: 9 * ms, PricePerGB: 0.5}
	if got := topo.Links["a-b"]; got != link {
		t.Errorf("link is %+v, want %+v", got, link)
	}
	if h := topo.Hosts["a-1"]; h.CPUs != 1 || h.MemoryMiB != 4096 {
		t.Errorf("host is %+v", h)
	}
	if n, m := topo.Networks["n"], topo.Networks["m"]; n.MTU != 1400 || n.VNI != 16 || m.MTU != 1280 {
		t.Errorf("networks are %+v, %+v", n, m)
	}
	vm := topo.VMs["v"]
	if vm.CPUs != 2 || vm.MemoryMiB != 256 || vm.Image != "guest" || vm.NICs[0].MAC != heliotrope.NICMAC("v", 0) {
		t.Errorf("VM is %+v", vm)
	}
	if vm.Metadata["count"] != "017" || vm.Metadata["yes"] != "true" {
		t.Errorf("metadata is %v", vm.Metadata)
	}
	if a, b := topo.Sites["a"].Router.String(), topo.Sites["b"].Router.String(); a != "10.0.1.1" || b != "10.0.2.254" {
		t.Errorf("routers are %s, %s", a, b)
	}
	if topo.Clients != nil {
		t.Errorf("clients are %v", topo.Clients)
	}
}

func TestWrong(t *testing.T) {
	files, err := filepath.Glob("testdata/wrong/*.yaml")
	if err != nil || len(files) < 25 {
		t.Fatalf("%d wrong files (%v)", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			topo, err := Load(f, name+".yaml", Options{})
			if err == nil {
				t.Fatal("accepted")
			}
			if topo.Version != 0 || topo.Sites != nil {
				t.Error("a wrong file gave a topology")
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", err.Error()+"\n")
		})
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; go test -update writes it anew. Got:\n%s\nwant:\n%s", file, got, want)
	}
}

func TestLoadFileMissing(t *testing.T) {
	_, err := LoadFile(filepath.Join(t.TempDir(), "none.yaml"), Options{})
	if !os.IsNotExist(err) && (err == nil || !strings.HasPrefix(err.Error(), "open topology: ")) {
		t.Errorf("error is %v", err)
	}
}

func TestMaxBytes(t *testing.T) {
	text, err := os.ReadFile("two-sites.yaml")
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(text))
	if _, err := Parse(text, "x", Options{MaxBytes: size}); err != nil {
		t.Errorf("a file of the allowed size: %v", err)
	}
	if _, err := Load(strings.NewReader(string(text)), "x", Options{MaxBytes: size - 1}); err == nil {
		t.Error("a file one byte too large is accepted")
	}
	text = append(text, strings.Repeat("#\n", DefaultMaxBytes/2)...)
	if _, err := Parse(text, "x", Options{}); err == nil || !strings.Contains(err.Error(), "--max-bytes") {
		t.Errorf("a file of more than 1 MiB: %v", err)
	}
	if _, err := Parse(text, "x", Options{MaxBytes: 4 << 20}); err != nil {
		t.Errorf("the same with a raised limit: %v", err)
	}
}

// TestBombs feeds a mebibyte of each thing that could make a parser slow or fat.
func TestBombs(t *testing.T) {
	fill := func(s string) string { return strings.Repeat(s, (DefaultMaxBytes-100)/len(s)) }
	var names strings.Builder
	for i := range 20000 {
		names.WriteString("  h" + strings.Repeat("x", i%7) + string(rune('a'+i%26)) + ": {site: nowhere, host: 1}\n")
	}
	head := "version: 1\nname: a\nsites: {us: {underlay: 10.0.1.0/24}}\n"
	for name, text := range map[string]string{
		"brackets":      "a: " + fill("["),
		"braces":        "a: " + fill("{a: "),
		"sequences":     fill("- "),
		"questions":     fill("? "),
		"commas":        "[" + fill("a,") + "]",
		"comments":      "a: [" + fill("#\na,") + "]",
		"lines":         fill("-\n"),
		"same key":      fill("a: 1\n"),
		"anchors":       fill("- &a b\n"),
		"aliases":       "- &a b\n" + fill("- *a\n"),
		"tags":          fill("- !!str a\n"),
		"long key":      fill("k") + ": {a: {b: {c: [" + strings.Repeat("1, ", 1000) + "]}}}",
		"long value":    "version: 1\nname: " + fill("n"),
		"unknown hosts": head + "vms:\n" + names.String() + "hosts:\n" + names.String(),
		"wrong hosts":   head + "hosts:\n" + names.String(),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			_, err := Parse([]byte(text), "bomb.yaml", Options{})
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Fatal("accepted")
			}
			t.Logf("%v, %d MiB allocated, %d problems", took, (after.TotalAlloc-before.TotalAlloc)>>20, len(err.(Errors)))
			if took > 5*time.Second { // milliseconds without the race detector
				t.Errorf("took %v", took)
			}
			if n := len(err.Error()); n > 200<<10 {
				t.Errorf("the error has %d bytes", n)
			}
		})
	}
}

func TestHints(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{"hsot", "host"}, {"Host", "host"}, {"memory", "memory_mib"}, {"imag", "image"}, {"nic", "nics"},
		{"zebra", ""}, {"", ""}, {strings.Repeat("h", 100), ""},
	} {
		if got := closest(c.got, []string{"host", "image", "memory_mib", "nics"}); got != c.want {
			t.Errorf("closest to %q is %q, want %q", c.got, got, c.want)
		}
	}
}
