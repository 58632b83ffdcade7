package nbd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// raw is a connection on which bytes are sent and looked at.
type raw struct {
	t *testing.T
	net.Conn
}

func rawDial(t *testing.T, path string, flags uint32) raw {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r := raw{t, conn}
	if b := r.take(18); binary.BigEndian.Uint64(b) != magicServer || binary.BigEndian.Uint64(b[8:]) != magicOption || b[17] != 3 {
		t.Fatalf("greeting %x", b)
	}
	r.give(binary.BigEndian.AppendUint32(nil, flags))
	return r
}

func (r raw) give(b []byte) {
	r.t.Helper()
	if _, err := r.Write(b); err != nil {
		r.t.Fatal(err)
	}
}

func (r raw) take(n int) []byte {
	r.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		r.t.Fatal(err)
	}
	return b
}

// closed says whether the server ended the connection without another byte.
func (r raw) closed() bool {
	n, err := r.Read(make([]byte, 1))
	return n == 0 && err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

// option sends one option and returns its replies, as "KIND payload", up to the last.
func (r raw) option(option uint32, body string) (replies []string) {
	r.t.Helper()
	r.give(appendOption(nil, option, []byte(body)))
	for {
		o, kind, payload, err := readOptionReply(r)
		if err != nil || o != option {
			r.t.Fatalf("reply to option %d: %d, %v", option, o, err)
		}
		if kind&repErrorBit != 0 {
			return append(replies, fmt.Sprintf("error %d", kind&^repErrorBit))
		}
		if kind == repAck {
			return append(replies, "ack")
		}
		replies = append(replies, fmt.Sprintf("%d %q", kind, payload))
	}
}

func text(s string) string { return string(binary.BigEndian.AppendUint32(nil, uint32(len(s)))) + s }

func u16(n ...uint16) string {
	var b []byte
	for _, n := range n {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	return string(b)
}

func u32(n uint32) string { return string(binary.BigEndian.AppendUint32(nil, n)) }
func u64(n uint64) string { return string(binary.BigEndian.AppendUint64(nil, n)) }

func exports() Static {
	plain := plainDevice{newMemory(8192)}
	return Static{
		"disk":  {Device: newMemory(1 << 20), MultiConn: true, Description: "a disk"},
		"fixed": {Device: newMemory(1 << 20), ReadOnly: true},
		"plain": {Device: plain},
	}
}

func TestOptions(t *testing.T) {
	blocks := fmt.Sprintf("3 %q", u16(infoBlockSize)+u32(1)+u32(64<<10)+u32(32<<20))
	export := func(size uint64, flags uint16) string {
		return fmt.Sprintf("3 %q", u16(infoExport)+u64(size)+u16(flags))
	}
	const all = flagHasFlags | flagFlush | flagFUA | flagTrim | flagWriteZeroes | flagCache | flagFastZero
	metas := func(name string, queries ...string) string {
		s := text(name) + u32(uint32(len(queries)))
		for _, q := range queries {
			s += text(q)
		}
		return s
	}
	allocation, dirty := fmt.Sprintf("4 %q", u32(1)+contextAllocation), fmt.Sprintf("4 %q", u32(2)+contextDirty)
	tests := []struct {
		name    string
		options []any // an option, its body, its replies, and so on
	}{
		{"list", []any{optList, "", []string{`2 "\x00\x00\x00\x04disk"`, `2 "\x00\x00\x00\x05fixed"`, `2 "\x00\x00\x00\x05plain"`, "ack"}}},
		{"list with data", []any{optList, "x", []string{"error 3"}}},
		{"unknown options", []any{uint32(4), "", []string{"error 1"}, 99, "abc", []string{"error 1"}, 11, "", []string{"error 1"}}}, // 11: extended headers
		{"no TLS here", []any{optStartTLS, "", []string{"error 2"}}},
		{"info", []any{optInfo, text("disk") + u16(0), []string{export(1<<20, all|flagMultiConn), blocks, "ack"}}},
		{"go", []any{optGo, text("disk") + u16(0), []string{export(1<<20, all|flagMultiConn), blocks, "ack"}}},
		{"go with structured replies", []any{optStructuredReply, "", []string{"ack"}, optGo, text("disk") + u16(0),
			[]string{export(1<<20, all|flagMultiConn|flagDF), blocks, "ack"}}},
		{"read-only", []any{optGo, text("fixed") + u16(0), []string{export(1<<20, flagHasFlags|flagFlush|flagReadOnly|flagCache), blocks, "ack"}}},
		{"plain device", []any{optGo, text("plain") + u16(0), []string{export(8192, flagHasFlags|flagFlush|flagFUA|flagTrim|flagWriteZeroes), blocks, "ack"}}},
		{"all infos", []any{optInfo, text("disk") + u16(4, infoName, infoDescription, infoBlockSize, 77),
			[]string{export(1<<20, all|flagMultiConn), blocks, fmt.Sprintf("3 %q", u16(infoName)+"disk"), fmt.Sprintf("3 %q", u16(infoDescription)+"a disk"), "ack"}}},
		{"unknown export", []any{optGo, text("none") + u16(0), []string{"error 6"}, optInfo, text("none") + u16(0), []string{"error 6"}, optInfo, text("") + u16(0), []string{"error 6"}}},
		{"malformed", []any{optGo, "", []string{"error 3"}, optGo, "\x00\x00\x00\x09disk", []string{"error 3"}, optGo, text("disk"), []string{"error 3"},
			optGo, text("disk") + u16(2, 1), []string{"error 3"}, optGo, text("disk") + u16(0) + "x", []string{"error 3"}, optGo, "\xff\xff\xff\xff", []string{"error 3"}}},
		{"too long a name", []any{optGo, text(strings.Repeat("n", nameLimit+1)) + u16(0), []string{"error 6"}}},
		{"too long", []any{optGo, strings.Repeat("x", optionLimit+1), []string{"error 9"}, optList, "x", []string{"error 3"}}},
		{"structured with data", []any{optStructuredReply, "x", []string{"error 3"}}},
		{"metadata needs structure", []any{optListMeta, metas("disk"), []string{"error 3"}, optSetMeta, metas("disk"), []string{"error 3"}}},
		{"list metadata", []any{optStructuredReply, "", []string{"ack"}, optListMeta, metas("disk"), []string{allocation, dirty, "ack"},
			optListMeta, metas("plain"), []string{allocation, "ack"}, optListMeta, metas("disk", "base:"), []string{allocation, "ack"},
			optListMeta, metas("disk", "heliotrope:", "x:y"), []string{dirty, "ack"}, optListMeta, metas("disk", "qemu:"), []string{"ack"}, optListMeta, metas("none"), []string{"error 6"}}},
		{"set metadata", []any{optStructuredReply, "", []string{"ack"}, optSetMeta, metas("disk"), []string{"ack"}, optSetMeta, metas("disk", contextDirty, contextAllocation),
			[]string{allocation, dirty, "ack"}, optSetMeta, metas("disk", "base:", "base:other"), []string{"ack"}, optSetMeta, metas("plain", contextDirty), []string{"ack"}}},
		{"malformed metadata", []any{optStructuredReply, "", []string{"ack"}, optSetMeta, "", []string{"error 3"}, optSetMeta, text("disk") + u32(1<<31), []string{"error 3"},
			optSetMeta, metas("disk", "base:") + "x", []string{"error 3"}, optListMeta, text("disk") + u32(1) + u32(9) + "base:", []string{"error 3"}}},
	}
	path := serve(t, NewServer(exports(), nil, logTo(t)))
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := rawDial(t, path, handshakeFixed|handshakeNoZeroes)
			for o := range slices.Chunk(test.options, 3) {
				option, ok := o[0].(uint32)
				if !ok {
					option = uint32(o[0].(int))
				}
				if got, want := r.option(option, o[1].(string)), o[2].([]string); !slices.Equal(got, want) {
					t.Errorf("option %d %.40q: %q, want %q", option, o[1], got, want)
				}
			}
		})
	}
}

