//go:build lab

package proof

import (
	"testing"
	"time"
)

// Every daemon is killed in idle. Its successor finds everything again; meanwhile traffic
// goes on where the daemon is not what carries it.
func TestDaemons(t *testing.T) {
	calm(t)
	for _, d := range []struct {
		node, daemon string
		lost         int // most probes that may be lost
	}{
		{"controller", "controller", 0},
		{string(here), "agent", 0},
		{string(here), "libvirtd", 0},
		{"router-internet", "bird", 0},
		// In userspace these two are the data path.
		{string(here), "ovs-vswitchd", 5 * rate},
		{string(here), "ovsdb-server", 5 * rate},
	} {
		t.Run(d.daemon, func(t *testing.T) {
			before := ask(t)
			see := watch(t)
			killed := time.Now()
			kill(t, d.node, d.daemon)
			answers := time.Since(killed)
			until(t, 30*time.Second, well)
			t.Logf("%s answers again after %v, all is well after %v", d.daemon, answers.Round(time.Millisecond), time.Since(killed).Round(time.Millisecond))
			if r := see(); r.UDP.Lost > d.lost {
				t.Errorf("%d probes were lost, at most %d may be", r.UDP.Lost, d.lost)
			}
			sameGuest(t, before)
		})
	}
}
