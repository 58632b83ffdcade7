package schedbench

import (
	"io"
	"reflect"
	"testing"

	"heliotrope/topologies/lab/claim"
)

// What is fuzzed is the same however many make it, has every kind of constraint and of way to
// go, and the verifier finds fault with plans that were spoiled.
func TestFuzz(t *testing.T) {
	b := &Bench{Bench: claim.Bench{Out: io.Discard}, Seed: 1, Plans: 2*fuzzBatch + 10, world: invent(40, 1)}
	claims, figures, err := fuzz(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range claims[1:] { // the first is of a million
		if !c.Holds {
			t.Errorf("%+v", c)
		}
	}
	got := figures.(fuzzed)
	want, err := b.batch(0, b.Plans)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("in batches %v, at once %v", got, want)
	}
	for _, name := range []string{"pinned_vms", "vms_without_a_place", "sites_that_vms_may_be_at", "sites_that_vms_may_not_be_at", "drained_hosts",
		"apart_at_hosts", "apart_at_sites", "together_at_hosts", "together_at_sites", "forbidden_sites", "farthest_distances", "a_longest_pause",
		"licences", "licences_of_hosts", "licences_to_rent", "a_number_of_moves", "a_price_of_hosts", "only_moves_that_must_be"} {
		if got.Worlds[name] == 0 {
			t.Errorf("no world has %s", name)
		}
	}
	for _, name := range []string{"without_moves", "with_blocked_moves", "moves_to_a_temporary_place", "steps_of_several_moves", "steps_of_moves_that_a_constraint_ties"} {
		if got.Plans[name] == 0 {
			t.Errorf("%s: none", name)
		}
	}
	if got.Plans["spoiled_and_refused"]*2 < got.Plans["spoiled"] {
		t.Errorf("of %d spoiled plans %d were refused", got.Plans["spoiled"], got.Plans["spoiled_and_refused"])
	}
}
