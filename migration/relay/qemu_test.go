package relay

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"heliotrope/migration/wan"
)

// busySector fills memory from 1 MiB on with words, half of its pages like the other half,
// and then goes on changing two words in every third page. It is what this assembles to:
//
//	      cli; xor ax,ax; mov ds,ax; lgdt [gdtr]; mov eax,cr0; or al,1; mov cr0,eax; jmp 8:pm
//	pm:   mov ax,0x10; mov ds,ax; mov es,ax; mov ss,ax; mov esp,0x7000; mov edi,0x100000
//	fill: mov eax,edi; shr eax,13; imul eax,0x9e3779b1; mov edx,edi; and edx,0xfff; shr edx,5
//	      imul edx,0x01010101; xor eax,edx; stosd; cmp edi,0x240000; jb fill; xor ebx,ebx
//	next: mov edi,0x100000
//	page: mov edx,ebx; and edx,0x3f; mov [edi+edx*4],ebx; inc dword [edi+0x800]
//	      add edi,0x3000; cmp edi,0x240000; jb page; inc ebx; mov ecx,200000
//	wait: loop wait; jmp next
const busySector = "fa31c08ed80f0116987c0f20c00c010f22c0ea177c080066b810008ed88ec08ed0bc00700000bf0000100089f8c1e80d69c0b179379e89fa81e2ff0f0000c1ea" +
	"0569d20101010131d0ab81ff0000240072d931dbbf0000100089da83e23f891c97ff870008000081c70030000081ff0000240072e443b9400d0300e2feebd590" +
	"0000000000000000ffff0000009acf00ffff00000092cf001700807c0000"

// machine is a QEMU that its test talks to by QMP.
type machine struct {
	t    *testing.T
	conn net.Conn
	dec  *json.Decoder
	past []string // the migration's statuses

	process *os.Process
}

// newMachine starts a QEMU with 8 MiB of memory that boots busySector, or waits for a VM.
func newMachine(t *testing.T, args ...string) *machine {
	t.Helper()
	dir := t.TempDir()
	code, err := hex.DecodeString(busySector)
	if err != nil {
		t.Fatal(err)
	}
	sector := append(append(code, make([]byte, 510-len(code))...), 0x55, 0xaa)
	image, control := filepath.Join(dir, "boot.img"), filepath.Join(dir, "qmp")
	if err := os.WriteFile(image, sector, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", control)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.(*net.UnixListener).SetDeadline(time.Now().Add(30 * time.Second))
	var said bytes.Buffer
	qemu := exec.Command("qemu-system-x86_64", append([]string{"-accel", "tcg", "-machine", "pc", "-m", "8", "-nodefaults", "-vga", "none",
		"-display", "none", "-drive", "file=" + image + ",format=raw,if=ide,snapshot=on", "-uuid", "6f8a6b9e-3c1d-4a57-8b0e-2f4f3a9d1c22",
		"-qmp", "unix:" + control}, args...)...)
	qemu.Stderr = &said
	if err := qemu.Start(); err != nil {
		t.Fatalf("start QEMU (run make deps): %v", err)
	}
	t.Cleanup(func() {
		qemu.Process.Kill()
		qemu.Wait()
		if t.Failed() {
			t.Logf("QEMU said: %s", &said)
		}
	})
	m := &machine{t: t, process: qemu.Process}
	if m.conn, err = l.Accept(); err != nil {
		t.Fatalf("QEMU does not connect: %v: %s", err, &said)
	}
	t.Cleanup(func() { m.conn.Close() })
	m.conn.SetDeadline(time.Now().Add(time.Minute))
	m.dec = json.NewDecoder(m.conn)
	m.do("qmp_capabilities", nil)
	m.do("migrate-set-capabilities", map[string]any{"capabilities": []map[string]any{
		{"capability": "return-path", "state": true}, {"capability": "pause-before-switchover", "state": true},
		{"capability": "validate-uuid", "state": true}, {"capability": "events", "state": true}}})
	return m
}

type message struct {
	Return json.RawMessage
	Error  *struct{ Desc string }
	Event  string
	Data   struct{ Status string }
}

func (m *machine) read() (msg message) {
	m.t.Helper()
	if err := m.dec.Decode(&msg); err != nil {
		m.t.Fatalf("read QMP: %v", err)
	}
	if msg.Event == "MIGRATION" {
		m.past = append(m.past, msg.Data.Status)
	}
	return msg
}

func (m *machine) do(command string, args any) json.RawMessage {
	m.t.Helper()
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	if err := json.NewEncoder(m.conn).Encode(request); err != nil {
		m.t.Fatalf("%s: %v", command, err)
	}
	for {
		switch msg := m.read(); {
		case msg.Error != nil:
			m.t.Fatalf("%s: %s", command, msg.Error.Desc)
		case msg.Return != nil:
			return msg.Return
		}
	}
}

// until waits for the migration's status; another that it cannot leave is fatal.
func (m *machine) until(status string) {
	m.t.Helper()
	for !slices.Contains(m.past, status) {
		if n := len(m.past); n > 0 && slices.Contains([]string{"failed", "completed", "cancelled"}, m.past[n-1]) {
			m.t.Fatalf("the migration is %s, not %s", m.past[n-1], status)
		}
		m.read()
	}
}

// memory is the guest's.
func (m *machine) memory() []byte {
	m.t.Helper()
	file := filepath.Join(m.t.TempDir(), "memory")
	m.do("pmemsave", map[string]any{"val": 0, "size": 8 << 20, "filename": file})
	data, err := os.ReadFile(file)
	if err != nil {
		m.t.Fatal(err)
	}
	return data
}

// word is one of those that the guest changes, or 0 before it began to.
func (m *machine) word() (n int) {
	var out string
	json.Unmarshal(m.do("human-monitor-command", map[string]any{"command-line": "xp /1dw 0x100800"}), &out)
	fmt.Sscanf(out, "0000000000100800: %d", &n)
	return n
}

func (m *machine) busy() {
	m.t.Helper()
	first := m.word()
	for end := time.Now().Add(30 * time.Second); m.word() == first || first == 0; {
		if time.Now().After(end) {
			m.t.Fatal("the guest does nothing")
		}
		if first == 0 {
			first = m.word()
		}
	}
}

// apart are two machines with the codec between them: src, whose guest is at work, migrates to path,
// and dst waits.
func apart(t *testing.T) (src, dst *machine, client *Client, path string) {
	t.Helper()
	p := newPKI(t)
	sock := filepath.Join(t.TempDir(), "in.sock")
	addr := encodingDestination(t, p, mirrors, sock)
	client = &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: mirrors}
	path, _ = source(t, client, memory)
	dst = newMachine(t, "-S", "-incoming", "unix:"+sock)
	src = newMachine(t)
	src.busy()
	return src, dst, client, path
}

