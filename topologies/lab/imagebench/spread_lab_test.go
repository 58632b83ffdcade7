//go:build lab

package imagebench

import (
	"io"
	"testing"
)

// Small images are only for seeing that it runs: what is claimed is claimed of large ones.
func TestSpreadRuns(t *testing.T) {
	claims, _, err := spreadTo(t.Context(), t.Output(), 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	if len(claims) != 7 {
		t.Errorf("%d claims: %v", len(claims), claims)
	}
}

func TestFaults(t *testing.T) {
	b := &Bench{}
	b.Out = io.Discard
	claims, _, err := faults(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	wantHold(t, claims)
}
