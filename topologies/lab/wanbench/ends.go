package wanbench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/hostagent/memory"
	"heliotrope/migration/relay"
	"heliotrope/migration/relay/kept"
	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"
)

// The relay's two ends are processes of their own, as they are on two hosts: what each takes is
// then its own, and the one garbage collector is not the other's.

const (
	endName   = "relay-end"
	relayPort = 7444
	sitePages = 4 * guestMiB << 20 >> 12
)

// endConfig is one line on an end's standard input; the end of that ends it.
type endConfig struct {
	Source      bool   `json:"source"`
	CA          []byte `json:"ca"`
	Cert, Key   []byte
	Addr        netip.AddrPort `json:"addr"`         // the destination's relay port
	MirrorPages int            `json:"mirror_pages"` // 0: the stream goes as it is
	Pages       string         // directory of what the site has kept; empty: it keeps nothing
	Images      string         // directory of the site's caches of images; empty: it has none
	Image       string         // that of the guests' disk; empty: none
	Streams     []endStream
}

// endStream is a guest's, and the socket that it is joined to.
type endStream struct {
	Move   heliotrope.MoveID
	VM     heliotrope.VMID
	Socket string
}

// endResult is an end's last line.
type endResult struct {
	CPU   float64    `json:"cpu_s"`
	RSS   float64    `json:"rss_mib"`
	Stats *wan.Stats `json:"stats,omitempty"`
	Error string     `json:"error,omitempty"`
}

func endCommand() *cobra.Command {
	return &cobra.Command{Use: endName, Hidden: true, Args: cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runEnd(cmd.Context(), bufio.NewReader(cmd.InOrStdin()), cmd.OutOrStdout())
		}}
}

func runEnd(ctx context.Context, in *bufio.Reader, out io.Writer) error {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var c endConfig
	if err := json.Unmarshal(line, &c); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { _, _ = io.Copy(io.Discard, in); cancel() }() // ends with the process
	config, err := c.tls()
	if err != nil {
		return err
	}
	var encoding *relay.Encoding
	if c.MirrorPages > 0 {
		encoding = &relay.Encoding{MirrorPages: c.MirrorPages, Least: wan.Fast, Share: share.New()} // as agents do over a long way
	}
	var r endResult
	if c.Pages != "" {
		if encoding.Site, err = kept.New(c.Pages, sitePages, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
			return err
		}
		keeping, stop := context.WithCancel(context.WithoutCancel(ctx))
		kept := make(chan error, 1)
		go func() { kept <- encoding.Site.Run(keeping) }()
		defer func() { stop(); <-kept }()
	}
	if c.Images != "" {
		encoding.Images = memory.NewImages(c.Images, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	}
	if c.Source {
		client := &relay.Client{Addr: c.Addr, TLS: config, Encoding: encoding, Image: c.Image}
		var g errgroup.Group
		for _, s := range c.Streams {
			f, err := client.Forward(s.Socket, relay.Header{Move: s.Move, VM: s.VM, Kind: relay.Memory})
			if err != nil {
				return err // and the process ends
			}
			g.Go(func() error { return f.Serve(ctx) })
		}
		fmt.Fprintln(out, "READY")
		r.note(g.Wait())
		if s := client.Memory(); encoding != nil {
			r.Stats = &s
		}
	} else {
		r.note(c.serve(ctx, config, encoding, out))
	}
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return err
	}
	r.CPU, r.RSS = time.Duration(u.Utime.Nano()+u.Stime.Nano()).Seconds(), float64(u.Maxrss)/1024
	return json.NewEncoder(out).Encode(r)
}

func (r *endResult) note(err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		r.Error = err.Error()
	}
}

func (c endConfig) serve(ctx context.Context, config *tls.Config, encoding *relay.Encoding, out io.Writer) error {
	s := relay.NewServer(config, func(cs tls.ConnectionState) (heliotrope.HostID, error) {
		return heliotrope.HostID(cs.PeerCertificates[0].Subject.CommonName), nil
	}, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	s.Encoding = encoding
	for _, m := range c.Streams {
		s.Expect(m.Move, relay.Expectation{VM: m.VM, From: "source", Sockets: map[relay.Kind]string{relay.Memory: m.Socket}})
	}
	l, err := relay.Listen(ctx, c.Addr.String())
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "READY")
	return s.Serve(ctx, l)
}

func (c endConfig) tls() (*tls.Config, error) {
	ca, err := x509.ParseCertificate(c.CA)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParseECPrivateKey(c.Key)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{relay.ALPN}, Certificates: []tls.Certificate{{Certificate: [][]byte{c.Cert}, PrivateKey: key}},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, RootCAs: pool, ServerName: "destination", DynamicRecordSizingDisabled: true}, nil
}

// issue makes a certificate; a CA's, where parent is nil.
func issue(name string, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotAfter: time.Now().Add(24 * time.Hour), IsCA: parent == nil, BasicConstraintsValid: true}
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

// pair is both ends' configurations, from a site to the other, without streams.
func pair(from int, md mode) (source, destination endConfig, err error) {
	ca, caKey, err := issue("ca", nil, nil)
	if err != nil {
		return source, destination, err
	}
	for _, e := range []struct {
		name string
		c    *endConfig
	}{{"source", &source}, {"destination", &destination}} {
		cert, key, err := issue(e.name, ca, caKey)
		if err != nil {
			return source, destination, err
		}
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return source, destination, err
		}
		*e.c = endConfig{CA: ca.Raw, Cert: cert.Raw, Key: der, Addr: netip.AddrPortFrom(address(1-from), relayPort), MirrorPages: md.mirror}
	}
	if md.pages != nil {
		source.Pages, destination.Pages = md.pages[from], md.pages[1-from]
	}
	if md.images != nil {
		source.Images, destination.Images = md.images[from], md.images[1-from]
		source.Image = md.image
	}
	source.Source = true
	return source, destination, nil
}

// end is a running one.
type end struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	wrong bytes.Buffer
}

// startEnd starts an end at a site, and returns once it listens.
func (y *yard) startEnd(ctx context.Context, site int, c endConfig) (*end, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	e := &end{cmd: exec.CommandContext(ctx, "nsenter", "--net="+y.path(site), self, "lab", "bench-wan", endName)}
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	e.cmd.Stderr = &e.wrong
	if e.in, err = e.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := e.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	e.out = bufio.NewReader(out)
	if err := e.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start relay: %w", err)
	}
	line, err := json.Marshal(c)
	if err == nil {
		_, err = e.in.Write(append(line, '\n'))
	}
	if err == nil {
		_, err = e.out.ReadString('\n')
	}
	if err != nil {
		e.cmd.Process.Kill()
		return nil, fmt.Errorf("start relay: %w: %s", errors.Join(err, e.cmd.Wait()), e.wrong.String())
	}
	return e, nil
}

// stop ends it and says what it did.
func (e *end) stop() (r endResult, err error) {
	e.in.Close()
	line, err := e.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	if err = errors.Join(err, e.cmd.Wait()); err != nil {
		return r, fmt.Errorf("relay: %w: %s", err, e.wrong.String())
	}
	return r, nil
}
