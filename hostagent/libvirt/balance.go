package libvirt

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	lookEvery = 20 * time.Millisecond
	keepLooks = 256 // the newest; older ones say no more than these

	// lostAtMost is more than QEMU was ever seen to lose, which is two.
	lostAtMost = 4
)

// look is a look at the accounts of a running VM's tap: so many of the card's buffers were
// used (modulo 2^16) at a moment between those at which QEMU had read so many frames. What
// is read and what is given to the guest cannot be asked for in one moment, and under load
// packets come between any two questions.
type look struct {
	before uint64
	used   uint16
	after  uint64
}

// undelivered returns which of the frames that QEMU took the guest has not got: the last
// ones but for those that the card has dropped, since a VM that has stopped gets none. taken
// are the newest that QEMU took, read and used the counters of now.
//
// All that was taken since a look has been given, dropped or lost. So a look bounds how many
// were lost: they are no more than what came since its before and the card does not drop,
// less what was given, and no fewer than what came since its after. Looks that agree narrow
// that to one number. certain is false if they do not, and then it is the least that they
// say, or the newest frame alone, which a stopped QEMU always keeps.
func undelivered(taken [][]byte, read uint64, used uint16, looks []look, filter *receiveFilter) (lost [][]byte, certain bool) {
	asked := make([]int, 0, len(taken)) // where in taken those are that the card does not drop
	for i, frame := range taken {
		if i == len(taken)-1 || filter.passes(frame) { // the last one it keeps, whatever it is
			asked = append(asked, i)
		}
	}
	// since counts those of asked that were taken after so many had been read.
	since := func(reads uint64) int {
		first := len(taken) - int(read-reads)
		i, _ := slices.BinarySearch(asked, first)
		return len(asked) - i
	}
	least, most := 1, lostAtMost
	exact := false
	for _, l := range looks {
		if l.before > read || read-l.before > uint64(len(taken)) {
			continue // before the oldest frame that is known
		}
		given := int(used - l.used)
		least, most, exact = max(least, since(l.after)-given), min(most, since(l.before)-given), true
	}
	certain = exact && least == most
	if least > min(lostAtMost, len(asked)) { // for a large frame the card fills several buffers
		least, certain = min(1, len(asked)), false
	}
	for _, i := range asked[len(asked)-min(least, len(asked)):] {
		lost = append(lost, taken[i])
	}
	return lost, certain
}

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
	r.looks = append(r.looks, look{before, used, after})
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
