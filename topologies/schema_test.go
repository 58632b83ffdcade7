package topologies

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/survey"
)

// object is a JSON object; encoding/json writes its keys in order.
type object = map[string]any

const (
	schemaName     = `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`
	schemaDuration = `^\+?(0|([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))*)$`
)

// texts are the types that are written as text.
var texts = map[reflect.Type]object{
	reflect.TypeFor[netip.Addr]():          {"type": "string", "anyOf": []any{object{"format": "ipv4"}, object{"format": "ipv6"}}},
	reflect.TypeFor[netip.Prefix]():        {"type": "string", "pattern": `^[0-9A-Fa-f:.]+/[0-9]{1,3}$`},
	reflect.TypeFor[heliotrope.Duration](): {"type": "string", "pattern": schemaDuration, "examples": []any{"40ms", "1.5s"}},
	reflect.TypeFor[heliotrope.BitRate]():  {"type": "string", "pattern": `^[0-9.]+([eE][+-]?[0-9]+)?(bit|kbit|Mbit|Gbit)$`, "examples": []any{"100Mbit", "2.5Gbit"}},
	reflect.TypeFor[heliotrope.Weekday]():  {"type": "string", "enum": []any{"mon", "tue", "wed", "thu", "fri", "sat", "sun"}},
	reflect.TypeFor[heliotrope.DayTime]():  {"type": "string", "pattern": `^([01]?[0-9]|2[0-3]):[0-5][0-9]$|^24:00$`, "examples": []any{"22:30"}},
	reflect.TypeFor[heliotrope.Zone]():     {"type": "string", "examples": []any{"Europe/Vienna"}},
	reflect.TypeFor[heliotrope.MAC]():      {"type": "string", "pattern": `^([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$`, "examples": []any{"02:00:00:00:00:01"}},
}

// limits narrow single fields, with the same numbers as the checks.
var limits = map[string]object{
	"Topology.Version":      {"const": 1},
	"Topology.Name":         {"pattern": schemaName},
	"Controller.AS":         {"minimum": 1, "maximum": math.MaxUint32 - 1},
	"Peer.AS":               {"minimum": 1, "maximum": math.MaxUint32 - 1},
	"Peer.Password":         {"maxLength": maxPassword},
	"Site.Description":      {"maxLength": maxText},
	"Site.Provider":         {"maxLength": maxText},
	"Site.Latitude":         {"minimum": -90, "maximum": 90},
	"Site.Longitude":        {"minimum": -180, "maximum": 180},
	"Site.PricePerVCPUHour": {"minimum": 0},
	"Site.PricePerGiBHour":  {"minimum": 0},
	"Site.PricePerGB":       {"minimum": 0},

	"Site.GramsCO2PerVCPUHour":  {"minimum": 0},
	"Site.InterruptionsPerHour": {"minimum": 0, "maximum": 3600},
	"VM.InterruptionUSD":        {"minimum": 0},
	"Ask.VMs":                   {"minItems": 1},
	"Ask.Requests":              {"minItems": 1, "maxItems": hoursOfDay},
	"Ask.Bytes":                 {"minItems": 1, "maxItems": hoursOfDay},
	"Link.Loss":                 {"minimum": 0, "maximum": 1},
	"Link.PricePerGB":           {"minimum": 0},
	"Host.CPUs":                 {"minimum": 0, "maximum": maxCPUs},
	"Host.InstanceType":         {"maxLength": maxText},
	"Host.MemoryMiB":            {"minimum": 0, "maximum": maxMemoryMiB},
	"Network.VNI":               {"minimum": 1, "maximum": maxVNI},
	"Network.MTU":               {"minimum": minMTU4, "maximum": maxMTU, "default": builtin().Networks.MTU},
	"VM.Image":                  {"maxLength": maxNameLength, "default": builtin().VMs.Image},
	"VM.CPUs":                   {"minimum": 1, "maximum": maxCPUs, "default": builtin().VMs.CPUs},
	"VM.MemoryMiB":              {"minimum": 16, "maximum": maxMemoryMiB, "default": builtin().VMs.MemoryMiB},
	"VM.NICs":                   {"minItems": 1},
	"LinkDefaults.Loss":         {"minimum": 0, "maximum": 1},
	"Network.Capture":           {"enum": []any{heliotrope.CaptureOff}},
	"Pool.Autopilot":            {"enum": autopilots, "default": heliotrope.AutopilotOff},
	"Pool.Policy":               {"pattern": schemaName, "default": survey.DefaultPolicy},
	"Policy.Base":               {"enum": scheduler.Presets(), "default": survey.DefaultPolicy},
	"Policy.Hosts":              {"enum": []any{heliotrope.HostsSpread, heliotrope.HostsFill}},
	"Policy.Weights":            {"propertyNames": object{"enum": survey.Weights()}, "additionalProperties": object{"type": "number", "minimum": 0, "maximum": 1e6}},
	"Pool.MinGain":              {"minimum": 0},
	"Pool.ForecastLoss":         {"minimum": 0},
	"Pool.Budget":               {"minimum": 0},
	"Pool.MoveUSD":              {"minimum": 0},
	"Pace.MaxMovesPerHour":      {"minimum": 0, "maximum": maxMoves},
	"Pace.MaxMovesPerDay":       {"minimum": 0, "maximum": maxMoves},
	"Rule.VMs":                  {"minItems": 1},
	"Rule.Together":             {"enum": scopes},
	"Rule.Apart":                {"enum": scopes},
	"ImagePolicy.Policy":        {"enum": imagePolicies, "default": heliotrope.ImageOnDemand},
	"ImagePolicy.Windows":       {"maxItems": maxWindows},
	"ImagePolicy.Priority":      {"enum": heliotrope.ImagePriorities, "default": heliotrope.ImageNormal},
	"Capture.Source":            {"enum": captureSources},
	"Capture.Budget":            {"minimum": 0, "maximum": 1, "default": 0.05},
	"Capture.Sampling":          {"minimum": 0, "maximum": maxSampling},
}

