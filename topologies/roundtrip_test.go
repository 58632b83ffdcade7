package topologies

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/survey"
)

// tester is what testing.T and rapid.T have in common.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
}

// roundTrip checks that what Marshal writes is read as the same topology.
func roundTrip(t tester, topo heliotrope.Topology) {
	t.Helper()
	text, err := Marshal(topo)
	if err != nil {
		t.Fatalf("Marshal: %v", err)
	}
	again, err := Parse(text, "again.yaml", Options{MaxBytes: 1 << 24})
	if err != nil {
		t.Fatalf("Parse of what Marshal wrote: %v\n%s", err, text)
	}
	if !reflect.DeepEqual(again, topo) {
		t.Fatalf("read back as\n%+v\nwant\n%+v\n%s", again, topo, text)
	}
	if d := Diff(topo, again); len(d) != 0 {
		t.Fatalf("Diff of equals: %v", d)
	}
	if twice, err := Marshal(again); err != nil || string(twice) != string(text) {
		t.Fatalf("Marshal is not deterministic (%v):\n%s\n%s", err, text, twice)
	}
}

// valid draws a topology that has nothing wrong.
func valid(t *rapid.T) heliotrope.Topology {
	name := func(prefix string, i int) string { return prefix + strconv.Itoa(i) }
	addr := func(format string, args ...any) netip.Addr { return netip.MustParseAddr(fmt.Sprintf(format, args...)) }
	duration := rapid.Custom(func(t *rapid.T) heliotrope.Duration {
		return heliotrope.Duration(rapid.Int64Range(0, int64(10*time.Second)).Draw(t, "ns"))
	})
	text := rapid.StringOf(rapid.RuneFrom([]rune("aZ09 :#'\"-{}[]&*!|>%@`~,?é日😀<=")))
	share := rapid.Float64Range(0, 1)

	sites := rapid.IntRange(1, 5).Draw(t, "sites")
	topo := heliotrope.Topology{
		Version: 1, Name: "t-1", Sites: map[heliotrope.SiteID]heliotrope.Site{},
		Controller: heliotrope.Controller{Site: "s0", Address: addr("10.0.0.5"), AS: rapid.Uint32Range(1, 23455).Draw(t, "as")},
		Capture: heliotrope.Capture{Source: rapid.SampledFrom(append([]string{""}, captureSources...)).Draw(t, "source"),
			Budget: share.Draw(t, "budget"), Sampling: rapid.IntRange(0, maxSampling).Draw(t, "sampling")},
	}
	for i := range sites {
		topo.Sites[heliotrope.SiteID(name("s", i))] = heliotrope.Site{
			Underlay: netip.MustParsePrefix(fmt.Sprintf("10.0.%d.0/24", i)), Description: text.Draw(t, "description"), Provider: text.Draw(t, "provider"),
			PricePerVCPUHour: share.Draw(t, "vcpu price"), PricePerGiBHour: share.Draw(t, "memory price"), PricePerGB: share.Draw(t, "egress price"), GramsCO2PerVCPUHour: share.Draw(t, "CO2"), InterruptionsPerHour: share.Draw(t, "interruptions"),
			Billing: heliotrope.Duration(rapid.SampledFrom([]int64{0, 1e9, 3600e9, 1e15}).Draw(t, "billing")), Licences: map[heliotrope.LicenceID]int{"oracle": rapid.IntRange(0, 9).Draw(t, "seats")}, PricePerSeat: map[heliotrope.LicenceID]float64{"sap": share.Draw(t, "seat price")},
			Latitude: rapid.Float64Range(-90, 90).Draw(t, "latitude"), Router: addr("10.0.%d.%d", i, rapid.SampledFrom([]int{1, 254}).Draw(t, "router")),
		}
		if i > 0 {
			mapSet(&topo.Links, heliotrope.LinkID(name("l", i)), heliotrope.Link{
				Between: [2]heliotrope.SiteID{heliotrope.SiteID(name("s", rapid.IntRange(0, i-1).Draw(t, "to"))), heliotrope.SiteID(name("s", i))},
				Delay:   duration.Draw(t, "delay"), Jitter: duration.Draw(t, "jitter"), Queue: duration.Draw(t, "queue"),
				Loss: share.Draw(t, "loss"), PricePerGB: share.Draw(t, "price"), Rate: heliotrope.BitRate(rapid.Uint64Range(1e9, 1e15).Draw(t, "rate")), ImagesRate: heliotrope.BitRate(rapid.SampledFrom([]uint64{0, 64_000, 1e9}).Draw(t, "images' rate")),
			})
		}
		if rapid.Bool().Draw(t, "peer") {
			mapSet(&topo.Peers, heliotrope.PeerID(name("p", i)), heliotrope.Peer{
				Site: heliotrope.SiteID(name("s", i)), Address: topo.Sites[heliotrope.SiteID(name("s", i))].Router,
				AS: topo.Controller.AS, Password: rapid.StringMatching(`[!#-\[\]-~]{0,80}`).Draw(t, "password"),
			})
		}
		if rapid.Bool().Draw(t, "client") {
			mapSet(&topo.Clients, heliotrope.ClientID(name("c", i)), heliotrope.Client{Site: heliotrope.SiteID(name("s", i)), Address: addr("10.0.%d.50", i)})
		}
	}
	for i := range rapid.IntRange(0, 6).Draw(t, "hosts") {
		site := rapid.IntRange(0, sites-1).Draw(t, "site")
		mapSet(&topo.Hosts, heliotrope.HostID(name("h", i)), heliotrope.Host{
			Site: heliotrope.SiteID(name("s", site)), Address: addr("10.0.%d.%d", site, 100+i), Public: addr("10.0.%d.%d", site, 200+i),
			CPUs: rapid.IntRange(0, 64).Draw(t, "cpus"), InstanceType: text.Draw(t, "instance type"),
			Licences: map[heliotrope.LicenceID]int{"windows": rapid.IntRange(0, 9).Draw(t, "own seats")},
		})
	}
	networks := rapid.IntRange(0, 4).Draw(t, "networks")
	for i := range networks {
		n := heliotrope.Network{
			VNI: uint32(1 + i), Subnet: netip.MustParsePrefix(fmt.Sprintf("10.1.%d.0/24", i)), Gateway: addr("10.1.%d.1", i),
			MTU: rapid.SampledFrom([]int{0, 576, 1400, 1450}).Draw(t, "mtu"), Group: rapid.SampledFrom([]string{"", "g", "h-1"}).Draw(t, "group"),
			Capture: rapid.SampledFrom([]string{"", heliotrope.CaptureOff}).Draw(t, "capture"),
		}
		if rapid.Bool().Draw(t, "v6") {
			n.Subnet, n.Gateway, n.MTU = netip.MustParsePrefix(fmt.Sprintf("fd00:0:0:%d::/64", i)), addr("fd00:0:0:%d::1", i), 1280
		}
		mapSet(&topo.Networks, heliotrope.NetworkID(name("n", i)), n)
	}
	for i := range rapid.IntRange(0, 5).Draw(t, "vms") {
		if len(topo.Hosts) == 0 || networks == 0 {
			break
		}
		topo.VMs = withVM(t, topo, i, networks)
	}
	withPools(t, &topo)
	return topo
}

