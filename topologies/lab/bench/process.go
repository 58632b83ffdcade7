package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of CPU time in /proc.
const tick = 10 * time.Millisecond

// process is one in a node of the lab: the node's PID 1 as the machine counts, and the
// process as the node does.
type process struct{ node, pid int }

func (p process) read(name string) ([]byte, error) {
	return os.ReadFile(fmt.Sprintf("/proc/%d/root/proc/%d/%s", p.node, p.pid, name))
}

// cpu is the time on a CPU so far.
func (p process) cpu() (time.Duration, error) {
	text, err := p.read("stat")
	if err != nil {
		return 0, fmt.Errorf("read process: %w", err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("read process: %d fields in its stat", len(fields))
	}
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		return 0, fmt.Errorf("read process: %w", err)
	}
	system, err := strconv.Atoi(fields[12])
	return time.Duration(user+system) * tick, err
}

// memory is what is resident now and what was at most, in MiB.
func (p process) memory() (now, peak float64, err error) {
	text, err := p.read("status")
	if err != nil {
		return 0, 0, fmt.Errorf("read process: %w", err)
	}
	return kilobytes(text, "VmRSS:") / 1024, kilobytes(text, "VmHWM:") / 1024, nil
}

// kilobytes is the number after name; 0 where there is none.
func kilobytes(text []byte, name string) float64 {
	_, rest, _ := strings.Cut(string(text), name)
	var n float64
	if _, err := fmt.Sscan(rest, &n); err != nil {
		return 0
	}
	return n
}

// processes are all in a node, by its PID 1. What ends meanwhile is left out, here and below.
func processes(node int) []process {
	var all []process
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root/proc", node))
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, process{node, pid})
		}
	}
	return all
}

// hostsCPU is the time on a CPU of everything in the hosts so far.
func (r *run) hostsCPU() (sum time.Duration) {
	for _, node := range r.hosts {
		for _, p := range processes(node) {
			if d, err := p.cpu(); err == nil {
				sum += d
			}
		}
	}
	return sum
}

// hostMemory is what one host's processes take, in MiB.
func (r *run) hostMemory() (sum float64) {
	for _, p := range processes(r.hosts[0]) {
		if text, err := p.read("smaps_rollup"); err == nil {
			sum += kilobytes(text, "Pss:") / 1024
		}
	}
	return sum
}
