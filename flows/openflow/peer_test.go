package openflow

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"antrea.io/libOpenflow/openflow15"

	"heliotrope/flows"
)

var greeting = []byte{6, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0, 8, 0, 0, 0, 1 << 6}

// featuresReply answers our first request, whose ID is 1.
var featuresReply = append([]byte{6, openflow15.Type_FeaturesReply, 0, 32, 0, 0, 0, 1}, make([]byte, 24)...)

// FuzzParse lets a peer say anything after its hello, while a dump and a bundle wait.
func FuzzParse(f *testing.F) {
	msg := func(kind uint8, xid uint32, body ...byte) []byte {
		b := binary.BigEndian.AppendUint32([]byte{6, kind, 0, byte(8 + len(body))}, xid)
		return append(b, body...)
	}
	part := func(more byte, body ...byte) []byte {
		return msg(openflow15.Type_MultiPartReply, 2, append([]byte{0, openflow15.MultipartType_FlowDesc, 0, more, 0, 0, 0, 0}, body...)...)
	}
	flow := describe(manyFlows(1)[0], Counter{}, 0)
	seeds := [][]byte{
		{}, {6}, {6, 0, 0, 0, 0, 0, 0, 0}, {6, 0, 0, 7, 0, 0, 0, 0}, {0, 0, 0, 8, 0, 0, 0, 0}, {255, 0, 0, 8, 0, 0, 0, 0},
		{6, 1, 255, 255, 0, 0, 0, 2}, msg(99, 2), msg(openflow15.Type_Error, 2), msg(openflow15.Type_Error, 2, 0, 17, 0, 13),
		msg(openflow15.Type_Error, 2, 0xff, 0xff, 0, 1, 0, 0, 0, 0), msg(openflow15.Type_Experimenter, 2, 0, 0, 0, 0),
		msg(openflow15.Type_EchoRequest, 7, 1, 2, 3), part(0), part(1), part(0, 0), part(0, 0, 0), part(0, 0, 1, 2), part(0, flow...),
		slices.Concat(part(1, flow...), part(1, flow...), part(0, flow[:9]...)), msg(openflow15.Type_RoleReply, 2), msg(openflow15.Type_BarrierReply, 5),
		msg(openflow15.Type_BundleControl, 3, 0, 0, 0, 1), slices.Concat(msg(openflow15.Type_Error, 4, 0, 5, 0, 1), msg(openflow15.Type_BarrierReply, 5), msg(openflow15.Type_BarrierReply, 7)),
	}
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		c := &Conn{opts: Options{MaxReply: 1 << 20}, done: make(chan struct{}), echo: make(chan []byte, 16), start: time.Now(), xid: 2}
		var all []entry
		ended := false
		if _, err := c.begin(1, func(_ uint32, m message) {
			if ended || m.kind() != openflow15.Type_MultiPartReply {
				return
			}
			ended = eachPart(m, openflow15.MultipartType_FlowDesc, func(b []byte) (int, error) { return nextEntry(b, func(e entry) { all = append(all, e) }) }) != nil
		}); err != nil {
			t.Fatal(err)
		}
		b := &bundling{mods: make([]flowMod, 1), barriers: make(chan error, 2)}
		if _, err := c.begin(5, b.handle); err != nil {
			t.Fatal(err)
		}
		if err := c.read(strings.NewReader(string(said))); err == nil {
			t.Fatal("reading ended without a reason")
		}
		if len(all) > len(said) {
			t.Fatalf("%d flows in %d bytes", len(all), len(said))
		}
		if len(said) >= headerLen {
			_ = checkHello(said) // must not panic
		}
	})
}

// manyFlows returns n flows of the mobility table.
func manyFlows(n int) []flows.Flow {
	all := make([]flows.Flow, n)
	for i := range all {
		all[i] = flows.Flow{Table: flows.Mobility, Priority: 100, Cookie: flows.Cookie(flows.Mobility, flows.Forward),
			Match:   flows.When(flows.Is(flows.Net, flows.Uint(100)), flows.Is(flows.EthDst, flows.Uint(i))),
			Actions: []flows.Action{flows.SetField(flows.OutPort, flows.Uint(4)), flows.Goto(flows.Out)}}
	}
	return all
}

