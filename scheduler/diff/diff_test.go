package diff

import (
	"strings"
	"testing"

	"heliotrope/scheduler"
)

func TestPlans(t *testing.T) {
	a := scheduler.Plan{Moves: []scheduler.Move{{VM: "x", To: "1"}, {VM: "y", To: "1"}}}
	b := scheduler.Plan{Moves: []scheduler.Move{{VM: "y", To: "1"}, {VM: "y", To: "2"}, {VM: "z", To: "1"}}, After: scheduler.Cost{Egress: 1}}
	d := Plans(a, b)
	if len(d.Added) != 1 || len(d.Dropped) != 1 || len(d.Elsewhere) != 1 || d.USDPerHour != 1 || d.Same() {
		t.Errorf("%+v", d)
	}
	if !Plans(a, a).Same() {
		t.Error("a plan differs from itself")
	}
	for _, text := range []string{"- x", "+ z", "~ y to 2, not 1", "USD +1"} {
		if !strings.Contains(d.String(), text) {
			t.Errorf("no %q in %s", text, d)
		}
	}
}