// said describes what the doc comments, written for programmers, do not.
var said = map[string]string{
	"Topology.Version":          "format of this file",
	"Topology.Name":             "what the topology is called",
	"Topology.Controller":       "where the controller stands, and as whom it speaks BGP",
	"Topology.Sites":            "places, each with a LAN and a router",
	"Topology.Links":            "the WAN between sites",
	"Topology.Hosts":            "machines that VMs run on",
	"Topology.Networks":         "virtual networks, each on all hosts",
	"Topology.VMs":              "virtual machines, which move",
	"Topology.Peers":            "BGP neighbours of the controller",
	"Topology.Clients":          "machines that are not ours; only the lab makes them",
	"Topology.Pools":            "VMs that are placed in one way",
	"Topology.Policies":         "what matters where VMs are placed: the scheduler's policies with other weights",
	"Topology.Images":           "how new versions of images of the hosts' store get to hosts, by the image's name",
	"ImagePolicy.Policy":        "where its newest version is to be before a VM there needs it: at all hosts, at those of sites where its VMs are, or nowhere",
	"ImagePolicy.Sites":         "at hosts of no other; default: of all",
	"ImagePolicy.Rate":          "most that crosses the WAN to a site while it comes; default: any",
	"ImagePolicy.Priority":      "which images go first over a link that they share (links: images_rate)",
	"ImagePolicy.Windows":       "times in which it may cross a WAN; default: always",
	"Topology.Rules":            "constraints on where VMs may be",
	"Policy.Base":               "policy whose weights count where it names none",
	"Policy.Weights":            "prices, and least gains, in place of those of base",
	"Policy.Hosts":              "at a site, the emptiest host first (spread) or the fullest (fill); default: as base does",
	"Site.GramsCO2PerVCPUHour":  "grams of CO2 that a VM's vCPU emits here in an hour",
	"Site.InterruptionsPerHour": "how often an hour a VM's host here is expected to be taken from it",
	"VM.InterruptionUSD":        "USD that it costs if its host is taken from it",
	"Topology.Stubs":            "resources bound to a place that appear in a network as an address",
	"Topology.Demand":           "what clients ask that nobody counts, or not yet, by region",
	"Site.PricePerGB":           "USD per 10^9 bytes to clients in regions of demand",
	"Site.Billing":              "vCPUs and memory are paid in whole periods of so long from when a VM comes; default: by the moment",
	"Site.Licences":             "seats of licences, for VMs at any of its hosts",
	"Site.PricePerSeat":         "USD an hour for a seat of a licence beyond all that the site and its hosts have; of a licence that is not named none can be rented",
	"Host.Licences":             "its own seats of licences, for VMs here only; they are taken before the site's",
	"VM.Tenant":                 "whose it is: what moves remember of memory is not shared between two tenants' VMs",
	"VM.Licences":               "seats of licences that it needs where it runs",
	"Demand.Zone":               "time zone of the hours; default: UTC",
	"Demand.Prefixes":           "of the clients' addresses; what is counted of these counts in place of what is asked here",
	"Demand.RTT":                "round trip to each site that has hosts",
	"Demand.Asks":               "what VMs are asked",
	"Ask.VMs":                   "names of VMs, each of which is asked as much",
	"Ask.Days":                  "days on which it is asked; default: each",
	"Ask.Requests":              "one number for each hour of the day, or one for all",
	"Ask.Bytes":                 "from the VM to clients; one number for each hour of the day, or one for all",
	"Pool.Autopilot":            "what is done with what ought to move",
	"Pool.Policy":               "what matters",
	"Pool.Window":               "of traffic that decides; default: 10m",
	"Pool.Interval":             "from one plan to the next; default: a tenth of window",
	"Pool.MinGain":              "least gain of a plan; default: as the policy has it",
	"Pool.Forecast":             "how many hours ahead demand is expected and planned for; default: as it is now",
	"Pool.ForecastLoss":         "USD that forecasts may cost more than without them in any 24 hours",
	"Pool.Budget":               "most that vCPUs, memory and egress of its VMs may cost where a plan has them; default: any",
	"Pool.MoveUSD":              "most that the egress of copies may cost in any 24 hours; default: any",
	"Pool.MaxPause":             "longest predicted pause of a VM; default: any",
	"Pace.MaxMovesPerHour":      "in any 60 minutes; default: any number",
	"Pace.MaxMovesPerDay":       "in any 24 hours; default: any number",
	"Pool.VMs":                  "names of VMs; default: all that are in no other pool",
	"Hours.Days":                "days on which it begins; default: each",
	"Hours.From":                "when it begins",
	"Hours.To":                  "when it is over; not after from: on the next day",
	"Hours.Zone":                "time zone; default: UTC",
	"Rule.VMs":                  "names of VMs",
	"Topology.Capture":          "how hosts count who talks to whom",
	"Network.Capture":           "off: what its VMs send and get is not counted",
	"Capture.Source":            "how packets are counted; default: what fits the budget",
	"Capture.Budget":            "share of one core of each host that counting may take",
	"Capture.Sampling":          "look at one of so many packets; default: as the budget allows",
	"file.Defaults":             "values for entries that do not say otherwise",
	"Controller.Site":           "site where the controller stands",
	"Controller.AS":             "BGP autonomous system",
	"Site.Description":          "free text",
	"Site.Provider":             "free text",
	"Site.Underlay":             "IPv4 prefix of the site's LAN",
	"Site.Router":               "the hosts' default gateway, in underlay; default: its first address",
	"Site.Latitude":             "degrees north",
	"Site.Longitude":            "degrees east",
	"Link.Between":              "the two sites that it joins",
	"Link.Jitter":               "how much the delay of a packet may differ; default: none",
	"Link.ImagesRate":           "most that images which are pushed take of it together, each way; default: any",
	"Link.Queue":                "most time that a packet waits for its turn; default: 50ms",
	"Host.Site":                 "site that it stands in",
	"Host.InstanceType":         "free text: the provider's name for machines of this kind",
	"Host.CPUs":                 "CPUs that VMs may use; default: as the host reports",
	"Host.MemoryMiB":            "memory that VMs may use, in MiB; default: as the host reports",
	"Network.VNI":               "VXLAN network identifier, of this network alone",
	"Network.Subnet":            "prefix of the VMs' addresses",
	"Network.Gateway":           "the VMs' router, in subnet; answered at every host",
	"Network.MTU":               "bytes of an IP packet in the network",
	"Network.Group":             "networks of one group are routed to each other",
	"VM.Image":                  "a directory of the hosts' images, or an image of their store: NAME or NAME@VERSION",
	"VM.CPUs":                   "virtual CPUs",
	"VM.MemoryMiB":              "memory in MiB",
	"VM.Host":                   "host that it starts on",
	"VM.NICs":                   "network cards, in order",
	"NIC.Network":               "network that it is in",
	"NIC.MAC":                   "Ethernet address; default: derived from the VM's name",
	"NIC.Address":               "private address, in the network's subnet",
	"NIC.Public":                "public IPv4 address that stands for the private one everywhere; default: none",
	"Peer.Site":                 "site whose router it is",
	"Peer.Address":              "address of that router",
	"Peer.Password":             "TCP MD5 secret; default: none",
	"Client.Site":               "site on whose LAN it is",
	"Client.Address":            "its address, in the site's underlay",
	"Controller.Address":        "its address, in the site's underlay; also the BGP router ID",
	"Host.Address":              "its address, in the site's underlay",
	"Host.Public":               "second address in the underlay: BGP next hop of the VMs' public addresses",
	"LinkDefaults.Jitter":       "see links", "LinkDefaults.Delay": "see links", "LinkDefaults.Loss": "see links", "LinkDefaults.Rate": "see links",
	"LinkDefaults.Queue": "see links", "LinkDefaults.PricePerGB": "see links", "LinkDefaults.ImagesRate": "see links", "NetworkDefaults.MTU": "see networks",
	"HostDefaults.CPUs": "see hosts", "HostDefaults.MemoryMiB": "see hosts",
	"VMDefaults.CPUs": "see vms", "VMDefaults.MemoryMiB": "see vms", "VMDefaults.Image": "see vms",
	"Defaults.Hosts": "for hosts", "Defaults.Links": "for links", "Defaults.Networks": "for networks", "Defaults.VMs": "for VMs",
}

