package wanbench

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"heliotrope/imagesync/manifest"
	"heliotrope/topologies/lab/guest"
)

//go:embed work_init.go
var workInit []byte

// guestMiB is a guest's memory.
const guestMiB = 256

// field makes guests, and keeps what they are made of.
type field struct {
	dir    string
	root   string // their disk, which they read only
	kernel string
	initrd map[string]string // of each work
	runs   int
	others map[string]*[2]string // of each work: what another guest has left at the sites
	images [2]string             // the sites' caches of images
	image  manifest.ID           // the root's, which they have; zero: they have none yet
}

func newField(ctx context.Context, dir, root string) (*field, error) {
	f := &field{dir: dir, root: root, initrd: map[string]string{}, others: map[string]*[2]string{}}
	var err error
	if f.kernel, err = guest.Kernel(); err != nil {
		return nil, err
	}
	for _, work := range works {
		var files map[string][]byte
		if work == "cache" {
			if files, err = redis(); err != nil {
				return nil, err
			}
		}
		f.initrd[work] = filepath.Join(dir, work+".initrd")
		if err := guest.Make(ctx, f.initrd[work], workInit, files); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// redis is the server of this machine, with all that it is linked with.
func redis() (map[string][]byte, error) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, fmt.Errorf("find redis: %w: run make deps", err)
	}
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return nil, fmt.Errorf("list redis' libraries: %w", err)
	}
	names := map[string]string{"redis/redis-server": program}
	for line := range strings.Lines(string(out)) {
		for _, word := range strings.Fields(line) {
			if !strings.HasPrefix(word, "/") {
				continue
			}
			names["redis/"+filepath.Base(word)] = word
			if strings.Contains(word, "/ld-linux") {
				names["redis/ld.so"] = word
			}
		}
	}
	files := map[string][]byte{}
	for to, from := range names {
		if files[to], err = os.ReadFile(from); err != nil {
			return nil, fmt.Errorf("read redis: %w", err)
		}
	}
	return files, nil
}

// machine is a QEMU at a site.
type machine struct {
	*qmp
	site    int
	work    string
	cmd     *exec.Cmd
	dir     string
	console string
	wrong   bytes.Buffer
}

// launch starts a QEMU: one that boots a guest, or one that waits for it to come.
func (y *yard) launch(ctx context.Context, f *field, site int, work string, incoming bool) (*machine, error) {
	f.runs++
	m := &machine{site: site, work: work, dir: filepath.Join(f.dir, fmt.Sprint(work, f.runs))}
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		return nil, err
	}
	m.console = filepath.Join(m.dir, "console")
	args := []string{"--net=" + y.path(site), "qemu-system-x86_64", "-accel", "tcg", "-machine", "pc", "-m", strconv.Itoa(guestMiB), "-nodefaults", "-no-reboot", "-display", "none",
		"-uuid", "5e0a7a52-3d51-4d4d-9a55-0c1d6f9a7b01", "-kernel", f.kernel, "-initrd", f.initrd[work], "-append", guest.CommandLine + " work=" + work,
		"-drive", "file=" + f.root + ",format=raw,if=virtio,readonly=on,file.locking=off", "-serial", "file:" + m.console, "-qmp", "unix:" + filepath.Join(m.dir, "qmp") + ",server=on,wait=off"}
	if incoming {
		args = append(args, "-incoming", "defer")
	}
	m.cmd = exec.Command("nsenter", args...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	m.cmd.Stderr = &m.wrong
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	var err error
	if m.qmp, err = dialQMP(ctx, filepath.Join(m.dir, "qmp")); err != nil {
		return nil, errors.Join(err, m.kill())
	}
	return m, nil
}

// kill ends it and removes what it left.
func (m *machine) kill() error {
	m.cmd.Process.Kill()
	_ = m.cmd.Wait() // it was killed
	if m.qmp != nil {
		m.qmp.close()
	}
	var err error
	if s := m.wrong.String(); s != "" {
		err = fmt.Errorf("QEMU says: %s", s)
	}
	return errors.Join(err, os.RemoveAll(m.dir))
}

func killAll(ms []*machine) error {
	var errs []error
	for _, m := range ms {
		errs = append(errs, m.kill())
	}
	return errors.Join(errs...)
}

// four is what four idle guests of one image are called, which move together.
const four = "four"

// nameOf is what these guests are called.
func nameOf(ms []*machine) string {
	if len(ms) > 1 {
		return four
	}
	return ms[0].work
}

// bootAll starts the guests of a name.
func (y *yard) bootAll(ctx context.Context, f *field, name string) (ms []*machine, err error) {
	n := 1
	if name == four {
		n, name = 4, "idle"
	}
	for range n {
		m, err := y.boot(ctx, f, name)
		if err != nil {
			return nil, errors.Join(err, killAll(ms))
		}
		ms = append(ms, m)
	}
	return ms, nil
}

// boot starts a guest and waits until its work has begun.
func (y *yard) boot(ctx context.Context, f *field, work string) (*machine, error) {
	m, err := y.launch(ctx, f, 0, work, false)
	if err != nil {
		return nil, err
	}
	err = m.says(ctx, 4*time.Minute, func(console string) bool { return strings.Contains(console, "READY") })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("boot guest %s: %w", work, err), m.kill())
	}
	return m, nil
}

// says waits until the console's text is as wanted.
func (m *machine) says(ctx context.Context, limit time.Duration, wanted func(string) bool) error {
	text := ""
	err := poll(ctx, limit, func() (bool, error) {
		b, err := os.ReadFile(m.console)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		text = string(b)
		if strings.Contains(text, "FAILED") || strings.Contains(text, "Oops") {
			return false, errors.New("the guest failed")
		}
		return wanted(text), nil
	})
	if err != nil {
		return fmt.Errorf("%w; its console ends with: %s", err, text[max(0, len(text)-1000):])
	}
	return nil
}

func (m *machine) ticks() int {
	b, _ := os.ReadFile(m.console) // nothing was said yet
	return lastTick(string(b))
}

// cpu is the processor time that the QEMU has taken, its guest's included.
func (m *machine) cpu() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	sum := 0
	for _, f := range fields[11:13] { // utime, stime, in hundredths of a second
		n, _ := strconv.Atoi(f)
		sum += n
	}
	return time.Duration(sum) * 10 * time.Millisecond
}
