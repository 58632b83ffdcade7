package agentapi

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"heliotrope"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// Identity is who one end of a connection is: its certificate and key, which may be
// replaced while connections stand, and the CA that it trusts.
type Identity struct {
	ca      *x509.Certificate
	current atomic.Pointer[tls.Certificate]
	reissue func() (*tls.Certificate, error) // of a controller, which holds the CA itself
}

// ParseIdentity reads a host's identity: the CA's certificate, and the host's certificate
// and key (Credentials).
func ParseIdentity(ca, certAndKey []byte) (*Identity, error) {
	block, _ := pem.Decode(ca)
	if block == nil {
		return nil, errors.New("parse CA certificate: no PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse CA certificate: %w", err)
	}
	id := &Identity{ca: cert}
	return id, id.Replace(certAndKey)
}

// Replace makes certAndKey what new connections use.
func (id *Identity) Replace(certAndKey []byte) error {
	pair, err := tls.X509KeyPair(certAndKey, certAndKey)
	if err != nil {
		return fmt.Errorf("parse host certificate: %w", err)
	}
	id.current.Store(&pair)
	return nil
}

// Host is the host that this identity names; empty for a controller's.
func (id *Identity) Host() heliotrope.HostID {
	h, _ := hostOf(id.current.Load().Leaf)
	return h
}

// NotAfter is when the certificate ends.
func (id *Identity) NotAfter() time.Time { return id.current.Load().Leaf.NotAfter }

// RenewAt is when half of the certificate's life is over.
func (id *Identity) RenewAt() time.Time {
	leaf := id.current.Load().Leaf
	issued := leaf.NotBefore.Add(clockSkew)
	return issued.Add(leaf.NotAfter.Sub(issued) / 2)
}

func (id *Identity) certificate() (*tls.Certificate, error) {
	if id.reissue != nil && time.Now().After(id.RenewAt()) {
		cert, err := id.reissue()
		if err != nil {
			return nil, err
		}
		id.current.Store(cert)
	}
	return id.current.Load(), nil
}

// HostServer is the configuration of a server that any host of this Heliotrope may
// connect to; the caller asks PeerHost which one it is.
func (id *Identity) HostServer(alpn ...string) *tls.Config {
	c := id.config(alpn)
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if cs.NegotiatedProtocol == "" {
			return errors.New("the peer names no protocol")
		}
		_, err := id.verifyHost(cs, x509.ExtKeyUsageClientAuth)
		return err
	}
	return c
}

// HostClient is the configuration of a client that connects to host and to nobody else.
func (id *Identity) HostClient(host heliotrope.HostID, alpn string) *tls.Config {
	c := id.config([]string{alpn})
	c.InsecureSkipVerify = true // VerifyConnection does all of it: names of hosts are in URIs
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		got, err := id.verifyHost(cs, x509.ExtKeyUsageServerAuth)
		if err == nil && got != host {
			err = fmt.Errorf("the peer is host %q, not %q", got, host)
		}
		return err
	}
	return c
}

// ControllerClient is the configuration of a client that connects to a controller.
func (id *Identity) ControllerClient(alpn string) *tls.Config {
	c := id.config([]string{alpn})
	c.InsecureSkipVerify = true // as in HostClient
	c.VerifyConnection = func(cs tls.ConnectionState) error { return verifyController(id.ca, cs) }
	return c
}

// WebServer is for a controller's HTTPS: it proves the controller and asks nothing of the
// client, which shows a token inside.
func (id *Identity) WebServer() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return id.certificate() }}
}

// controllerServer is the configuration of the agents' port: every protocol but join needs
// a host's certificate.
func (id *Identity) controllerServer() *tls.Config {
	c := id.config([]string{alpnRPC, alpnOVSDB, alpnOpenFlow, alpnJoin})
	c.ClientAuth = tls.RequestClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		switch {
		case cs.NegotiatedProtocol == "":
			return errors.New("the peer names no protocol")
		case cs.NegotiatedProtocol == alpnJoin && len(cs.PeerCertificates) == 0:
			return nil
		}
		_, err := id.verifyHost(cs, x509.ExtKeyUsageClientAuth)
		return err
	}
	return c
}

func (id *Identity) config(alpn []string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: alpn,
		// Both ends prove who they are anew each time.
		SessionTicketsDisabled: true,
		// Small records first help a browser; a copy of memory they cost a third of its rate.
		DynamicRecordSizingDisabled: true,
		GetCertificate:              func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return id.certificate() },
		GetClientCertificate:        func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return id.certificate() },
	}
}

func (id *Identity) verifyHost(cs tls.ConnectionState, usage x509.ExtKeyUsage) (heliotrope.HostID, error) {
	if err := verifyChain(id.ca, cs, usage); err != nil {
		return "", err
	}
	return hostOf(cs.PeerCertificates[0])
}

func verifyController(ca *x509.Certificate, cs tls.ConnectionState) error {
	if err := verifyChain(ca, cs, x509.ExtKeyUsageServerAuth); err != nil {
		return err
	}
	uri, err := nameOf(cs.PeerCertificates[0])
	if err == nil && *uri != controllerURI {
		err = fmt.Errorf("the peer is %s, not a controller", uri)
	}
	return err
}

func verifyChain(ca *x509.Certificate, cs tls.ConnectionState, usage x509.ExtKeyUsage) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the peer shows no certificate")
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		return fmt.Errorf("verify peer certificate: %w", err)
	}
	return nil
}

// pinned returns the CA certificate with this hash from what the peer showed.
func pinned(hash [32]byte, cs tls.ConnectionState) (*x509.Certificate, error) {
	for _, c := range cs.PeerCertificates {
		if sha256.Sum256(c.Raw) == hash && c.IsCA {
			return c, nil
		}
	}
	return nil, errors.New("the controller is not the one that made the token")
}

// PeerHost is the host at the other end of a connection whose configuration is from this
// package.
func PeerHost(cs tls.ConnectionState) (heliotrope.HostID, error) {
	if len(cs.PeerCertificates) == 0 {
		return "", errors.New("the peer shows no certificate")
	}
	return hostOf(cs.PeerCertificates[0])
}

func hostOf(cert *x509.Certificate) (heliotrope.HostID, error) {
	uri, err := nameOf(cert)
	if err != nil {
		return "", err
	}
	host, ok := strings.CutPrefix(uri.Path, "/")
	if !ok || *uri != hostURI(heliotrope.HostID(host)) || !namePattern.MatchString(host) {
		return "", fmt.Errorf("the peer is %s, not a host", uri)
	}
	return heliotrope.HostID(host), nil
}

func nameOf(cert *x509.Certificate) (*url.URL, error) {
	if len(cert.URIs) != 1 {
		return nil, fmt.Errorf("the peer's certificate has %d names, not one", len(cert.URIs))
	}
	return cert.URIs[0], nil
}
