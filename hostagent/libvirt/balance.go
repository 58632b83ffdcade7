package libvirt

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

const balanceEvery = 50 * time.Millisecond

// balance is a moment of a running VM at which what QEMU had taken out of a tap was known
// together with what it had given to the guest.
type balance struct {
	known   bool
	read    uint64 // frames that left the tap's queue, ever
	used    uint16 // buffers that the card has filled, modulo 2^16
	records int    // frames recorded, ever
}

// balance notes a new balance for r if the accounts stand still for long enough; under
// many packets that takes some attempts.
func (c *Catch) balance(ctx context.Context, r *tapRecord) error {
	for range 8 {
		records := r.count()
		before, err := readByQEMU(r.tap.Name)
		if err != nil {
			return err
		}
		used, err := c.used(ctx, r.tap.NIC)
		if err != nil {
			return err
		}
		after, err := readByQEMU(r.tap.Name)
		if err != nil {
			return err
		}
		if before != after {
			continue
		}
		// A VM that runs now did so before, and then all that was read has been used.
		if running, err := c.running(ctx); err != nil || !running {
			return err
		}
		r.last = balance{known: true, read: after, used: used, records: records}
		return nil
	}
	return nil
}

// lost counts the frames that QEMU has read and not given to its guest. It is at least
// one, the one that a stopped QEMU keeps. known is false where that is a guess.
func (c *Catch) lost(ctx context.Context, r *tapRecord) (frames int, known bool) {
	if !r.last.known {
		return 1, false
	}
	read, err := readByQEMU(r.tap.Name)
	if err != nil {
		return 1, false
	}
	used, err := c.used(ctx, r.tap.NIC)
	if err != nil {
		return 1, false
	}
	frames = int(uint16(read-r.last.read) - (used - r.last.used))
	switch {
	case frames == 1:
		return 1, true
	case frames < 1 || frames > 4:
		return 1, false // the guest fills several buffers for one frame
	case r.groupSince(r.last.records):
		return 1, false // a card drops multicast that its guest did not ask for, uncounted
	}
	return frames, true
}

// readByQEMU counts the frames that have left a tap's queue: the kernel counts a tap's
// packets as sent when the other end reads them.
func readByQEMU(tap string) (uint64, error) {
	// Of /proc and not of /sys, because this one always shows our own network namespace.
	f, err := os.Open("/proc/self/net/dev")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, counters, ok := strings.Cut(lines.Text(), ":")
		if !ok || strings.TrimSpace(name) != tap {
			continue
		}
		fields := strings.Fields(counters)
		if len(fields) < 10 {
			return 0, fmt.Errorf("read counters of %s: %d fields", tap, len(fields))
		}
		return strconv.ParseUint(fields[9], 10, 64)
	}
	return 0, errors.Join(fmt.Errorf("read counters of %s: %w", tap, os.ErrNotExist), lines.Err())
}

// used asks QEMU how many receive buffers a card has filled.
func (c *Catch) used(ctx context.Context, nic int) (uint16, error) {
	command := fmt.Sprintf(`{"execute":"x-query-virtio-queue-status","arguments":{"path":"/machine/peripheral/net%d/virtio-backend","queue":0}}`, nic)
	var answer struct {
		Used *uint16 `json:"used-idx"`
	}
	if err := c.ask(ctx, command, &answer); err != nil {
		return 0, err
	}
	if answer.Used == nil {
		return 0, errors.New("read ring of card: QEMU does not say")
	}
	return *answer.Used, nil
}

// running asks QEMU whether the vCPUs run; it is false from before the first of them stops.
func (c *Catch) running(ctx context.Context) (bool, error) {
	var answer struct {
		Running bool `json:"running"`
	}
	err := c.ask(ctx, `{"execute":"query-status"}`, &answer)
	return answer.Running, err
}

func (c *Catch) ask(ctx context.Context, command string, answer any) error {
	text, err := c.h.monitor(ctx, c.ref, command)
	if err != nil {
		return fmt.Errorf("ask QEMU: %w", err)
	}
	reply := struct {
		Return any `json:"return"`
		Error  *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}{Return: answer}
	if err := json.Unmarshal([]byte(text), &reply); err != nil {
		return fmt.Errorf("ask QEMU: %w", err)
	}
	if reply.Error != nil {
		return fmt.Errorf("ask QEMU: %s", reply.Error.Desc)
	}
	return nil
}
