package api

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// What Find fails with, besides errors of the files that it reads.
var (
	ErrNoServer   = errors.New("no controller found")
	ErrServerName = errors.New("no server can be called that")
)

// Place says where to look for a server. Zero fields are not looked at, save for Root.
type Place struct {
	Server    string // as given by the user: unix:///path, /path, or https://host:port
	Lab       string // name of a lab on this machine
	Token     string // for https; overrides the file's
	TokenFile string // for https: a file with nothing but the token
	CAFile    string // for https: PEM
	Home      string // the user's; ~/.config/heliotrope/config is in it
	Root      string // in front of /run and /var; only tests set it
}

// Find returns a client of the server that Place names, or else of the first of these:
// the credentials in ~/.config/heliotrope/config, /run/heliotrope/api.sock, those in
// /var/lib/heliotrope/controller/credentials, the only lab that runs on this machine.
func Find(p Place) (*Client, error) {
	switch {
	case p.Server != "" && p.Lab != "":
		return nil, fmt.Errorf("name a server or a lab, not both: %w", ErrServerName)
	case p.Server != "":
		return p.dial(Credentials{Server: p.Server})
	case p.Lab != "":
		socket := p.labSocket(p.Lab)
		if !isSocket(socket) {
			return nil, fmt.Errorf("lab %s does not run here: there is no %s: %w", p.Lab, socket, ErrNoServer)
		}
		return p.dial(Credentials{Server: socket})
	}
	if p.Home != "" {
		c, err := ReadCredentials(filepath.Join(p.Home, ".config/heliotrope/config"))
		if err == nil {
			return p.dial(c)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if socket := p.Root + "/run/heliotrope/api.sock"; isSocket(socket) {
		return p.dial(Credentials{Server: socket})
	}
	if c, err := ReadCredentials(p.Root + "/var/lib/heliotrope/controller/credentials"); err == nil {
		return p.dial(c)
	}
	return p.onlyLab()
}

func (p Place) labSocket(name string) string {
	return filepath.Join(p.Root+"/run/heliotrope-lab", name, "controller/api.sock")
}

func (p Place) onlyLab() (*Client, error) {
	sockets, err := filepath.Glob(p.labSocket("*"))
	if err != nil {
		return nil, fmt.Errorf("look for labs: %w", err)
	}
	var names []string
	for _, s := range sockets {
		if isSocket(s) {
			names = append(names, filepath.Base(filepath.Dir(filepath.Dir(s))))
		}
	}
	switch len(names) {
	case 0:
		return nil, fmt.Errorf("%w on this machine: name one with --server, or start a lab with: heliotrope lab up FILE", ErrNoServer)
	case 1:
		return p.dial(Credentials{Server: p.labSocket(names[0])})
	}
	return nil, fmt.Errorf("%d labs run here (%s): choose one with --lab NAME, or a server with --server", len(names), strings.Join(names, ", "))
}

func isSocket(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeSocket != 0
}

// dial makes a client; it connects with the first request.
func (p Place) dial(c Credentials) (*Client, error) {
	if path, ok := strings.CutPrefix(c.Server, "unix://"); ok || strings.HasPrefix(c.Server, "/") {
		return NewUnixClient(path), nil
	}
	if !strings.HasPrefix(c.Server, "https://") {
		return nil, fmt.Errorf("%q: %w: write unix:///path/to/api.sock or https://host:port", c.Server, ErrServerName)
	}
	c, err := p.complete(c)
	if err != nil {
		return nil, err
	}
	return NewClient(c)
}

// complete adds token and CA from where the user put them: given ones, or those of the
// credentials files if they are for the same server.
func (p Place) complete(c Credentials) (Credentials, error) {
	for _, path := range []string{filepath.Join(p.Home, ".config/heliotrope/config"), p.Root + "/var/lib/heliotrope/controller/credentials"} {
		known, err := ReadCredentials(path)
		if err == nil && strings.TrimSuffix(known.Server, "/") == strings.TrimSuffix(c.Server, "/") {
			c.Token, c.CA = or(c.Token, known.Token), or(c.CA, known.CA)
		}
	}
	if p.TokenFile != "" {
		data, err := os.ReadFile(p.TokenFile)
		if err != nil {
			return c, fmt.Errorf("read token: %w", err)
		}
		c.Token = strings.TrimSpace(string(data))
	}
	if p.CAFile != "" {
		data, err := os.ReadFile(p.CAFile)
		if err != nil {
			return c, fmt.Errorf("read CA: %w", err)
		}
		c.CA = string(data)
	}
	c.Token = or(p.Token, c.Token)
	return c, nil
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func tlsConfig(ca string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS13, Time: time.Now}
	if ca == "" {
		return conf, nil // the system's
	}
	conf.RootCAs = x509.NewCertPool()
	if !conf.RootCAs.AppendCertsFromPEM([]byte(ca)) {
		return nil, errors.New("the CA is no PEM certificate")
	}
	return conf, nil
}
