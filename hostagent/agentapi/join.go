package agentapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"heliotrope"
	"net/http"
	"time"
)

const joinTimeout = 15 * time.Second

// JoinRequest asks for a host's certificate.
type JoinRequest struct {
	TokenID string `json:"token_id,omitempty"`
	Secret  string `json:"secret,omitempty"`
	CSR     []byte `json:"csr"` // PEM
	Version string `json:"version"`

	// Renew is set, by the listener, to the host whose certificate the connection was
	// made with; token and secret are empty then.
	Renew heliotrope.HostID `json:"-"`
}

// JoinAnswer is a host's new certificate.
type JoinAnswer struct {
	Host        heliotrope.HostID `json:"host"`
	Certificate []byte            `json:"certificate"` // PEM
}

// Credentials are what a host has of Heliotrope, as PEM.
type Credentials struct {
	Host       heliotrope.HostID
	CA         []byte // the CA's certificate
	CertAndKey []byte // secret
}

// Join lets this host become the one that token was made for. The controller at addr
// (host:port) is known by the token before it is told the secret.
func Join(ctx context.Context, addr string, token Token, version string) (Credentials, error) {
	var c Credentials
	config := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{alpnJoin},
		InsecureSkipVerify: true, // VerifyConnection does it, from the token's hash on
		VerifyConnection: func(cs tls.ConnectionState) error {
			ca, err := pinned(token.CAHash, cs)
			if err != nil {
				return err
			}
			c.CA = certPEM(ca.Raw)
			return verifyController(ca, cs)
		},
	}
	key, csr, err := newRequest()
	if err != nil {
		return Credentials{}, err
	}
	req := JoinRequest{TokenID: token.ID, Secret: token.Secret, CSR: csr, Version: version}
	answer, err := requestCertificate(ctx, addr, config, "/v1/join", req)
	if err != nil {
		return Credentials{}, fmt.Errorf("join %s: %w", addr, err)
	}
	c.Host, c.CertAndKey = answer.Host, append(answer.Certificate, key...)
	id, err := ParseIdentity(c.CA, c.CertAndKey)
	if err != nil {
		return Credentials{}, fmt.Errorf("join %s: %w", addr, err)
	}
	if id.Host() != c.Host {
		return Credentials{}, fmt.Errorf("join %s: the certificate is for %q, not %q", addr, id.Host(), c.Host)
	}
	return c, nil
}

// Renew returns a new certificate, with a new key, for the host of id, both PEM.
func Renew(ctx context.Context, addr string, id *Identity, version string) ([]byte, error) {
	key, csr, err := newRequest()
	if err != nil {
		return nil, err
	}
	answer, err := requestCertificate(ctx, addr, id.ControllerClient(alpnJoin), "/v1/renew", JoinRequest{CSR: csr, Version: version})
	if err != nil {
		return nil, fmt.Errorf("renew certificate: %w", err)
	}
	return append(answer.Certificate, key...), nil
}

func requestCertificate(ctx context.Context, addr string, config *tls.Config, path string, req JoinRequest) (JoinAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	conn, err := dialTLS(ctx, addr, config)
	if err != nil {
		return JoinAnswer{}, err
	}
	defer conn.Close()
	client, err := clientHTTP2(ctx, newEndingConn(conn))
	if err != nil {
		return JoinAnswer{}, err
	}
	defer client.Close()
	var answer JoinAnswer
	return answer, call(ctx, client, http.MethodPost, path, req, &answer)
}

// call sends body as JSON and reads the answer into result.
func call(ctx context.Context, via http.RoundTripper, method, path string, body, result any) error {
	resp, err := send(ctx, via, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return readJSON(resp.Body, result)
}

// send returns the answer to a request if it is a success.
func send(ctx context.Context, via http.RoundTripper, method, path string, body any) (*http.Response, error) {
	var content bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&content).Encode(body); err != nil {
			return nil, fmt.Errorf("encode order: %w", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://peer"+path, &content)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	resp, err := via.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	return resp, nil
}

// joinHandler serves the only requests that need no host's certificate. renew is the
// host that has one, else empty.
func joinHandler(renew heliotrope.HostID, join func(context.Context, JoinRequest) (JoinAnswer, error)) http.Handler {
	serve := func(w http.ResponseWriter, r *http.Request, host heliotrope.HostID) {
		var req JoinRequest
		if err := readJSON(http.MaxBytesReader(w, r.Body, 64<<10), &req); err != nil {
			writeError(w, err)
			return
		}
		req.Renew = host
		answer, err := join(r.Context(), req)
		if err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, answer)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/join", func(w http.ResponseWriter, r *http.Request) { serve(w, r, "") })
	mux.HandleFunc("POST /v1/renew", func(w http.ResponseWriter, r *http.Request) {
		if renew == "" {
			writeError(w, fmt.Errorf("%w: only a host that has a certificate can renew it", ErrRefused))
			return
		}
		serve(w, r, renew)
	})
	return mux
}
