package ovsdb

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	libovsdb "github.com/ovn-kubernetes/libovsdb/ovsdb"

	"heliotrope"
)

func TestGuard(t *testing.T) {
	pass := []string{
		`{"id":1,"result":["Open_vSwitch"],"error":null}`,
		`{"id":"echo","method":"echo","params":[]}`,
		`{"id":7,"result":[{"count":1},{"rows":[{"_uuid":["uuid","x"],"o":["map",[["a","{\"]"]]],"s":["set",[]]}]}],"error":null}`,
	}
	keep := []string{`{"id":null,"method":"update2","params":[{},{}]}`, `{"method":"update3"}`}
	refuse := []string{
		`{}`, `[]`, `x`, `{"id":null,"result":[]}`, `{"id":-1,"result":[]}`, `{"id":1,"result":null,"error":{"error":"no"}}`,
		`{"method":"echo","params":[]}`, `{"id":1,"method":"echo"}`, `{"id":1,"method":"transact","params":[]}`,
		`{"id":1,"result":[{"rows":[{"a":[]}]}],"error":null}`, `{"id":1,"result":[{"rows":[{"a":["set",1]}]}]}`,
		`{"id":1,"result":[{"uuid":["uuid"]}]}`, `{"id":1,"result":[{"rows":[{"a":["map",[[]]]}]}]}`,
		strings.Repeat(`{"a":`, maxDepth+1), `{"a":"` + strings.Repeat("x", maxMessage),
	}
	for _, in := range pass {
		if out, changes, err := guarded(in + " " + in); err != io.EOF || out != in+in || changes != 0 {
			t.Errorf("%s: got %q, %d changes, %v; want it passed on", in, out, changes, err)
		}
	}
	for _, in := range keep {
		if out, changes, err := guarded(in); err != io.EOF || out != "" || changes != 1 {
			t.Errorf("%s: got %q, %d changes, %v; want one change", in, out, changes, err)
		}
	}
	for _, in := range refuse {
		if out, _, err := guarded(in); err == nil || err == io.EOF || out != "" {
			t.Errorf("%.80s: got %q, %v; want it refused", in, out, err)
		}
	}
}

func guarded(in string) (out string, changes int, err error) {
	var b bytes.Buffer
	g := guard{r: bufio.NewReader(strings.NewReader(in)), changed: func() { changes++ }}
	err = g.copyTo(&b)
	return b.String(), changes, err
}

// A host that answers nonsense, or nothing, must cost the connection and no more.
func TestHostileHost(t *testing.T) {
	for _, answer := range []string{`{}`, `{"id":1,"result":[{"a":[]}],"error":null}`, `{"id":1,"result":7,"error":null}`, ``} {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = theirs.Read(make([]byte, 1024)) // the first question
			_, _ = io.WriteString(theirs, answer)
			_, _ = io.Copy(io.Discard, theirs)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		s, err := Connect(ctx, ours, Options{})
		cancel()
		if err == nil {
			s.Close()
			t.Errorf("%s: connected", answer)
			continue
		}
		t.Logf("%s: %v", answer, err)
	}
}

func FuzzGuard(f *testing.F) {
	f.Add([]byte(`{"id":1,"result":[{"rows":[{"o":["map",[["a",["uuid","b"]]]],"s":["set",[1,true]]}],"uuid":["uuid","x"]}],"error":null}`))
	f.Add([]byte(`{"id":1,"result":{"name":"Open_vSwitch","version":"8","tables":{"B":{"columns":{"a":{"type":{"key":{"type":"string","enum":["set",["x"]]},"min":0,"max":"unlimited"}}},"indexes":[["a"]]}}}}`))
	f.Add([]byte(`{"id":1,"result":{"Bridge":{"u":{"initial":{"name":"x"},"modify":{"a":["set",[]]}}}}}{"method":"update2"}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out bytes.Buffer
		g := guard{r: bufio.NewReader(bytes.NewReader(in)), changed: func() {}}
		_ = g.copyTo(&out)
		for dec := json.NewDecoder(&out); dec.More(); { // whatever passed must be safe to decode
			var m struct{ Result json.RawMessage }
			if err := dec.Decode(&m); err != nil {
				t.Fatalf("passed on what is no JSON: %v", err)
			}
			var ops []libovsdb.OperationResult
			_ = json.Unmarshal(m.Result, &ops)
		}
	})
}

func FuzzTunnelName(f *testing.F) {
	f.Add("eu-1", "eu-2")
	f.Add("a-very-long-name-of-a-host-1", "a-very-long-name-of-a-host-2")
	f.Add("mesh", "")
	f.Fuzz(func(t *testing.T, a, b string) {
		na, nb := TunnelName(heliotrope.HostID(a)), TunnelName(heliotrope.HostID(b))
		if len(na) > maxPortName || !strings.HasPrefix(na, tunnelPrefix) || na == MeshPort || !utf8.ValidString(na) {
			t.Errorf("TunnelName(%q) = %q", a, na)
		}
		if a != b && na == nb && !strings.HasPrefix(na[len(na)-7:], "-") {
			t.Errorf("%q and %q share the name %q, which has no hash", a, b, na)
		}
	})
}

func FuzzParseBFD(f *testing.F) {
	f.Add("up", "true", "No Diagnostic", "3")
	f.Add("", "x", "", "-1")
	f.Fuzz(func(t *testing.T, state, forwarding, diagnostic, flaps string) {
		b, ok := parseBFD(map[string]string{"state": state, "forwarding": forwarding, "diagnostic": diagnostic, "flap_count": flaps})
		if ok != (state != "") || b.State != state || b.Forwarding != (ok && forwarding == "true") {
			t.Errorf("got %+v, %v", b, ok)
		}
	})
}

func TestWantNames(t *testing.T) {
	for host, want := range map[heliotrope.HostID]string{
		"eu-1": "vx-eu-1", "frankfurt-12": "vx-frankfurt-12", "frankfurt-123": "vx-frank-f52c60", "mesh": "vx-mesh-d30ca7",
	} {
		if got := TunnelName(host); got != want || len(got) > maxPortName {
			t.Errorf("TunnelName(%s) = %s, want %s", host, got, want)
		}
	}
}
