//go:build lab

package libvirt

import (
	"testing"
	"time"
)

func TestProbeSaysWhatBoots(t *testing.T) {
	if err := boots(t.Context(), "tcg"); err != nil {
		t.Errorf("the emulator boots anything, and the probe says: %v", err)
	}
	start := time.Now()
	t.Logf("KVM: %v after %v", ProbeKVM(t.Context()), time.Since(start))
	if took := time.Since(start); took > probeLimit+2*time.Second {
		t.Errorf("probe took %v", took)
	}
}
