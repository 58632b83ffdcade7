//go:build lab

package imagebench

import "testing"

// Small images are only for seeing that it runs: what is claimed is claimed of large ones.
func TestSpreadRuns(t *testing.T) {
	claims, _, err := spreadTo(t.Context(), t.Output(), 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	if len(claims) != 6 {
		t.Errorf("%d claims: %v", len(claims), claims)
	}
}