func TestExportName(t *testing.T) {
	path := serve(t, NewServer(exports(), nil, logTo(t)))
	for _, padded := range []bool{false, true} {
		flags, n := uint32(handshakeFixed|handshakeNoZeroes), 10
		if padded {
			flags, n = handshakeFixed, 134
		}
		r := rawDial(t, path, flags)
		r.give(appendOption(nil, optExportName, []byte("disk")))
		if b := r.take(n); binary.BigEndian.Uint64(b) != 1<<20 || binary.BigEndian.Uint16(b[8:])&flagFlush == 0 {
			t.Errorf("%x", b)
		}
		r.give(encode(cmdRead, 0, 7, 0, 512))
		if b := r.take(simpleSize + 512); binary.BigEndian.Uint32(b) != magicSimple || binary.BigEndian.Uint64(b[8:]) != 7 {
			t.Errorf("%x", b)
		}
	}
	r := rawDial(t, path, handshakeFixed)
	if r.give(appendOption(nil, optExportName, []byte("none"))); !r.closed() {
		t.Error("an unknown export does not end the connection")
	}
}

// Those that are not NBD clients are let go.
func TestNoClient(t *testing.T) {
	path := serve(t, NewServer(exports(), nil, logTo(t)))
	if r := rawDial(t, path, 1<<7); !r.closed() {
		t.Error("unknown flags are taken")
	}
	r := rawDial(t, path, handshakeFixed)
	if r.give([]byte("GET / HTTP/1.1\r\n\r\n")); !r.closed() {
		t.Error("another protocol is taken")
	}
	r = rawDial(t, path, handshakeFixed)
	if got := r.option(optAbort, ""); !slices.Equal(got, []string{"ack"}) || !r.closed() {
		t.Error(got)
	}
}

