package nbd

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Here the clients are those that people use.

// command runs a program and returns what it printed.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("there is no %s: run make deps", name)
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func uri(path, export string) string { return "nbd+unix:///" + export + "?socket=" + path }

// sparse makes an image of 64 MiB, of which every 8th MiB has data, and some of that is zeros.
func sparse(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := rand.New(rand.NewPCG(3, 4))
	p := make([]byte, 1<<20)
	for i := range p[:1<<19] {
		p[i] = byte(r.Uint32())
	}
	err = f.Truncate(64 << 20)
	for off := int64(1 << 20); off < 64<<20; off += 8 << 20 {
		_, e := f.WriteAt(p, off)
		err = errors.Join(err, e)
	}
	if err = errors.Join(err, f.Sync()); err != nil {
		t.Fatal(err)
	}
	return path
}

func openFile(t *testing.T, path string, readOnly bool) *File {
	t.Helper()
	d, err := OpenFile(path, readOnly)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestNbdinfo(t *testing.T) {
	m := newMemory(64 << 20)
	m.WriteAt(t.Context(), make([]byte, 1<<20), 1<<20, false)
	path := serve(t, NewServer(Static{"disk": {Device: m, MultiConn: true, Description: "a disk"}, "fixed": {Device: newMemory(4096), ReadOnly: true}}, nil, logTo(t)))
	var info struct {
		Protocol   string
		TLS        bool
		Structured bool
		Exports    []map[string]any
	}
	if err := json.Unmarshal([]byte(command(t, "nbdinfo", "--json", uri(path, "disk"))), &info); err != nil {
		t.Fatal(err)
	}
	if info.Protocol != "newstyle-fixed" || info.TLS || !info.Structured || len(info.Exports) != 1 {
		t.Fatalf("%+v", info)
	}
	want := map[string]any{"export-name": "disk", "description": "a disk", "export-size": 67108864.0, "contexts": []any{contextAllocation, contextDirty}, "is_read_only": false,
		"can_cache": true, "can_df": true, "can_fast_zero": true, "can_flush": true, "can_fua": true, "can_multi_conn": true, "can_trim": true, "can_zero": true,
		"block_size_minimum": 1.0, "block_size_preferred": 65536.0, "block_size_maximum": 33554432.0}
	for key, value := range want {
		if got := info.Exports[0][key]; fmt.Sprint(got) != fmt.Sprint(value) {
			t.Errorf("%s: %v, want %v", key, got, value)
		}
	}
	if out := command(t, "nbdinfo", "--list", uri(path, "")); !strings.Contains(out, `export="disk"`) || !strings.Contains(out, `export="fixed"`) {
		t.Error(out)
	}
	command(t, "nbdinfo", "--is", "readonly", uri(path, "fixed"))
	command(t, "nbdinfo", "--can", "connect", uri(path, "fixed"))
	if out := command(t, "nbdinfo", "--size", uri(path, "fixed")); out != "4096\n" {
		t.Error(out)
	}
	if got := extents(t, path, "disk", contextDirty); !slices.Equal(got, []string{"0+1048576=0", "1048576+1048576=1", "2097152+65011712=0"}) {
		t.Error(got)
	}
}

// extents are what nbdinfo says of a context.
func extents(t *testing.T, path, export, context string) (list []string) {
	t.Helper()
	var all []struct{ Offset, Length, Type int64 }
	if err := json.Unmarshal([]byte(command(t, "nbdinfo", "--json", "--map="+context, uri(path, export))), &all); err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		list = append(list, fmt.Sprintf("%d+%d=%d", e.Offset, e.Length, e.Type))
	}
	return list
}

// The map is that of the file, as another program sees it.
func TestMapIsTheFiles(t *testing.T) {
	image := sparse(t)
	path := serve(t, NewServer(Static{"": {Device: openFile(t, image, true), ReadOnly: true}}, nil, logTo(t)))
	var mapped []struct {
		Start, Length int64
		Zero, Data    bool
	}
	if err := json.Unmarshal([]byte(command(t, "qemu-img", "map", "-f", "raw", "--output=json", image)), &mapped); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, e := range mapped {
		state := stateHole | stateZero
		if e.Data {
			state = 0
		}
		want = append(want, fmt.Sprintf("%d+%d=%d", e.Start, e.Length, state))
	}
	if got := extents(t, path, "", contextAllocation); !slices.Equal(got, want) || len(got) != 17 {
		t.Errorf("%v, want %v", got, want)
	}
}