// withPools adds pools and rules for some of the VMs.
func withPools(t *rapid.T, topo *heliotrope.Topology) {
	ids := slices.Sorted(maps.Keys(topo.VMs))
	draw := func(most int, what string) int { return rapid.IntRange(0, most).Draw(t, what) }
	span := func(what string) heliotrope.Duration { return heliotrope.Duration(draw(3600, what)) * 1e9 }
	if rapid.Bool().Draw(t, "pool") {
		mapSet(&topo.Pools, "rest", heliotrope.Pool{Autopilot: rapid.SampledFrom(autopilots).Draw(t, "autopilot"), Window: 10e9 + span("window")})
	}
	own := heliotrope.Policy{Base: heliotrope.PolicyID(rapid.SampledFrom(append([]string{""}, scheduler.Presets()...)).Draw(t, "base")), Hosts: rapid.SampledFrom([]string{"", heliotrope.HostsFill}).Draw(t, "order")}
	for _, w := range survey.Weights()[:draw(len(survey.Weights()), "weights")] {
		mapSet(&own.Weights, w, 1+float64(draw(100, "weight"))/8)
	}
	mapSet(&topo.Policies, "own", own)
	mapSet(&topo.Images, "Debian_12.qcow2", heliotrope.ImagePolicy{Policy: heliotrope.ImageFollow, Rate: heliotrope.BitRate(64_000 + draw(1e6, "image rate")), Sites: slices.Sorted(maps.Keys(topo.Sites))[:1],
		Windows: []heliotrope.Hours{{From: heliotrope.DayTime(draw(1440, "opens")), To: heliotrope.DayTime(draw(1440, "closes"))}}})
	mapSet(&topo.Images, "web", heliotrope.ImagePolicy{Policy: rapid.SampledFrom(append([]string{""}, imagePolicies...)).Draw(t, "image policy"),
		Priority: rapid.SampledFrom(append([]string{""}, heliotrope.ImagePriorities...)).Draw(t, "image priority")})
	if len(ids) == 0 {
		return
	}
	mapSet(&topo.Pools, "p", heliotrope.Pool{VMs: ids[:1+draw(len(ids)-1, "pooled")], Policy: heliotrope.PolicyID(rapid.SampledFrom(survey.Policies(*topo)).Draw(t, "policy")),
		Interval: span("interval"), Forecast: 1 + span("forecast"), ForecastLoss: 0.5, Budget: float64(draw(100, "budget")) / 8, MoveUSD: float64(draw(100, "move budget")) / 8, MinGain: float64(draw(100, "gain")) / 8, MaxPause: span("pause"), Pace: heliotrope.Pace{
			CoolDownPerVM: span("cool-down"), MaxMovesPerHour: draw(9, "hour"), MaxMovesPerDay: draw(9, "day"),
			Quiet: []heliotrope.Hours{{Days: []heliotrope.Weekday{heliotrope.Weekday(draw(6, "weekday"))}, From: heliotrope.DayTime(draw(1440, "from")),
				To: heliotrope.DayTime(draw(1440, "to")), Zone: rapid.SampledFrom([]heliotrope.Zone{"", "UTC", "Asia/Tokyo"}).Draw(t, "zone")}},
		}})
	demand := heliotrope.Demand{Zone: "Asia/Tokyo", RTT: map[heliotrope.SiteID]heliotrope.Duration{}, Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/16")},
		Asks: []heliotrope.Ask{{VMs: ids, Bytes: []float64{float64(draw(1e6, "bytes")) / 8}}, {VMs: ids[:1], Days: []heliotrope.Weekday{0, 6}, Requests: make([]float64, hoursOfDay)}}}
	for id := range topo.Sites {
		demand.RTT[id] = span("rtt to a site") / 1000
	}
	mapSet(&topo.Demand, "r", demand)
	rule := heliotrope.Rule{VMs: ids}
	switch kind := draw(4, "rule"); {
	case kind == 0:
		rule.Sites = slices.Sorted(maps.Keys(topo.Sites))
	case kind == 1:
		rule.NotSites = slices.Sorted(maps.Keys(topo.Sites))[:1]
	case kind == 2 || len(ids) == 1:
		rule.MaxRTT, rule.To = 1+span("rtt")/1000, ids[:1]
	case kind == 3:
		rule.Together = rapid.SampledFrom(scopes).Draw(t, "together")
	default:
		rule.Apart = rapid.SampledFrom(scopes).Draw(t, "apart")
	}
	mapSet(&topo.Rules, "r", rule)
}

