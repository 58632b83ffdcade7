package agentapi

import (
	"context"
	"errors"
	"heliotrope"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// registry is a controller's book of tokens and hosts.
type registry struct {
	ca      *CA
	ttl     time.Duration
	mu      sync.Mutex
	tokens  map[string]TokenRecord
	revoked map[heliotrope.HostID]bool
	seen    int // secrets that were told to it
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	ca, err := NewCA()
	if err != nil {
		t.Fatal(err)
	}
	return &registry{ca: ca, ttl: HostTTL, tokens: map[string]TokenRecord{}, revoked: map[heliotrope.HostID]bool{}}
}

func (r *registry) token(t *testing.T, host heliotrope.HostID, ttl time.Duration) Token {
	t.Helper()
	token, record, err := r.ca.NewToken(host, ttl)
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens[record.ID] = record
	return token
}

func (r *registry) join(_ context.Context, req JoinRequest) (JoinAnswer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	host := req.Renew
	if host == "" {
		r.seen++
		record := r.tokens[req.TokenID]
		if err := record.Check(req, time.Now()); err != nil {
			return JoinAnswer{}, err
		}
		record.UsedAt = time.Now()
		r.tokens[req.TokenID] = record
		host = record.Host
	}
	cert, err := r.ca.SignHost(req.CSR, host, r.ttl)
	return JoinAnswer{Host: host, Certificate: cert}, err
}

func (r *registry) allowed(h heliotrope.HostID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.revoked[h]
}

func (r *registry) revoke(h heliotrope.HostID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revoked[h] = true
}

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// listen runs a controller's port until stop is called or the test ends.
func listen(t *testing.T, addr string, ca *CA, a Acceptor) (at string, stop func()) {
	t.Helper()
	id, err := ca.IssueController("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(t.Context(), addr, id, a, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var g sync.WaitGroup
	g.Go(func() {
		if err := l.Serve(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Serve: got %v, want context.Canceled", err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); g.Wait() })
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

func TestJoin(t *testing.T) {
	r := newRegistry(t)
	addr, _ := listen(t, "127.0.0.1:0", r.ca, Acceptor{Join: r.join, Allowed: r.allowed})
	ctx := within(t, 20*time.Second)

	token := r.token(t, "paris-1", TokenTTL)
	written, err := ParseToken(token.String())
	if err != nil || written != token {
		t.Fatalf("ParseToken(%q): got %v, %v", token, written, err)
	}
	creds, err := Join(ctx, addr, written, "test")
	if err != nil {
		t.Fatalf("first join: %v", err)
	}
	id, err := ParseIdentity(creds.CA, creds.CertAndKey)
	if err != nil || id.Host() != "paris-1" || creds.Host != "paris-1" {
		t.Fatalf("identity: got %v, %v, want host paris-1", id.Host(), err)
	}
	if left := time.Until(id.RenewAt()); left < 11*time.Hour || left > 12*time.Hour {
		t.Errorf("renew in %s, want about 12 h", left)
	}

	if _, err := Join(ctx, addr, token, "test"); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "used") {
		t.Errorf("second use of a token: got %v, want ErrRefused that says used", err)
	}
	if _, err := Join(ctx, addr, r.token(t, "paris-2", -time.Second), "test"); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired token: got %v, want ErrRefused that says expired", err)
	}
	wrong := r.token(t, "paris-2", TokenTTL)
	wrong.Secret = strings.Repeat("0", 64)
	if _, err := Join(ctx, addr, wrong, "test"); !errors.Is(err, ErrRefused) {
		t.Errorf("wrong secret: got %v, want ErrRefused", err)
	}

	told := r.seen
	foreign := r.token(t, "paris-2", TokenTTL)
	foreign.CAHash[0] ^= 1
	if _, err := Join(ctx, addr, foreign, "test"); err == nil || r.seen != told {
		t.Errorf("a token of another controller: got %v and %d secrets told, want an error and none", err, r.seen-told)
	}
}

func TestRenew(t *testing.T) {
	r := newRegistry(t)
	addr, _ := listen(t, "127.0.0.1:0", r.ca, Acceptor{Join: r.join, Allowed: r.allowed})
	ctx := within(t, 20*time.Second)
	creds, err := Join(ctx, addr, r.token(t, "paris-1", TokenTTL), "test")
	if err != nil {
		t.Fatal(err)
	}
	id, err := ParseIdentity(creds.CA, creds.CertAndKey)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := Renew(ctx, addr, id, "test")
	if err != nil {
		t.Fatalf("renew: %v", err)
	}
	if err := id.Replace(fresh); err != nil || id.Host() != "paris-1" {
		t.Fatalf("replace: %v; host %q", err, id.Host())
	}

	other := newRegistry(t)
	stranger, err := ParseIdentity(creds.CA, signed(t, other.ca, "paris-1", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Renew(ctx, addr, stranger, "test"); err == nil {
		t.Error("a certificate of another CA was renewed")
	}
	expired, err := ParseIdentity(creds.CA, signed(t, r.ca, "paris-1", -time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Renew(ctx, addr, expired, "test"); err == nil {
		t.Error("an expired certificate was renewed")
	}
	r.revoke("paris-1")
	if _, err := Renew(ctx, addr, id, "test"); err == nil {
		t.Error("the certificate of a revoked host was renewed")
	}
}

// signed is a certificate and key for host, PEM.
func signed(t *testing.T, ca *CA, host heliotrope.HostID, ttl time.Duration) []byte {
	t.Helper()
	key, csr, err := newRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignHost(csr, host, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return append(cert, key...)
}

func identity(t *testing.T, ca *CA, host heliotrope.HostID) *Identity {
	t.Helper()
	id, err := ParseIdentity(ca.CertPEM(), signed(t, ca, host, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestCAIsKept(t *testing.T) {
	r := newRegistry(t)
	data, err := r.ca.PEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseCA(data)
	if err != nil || again.Hash() != r.ca.Hash() {
		t.Fatalf("ParseCA: %v", err)
	}
	if _, err := ParseCA(r.ca.CertPEM()); err == nil {
		t.Error("a CA without its key was accepted")
	}
	for _, name := range []heliotrope.HostID{"", "Paris", "a/b", "../x", "-a", heliotrope.HostID(strings.Repeat("a", 64))} {
		_, csr, err := newRequest()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := again.SignHost(csr, name, time.Hour); err == nil {
			t.Errorf("a certificate for %q was signed", name)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("HT10" + strings.Repeat("a", 64) + ".0123456789abcdef." + strings.Repeat("b", 64))
	f.Add("HT10..")
	f.Add("K10::server")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseToken(s)
		if err == nil && token.String() != strings.TrimSpace(s) {
			t.Errorf("%q is read as %q", s, token)
		}
	})
}

func TestForeignConnectionsAreRefused(t *testing.T) {
	r := newRegistry(t)
	reached := func() { t.Error("a connection got through") }
	addr, _ := listen(t, "127.0.0.1:0", r.ca, Acceptor{
		Join: r.join, Allowed: r.allowed,
		OnRPC:      func(context.Context, *Agent) { reached() },
		OnOVSDB:    func(context.Context, heliotrope.HostID, net.Conn) { reached() },
		OnOpenFlow: func(context.Context, heliotrope.HostID, net.Conn) { reached() },
	})
	ctx := within(t, 20*time.Second)
	ends := func(c net.Conn) bool {
		deadline, _ := ctx.Deadline()
		c.SetReadDeadline(deadline)
		_, err := c.Read(make([]byte, 1024))
		return err != nil && !errors.Is(err, context.DeadlineExceeded)
	}

	plain, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := plain.Write([]byte("GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	plain.SetReadDeadline(time.Now().Add(10 * time.Second))
	answer := make([]byte, 1024)
	if n, _ := plain.Read(answer); strings.HasPrefix(string(answer[:n]), "HTTP") && !strings.Contains(string(answer[:n]), "400") {
		t.Errorf("plain text was answered: %q", answer[:n])
	}

	controller, err := r.ca.IssueController()
	if err != nil {
		t.Fatal(err)
	}
	other := newRegistry(t)
	r.revoke("gone")
	ca := identity(t, r.ca, "x").ca
	stranger := identity(t, other.ca, "paris-1")
	stranger.ca = ca
	for name, id := range map[string]*Identity{
		"certificate of another CA": stranger,
		"controller as a host":      controller,
		"revoked host":              identity(t, r.ca, "gone"),
	} {
		for _, alpn := range []string{alpnRPC, alpnOVSDB, alpnOpenFlow} {
			conn, err := dialTLS(ctx, addr, id.ControllerClient(alpn))
			if err != nil {
				continue
			}
			if !ends(conn) {
				t.Errorf("%s: %s was accepted", name, alpn)
			}
			conn.Close()
		}
	}
	bare := identity(t, r.ca, "paris-1").ControllerClient(alpnRPC)
	bare.GetClientCertificate = nil
	if conn, err := dialTLS(ctx, addr, bare); err == nil {
		if !ends(conn) {
			t.Error("a peer without a certificate was accepted")
		}
		conn.Close()
	}
	old := identity(t, r.ca, "paris-1").ControllerClient(alpnRPC)
	old.MinVersion, old.MaxVersion = 0x0303, 0x0303
	if _, err := dialTLS(ctx, addr, old); err == nil {
		t.Error("TLS 1.2 was accepted")
	}
}

func TestHostKnowsItsController(t *testing.T) {
	r, other := newRegistry(t), newRegistry(t)
	addr, _ := listen(t, "127.0.0.1:0", other.ca, Acceptor{Join: other.join, Allowed: other.allowed})
	ctx := within(t, 10*time.Second)
	if _, err := dialTLS(ctx, addr, identity(t, r.ca, "paris-1").ControllerClient(alpnRPC)); err == nil {
		t.Error("an agent took a stranger for its controller")
	}
}
