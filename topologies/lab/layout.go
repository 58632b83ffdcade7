package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultDir is where labs live, one directory each.
const DefaultDir = "/run/heliotrope-lab"

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// layout is a lab's directory. Whoever holds the lock on its file "lock" owns the lab:
// the supervisor for as long as it lives, else one up or down that cleans.
type layout string

func layoutOf(dir, name string) (layout, error) {
	if !validName.MatchString(name) {
		return "", fmt.Errorf("find lab: %q is no name: use small letters, digits and dashes", name)
	}
	if dir == "" {
		dir = filepath.Join(DefaultDir, name)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find lab: %w", err)
	}
	return layout(abs), nil
}

func (l layout) file(name string) string { return filepath.Join(string(l), name) }
func (l layout) lock() string            { return l.file("lock") }
func (l layout) socket() string          { return l.file("lab.sock") }
func (l layout) processes() string       { return l.file("processes") }
func (l layout) controller() string      { return l.file("controller") }
func (l layout) imageStore() string      { return l.file("image-store") }
func (l layout) imageKeys() string       { return l.file("image-keys") }
func (l layout) node(name string) string { return filepath.Join(string(l), "nodes", name) }
func (l layout) log(node, daemon string) string {
	return filepath.Join(l.node(node), "log", daemon+".log")
}
func (l layout) supervisorLog() string           { return l.file("supervisor.log") }
func (l layout) exists() bool                    { _, err := os.Stat(string(l)); return err == nil }
func processRecord(pid int, start string) string { return strconv.Itoa(pid) + " " + start + "\n" }
func (p process) alive() bool                    { s, err := startTime(p.pid); return err == nil && s == p.start }
func (p process) signal(s unix.Signal) error     { return unix.Kill(p.pid, s) }

// errHeld says that the lab's lock is held: it runs, or somebody starts or cleans it.
var errHeld = errors.New("the lab is in use")

// acquire makes the directory and takes the lock.
func (l layout) acquire() (*os.File, error) {
	for {
		if err := os.MkdirAll(string(l), 0o755); err != nil {
			return nil, fmt.Errorf("make lab directory: %w", err)
		}
		f, err := os.OpenFile(l.lock(), os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed by a down in between
		}
		if err != nil {
			return nil, fmt.Errorf("open lab lock: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return nil, errors.Join(fmt.Errorf("lock lab: %w", errHeld), f.Close())
		}
		// A down may have removed the file between the open and the lock.
		mine, err := f.Stat()
		if now, err2 := os.Stat(l.lock()); err == nil && err2 == nil && os.SameFile(mine, now) {
			return f, nil
		}
		f.Close()
	}
}

// own takes the lock of a lab that does not run. A supervisor that has just been killed
// may take a moment to die.
func (l layout) own(ctx context.Context) (lock *os.File, err error) {
	polled := poll(ctx, 10*time.Millisecond, func(waited time.Duration) bool {
		lock, err = l.acquire()
		return !errors.Is(err, errHeld) || waited > time.Second
	})
	return lock, errors.Join(polled, err)
}

// process is one that this lab started outside its namespaces: the supervisor or a PID 1.
// The start time tells it from a later process with the same number.
type process struct {
	pid   int
	start string
}

// record adds a process to the list that Down works through.
func (l layout) record(pid int) error {
	start, err := startTime(pid)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(l.processes(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("record process: %w", err)
	}
	_, err = f.WriteString(processRecord(pid, start))
	return errors.Join(err, f.Close())
}

// recorded lists the processes, the supervisor first.
func (l layout) recorded() ([]process, error) {
	text, err := os.ReadFile(l.processes())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read processes: %w", err)
	}
	var ps []process
	for line := range strings.Lines(string(text)) {
		var p process
		if _, err := fmt.Sscanf(line, "%d %s\n", &p.pid, &p.start); err == nil && p.pid > 1 {
			ps = append(ps, p)
		}
	}
	return ps, nil
}

// startTime is field 22 of /proc/PID/stat; a zombie has none: it is as good as gone.
func startTime(pid int) (string, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", fmt.Errorf("read process: %w", err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return "", fmt.Errorf("read process %d: %w", pid, os.ErrProcessDone)
	}
	return fields[19], nil
}

// end stops every recorded process: it asks the supervisor, which stops its nodes in
// order, and after grace kills whatever is left. It returns when none lives.
func (l layout) end(ctx context.Context, grace time.Duration) error {
	ps, err := l.recorded()
	if err != nil {
		return err
	}
	if len(ps) > 0 && ps[0].alive() {
		if err := ps[0].signal(unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stop supervisor: %w", err)
		}
	}
	return poll(ctx, 10*time.Millisecond, func(waited time.Duration) bool {
		living := 0
		for _, p := range ps {
			if p.alive() {
				living++
				// Without its supervisor a node is on its way out already.
				if waited > grace || !ps[0].alive() {
					p.signal(unix.SIGKILL) // it may just have gone; the next round looks again
				}
			}
		}
		return living == 0
	})
}

// seize ends whatever runs and takes the lock. It tries again where an up was just
// starting: that has put another supervisor there.
func (l layout) seize(ctx context.Context) (lock *os.File, err error) {
	polled := poll(ctx, 10*time.Millisecond, func(time.Duration) bool {
		if err = l.end(ctx, grace); err == nil {
			lock, err = l.acquire()
		}
		return !errors.Is(err, errHeld)
	})
	return lock, errors.Join(polled, err)
}

// clean removes everything in the directory but the lock, for a lab that is to start.
func (l layout) clean() error {
	entries, err := os.ReadDir(string(l))
	if err != nil {
		return fmt.Errorf("clean lab directory: %w", err)
	}
	for _, e := range entries {
		if e.Name() == filepath.Base(l.lock()) {
			continue
		}
		if err := os.RemoveAll(l.file(e.Name())); err != nil {
			return fmt.Errorf("clean lab directory: %w", err)
		}
	}
	return nil
}

// poll asks done every pause until it says yes or ctx ends.
func poll(ctx context.Context, pause time.Duration, done func(waited time.Duration) bool) error {
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for start := time.Now(); ; {
		if done(time.Since(start)) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}