// generator builds the schema; comments are the doc comments of types and fields.
type generator struct {
	comments map[string]string
	defs     object
	silent   []string // fields that nothing describes
}

func (g *generator) schema() object {
	root := g.structure(reflect.TypeFor[file]())
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "Heliotrope topology"
	root["description"] = g.comments["Topology"]
	root["$defs"] = g.defs
	return root
}

func (g *generator) structure(t reflect.Type) object {
	properties, required := object{}, []any{}
	for _, f := range fieldsOf(t) {
		sf := t.FieldByIndex(f.index)
		owner := t
		if len(f.index) > 1 {
			owner = t.Field(f.index[0]).Type
		}
		name := owner.Name() + "." + sf.Name
		p := g.of(sf.Type)
		for k, v := range limits[name] {
			p[k] = v
		}
		p["description"] = said[name]
		if p["description"] == "" {
			p["description"] = g.comments[name]
		}
		if p["description"] == "" {
			g.silent = append(g.silent, name)
		}
		properties[f.name] = p
		if _, defaultable := reflect.TypeFor[LinkDefaults]().FieldByName(sf.Name); !f.optional && name != "VM.Image" && !(defaultable && owner.Name() == "Link") {
			required = append(required, f.name)
		}
	}
	o := object{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		o["required"] = required
	}
	if c := g.comments[t.Name()]; c != "" {
		o["description"] = c
	}
	return o
}

