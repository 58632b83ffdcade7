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

	"heliotrope/hostagent/libvirt/lost"
)

const (
	lookEvery = 20 * time.Millisecond
	keepLooks = 256 // the newest; older ones say no more than these
)

// look looks at the accounts of r once.
func (c *Catch) look(ctx context.Context, r *tapRecord) error {
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
	// A VM that runs now did so before, and then all that was read has been used.
	if running, err := c.running(ctx); err != nil || !running {
		return err
	}
	if len(r.looks) >= 2*keepLooks {
		r.looks = append(r.looks[:0], r.looks[keepLooks:]...)
	}
	r.looks = append(r.looks, lost.Look{Before: before, Used: used, After: after})
	return nil
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

// filter asks QEMU what a card passes to its guest.
func (c *Catch) filter(ctx context.Context, nic int) (*lost.Filter, error) {
	var answer []lost.Filter
	if err := c.ask(ctx, fmt.Sprintf(`{"execute":"query-rx-filter","arguments":{"name":"net%d"}}`, nic), &answer); err != nil {
		return nil, err
	}
	if len(answer) != 1 {
		return nil, fmt.Errorf("read receive filter of card %d: QEMU tells %d", nic, len(answer))
	}
	return &answer[0], nil
}
