package hostagent

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/durable"
	"heliotrope/hostagent/images"
	"heliotrope/hostagent/memory"
	"heliotrope/hostagent/revocation"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Version is what the agent says it is; set when it is built for release.
var Version = "devel"

// Config is how an agent is set up. Default gives the values of a Debian host, Flags the
// names that they have in the configuration file, the environment and on the command line.
type Config struct {
	Controller string        // host:port of the controller's port for agents
	Relay      string        // address that other hosts' relays dial
	ConfigDir  string        // certificates, agent.yaml
	StateDir   string        // permits, moves, flows; images and disks
	RunDir     string        // sockets
	Libvirt    string        // libvirtd's socket; NoLibvirt: the host runs no VMs
	OVSDir     string        // where db.sock and BRIDGE.mgmt are
	Bridge     string        // that VMs are plugged into
	QEMUUser   string        // as whom libvirt runs QEMU; empty: root
	BenchEvery time.Duration // between two measurements of the host; 0: only when somebody asks
	Revocation string        // who says that the host is taken away (package revocation); empty: nobody
	ImageStore string        // of images that are no directories of StateDir/images: a directory or a bucket's URL; empty: none
	ImageCache images.Bytes  // that what has come of the store's images may take; 0: no bound
	KeptDisks  images.Bytes  // that disks of VMs which moved away may take, for the way back; 0: none are kept
	MoveMemory images.Bytes  // that moves may take here together to send of each page only what it has become; 0: memory goes as QEMU sends it
	PageCache  images.Bytes  // that pages of VMs which moved may take, for the way back and for VMs like them; 0: none are kept
	ServeDisks bool          // be the server of disks over such images (package images), which the agent starts by itself

	Log *slog.Logger

	dial  func(context.Context) (hypervisor, error)
	disks func() *exec.Cmd // in place of diskServer
}

// NoLibvirt in place of libvirtd's socket makes a host that has Open vSwitch only.
const NoLibvirt = "none"

// Default is the configuration of an agent that is told nothing but its controller.
func Default() Config {
	return Config{
		Relay:     ":7444",
		ConfigDir: "/etc/heliotrope",
		StateDir:  "/var/lib/heliotrope",
		RunDir:    "/run/heliotrope",
		Libvirt:   "/run/libvirt/libvirt-sock",
		OVSDir:    "/run/openvswitch",
		Bridge:    "br-int",

		BenchEvery: 24 * time.Hour,
		KeptDisks:  10 << 30,
		MoveMemory: memory.DefaultMoves,
	}
}

// Flags lets f set the fields of c.
func (c *Config) Flags(f *flag.FlagSet) {
	f.StringVar(&c.Controller, "controller", c.Controller, "the controller's port for agents, host:port")
	f.StringVar(&c.Relay, "relay", c.Relay, "address and port that other hosts send VMs to")
	f.StringVar(&c.ConfigDir, "config-dir", c.ConfigDir, "where the host's certificate is kept")
	f.StringVar(&c.StateDir, "state-dir", c.StateDir, "where images, disks and the agent's own state are kept")
	f.StringVar(&c.RunDir, "run-dir", c.RunDir, "where sockets are made")
	f.StringVar(&c.Libvirt, "libvirt", c.Libvirt, "libvirtd's socket; none: the host runs no VMs")
	f.StringVar(&c.OVSDir, "ovs-dir", c.OVSDir, "directory of Open vSwitch's sockets")
	f.StringVar(&c.Bridge, "bridge", c.Bridge, "bridge that VMs are plugged into")
	f.DurationVar(&c.BenchEvery, "bench-every", c.BenchEvery, "time between two measurements of the host's speed; 0: only when the controller asks")
	f.StringVar(&c.QEMUUser, "qemu-user", c.QEMUUser, "user that libvirt runs QEMU as, where that is not root")
	f.StringVar(&c.ImageStore, "image-store", c.ImageStore, "image store for VMs whose image is no directory of this host: a directory, or a bucket's URL")
	f.Var(&c.ImageCache, "image-cache", "what may be kept of the store's images, such as 20G; 0: all that comes")
	f.Var(&c.KeptDisks, "kept-disks", "what may be kept of disks of VMs that moved away, so that the way back takes what has changed since; 0: nothing")
	f.Var(&c.MoveMemory, "move-memory", "memory that moves may take here together (one of them half), so that of each page only what it has become is sent; 0: all is sent as QEMU sends it")
	f.Var(&c.PageCache, "page-cache", "memory for pages of VMs that moved, so that the way back, and VMs like them, take next to nothing; 0: none")
	f.BoolVar(&c.ServeDisks, "serve-disks", c.ServeDisks, "only serve disks over the store's images; the agent starts this by itself")
	f.StringVar(&c.Revocation, "revocation", c.Revocation, "who says that the host is taken away: "+revocation.Kinds+"; default: nobody")
}

