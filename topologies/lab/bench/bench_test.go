package bench

import (
	"testing"
	"time"

	"heliotrope"
	"heliotrope/ovsdb"
	"heliotrope/topologies"
)

// What the benchmark gives the controller is a valid topology at every size, and before
// the measurement no host has a tunnel of its own.
func TestTopologies(t *testing.T) {
	for _, n := range []int{1, 3, 10, 30, 100} {
		full := fabric(n)
		for name, top := range map[string]heliotrope.Topology{"full": full, "seed": seed(full)} {
			text, err := topologies.Marshal(top)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := topologies.Parse(text, name, topologies.Options{}); err != nil {
				t.Errorf("%s of %d hosts: %v", name, n, err)
			}
		}
		if len(full.Hosts) != n || len(full.VMs) != n*vmsPerHost {
			t.Errorf("%d hosts: got %d and %d VMs", n, len(full.Hosts), len(full.VMs))
		}
		if got := len(seed(full).Hosts) - 1; got <= ovsdb.MaxTunnels {
			t.Errorf("seed of %d hosts: %d peers have tunnels of their own", n, got)
		}
	}
}

func TestPercentile(t *testing.T) {
	var all []time.Duration
	for i := range 200 {
		all = append(all, time.Duration(200-i))
	}
	for p, want := range map[int]time.Duration{50: 100, 99: 198, 100: 200} {
		if got := percentile(all, p); got != want {
			t.Errorf("percentile %d of 1 to 200: got %d, want %d", p, got, want)
		}
	}
	if got := percentile(nil, 99); got != 0 {
		t.Errorf("percentile of nothing: got %v", got)
	}
}
