package heliotrope_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The house. Arrows point down: a package imports packages of lower rows only, and the
// few of its own row that beside lists. A package without a line here is refused.
var rows = map[string]int{
	".": 0, // the nouns

	"internal/reconcile": 1, // the one loop
	"internal/axis":      1, // what pictures share
	"internal/accept":    1, // the loop of servers

	// Pure: no I/O, no clock, no locks.
	"flows":     2,
	"arpproxy":  2,
	"migration": 2,

	"migration/wan":           2,
	"migration/wan/ramstream": 2,
	"migration/wan/nbdstream": 2,
	"migration/wan/lzh":       2,

	"migration/wan/ramstream/golden": 2, // for tests

	"controller/webreport/plane":     2, // where things of a picture go
	"controller/webreport/pictogram": 2,

	"imagesync/keyring": 1,
	"imagesync/process": 1,

	"scheduler":           2,
	"scheduler/ahead":     2,
	"scheduler/anneal":    2,
	"scheduler/reassign":  2,
	"scheduler/assign":    2,
	"scheduler/assign/lp": 2,
	"scheduler/atlas":     2,
	"scheduler/billing":   2,
	"scheduler/budget":    2,
	"scheduler/diff":      2,
	"scheduler/forecast":  2,
	"scheduler/licence":   2,
	"scheduler/pace":      2,
	"scheduler/leader":    2,
	"scheduler/replay":    2,
	"scheduler/perf":      2,
	"scheduler/survey":    2,
	"scheduler/trial":     2,

	"imagesync/manifest": 2,
	"imagesync/delta":    2,
	"imagesync/qcow2":    2,

	"imagesync/volume/bitmap": 2,

	"scheduler/traffic":         2,
	"scheduler/traffic/pattern": 2,
	"scheduler/traffic/phases":  2,
	"scheduler/traffic/synth":   2,
	"scheduler/traffic/report":  2,

	// One outside world each.
	"ovsdb":                   3,
	"ovsdb/vswitch":           3,
	"flows/openflow":          3,
	"bgp":                     3,
	"controller/store":        3,
	"controller/api":          3,
	"controller/history":      3,
	"controller/ipfix":        3,
	"controller/rest":         3,
	"controller/webreport":    3,
	"hostagent/agentapi":      3,
	"hostagent/libvirt":       3,
	"hostagent/libvirt/lost":  3,
	"hostagent/capture":       3,
	"hostagent/capture/flood": 3,
	"hostagent/revocation":    3,
	"internal/feed":           3,
	"internal/bucket":         3,
	"imagesync":               3,
	"imagesync/depot":         3,
	"imagesync/pack":          3,
	"imagesync/nbd":           3,
	"imagesync/source":        3,
	"imagesync/spread":        3,
	"imagesync/volume":        3,
	"imagesync/volume/disk":   3,

	"imagesync/volume/epoch":  3,
	"imagesync/volume/frame":  3,
	"imagesync/volume/recent": 3,
	"imagesync/volume/trace":  3,
	"imagesync/volume/turns":  3,
	"imagesync/volume/view":   3,
	"imagesync/storetest":     4, // for tests

	"imagesync/volume/present": 3,
	"imagesync/pages":          3,

	"controller/prices":     3,
	"migration/relay":       3,
	"migration/relay/disk":  3,
	"migration/relay/near":  3,
	"migration/relay/share": 3,
	"migration/relay/kept":  3,
	"topologies":            3,
	"topologies/lab/wan":    3,
	"topologies/lab/guest":  3,
	"topologies/lab/probe":  3,
	"topologies/lab/node":   3,
	"topologies/lab/claim":  3,
	"topologies/lab/netns":  3,

	// These wire everything.
	"controller": 4,
	"hostagent":  4,

	"hostagent/bench":       4,
	"hostagent/durable":     4,
	"hostagent/images":      4,
	"hostagent/memory":      4,
	"imagesync/site":        4,
	"hostagent/paths":       4,
	"controller/benchmarks": 4,
	"controller/collector":  4,
	"controller/images":     4,
	"controller/membership": 4,
	"controller/snapshots":  4,
	"controller/world":      4,
	"controller/autopilot":  4,

	"controller/cli":             5,
	"controller/cli/images":      5,
	"controller/cli/output":      4,
	"controller/cli/snapshots":   4,
	"controller/cli/traffictext": 4,
	"topologies/lab/endpoints":   5,
	"topologies/lab":             5,
	"topologies/lab/guest/init":  5,

	"topologies/lab/guest/record": 2,

	// What is told and proven in the lab.
	"topologies/lab/story": 6,
	"topologies/lab/proof": 6,
	"topologies/lab/bench": 6,

	"topologies/lab/trafficbench": 6,
	"topologies/lab/schedbench":   6,
	"topologies/lab/imagebench":   6,
	"topologies/lab/wanbench":     6,

	"cmd/heliotrope":       7,
	"cmd/heliotrope-agent": 7,
}

