package agentapi

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"heliotrope"
	"net"
	"net/url"
	"regexp"
	"time"
)

const (
	// HostTTL is how long a host's certificate lives; it is renewed after half of that.
	HostTTL = 24 * time.Hour

	caTTL         = 10 * 365 * 24 * time.Hour
	controllerTTL = 30 * 24 * time.Hour
	clockSkew     = time.Hour // certificates are valid from before now: clocks differ
)

var (
	controllerURI = url.URL{Scheme: "heliotrope", Host: "controller"}
	namePattern   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

func hostURI(h heliotrope.HostID) url.URL {
	return url.URL{Scheme: "heliotrope", Host: "host", Path: "/" + string(h)}
}

// CA is the certificate authority of one Heliotrope, made when the controller is.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a CA with a new key.
func NewCA() (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Heliotrope CA"},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caTTL),
		KeyUsage:              x509.KeyUsageCertSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse CA certificate: %w", err)
	}
	return &CA{cert, key}, nil
}

// ParseCA reads what PEM wrote.
func ParseCA(data []byte) (*CA, error) {
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, fmt.Errorf("parse CA: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, errors.New("parse CA: no CA certificate with an ECDSA key")
	}
	return &CA{pair.Leaf, key}, nil
}

// PEM is the CA's certificate and its private key. Whoever has it can be any host.
func (ca *CA) PEM() ([]byte, error) {
	key, err := keyPEM(ca.key)
	if err != nil {
		return nil, err
	}
	return append(ca.CertPEM(), key...), nil
}

// CertPEM is the CA's certificate, which is no secret.
func (ca *CA) CertPEM() []byte { return certPEM(ca.cert.Raw) }

// Hash is what a Token pins.
func (ca *CA) Hash() [32]byte { return sha256.Sum256(ca.cert.Raw) }

// IssueController makes an identity for a controller that is reached at addresses (IP
// addresses or DNS names, for clients that check them). It renews itself.
func (ca *CA) IssueController(addresses ...string) (*Identity, error) {
	id := &Identity{ca: ca.cert}
	id.reissue = func() (*tls.Certificate, error) { return ca.issueController(addresses) }
	cert, err := id.reissue()
	if err != nil {
		return nil, err
	}
	id.current.Store(cert)
	return id, nil
}

func (ca *CA) issueController(addresses []string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make controller key: %w", err)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "Heliotrope controller"},
		URIs:        []*url.URL{&controllerURI},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, a := range addresses {
		if ip := net.ParseIP(a); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, a)
		}
	}
	der, err := ca.sign(template, key.Public(), controllerTTL)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse controller certificate: %w", err)
	}
	// The CA's certificate goes along for hosts that know only its hash.
	return &tls.Certificate{Certificate: [][]byte{der, ca.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// SignHost makes a certificate, as PEM, for the key of a certificate request (PEM). It
// takes nothing but the key from the request.
func (ca *CA) SignHost(csr []byte, host heliotrope.HostID, ttl time.Duration) ([]byte, error) {
	if !namePattern.MatchString(string(host)) {
		return nil, fmt.Errorf("sign host certificate: %q is no host name", host)
	}
	block, _ := pem.Decode(csr)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("%w: no certificate request in PEM", ErrInvalid)
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: parse certificate request: %w", ErrInvalid, err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: check certificate request: %w", ErrInvalid, err)
	}
	key, ok := req.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: the key must be ECDSA P-256", ErrInvalid)
	}
	uri := hostURI(host)
	der, err := ca.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: string(host)},
		URIs:    []*url.URL{&uri},
		// A host is a client of the controller, and either to another host.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, key, ttl)
	if err != nil {
		return nil, err
	}
	return certPEM(der), nil
}

func (ca *CA) sign(template *x509.Certificate, key any, ttl time.Duration) ([]byte, error) {
	now := time.Now()
	template.NotBefore, template.NotAfter = now.Add(-clockSkew), now.Add(ttl)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return der, nil
}

// newRequest makes a key and a certificate request for it, both PEM.
func newRequest() (key, csr []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make host key: %w", err)
	}
	if key, err = keyPEM(k); err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