func withVM(t *rapid.T, topo heliotrope.Topology, i, networks int) map[heliotrope.VMID]heliotrope.VM {
	vm := heliotrope.VM{
		Host:            heliotrope.HostID("h" + strconv.Itoa(rapid.IntRange(0, len(topo.Hosts)-1).Draw(t, "host"))),
		InterruptionUSD: float64(i) / 8,

		Image:    rapid.SampledFrom([]string{"", "guest", "Debian_12.qcow2"}).Draw(t, "image"),
		Metadata: rapid.MapOfN(rapid.StringMatching(`[a-z0-9_.-]{1,10}`), rapid.StringMatching(`[ -!#-~]{0,20}`), 0, 3).Draw(t, "metadata"),
	}
	if len(vm.Metadata) == 0 {
		vm.Metadata = nil
	}
	if rapid.Bool().Draw(t, "licensed") {
		vm.Licences = map[heliotrope.LicenceID]int{"oracle": rapid.IntRange(1, 9).Draw(t, "seats"), "sap": 1, "windows": 2}
	}
	for j := range rapid.IntRange(1, 3).Draw(t, "nics") {
		n := rapid.IntRange(0, networks-1).Draw(t, "network")
		nic := heliotrope.NIC{Network: heliotrope.NetworkID("n" + strconv.Itoa(n)), Address: netip.AddrFrom4([4]byte{10, 1, byte(n), byte(10 + 3*i + j)})}
		if topo.Networks[nic.Network].Subnet.Addr().Is6() {
			nic.Address = netip.MustParseAddr(fmt.Sprintf("fd00:0:0:%d::%d", n, 10+3*i+j))
		} else if rapid.Bool().Draw(t, "public") {
			nic.Public = netip.AddrFrom4([4]byte{203, 0, 113, byte(10 + 3*i + j)})
		}
		if rapid.Bool().Draw(t, "mac") {
			nic.MAC = heliotrope.MAC{0x52, 0x54, 0, 1, byte(i), byte(j)}
		}
		vm.NICs = append(vm.NICs, nic)
	}
	mapSet(&topo.VMs, heliotrope.VMID("v"+strconv.Itoa(i)), vm)
	return topo.VMs
}