func (c Config) caFile() string    { return filepath.Join(c.ConfigDir, "ca.pem") }
func (c Config) hostFile() string  { return filepath.Join(c.ConfigDir, "host.pem") }
func (c Config) imageDir() string  { return filepath.Join(c.StateDir, "images") }
func (c Config) diskDir() string   { return filepath.Join(c.StateDir, "disks") }
func (c Config) mgmtSock() string  { return filepath.Join(c.OVSDir, c.Bridge+".mgmt") }
func (c Config) ovsdbSock() string { return filepath.Join(c.OVSDir, "db.sock") }

// images is how the host has images of a store.
func (c Config) images(host heliotrope.HostID) images.Config {
	return images.Config{Store: c.ImageStore, Keys: filepath.Join(c.StateDir, "image-keys"), Dir: filepath.Join(c.StateDir, "vm-volumes"), DiskDir: c.diskDir(),
		Cache: int64(c.ImageCache), Kept: int64(c.KeptDisks), User: c.QEMUUser, Host: string(host), Version: Version, Log: c.Log, Identity: c.identity}
}

// diskServer is the server of disks as a process of its own.
func (c Config) diskServer() *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		self = "/proc/self/exe"
	}
	return exec.Command(self, "run", "--serve-disks", "--config", filepath.Join(c.ConfigDir, "agent.yaml"), "--config-dir", c.ConfigDir,
		"--state-dir", c.StateDir, "--image-store", c.ImageStore, "--image-cache", c.ImageCache.String(),
		"--kept-disks", c.KeptDisks.String(), "--qemu-user", c.QEMUUser)
}

// Join makes this machine the host that token was made for, and leaves its certificate
// where Run looks for it. The controller's address it leaves in agent.yaml, unless there
// is one.
func Join(ctx context.Context, c Config, token string) error {
	t, err := agentapi.ParseToken(token)
	if err != nil {
		return err
	}
	if c.Controller == "" {
		return errors.New("join: which controller? give its address as host:port")
	}
	creds, err := agentapi.Join(ctx, c.Controller, t, Version)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.ConfigDir, 0o755); err != nil {
		return fmt.Errorf("make config directory: %w", err)
	}
	if err := durable.WriteFile(c.caFile(), creds.CA, 0o644); err != nil {
		return err
	}
	if err := durable.WriteFile(c.hostFile(), creds.CertAndKey, 0o600); err != nil {
		return err
	}
	file := filepath.Join(c.ConfigDir, "agent.yaml")
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		if err := durable.WriteFile(file, fmt.Appendf(nil, "controller: %q\n", c.Controller), 0o644); err != nil {
			return err
		}
	}
	c.Log.Info("joined", "host", creds.Host, "controller", c.Controller)
	return nil
}

// identity reads what Join wrote.
func (c Config) identity() (*agentapi.Identity, error) {
	ca, err := os.ReadFile(c.caFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("this host has not joined: %s is missing; run heliotrope-agent join", c.caFile())
	}
	if err != nil {
		return nil, fmt.Errorf("read CA certificate: %w", err)
	}
	host, err := os.ReadFile(c.hostFile())
	if err != nil {
		return nil, fmt.Errorf("read host certificate: %w", err)
	}
	return agentapi.ParseIdentity(ca, host)
}
