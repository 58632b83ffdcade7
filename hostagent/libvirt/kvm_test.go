package libvirt

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// On a machine whose KVM was emulated, a guest booted in 2.5 to 10 s: one host in so many took it for KVM, and no VM
// could be moved between it and the others.
func TestKVMIsOfUseOnlyWhereGuestsBootSoon(t *testing.T) {
	const never = time.Hour
	for name, c := range map[string]struct {
		tcg, kvm time.Duration
		without  bool // emulation
		want     bool
	}{
		"as it should be":             {150 * time.Millisecond, 100 * time.Millisecond, false, true},
		"no sooner than emulation":    {150 * time.Millisecond, 400 * time.Millisecond, false, true},
		"on busy cores":               {2500 * time.Millisecond, 1500 * time.Millisecond, false, true},
		"emulated itself":             {150 * time.Millisecond, 2500 * time.Millisecond, false, false},
		"hangs":                       {150 * time.Millisecond, never, false, false},
		"without emulation":           {0, 150 * time.Millisecond, true, true},
		"without emulation, it hangs": {0, never, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got := soon(t.Context(), func(ctx context.Context, accelerator string) error {
					if accelerator == "tcg" && c.without {
						return errors.New("not built in")
					}
					select {
					case <-time.After(map[string]time.Duration{"tcg": c.tcg, "kvm": c.kvm}[accelerator]):
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				})
				if got != c.want {
					t.Errorf("got %v", got)
				}
			})
		})
	}
}
