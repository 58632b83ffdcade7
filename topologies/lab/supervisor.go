package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/topologies/lab/node"
	"heliotrope/topologies/lab/wan"
)

// config is what a supervisor must know; it comes from Up on standard input.
type config struct {
	Name           string
	Dir            string
	Topology       heliotrope.Topology
	Passwords      map[heliotrope.PeerID]string // a Topology's JSON leaves them out
	TopologyFile   string
	Binary         string
	AgentBinary    string
	Controller     []string
	Images         map[string]string
	ImageStore     bool
	WithoutControl bool
	WithoutLibvirt bool
	Light          bool
	Patience       time.Duration // for everything to come up
}

func (c config) layout() layout { return layout(c.Dir) }

// peer is the BGP neighbour that a site's router is, nil when it is none.
func (c config) peer(site heliotrope.SiteID) *heliotrope.Peer {
	for id, p := range c.Topology.Peers {
		if p.Site == site && p.Address == c.Topology.Sites[site].Router {
			p.Password = c.Passwords[id]
			return &p
		}
	}
	return nil
}

// message is what the supervisor tells Up, one JSON object a line.
type message struct {
	Progress string `json:",omitempty"`
	Ready    bool   `json:",omitempty"`
	Error    string `json:",omitempty"`
}

// lockFD is the lab's lock in the supervisor: taken by Up, held until the supervisor ends.
const lockFD = 3

// Run is the body of a lab's supervisor: it reads what Up wrote, builds the lab, tells
// progress, and keeps the lab until ctx ends or a SIGTERM comes. All nodes have ended
// when it returns.
func Run(ctx context.Context, in io.Reader, progress io.Writer, log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE) // an Up that was killed takes nothing with it
	unix.CloseOnExec(lockFD)
	var cfg config
	if err := json.NewDecoder(in).Decode(&cfg); err != nil {
		return fmt.Errorf("read lab configuration: %w", err)
	}
	out := json.NewEncoder(progress)
	s := &supervisor{
		config: cfg, log: log, began: time.Now().UTC(), wan: wan.New(log),
		tell: func(m message) { out.Encode(m) }, // the lab does not need Up any more
	}
	err := s.run(ctx)
	if err != nil {
		s.tell(message{Error: err.Error()})
	}
	return err
}

// supervisor is a running lab.
type supervisor struct {
	config config
	log    *slog.Logger
	began  time.Time
	wan    *wan.WAN
	nodes  []*handle
	tell   func(message)
}

func (s *supervisor) run(ctx context.Context) error {
	ps, err := s.prepare()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.wan.Run(ctx) })
	group.Go(func() error {
		nodes, err := launch(ctx, group, s.config, ps)
		if err != nil {
			return err
		}
		s.nodes = nodes
		if err := s.bring(ctx); err != nil {
			return err
		}
		listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", s.config.layout().socket())
		if err != nil {
			return fmt.Errorf("listen on control socket: %w", err)
		}
		s.tell(message{Ready: true})
		s.log.Info("lab is up", "name", s.config.Name, "nodes", len(s.nodes), "took", time.Since(s.began))
		return s.serve(ctx, listener)
	})
	err = group.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// prepare makes the nodes' directories and files.
func (s *supervisor) prepare() ([]plan, error) {
	ps, err := plans(s.config)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.config.layout().controller(), 0o755); err != nil {
		return nil, fmt.Errorf("make controller directory: %w", err)
	}
	for _, p := range ps {
		if err := writeFiles(p, s.config.peer(p.Site), s.config.Topology.Controller, s.config.Name); err != nil {
			return nil, err
		}
	}
	return ps, nil
}

// bring wires the nodes and waits until everything in them works.
func (s *supervisor) bring(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.config.Patience, fmt.Errorf("not up after %v", s.config.Patience))
	defer cancel()
	for _, n := range s.nodes {
		if err := n.await(ctx, isolated); err != nil {
			return err
		}
	}
	if err := wire(s.wan, s.config.Topology, s.nodes); err != nil {
		return err
	}
	for _, n := range s.nodes {
		if err := n.order(node.Order{Wired: true}); err != nil {
			return err
		}
	}
	s.progress("%d nodes are wired", len(s.nodes))
	for _, n := range s.nodes {
		if err := n.await(ctx, up(len(n.plan.Daemons))); err != nil {
			return fmt.Errorf("%w; see %s", err, filepath.Join(n.plan.Dir, "log"))
		}
	}
	s.progress("%s", s.config.daemons())
	if s.config.WithoutControl {
		return nil
	}
	if err := s.bringControl(ctx); err != nil {
		return err
	}
	return s.bringVMs(ctx)
}

func (c config) daemons() string {
	if c.WithoutLibvirt {
		return "routers and Open vSwitch answer"
	}
	return "routers, Open vSwitch and libvirt answer"
}

func (s *supervisor) progress(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.tell(message{Progress: text})
	s.log.Info("progress", "what", text, "after", time.Since(s.began).Round(time.Millisecond))
}

func (s *supervisor) node(name string) (*handle, error) {
	for _, n := range s.nodes {
		if n.plan.Node == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("find node: the lab has no node %q", name)
}