// Contexts hold only for the export that they were chosen for.
func TestContextsOfAnotherExport(t *testing.T) {
	path := serve(t, NewServer(exports(), nil, logTo(t)))
	for name, want := range map[string]uint16{"disk": chunkStatus, "fixed": chunkError} {
		r := rawDial(t, path, handshakeFixed|handshakeNoZeroes)
		r.option(optStructuredReply, "")
		r.option(optSetMeta, text("disk")+u32(1)+text(contextAllocation))
		r.option(optGo, text(name)+u16(0))
		r.give(encode(cmdBlockStatus, 0, 1, 0, 4096))
		if got := binary.BigEndian.Uint16(r.take(chunkSize)[6:]); got != want {
			t.Errorf("%s: chunk %#x, want %#x", name, got, want)
		}
	}
}

// authority makes certificates, and a file of its own for programs.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (a *authority) issue(t *testing.T, name string) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: a.cert == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert == nil {
		a.cert, a.key = leaf, key
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, der
}

func newAuthority(t *testing.T) *authority {
	a := &authority{}
	a.issue(t, "ca")
	return a
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func TestTLS(t *testing.T) {
	a := newAuthority(t)
	cert, _ := a.issue(t, "localhost")
	path := serve(t, NewServer(exports(), &tls.Config{Certificates: []tls.Certificate{cert}}, logTo(t)))
	r := rawDial(t, path, handshakeFixed|handshakeNoZeroes)
	for _, option := range []uint32{optList, optInfo, optGo, optStructuredReply, optListMeta, optSetMeta, 99} {
		if got := r.option(option, ""); !slices.Equal(got, []string{"error 5"}) {
			t.Errorf("option %d before TLS: %q", option, got)
		}
	}
	if got := r.option(optStartTLS, "x"); !slices.Equal(got, []string{"error 3"}) {
		t.Errorf("TLS with data: %q", got)
	}
	if got := r.option(optStartTLS, ""); !slices.Equal(got, []string{"ack"}) {
		t.Fatal(got)
	}
	inside := tls.Client(r.Conn, &tls.Config{RootCAs: a.pool(), ServerName: "localhost"})
	if err := inside.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Conn = inside
	if got := r.option(optStartTLS, ""); !slices.Equal(got, []string{"error 3"}) {
		t.Errorf("TLS inside TLS: %q", got)
	}
	if got := r.option(optGo, text("disk")+u16(0)); got[len(got)-1] != "ack" {
		t.Fatal(got)
	}
	r.give(append(encode(cmdWrite, cmdFlagFUA, 1, 4096, 5), "hello"...))
	r.take(simpleSize)
	r.give(slices.Concat(encode(cmdRead, 0, 2, 4096, 5), encode(cmdRead, 0, 3, 0, 200_000)))
	if b := r.take(simpleSize + 5); string(b[simpleSize:]) != "hello" {
		t.Errorf("%q", b)
	}
	r.take(simpleSize + 200_000)

	r = rawDial(t, path, handshakeFixed)
	if r.give(appendOption(nil, optExportName, []byte("disk"))); !r.closed() {
		t.Error("an export without TLS")
	}
	// What comes in clear behind the option is not taken for something said inside.
	r = rawDial(t, path, handshakeFixed)
	r.give(appendOption(appendOption(nil, optStartTLS, nil), optGo, []byte(text("disk")+u16(0))))
	if _, kind, _, err := readOptionReply(r); err != nil || kind != repAck {
		t.Fatal(kind, err)
	}
	if b, err := io.ReadAll(r); len(b) > 7 { // an alert
		t.Errorf("%x, %v", b, err)
	}
}

// The socket is its owner's alone, and what a killed process left is no hindrance.
func TestListen(t *testing.T) {
	path := t.TempDir() + "/s"
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := Listen(t.Context(), path); err == nil {
		t.Error("two listen on one socket")
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	again, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), path); err == nil {
		t.Error("a file was replaced")
	}
}

// An export that cannot be opened is the client's to know, why it cannot is the log's. What
// was opened is released.
func TestExportsThatFail(t *testing.T) {
	var opened atomic.Int32
	path := serve(t, NewServer(exportsFunc(func(name string) (Export, error) {
		if name == "broken" {
			return Export{}, errors.New("the disk is on fire")
		}
		opened.Add(1)
		return Export{Device: newMemory(4096), Release: func() { opened.Add(-1) }}, nil
	}), nil, logTo(t)))
	r := rawDial(t, path, handshakeFixed)
	if got := r.option(optGo, text("broken")+u16(0)); !slices.Equal(got, []string{"error 6"}) {
		t.Error(got)
	}
	if got := r.option(optList, ""); !slices.Equal(got, []string{"error 2"}) {
		t.Error(got)
	}
	r.option(optStructuredReply, "")
	r.option(optInfo, text("a")+u16(0))
	r.option(optListMeta, text("a")+u32(0))
	r.option(optGo, text("a")+u16(0))
	r.give(encode(cmdDisconnect, 0, 0, 0, 0))
	if !r.closed() || opened.Load() != 0 {
		t.Errorf("%d exports were not released", opened.Load())
	}
}

type exportsFunc func(string) (Export, error)

func (f exportsFunc) Export(_ context.Context, name string) (Export, error) { return f(name) }
func (f exportsFunc) Names(context.Context) ([]string, error)               { return nil, errors.New("no") }