func (g *generator) of(t reflect.Type) object {
	if o, ok := texts[t]; ok {
		return copyOf(o)
	}
	switch t.Kind() {
	case reflect.Struct:
		if g.defs[t.Name()] == nil {
			g.defs[t.Name()] = g.structure(t)
		}
		return object{"$ref": "#/$defs/" + t.Name()}
	case reflect.Map:
		if t.Key() == reflect.TypeFor[string]() { // metadata: scalars are taken as they are written
			return object{"type": []any{"object", "null"}, "propertyNames": object{"pattern": `^[a-z0-9_.-]{1,63}$`},
				"additionalProperties": object{"type": []any{"string", "number", "boolean"}}}
		}
		return object{"type": []any{"object", "null"}, "propertyNames": object{"pattern": schemaName}, "additionalProperties": g.of(t.Elem())}
	case reflect.Array:
		return object{"type": "array", "items": g.of(t.Elem()), "minItems": t.Len(), "maxItems": t.Len()}
	case reflect.Slice:
		return object{"type": "array", "items": g.of(t.Elem())}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.String:
		return object{"type": "string"}
	}
	return object{"type": "integer"}
}

func copyOf(o object) object {
	c := object{}
	for k, v := range o {
		c[k] = v
	}
	return c
}

// comments reads doc comments: of types by name, of fields by Type.Field.
func comments(t *testing.T, files ...string) map[string]string {
	found := map[string]string{}
	for _, name := range files {
		tree, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range tree.Decls {
			decl, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, s := range decl.Specs {
				spec, ok := s.(*ast.TypeSpec)
				if !ok {
					continue
				}
				found[spec.Name.Name] = oneLine(decl.Doc)
				st, ok := spec.Type.(*ast.StructType)
				if !ok {
					continue
				}
				for _, f := range st.Fields.List {
					for _, n := range f.Names {
						found[spec.Name.Name+"."+n.Name] = strings.TrimSpace(oneLine(f.Doc) + " " + oneLine(f.Comment))
					}
				}
			}
		}
	}
	return found
}

func oneLine(c *ast.CommentGroup) string { return strings.Join(strings.Fields(c.Text()), " ") }

