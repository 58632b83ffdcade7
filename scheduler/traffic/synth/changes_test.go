package synth_test

import (
	"testing"

	"heliotrope/scheduler/traffic/synth"
)

// A change of pattern is told within three windows, and a window in which VMs move is not
// told as one.
func TestChangeIsTold(t *testing.T) {
	const worlds, within = 60, 3
	late, falsely, quiet := 0, 0, 0
	for seed := range uint64(worlds) {
		c := synth.Watch(seed, synth.Regimes[1])
		if c.Told == 0 || c.Told > within {
			late++
			t.Logf("seed %d: %s to %s was told after %d windows", seed, c.From, c.To, c.Told)
		}
		if c.Falsely > 0 {
			t.Logf("seed %d: %d changes that are none", seed, c.Falsely)
		}
		falsely, quiet = falsely+c.Falsely, quiet+c.Quiet
	}
	t.Logf("%d of %d late, %d false changes in %d windows of an application", late, worlds, falsely, quiet)
	if late > worlds/20 || falsely > quiet/500 {
		t.Errorf("%d of %d changes were not told within %d windows, %d of %d windows told one that is none", late, worlds, within, falsely, quiet)
	}
}