func equal(t *testing.T, a, b string) {
	t.Helper()
	x, err1 := os.ReadFile(a)
	y, err2 := os.ReadFile(b)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Errorf("%s and %s differ", filepath.Base(a), filepath.Base(b))
	}
}

// target makes an empty image of 64 MiB.
func target(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "target")
	if err := errors.Join(os.WriteFile(path, bytes.Repeat([]byte{9}, 64<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestNbdcopy(t *testing.T) {
	image, there, back := sparse(t), target(t), filepath.Join(t.TempDir(), "back")
	path := serve(t, NewServer(Static{"in": {Device: openFile(t, there, false), MultiConn: true}, "out": {Device: openFile(t, image, true), ReadOnly: true, MultiConn: true}}, nil, logTo(t)))
	command(t, "nbdcopy", "--flush", image, uri(path, "in"))
	equal(t, image, there)
	command(t, "nbdcopy", uri(path, "out"), back)
	equal(t, image, back)
	if err := os.WriteFile(there, bytes.Repeat([]byte{9}, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "nbdcopy", uri(path, "out"), uri(path, "in"))
	equal(t, image, there)
}

func TestQEMU(t *testing.T) {
	image, there := sparse(t), target(t)
	qcow2, raw := filepath.Join(t.TempDir(), "q"), filepath.Join(t.TempDir(), "r")
	d := openFile(t, there, false)
	path := serve(t, NewServer(Static{"disk": {Device: d, MultiConn: true}}, nil, logTo(t)))
	disk := uri(path, "disk")
	command(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, disk)
	command(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, disk)
	equal(t, image, there)
	command(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, qcow2)
	command(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", qcow2, raw)
	equal(t, image, raw)
	out := command(t, "qemu-io", "-f", "raw", "-c", "write -f -P 0xab 1000000 300000", "-c", "read -P 0xab 1000000 300000", "-c", "flush", "-c", "write -z -u 0 2M", "-c", "read -P 0 0 2M",
		"-c", "discard 9M 1M", "-c", "aio_write -P 1 20M 1M", "-c", "aio_write -P 2 21M 1M", "-c", "aio_flush", "-c", "read -P 2 21M 1M", disk)
	if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
		t.Error(out)
	}
	got, err := os.ReadFile(there)
	if err != nil || got[20<<20] != 1 || got[22<<20-1] != 2 || !isZero(got[:2<<20]) || !isZero(got[9<<20:10<<20]) {
		t.Error("qemu-io wrote something else", err)
	}
}

// A program with a certificate gets in, and one that speaks in clear does not.
func TestProgramsWithTLS(t *testing.T) {
	a := newAuthority(t)
	dir := t.TempDir()
	save := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	save("ca-cert.pem", "CERTIFICATE", a.cert.Raw)
	client, der := a.issue(t, "client")
	save("client-cert.pem", "CERTIFICATE", der)
	key, err := x509.MarshalPKCS8PrivateKey(client.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	save("client-key.pem", "PRIVATE KEY", key)
	server, _ := a.issue(t, "localhost")
	image, back := sparse(t), filepath.Join(dir, "back")
	path := serve(t, NewServer(Static{"": {Device: openFile(t, image, true), ReadOnly: true, MultiConn: true}},
		&tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool()}, logTo(t)))
	secure := "nbds+unix:///?socket=" + path + "&tls-certificates=" + dir + "&tls-verify-peer=false"
	if out := command(t, "nbdinfo", "--json", secure); !strings.Contains(out, `"TLS": true`) {
		t.Error(out)
	}
	command(t, "nbdcopy", secure, back)
	equal(t, image, back)
	if out, err := exec.Command("nbdinfo", uri(path, "")).CombinedOutput(); err == nil {
		t.Errorf("in clear: %s", out)
	}
}