func TestSchemaIsGenerated(t *testing.T) {
	g := generator{comments: comments(t, "../heliotrope.go", "../values.go", "../pool.go", "../demand.go", "../stub.go", "defaults.go"), defs: object{}}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(g.schema()); err != nil {
		t.Fatal(err)
	}
	if len(g.silent) > 0 {
		t.Errorf("nothing describes %v", g.silent)
	}
	golden(t, "schema.json", b.String())
	if !*update && Schema() != b.String() {
		t.Error("Schema is not schema.json")
	}
}

// TestSchemaAgrees holds the schema to what Parse thinks of files.
func TestSchemaAgrees(t *testing.T) {
	var schema object
	if err := json.Unmarshal([]byte(Schema()), &schema); err != nil {
		t.Fatal(err)
	}
	check := func(name string) []string {
		var doc any
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		return conforms(schema, schema, doc, "")
	}
	for _, name := range examples {
		if bad := check(name); len(bad) > 0 {
			t.Errorf("%s: %v", name, bad)
		}
	}
	for _, name := range []string{"unknown-keys", "missing-fields", "wrong-types", "names", "vni", "mtu", "links", "version-2", "nothing", "latitude", "capture", "pools", "demand"} {
		if bad := check("testdata/wrong/" + name + ".yaml"); len(bad) == 0 {
			t.Errorf("%s: conforms", name)
		}
	}
}

// conforms is as much of a JSON Schema validator as this schema needs.
func conforms(root, s object, v any, at string) []string {
	if ref, ok := s["$ref"].(string); ok {
		s = root["$defs"].(object)[strings.TrimPrefix(ref, "#/$defs/")].(object)
	}
	var bad []string
	say := func(format string, args ...any) { bad = append(bad, at+": "+fmt.Sprintf(format, args...)) }
	if want, ok := s["type"]; ok && !isOneOf(v, want) {
		say("%T is no %v", v, want)
		return bad
	}
	if c, ok := s["const"]; ok && fmt.Sprint(c) != fmt.Sprint(v) {
		say("%v is not %v", v, c)
	}
	if words, ok := s["enum"].([]any); ok && !slices.Contains(words, v) {
		say("%v is none of %v", v, words)
	}
	switch v := v.(type) {
	case string:
		if p, ok := s["pattern"].(string); ok && !regexp.MustCompile(p).MatchString(v) {
			say("%q does not match %s", v, p)
		}
	case int, float64, uint64:
		n := reflect.ValueOf(v).Convert(reflect.TypeFor[float64]()).Float()
		if low, ok := s["minimum"].(float64); ok && n < low {
			say("%v is below %v", n, low)
		}
		if high, ok := s["maximum"].(float64); ok && n > high {
			say("%v is above %v", n, high)
		}
	case []any:
		if least, ok := s["minItems"].(float64); ok && float64(len(v)) < least {
			say("%d items", len(v))
		}
		if most, ok := s["maxItems"].(float64); ok && float64(len(v)) > most {
			say("%d items", len(v))
		}
		for i, item := range v {
			bad = append(bad, conforms(root, s["items"].(object), item, fmt.Sprintf("%s/%d", at, i))...)
		}
	case object:
		bad = append(bad, objectConforms(root, s, v, at)...)
	}
	return bad
}

func objectConforms(root, s, v object, at string) []string {
	var bad []string
	required, _ := s["required"].([]any)
	for _, r := range required {
		if _, ok := v[r.(string)]; !ok {
			bad = append(bad, fmt.Sprintf("%s: no %s", at, r))
		}
	}
	properties, _ := s["properties"].(object)
	for k, e := range v {
		if names, ok := s["propertyNames"].(object); ok {
			bad = append(bad, conforms(root, names, k, at+"/"+k)...)
		}
		if p, ok := properties[k].(object); ok {
			bad = append(bad, conforms(root, p, e, at+"/"+k)...)
		} else if other, ok := s["additionalProperties"].(object); ok {
			bad = append(bad, conforms(root, other, e, at+"/"+k)...)
		} else if s["additionalProperties"] == false {
			bad = append(bad, at+"/"+k+": unknown")
		}
	}
	return bad
}

func typesOf(v any) []string {
	switch v.(type) {
	case nil:
		return []string{"null"}
	case bool:
		return []string{"boolean"}
	case string:
		return []string{"string"}
	case int, uint64:
		return []string{"integer", "number"}
	case float64:
		return []string{"number"}
	case []any:
		return []string{"array"}
	}
	return []string{"object"}
}

func isOneOf(v, want any) bool {
	list, ok := want.([]any)
	if !ok {
		list = []any{want}
	}
	return slices.ContainsFunc(list, func(w any) bool { return slices.Contains(typesOf(v), w.(string)) })
}