func mapSet[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[k] = v
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		topo := Complete(valid(t))
		if problems := Validate(topo); problems != nil {
			t.Fatalf("Validate: %v", problems)
		}
		roundTrip(t, topo)
	})
}

// TestCompleteShares holds Complete to its word that it changes only its own copy.
func TestCompleteShares(t *testing.T) {
	topo := load(t, "three-clouds.yaml")
	topo.VMs["web"].NICs[0].MAC = heliotrope.MAC{}
	done := Complete(topo)
	if !topo.VMs["web"].NICs[0].MAC.IsZero() || done.VMs["web"].NICs[0].MAC.IsZero() {
		t.Error("Complete wrote into its argument")
	}
}

// TestDiffApplies applies the changes from one topology to another to the JSON of the first.
func TestDiffApplies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old, new := Complete(valid(t)), Complete(valid(t))
		changes := Diff(old, new)
		doc := jsonOf(t, old)
		for _, c := range changes {
			apply(t, doc, c)
		}
		got, want := prune(doc), prune(jsonOf(t, new))
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("applied:\n%v\nwant:\n%v\nchanges: %v", got, want, changes)
		}
	})
}

func jsonOf(t tester, v any) any {
	b, err := json.Marshal(v)
	var doc any
	if err := errors.Join(err, json.Unmarshal(b, &doc)); err != nil {
		t.Fatalf("JSON: %v", err)
	}
	return doc
}

func apply(t tester, doc any, c Change) {
	if parts := strings.Split(c.Pointer, "/")[1:]; parts[len(parts)-1] != "password" {
		edit(t, doc, parts, c)
	}
}

// edit returns v with the change made at the place that parts lead to.
func edit(t tester, v any, parts []string, c Change) any {
	if len(parts) == 0 {
		return jsonOf(t, c.New)
	}
	if list, ok := v.([]any); ok {
		i, _ := strconv.Atoi(parts[0])
		switch {
		case len(parts) == 1 && c.Op == Remove: // surplus items, from the end
			return list[:i]
		case len(parts) == 1 && c.Op == Add:
			return append(list, jsonOf(t, c.New))
		}
		list[i] = edit(t, list[i], parts[1:], c)
		return list
	}
	m, ok := v.(map[string]any)
	if !ok {
		m = map[string]any{}
	}
	if len(parts) == 1 && c.Op == Remove {
		delete(m, parts[0])
	} else {
		m[parts[0]] = edit(t, m[parts[0]], parts[1:], c)
	}
	return m
}

