package rest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"heliotrope/controller/api"
)

const testToken = "htok-test"

// testServer is a server on a unix socket and on loopback, with a memory behind it.
type testServer struct {
	memory *memory
	unix   string
	tcp    string
	ca     string
}

func serve(t *testing.T, o Options) testServer {
	t.Helper()
	m := newMemory()
	sum := sha256.Sum256([]byte(testToken))
	o.TokenHash = sum[:]
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	h, err := NewHandler(m.backend(), o)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "api") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := testServer{memory: m, unix: filepath.Join(dir, "api.sock")}
	cert, ca := certificate(t)
	s.ca = ca
	server, err := Listen(t.Context(), ServerConfig{Socket: s.unix, TCP: []string{"127.0.0.1:0"}, TLS: cert, Handler: h, Log: o.Log})
	if err != nil {
		t.Fatal(err)
	}
	s.tcp = "https://" + server.Addrs()[1].(*net.TCPAddr).String()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("server ended with %v", err)
		}
	})
	return s
}

func (s testServer) client(t *testing.T) *api.Client {
	c := api.NewUnixClient(s.unix)
	t.Cleanup(c.Close)
	return c
}

// http is a client that knows nothing but HTTP, on the unix socket.
func (s testServer) http(t *testing.T) *http.Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.unix)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// example applies the demo's topology.
func (s testServer) example(t *testing.T) []byte {
	t.Helper()
	data, err := os.ReadFile("../../topologies/three-clouds.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client(t).ApplyTopology(t.Context(), data, 0); err != nil {
		t.Fatal(err)
	}
	return data
}

// answer is a response that was read to its end.
type answer struct {
	*http.Response
	body []byte
}

func (s testServer) ask(t *testing.T, method, path string, header map[string]string, body io.Reader) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://x"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	return answerOf(t, s.http(t).Transport, req)
}

func answerOf(t *testing.T, transport http.RoundTripper, req *http.Request) answer {
	t.Helper()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp, data}
}

// certificate makes a CA that is its own server.
func certificate(t *testing.T) (*tls.Config, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, string(ca)
}

// routes is every route of the API as its description lists them.
func routes(t *testing.T, s testServer) (all []string) {
	t.Helper()
	var doc struct{ Paths map[string]map[string]any }
	if err := json.Unmarshal(s.ask(t, "GET", "/openapi.json", nil, nil).body, &doc); err != nil {
		t.Fatal(err)
	}
	for path, methods := range doc.Paths {
		for method := range methods {
			all = append(all, strings.ToUpper(method)+" "+path)
		}
	}
	return append(all, "GET /metrics", "GET /openapi.json", "GET /v1/nothing")
}

// On TCP nothing but three routes answers without the token; with it all do.
func TestAuth(t *testing.T) {
	s := serve(t, Options{})
	s.example(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(s.ca))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	defer transport.CloseIdleConnections()
	all := routes(t, s)
	if len(all) < 30 {
		t.Fatalf("only %d routes", len(all))
	}
	for _, route := range all {
		method, path, _ := strings.Cut(route, " ")
		path = strings.NewReplacer("{host}", "nobody", "{vm}", "web", "{site}", "us", "{network}", "lan", "{id}", "x", "{ip}", "1.2.3.4").Replace(path)
		open := path == "/healthz" || path == "/readyz" || path == "/version"
		for _, token := range []string{"", "wrong", testToken} {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			req, err := http.NewRequestWithContext(ctx, method, s.tcp+path, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			if token != "" {
				req.Header.Set("Authorization", "Bearer "+token)
			}
			a := answerOf(t, transport, req)
			cancel()
			var p api.Problem
			if a.StatusCode >= 400 {
				p = wantProblem(t, a, a.StatusCode, "")
			}
			if denied := p.Type == api.TypeNoAuth && p.Status == 401; denied != (token != testToken && !open) {
				t.Errorf("%s with token %q: %d %s", route, token, a.StatusCode, a.body)
			}
		}
	}
}

// A user who is neither root nor the server's own may not use the socket.
func TestPeers(t *testing.T) {
	h, err := NewHandler(newMemory().backend(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		peer   peer
		path   string
		status int
	}{{peer{uid: 0, admin: true}, "/v1/vms", 200}, {peer{uid: 1000}, "/v1/vms", 403}, {peer{uid: 1000}, "/healthz", 200}} {
		var probe statusProbe
		probe.status = 200
		r, err := http.NewRequestWithContext(context.WithValue(t.Context(), peerKey, c.peer), "GET", c.path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		h.ServeHTTP(&probe, r)
		if probe.status != c.status {
			t.Errorf("%+v at %s: %d, want %d", c.peer, c.path, probe.status, c.status)
		}
	}
}

func TestSocket(t *testing.T) {
	s := serve(t, Options{})
	info, err := os.Stat(s.unix)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket is %v, %v", info, err)
	}
	if _, err := Listen(t.Context(), ServerConfig{Socket: s.unix}); err == nil {
		t.Error("a second controller took the socket of a live one")
	}
	// A socket that nobody answers at is replaced.
	dead := s.unix + ".dead"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Listen(t.Context(), ServerConfig{Socket: dead})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.close(); err != nil {
		t.Error(err)
	}
	if _, err := Listen(t.Context(), ServerConfig{TCP: []string{"127.0.0.1:0"}}); err == nil {
		t.Error("listens on TCP without a certificate")
	}
}