// TestQEMUGoesOnWhereTheDestinationDies: the source learns of it, and its guest runs.
func TestQEMUGoesOnWhereTheDestinationDies(t *testing.T) {
	src, dst, _, path := apart(t)
	src.do("migrate-set-parameters", map[string]any{"downtime-limit": 1, "max-bandwidth": 1 << 20})
	src.do("migrate", map[string]any{"uri": "unix:" + path})
	src.until("active")
	dst.process.Kill()
	src.until("failed")
	src.busy()
}

func TestQEMUMovesThroughTheCodec(t *testing.T) {
	src, dst, client, path := apart(t)

	// Below what a round's rest needs, so that there are several; then enough.
	src.do("migrate-set-parameters", map[string]any{"downtime-limit": 1, "max-bandwidth": 8 << 20})
	src.do("migrate", map[string]any{"uri": "unix:" + path})
	var state struct {
		Status string
		RAM    struct {
			Rounds      int    `json:"dirty-sync-count"`
			Transferred uint64 `json:"transferred"`
		}
	}
	query := func() {
		if err := json.Unmarshal(src.do("query-migrate", nil), &state); err != nil {
			t.Fatal(err)
		}
	}
	for query(); state.RAM.Rounds < 5 && (state.Status == "setup" || state.Status == "active"); query() {
	}
	src.do("migrate-set-parameters", map[string]any{"downtime-limit": 2000, "max-bandwidth": 0})
	src.until("pre-switchover")
	src.do("migrate-continue", map[string]any{"state": "pre-switchover"})
	src.until("completed")
	dst.until("completed")
	query()
	stats := client.Memory()
	in, out := stats.Total()
	t.Logf("%d rounds, %d bytes in %d, pages %v", state.RAM.Rounds, in, out, stats.Pages)
	sent, arrived := src.memory(), dst.memory()
	if !bytes.Equal(sent, arrived) {
		t.Error("the guest has another memory than it had")
	}
	if out*3 > in || in < state.RAM.Transferred/2 {
		t.Errorf("%d bytes of %d cross", out, in)
	}
	dst.do("cont", nil)
	dst.busy()
}

// TestQEMUMovesOverItsImage: what a guest has read, and not changed since, does not cross.
func TestQEMUMovesOverItsImage(t *testing.T) {
	src := newMachine(t)
	src.busy()
	const first, last = 1 << 20, 0x240000 // what the guest fills; it goes on changing every third page
	m, had := &imageOf{name: "a"}, src.memory()
	for at := first; at < last; at += 4096 {
		m.pages = append(m.pages, [4096]byte(had[at:]))
	}
	p := newPKI(t)
	sock := filepath.Join(t.TempDir(), "in.sock")
	addr := encodingDestination(t, p, withImages(m), sock)
	client := &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: withImages(m), Image: m.name}
	path, _ := source(t, client, memory)
	dst := newMachine(t, "-S", "-incoming", "unix:"+sock)
	src.do("migrate-set-parameters", map[string]any{"downtime-limit": 2000, "max-bandwidth": 0})
	src.do("migrate", map[string]any{"uri": "unix:" + path})
	src.until("pre-switchover")
	src.do("migrate-continue", map[string]any{"state": "pre-switchover"})
	src.until("completed")
	dst.until("completed")
	stats := client.Memory()
	t.Logf("pages %v", stats.Pages)
	if stats.Pages[wan.Image] < 80 { // half of the pages are like another: that is a dup
		t.Errorf("%d pages are found in the image", stats.Pages[wan.Image])
	}
	if !bytes.Equal(src.memory(), dst.memory()) {
		t.Error("the guest has another memory than it had")
	}
	dst.do("cont", nil)
	dst.busy()
}