// prune removes empty mappings and nulls: a section without entries is no section.
func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			e = prune(e)
			if m, ok := e.(map[string]any); e == nil || ok && len(m) == 0 {
				delete(v, k)
			}
		}
	case []any:
		for i := range v {
			v[i] = prune(v[i])
		}
	}
	return v
}

func TestDiffSays(t *testing.T) {
	old, new := load(t, "three-clouds.yaml"), load(t, "three-clouds.yaml")
	vm := new.VMs["web"]
	old.VMs["web"] = withoutMetadata(vm)
	vm.MemoryMiB, vm.Metadata = 512, map[string]string{"dirty": "1"}
	vm.NICs[0].Public = netip.Addr{}
	new.VMs["web"] = vm
	delete(new.VMs, "db")
	l := new.Links["us-eu"]
	l.Delay, l.Loss = heliotrope.Duration(80*time.Millisecond), 0.01
	new.Links["us-eu"] = l
	p := new.Peers["us"]
	p.Password = "hush"
	new.Peers["us"], new.Peers["more"] = p, p
	var lines []string
	for _, c := range Diff(old, new) {
		lines = append(lines, c.String())
		if b, err := json.Marshal(c); err != nil || strings.Contains(string(b)+fmt.Sprint(c), "hush") {
			t.Errorf("a secret is shown: %s, %v (%v)", b, c, err)
		}
	}
	want := []string{
		"~ links.us-eu.delay: 40ms → 80ms",
		"+ links.us-eu.loss: 0.01",
		"- vms.db",
		"~ vms.web.memory_mib: 256 → 512",
		"- vms.web.nics[0].public: 203.0.113.10",
		"+ vms.web.metadata.dirty: 1",
		"+ peers.more",
		"+ peers.us.password: (secret)",
	}
	if !reflect.DeepEqual(lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

// TestValidateJSON checks a REST body: no lines, but pointers into it.
func TestValidateJSON(t *testing.T) {
	var topo heliotrope.Topology
	body, err := json.Marshal(load(t, "two-sites.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	body = []byte(strings.ReplaceAll(string(body), `"host":"left-1"`, `"host":"left-7"`))
	if err := json.Unmarshal(body, &topo); err != nil {
		t.Fatal(err)
	}
	problems := Validate(Complete(topo))
	want := []Problem{{Path: "vms.web.host", Pointer: "/vms/web/host", Message: `there is no host "left-7"`, Hint: `did you mean "left-1"?`}}
	if !reflect.DeepEqual(problems, want) {
		t.Errorf("problems are %+v, want %+v", problems, want)
	}
	if problems := Validate(heliotrope.Topology{}); len(problems) == 0 {
		t.Error("nothing is wrong with the empty topology")
	}
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/wrong/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range append(files, examples...) {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		start := time.Now()
		topo, err := Parse(text, "fuzz.yaml", Options{MaxBytes: 64 << 10})
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("took %v", took)
		}
		if err == nil {
			if problems := Validate(topo); problems != nil {
				t.Errorf("accepted, but Validate says %v", problems)
			}
			roundTrip(t, topo)
			return
		}
		var errs Errors
		if !errors.As(err, &errs) || len(errs) == 0 {
			t.Fatalf("error is %#v", err)
		}
		for _, p := range errs {
			if p.Line < 1 || p.Column < 1 || p.Message == "" || strings.ContainsAny(p.String(), "\n\x00") {
				t.Errorf("problem is %#v", p)
			}
		}
	})
}

// withoutMetadata returns vm with NICs of its own and nothing said to its guest.
func withoutMetadata(vm heliotrope.VM) heliotrope.VM {
	vm.NICs, vm.Metadata = append([]heliotrope.NIC(nil), vm.NICs...), nil
	return vm
}
