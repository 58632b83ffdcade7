// Package process tells whether a process that once was has ended.
package process

import (
	"fmt"
	"os"
	"strings"
	"sync"
)

// ID names a process for good, so that whoever can see it knows that it has ended: by
// its machine's boot and its PID namespace, by its number, and by when it began, since numbers
// come again.
type ID struct {
	Where string `json:"where,omitempty"` // empty where /proc does not tell
	PID   int    `json:"pid,omitempty"`
	Began string `json:"began,omitempty"` // ticks since the boot
}

// Self is this one.
var Self = sync.OnceValue(func() ID {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ID{}
	}
	space, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ID{}
	}
	began := startOf(os.Getpid())
	if began == "" {
		return ID{}
	}
	return ID{strings.TrimSpace(string(boot)) + " " + space, os.Getpid(), began}
})

// Ended says whether the process is known to have ended. Of another machine's nothing is known.
func (p ID) Ended() bool {
	return p.Where != "" && p.Where == Self().Where && startOf(p.PID) != p.Began
}

// startOf is when a process began, "" if there is none (proc(5), field 22 of stat).
func startOf(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The name of the program stands in parentheses and may have any of them in it.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return ""
	}
	return fields[19]
}
