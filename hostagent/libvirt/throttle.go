package libvirt

import (
	"context"
	"fmt"

	rpc "github.com/digitalocean/go-libvirt"
)

// throttle is what QEMU takes of a guest's vCPUs, in percent of their time, when that dirties its memory faster than it
// is copied: the first step, the next ones, and the most. Each step takes two passes. QEMU does so if its capability
// auto-converge is on when a migration begins, and from half as much dirt on, which is long before that is needed.
// So a migration begins with leave for the least there is, and is given more when nothing else will end it. Libvirt
// has no call for that while a migration goes on; QEMU's monitor takes it.
type throttle struct{ initial, increment, most int }

var (
	heldThrottle    = throttle{1, 1, 1}
	defaultThrottle = throttle{20, 10, 99} // QEMU's
)

func (h *Hypervisor) setThrottle(ctx context.Context, ref rpc.Domain, t throttle) error {
	_, err := h.monitor(ctx, ref, fmt.Sprintf(
		`{"execute": "migrate-set-parameters", "arguments": {"cpu-throttle-initial": %d, "cpu-throttle-increment": %d, "max-cpu-throttle": %d}}`,
		t.initial, t.increment, t.most))
	return err
}

// throttleTo takes as much as most, in two steps.
func throttleTo(most int) throttle { return throttle{(most + 1) / 2, (most + 1) / 2, most} }