// beside lists the imports within a row.
var beside = map[string][]string{
	"arpproxy":             {"flows"},
	"ovsdb":                {"ovsdb/vswitch"},
	"hostagent/capture":    {"hostagent/capture/flood"},
	"migration/relay":      {"migration/relay/disk", "migration/relay/kept", "migration/relay/near", "migration/relay/share"},
	"migration/relay/near": {"migration/relay/share"},
	"hostagent":            {"hostagent/bench", "hostagent/durable", "hostagent/images", "hostagent/memory", "hostagent/paths"},

	"scheduler":                  {"scheduler/assign", "scheduler/atlas", "scheduler/billing", "scheduler/licence"},
	"scheduler/ahead":            {"scheduler", "scheduler/forecast", "scheduler/pace"},
	"scheduler/budget":           {"scheduler"},
	"scheduler/diff":             {"scheduler"},
	"scheduler/pace":             {"scheduler"},
	"scheduler/leader":           {"scheduler"},
	"scheduler/survey":           {"scheduler", "scheduler/atlas", "scheduler/traffic"},
	"scheduler/assign":           {"scheduler/anneal"},
	"scheduler/reassign":         {"scheduler/anneal"},
	"scheduler/assign/lp":        {"scheduler/assign"},
	"scheduler/replay":           {"scheduler", "scheduler/billing", "scheduler/forecast", "scheduler/pace"},
	"scheduler/traffic/pattern":  {"scheduler/traffic"},
	"scheduler/traffic/phases":   {"scheduler/traffic", "scheduler/traffic/pattern"},
	"scheduler/traffic/synth":    {"scheduler/traffic", "scheduler/traffic/pattern", "scheduler/traffic/phases"},
	"scheduler/traffic/report":   {"scheduler/traffic", "scheduler/traffic/pattern", "scheduler/traffic/phases"},
	"controller":                 {"controller/collector", "controller/membership", "controller/autopilot", "controller/benchmarks", "controller/images", "controller/snapshots", "controller/world"},
	"controller/rest":            {"controller/api", "controller/webreport"},
	"controller/webreport":       {"controller/api"},
	"controller/cli/snapshots":   {"controller/cli/output"},
	"controller/cli/traffictext": {"controller/cli/output"},
	"controller/history":         {"internal/bucket"},
	"controller/prices":          {"internal/feed"},
	"imagesync":                  {"imagesync/depot", "imagesync/pack"},
	"imagesync/source":           {"imagesync"},
	"imagesync/depot":            {"internal/bucket"},
	"imagesync/delta":            {"imagesync/manifest"},
	"migration/wan":              {"migration/wan/ramstream", "migration/wan/nbdstream", "migration/wan/lzh"},
	"migration/wan/nbdstream":    {"migration/wan/ramstream"},
	"imagesync/volume": {"imagesync/volume/disk", "imagesync/volume/epoch", "imagesync/volume/frame", "imagesync/volume/present", "imagesync/volume/recent",
		"imagesync/volume/trace", "imagesync/volume/turns", "imagesync/volume/view"},
	"imagesync/volume/frame":   {"imagesync/volume/disk"},
	"imagesync/volume/view":    {"imagesync/volume/disk"},
	"imagesync/volume/epoch":   {"imagesync/volume/disk"},
	"hostagent/images":         {"imagesync/site"},
	"hostagent/libvirt":        {"hostagent/libvirt/lost"},
	"hostagent/revocation":     {"internal/feed"},
	"topologies/lab/endpoints": {"topologies/lab"},
	"topologies/lab/wanbench":  {"topologies/lab/imagebench"},

	"controller/webreport/pictogram": {"scheduler/traffic/pattern"},
	"imagesync/pack":                 {"imagesync/depot"},
	"controller/images":              {"controller/world"},
	"imagesync/volume/present":       {"imagesync/volume/disk"},
	"imagesync/pages":                {"imagesync/volume", "imagesync/volume/present"},
}