func TestHello(t *testing.T) {
	for name, c := range map[string]struct {
		says []byte
		want string // "" is welcome
	}{
		"bitmap":                   {greeting, ""},
		"no bitmap":                {[]byte{6, 0, 0, 8, 0, 0, 0, 1}, ""},
		"newer with bitmap":        {[]byte{7, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0, 8, 0, 0, 0, 0xc0}, ""},
		"unknown element first":    {[]byte{6, 0, 0, 24, 0, 0, 0, 1, 0, 9, 0, 5, 0, 0, 0, 0, 0, 1, 0, 8, 0, 0, 0, 1 << 6}, ""},
		"only 1.3":                 {[]byte{4, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0, 8, 0, 0, 0, 1 << 4}, "does not speak OpenFlow 1.5"},
		"only 1.0, without bitmap": {[]byte{1, 0, 0, 8, 0, 0, 0, 1}, "version 0x01"},
		"element of no length":     {[]byte{6, 0, 0, 16, 0, 0, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0}, "cut short"},
		"no hello":                 {[]byte{6, 5, 0, 8, 0, 0, 0, 1}, "not a hello"},
		"refusal":                  {[]byte{6, 1, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0}, "hello failed"},
		"nothing":                  {nil, "EOF"},
		"HTTP":                     {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), "EOF"},
	} {
		ours, theirs := net.Pipe()
		go func() {
			if c.want == "" {
				serve(theirs, c.says, new(atomic.Bool))
				return
			}
			theirs.Write(c.says)
			theirs.Close()
		}()
		conn, err := New(t.Context(), ours, Options{})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err == nil {
			conn.Close()
		}
	}
}

// serve plays a switch on nc: it says hello, tells its features and then, while polite,
// answers echoes. It goes on reading until the connection ends.
func serve(nc net.Conn, hello []byte, polite *atomic.Bool) {
	defer nc.Close()
	if _, err := nc.Write(hello); err != nil {
		return
	}
	buf := make([]byte, openflow15.MSG_MAX_LEN)
	for {
		m, err := readMessage(nc, buf)
		if err != nil {
			return
		}
		switch {
		case m.kind() == openflow15.Type_FeaturesRequest:
			_, err = nc.Write(featuresReply)
		case m.kind() == openflow15.Type_EchoRequest && polite.Load():
			_, err = nc.Write(plain(openflow15.Type_EchoReply, m.xid()))
		}
		if err != nil {
			return
		}
	}
}

func TestSilentSwitchIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		var polite atomic.Bool
		polite.Store(true)
		go serve(theirs, greeting, &polite)
		c, err := New(t.Context(), ours, Options{EchoInterval: time.Second, EchoTimeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-c.Done():
			t.Fatalf("ended: %v", c.Err())
		case <-time.After(time.Hour):
		}
		polite.Store(false)
		start := time.Now()
		err = c.Barrier(t.Context())
		if err == nil || !strings.Contains(err.Error(), "silent") {
			t.Errorf("request ended with %v", err)
		}
		if took := time.Since(start); took > 7*time.Second {
			t.Errorf("noticed after %v", took)
		}
		c.Close()
	})
}

// TestDeafSwitchIsGivenUp: the switch does not even read, so that a bundle's write hangs.
func TestDeafSwitchIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		go func() {
			buf := make([]byte, openflow15.MSG_MAX_LEN)
			theirs.Write(greeting)
			readMessage(theirs, buf) // hello
			readMessage(theirs, buf) // features request
			theirs.Write(featuresReply)
		}()
		c, err := New(t.Context(), ours, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Bundle(t.Context(), manyFlows(1000), nil); err == nil {
			t.Error("Bundle succeeded")
		}
		c.Close()
		theirs.Close()
	})
}

func TestRequestEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		var polite atomic.Bool
		polite.Store(true)
		go serve(theirs, greeting, &polite)
		c, err := New(t.Context(), ours, Options{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, _, err := c.DumpFlows(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dump ended with %v", err)
		}
		if c.Err() != nil {
			t.Errorf("the connection ended with it: %v", c.Err())
		}
		c.Close()
		if err := c.Barrier(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("request on a closed connection: %v", err)
		}
	})
}

// TestEndlessReplyIsCut: a switch that never ends its reply does not fill our memory.
func TestEndlessReplyIsCut(t *testing.T) {
	ours, theirs := net.Pipe()
	go func() {
		theirs.Write(greeting)
		buf := make([]byte, openflow15.MSG_MAX_LEN)
		readMessage(theirs, buf)
		readMessage(theirs, buf)
		theirs.Write(featuresReply)
		readMessage(theirs, buf)
		part := append([]byte{6, openflow15.Type_MultiPartReply, 0, 0, 0, 0, 0, 2, 0, openflow15.MultipartType_FlowDesc, 0, 1, 0, 0, 0, 0},
			describe(manyFlows(1)[0], Counter{}, 0)...)
		binary.BigEndian.PutUint16(part[2:], uint16(len(part)))
		for {
			if _, err := theirs.Write(part); err != nil {
				return
			}
		}
	}()
	c, err := New(t.Context(), ours, Options{MaxReply: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.DumpFlows(t.Context()); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("dump ended with %v", err)
	}
	c.Close()
	theirs.Close()
}
