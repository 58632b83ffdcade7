//go:build lab

package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long a guest under emulation on a busy machine may take for anything.
const patience = 90 * time.Second

// qemu is one emulator with user networking, its ports forwarded to the loopback.
type qemu struct {
	qmp      *json.Decoder
	commands io.Writer
	up       chan struct{}

	mu    sync.Mutex
	lines []string
}

func startQEMU(t *testing.T, image, disk string, metadata []string, more ...string) *qemu {
	t.Helper()
	options, err := os.ReadFile(filepath.Join(image, "cmdline"))
	if err != nil {
		t.Fatal(err)
	}
	words := append([]string{strings.TrimSpace(string(options)), "heliotrope.nic=52:54:00:12:34:56,10.0.2.15/24,10.0.2.2,1450"}, metadata...)
	socket := filepath.Join(t.TempDir(), "qmp")
	args := []string{
		"-accel", "tcg", "-m", "128", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-qmp", "unix:" + socket + ",server=on,wait=off",
		"-kernel", filepath.Join(image, "vmlinuz"), "-initrd", filepath.Join(image, "initrd.img"),
		"-append", strings.Join(words, " "),
		"-drive", "file=" + disk + ",format=raw,if=virtio,cache=none",
		"-device", "virtio-net-pci,netdev=n,mac=52:54:00:12:34:56",
		"-netdev", "user,id=n,hostfwd=tcp:127.0.0.1:0-:7,hostfwd=udp:127.0.0.1:0-:7,hostfwd=tcp:127.0.0.1:0-:80",
	}
	q := &qemu{up: make(chan struct{})}
	cmd := exec.Command("qemu-system-x86_64", append(args, more...)...)
	console, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		q.readConsole(console)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-read
		cmd.Wait()
		if t.Failed() {
			t.Logf("console:\n%s", strings.Join(q.lines, "\n"))
		}
	})
	q.connect(t, socket)
	return q
}

func (q *qemu) readConsole(r io.Reader) {
	scanner := bufio.NewScanner(r)
	for scanner.Scan() {
		q.mu.Lock()
		q.lines = append(q.lines, scanner.Text())
		q.mu.Unlock()
		if strings.Contains(scanner.Text(), " is up ") {
			close(q.up)
		}
	}
}

func (q *qemu) console() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return strings.Join(q.lines, "; ")
}

func (q *qemu) waitUp(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case <-q.up:
	case <-ctx.Done():
		t.Fatal("the guest did not come up")
	}
}

func (q *qemu) connect(t *testing.T, socket string) {
	t.Helper()
	var conn net.Conn
	q.eventually(t, "the monitor", func() (ok bool) {
		var err error
		conn, err = net.Dial("unix", socket)
		return err == nil
	})
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * patience))
	q.qmp, q.commands = json.NewDecoder(conn), conn
	q.execute(t, "qmp_capabilities", nil)
}

// execute sends one command to the monitor and returns its answer; events are passed over.
func (q *qemu) execute(t *testing.T, command string, arguments map[string]any) json.RawMessage {
	t.Helper()
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := json.NewEncoder(q.commands).Encode(request); err != nil {
		t.Fatal(err)
	}
	for {
		var answer struct {
			Return, Error json.RawMessage
		}
		if err := q.qmp.Decode(&answer); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		if answer.Error != nil {
			t.Fatalf("%s: %s", command, answer.Error)
		}
		if answer.Return != nil {
			return answer.Return
		}
	}
}

// forwarded is the loopback address of a port of the guest.
func (q *qemu) forwarded(t *testing.T, network string, port int) string {
	t.Helper()
	var table string
	raw := q.execute(t, "human-monitor-command", map[string]any{"command-line": "info usernet"})
	if err := json.Unmarshal(raw, &table); err != nil {
		t.Fatal(err)
	}
	row := fmt.Sprintf(`%s\[HOST_FORWARD\]\s+\d+\s+(\S+)\s+(\d+)\s+\S+\s+%d\s`, strings.ToUpper(network), port)
	found := regexp.MustCompile(row).FindStringSubmatch(table)
	if found == nil {
		t.Fatalf("no forwarding of %s port %d in %s", network, port, table)
	}
	return net.JoinHostPort(found[1], found[2])
}

func (q *qemu) get(t *testing.T, path string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, "GET", "http://"+q.forwarded(t, "tcp", 80)+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Close = true
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func (q *qemu) getJSON(t *testing.T, path string, into any) {
	t.Helper()
	if body := q.get(t, path); json.Unmarshal([]byte(body), into) != nil {
		t.Fatalf("%s answers %q", path, body)
	}
}

func (q *qemu) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s did not come in %v", what, patience)
		}
	}
}

// migrate moves the guest to target, slowly enough for several rounds.
func (q *qemu) migrate(t *testing.T, target *qemu) {
	t.Helper()
	uri := "unix:" + filepath.Join(t.TempDir(), "stream")
	target.execute(t, "migrate-incoming", map[string]any{"uri": uri})
	q.execute(t, "migrate-set-parameters", map[string]any{"max-bandwidth": 32 << 20, "downtime-limit": 50})
	q.execute(t, "migrate", map[string]any{"uri": uri})
	var state struct {
		Status   string
		Downtime int
		RAM      struct {
			DirtySyncCount int `json:"dirty-sync-count"`
		}
	}
	q.eventually(t, "the end of the migration", func() bool {
		if err := json.Unmarshal(q.execute(t, "query-migrate", nil), &state); err != nil {
			t.Fatal(err)
		}
		if state.Status == "failed" || state.Status == "cancelled" {
			t.Fatalf("migration %s", state.Status)
		}
		return state.Status == "completed"
	})
	t.Logf("migrated in %d rounds, downtime %d ms", state.RAM.DirtySyncCount, state.Downtime)
	target.eventually(t, "the resume", func() bool {
		return strings.Contains(string(target.execute(t, "query-status", nil)), `"running": true`)
	})
}