// worlds says which packages may import a third-party module; the first word of the
// design's "one importer per outside world".
var worlds = map[string][]string{
	"github.com/osrg/gobgp":               {"bgp"},
	"github.com/ovn-kubernetes/libovsdb":  {"ovsdb", "ovsdb/vswitch"},
	"antrea.io/libOpenflow":               {"flows/openflow"},
	"go.etcd.io/":                         {"controller/store"},
	"github.com/digitalocean/go-libvirt":  {"hostagent/libvirt"},
	"libvirt.org/go/libvirtxml":           {"hostagent/libvirt"},
	"github.com/danielgtaylor/huma":       {"controller/rest"},
	"go.yaml.in/yaml":                     {"topologies", "controller/cli/output"},
	"github.com/prometheus/client_golang": {"controller"},
	"github.com/gopacket/gopacket":        {"hostagent/capture"},
	"github.com/cilium/ebpf":              {"hostagent/capture"},
	"github.com/Azure/azure-sdk-for-go":   {"internal/bucket"},
	"google.golang.org/api":               {"internal/bucket"},
	"github.com/apache/arrow-go":          {"controller/history"},
	"gocloud.dev":                         {"internal/bucket", "controller/history", "imagesync/depot"},
	"github.com/vishvananda/netlink":      {"hostagent", "hostagent/libvirt", "topologies/lab", "topologies/lab/node", "topologies/lab/story"},
}

// impure may not be imported in rows 0 to 2; net/netip is only values.
var impure = []string{"net", "os", "sync", "log", "math/rand", "net/http", "os/exec", "syscall", "log/slog", "io/ioutil", "database/sql"}

// clocks may not be called in rows 0 and 2: time is an argument there.
var clocks = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}

type source struct {
	pkg, file string
	test      bool
	ast       *ast.File
}

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	set := token.NewFileSet()
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := parser.ParseFile(set, name, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		all = append(all, source{pkg: path.Dir(name), file: name, test: strings.HasSuffix(name, "_test.go"), ast: f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestArrowsPointDown(t *testing.T) {
	for _, s := range sources(t) {
		row, ok := rows[s.pkg]
		if !ok {
			t.Errorf("package %s has no row in arch_test.go: say where it belongs, and why in docs/design", s.pkg)
			continue
		}
		if s.test {
			continue
		}
		for _, imp := range s.ast.Imports {
			target := strings.Trim(imp.Path.Value, `"`)
			for world, importers := range worlds {
				if strings.HasPrefix(target, world) && !slices.Contains(importers, s.pkg) {
					t.Errorf("%s imports %s: only %v may", s.file, target, importers)
				}
			}
			if row <= 2 && row != 1 && slices.Contains(impure, target) {
				t.Errorf("%s imports %s: rows 0 and 2 are pure", s.file, target)
			}
			if row <= 1 && strings.Contains(strings.SplitN(target, "/", 2)[0], ".") {
				t.Errorf("%s imports %s: rows 0 and 1 use the standard library only", s.file, target)
			}
			ours, found := strings.CutPrefix(target, "heliotrope/")
			if target == "heliotrope" {
				ours, found = ".", true
			}
			if found && rows[ours] >= row && !slices.Contains(beside[s.pkg], ours) {
				t.Errorf("%s imports %s: row %d may import lower rows only, and that is row %d", s.file, target, row, rows[ours])
			}
		}
	}
}

func TestPureCoreHasNoClock(t *testing.T) {
	for _, s := range sources(t) {
		if row := rows[s.pkg]; s.test || row > 2 || row == 1 {
			continue
		}
		ast.Inspect(s.ast, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clocks, sel.Sel.Name) {
					t.Errorf("%s calls time.%s: time is an argument in rows 0 and 2", s.file, sel.Sel.Name)
				}
			}
			return true
		})
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	said := make(map[string]bool)
	for _, s := range sources(t) {
		if s.ast.Doc != nil && !s.test {
			said[s.pkg] = true
		}
	}
	for pkg := range rows {
		if !said[pkg] {
			t.Errorf("package %s has no package comment, or does not exist", pkg)
		}
	}
}

func TestSizes(t *testing.T) {
	const fileLimit, packageLimit = 500, 3000
	total := make(map[string]int)
	for _, s := range sources(t) {
		data, err := os.ReadFile(s.file)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Count(string(data), "\n")
		if lines > fileLimit {
			t.Errorf("%s has %d lines: a file has at most %d", s.file, lines, fileLimit)
		}
		if !s.test {
			total[s.pkg] += lines
		}
	}
	for pkg, lines := range total {
		if lines > packageLimit {
			t.Errorf("package %s has %d lines: a package has at most %d", pkg, lines, packageLimit)
		}
	}
}
