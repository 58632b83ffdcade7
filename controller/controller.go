// Package controller wires Heliotrope's controller together: it keeps the store, lets
// hosts and engineers in, and, while it leads, runs every loop that makes the hosts be as
// the store says.
//
// All knowledge is in one immutable view (package controller/world). The loops read the view
// and change the world; the API reads the view and changes the store; neither calls the other.
//
//	store ──watch──► view ──► per host: bridges and tunnels (ovsdb), flows (flows/openflow), VMs (agentapi)
//	  ▲                │ ├──► public routes (bgp)
//	  │                │ └──► moves (driver) ──► store
//	  └── API ◄────────┘
package controller

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/bgp"
	"heliotrope/controller/api"
	"heliotrope/controller/autopilot"
	"heliotrope/controller/benchmarks"
	"heliotrope/controller/collector"
	"heliotrope/controller/images"
	"heliotrope/controller/membership"
	"heliotrope/controller/prices"
	"heliotrope/controller/snapshots"
	"heliotrope/controller/store"
	"heliotrope/controller/world"
	"heliotrope/migration"
)

// Config is what a controller must be told; the zero value of a field takes its default.
type Config struct {
	Name        string         // in the election; default: the host's name
	Dir         string         // state; default /var/lib/heliotrope/controller
	RunDir      string         // api.sock; default /run/heliotrope
	AgentListen string         // for hosts' agents; default :7443
	APIListen   string         // REST with TLS and bearer token; default 127.0.0.1:7080
	BGPListen   netip.AddrPort // for routers that dial; default: none, the controller dials
	Etcd        []string       // endpoints of an external cluster; default: one inside the process
	EtcdTLS     *tls.Config    // for Etcd
	Store       *store.Store   // opened by the caller, who closes it; default: by Dir or Etcd
	BFD         time.Duration  // between two BFD packets of a tunnel; default 300 ms
	CertAddress []string       // names and addresses in the controller's certificate
	History     string         // of traffic: a directory or a bucket's URL; default DIR/traffic; off: not kept
	Retention   time.Duration  // of History; default 24 h
	Prices      string         // a feed of what sites cost (package prices); default: as the topology says
	ImageStore  string         // of VM images: a directory or a bucket's URL; default: none
	ImageSite   string         // that ImageStore is at, for what bringing an image somewhere takes; default: the controller's
	ImageScrub  time.Duration  // in which all of ImageStore is read once; 0: only when it is asked for
	ImageKeys   string         // directory of the keys that sign for stores; default: image-keys beside Dir
	IPFIX       string         // collector that traffic is told to, host:port by UDP; default: none
	Version     string
	Log         *slog.Logger
}

func (c Config) withDefaults() Config {
	c.Dir, c.RunDir = cmp.Or(c.Dir, "/var/lib/heliotrope/controller"), cmp.Or(c.RunDir, "/run/heliotrope")
	c.AgentListen, c.APIListen = cmp.Or(c.AgentListen, ":7443"), cmp.Or(c.APIListen, "127.0.0.1:7080")
	c.ImageKeys = cmp.Or(c.ImageKeys, filepath.Join(filepath.Dir(c.Dir), "image-keys"))
	c.Version = cmp.Or(c.Version, "devel")
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Controller is a running controller.
type Controller struct {
	cfg     Config
	log     *slog.Logger
	store   *store.Store
	world   *world.World
	members *membership.Membership
	traffic *collector.Collector
	pilot   *autopilot.Autopilot
	prices  *prices.Feed
	speeds  *benchmarks.Benchmarks
	images  *images.Images // nil: there is no store
	// snapshots are of VMs' disks; nil as images.
	snapshots *snapshots.Snapshots
	metrics   *metrics
	meshing   chan struct{} // one for each host that gets many ports just now
	started   time.Time

	mu      sync.Mutex   // guards the rest
	driver  *driver      // while it leads, else nil
	speaker *bgp.Speaker // while it announces, else nil
}

// Run runs a controller until ctx ends. These are all of its loops.
func Run(ctx context.Context, cfg Config) error {
	cfg = cfg.withDefaults()
	c := &Controller{cfg: cfg, log: cfg.Log, world: world.New(), meshing: make(chan struct{}, meshingAtOnce), started: time.Now()}
	for _, dir := range []string{cfg.Dir, cfg.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	if c.store = cfg.Store; c.store == nil {
		var err error
		c.store, err = store.Open(ctx, store.Config{Dir: filepath.Join(cfg.Dir, "etcd"), Endpoints: cfg.Etcd, TLS: cfg.EtcdTLS, Name: cfg.Name, Log: cfg.Log})
		if err != nil {
			return fmt.Errorf("open store: %w", err)
		}
		defer c.store.Close()
	}
	var err error
	if c.members, err = membership.Open(ctx, c.store, door{c}, cfg.CertAddress, cfg.Log); err != nil {
		return err
	}
	c.traffic, err = collector.Open(ctx, collector.Config{World: counted{c}, Log: cfg.Log, Name: cfg.Name, Dir: cfg.Dir, History: cfg.History, Retention: cfg.Retention, IPFIX: cfg.IPFIX})
	if err != nil {
		return err
	}
	defer c.traffic.Close()
	if c.prices, err = prices.Open(cfg.Prices, cfg.Log, func(s heliotrope.SiteID, what string) { c.event("site", string(s), what, nil) }); err != nil {
		return err
	}
	c.pilot = autopilot.New(steered{operations{c}}, autopilot.Stored(c.store), cfg.Log)
	c.speeds = benchmarks.New(counted{c}, c.store, cfg.Log)
	if cfg.ImageStore != "" {
		tell := func(image, what string) { c.event("image", image, what, nil) }
		c.images, err = images.Open(images.Config{Store: cfg.ImageStore, Keys: cfg.ImageKeys, Dir: filepath.Join(cfg.Dir, "uploads"), Hosts: counted{c}, Log: cfg.Log, Tell: tell,
			ScrubFile: filepath.Join(cfg.Dir, "image-scrub.json"), Scrub: cfg.ImageScrub})
		if err != nil {
			return err
		}
		defer c.images.Close()
		c.snapshots = snapshots.New(snapshots.Config{World: counted{c}, Records: c.store, Store: c.images.Store, Made: c.images.Changed, Log: cfg.Log})
	}
	c.metrics = newMetrics(c)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.world.Sync(ctx, c.store, c.log) })
	g.Go(func() error { return c.serveAPI(ctx) })
	g.Go(func() error { return c.store.Lead(ctx, c.lead) })
	if c.images != nil {
		g.Go(func() error { return c.images.Run(ctx) })
		g.Go(func() error { return c.images.Distribute(ctx) })
		g.Go(func() error { return c.images.Scrub(ctx) })
		g.Go(func() error { return c.images.Share(ctx) })
		g.Go(func() error {
			return world.Follow(ctx, c.world, func(v *world.View) int64 { return v.TopologyAt }, func(*world.View) { c.images.Look() })
		})
		g.Go(func() error { return c.snapshots.Run(ctx) })
	}
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// lead runs the loops that only one controller may run, for as long as it leads. Its term
// fences everything that they write.
func (c *Controller) lead(ctx context.Context, term uint64) error {
	// The view must have what the leader before wrote.
	if _, err := c.world.Wait(ctx, func(v *world.View) bool { return v.Revision >= int64(term) }); err != nil {
		return err
	}
	if err := c.speeds.Load(ctx, term); err != nil {
		return err
	}
	d := &driver{world: c.world, store: c.store, term: term, log: c.log, event: c.event, aborts: map[heliotrope.MoveID]chan struct{}{}}
	c.setDriver(d)
	defer c.setDriver(nil)
	c.event("controller", c.cfg.Name, "leads", map[string]string{"term": fmt.Sprint(term)})

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.serveAgents(ctx, term) })
	g.Go(func() error { return c.runBGP(ctx) })
	g.Go(func() error { return d.run(ctx) })
	g.Go(func() error { return c.traffic.Run(ctx) })
	g.Go(func() error { return c.prices.Run(ctx) })
	g.Go(func() error { return c.pilot.Run(ctx, term) })
	g.Go(func() error { return c.housekeep(ctx, term) })
	return g.Wait()
}

func (c *Controller) setDriver(d *driver) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.driver = d
}

// leading returns the driver, or nil while another controller leads.
func (c *Controller) leading() *driver {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.driver
}

// movesKept is how many ended moves are kept to be looked at.
const movesKept = 1000

// housekeep forgets what nobody needs any more.
func (c *Controller) housekeep(ctx context.Context, term uint64) error {
	ended := func(m migration.Move) bool { return m.Phase.Ended() }
	for {
		if err := errors.Join(c.store.TrimEvents(ctx, term), store.Trim(ctx, c.store, term, "moves/", movesKept, ended)); err != nil && ctx.Err() == nil {
			c.log.Warn("housekeeping", "err", err)
		}
		if err := pause(ctx, time.Minute); err != nil {
			return err
		}
	}
}

// event records what happened. That it cannot is only logged: what happened has happened.
func (c *Controller) event(kind, subject, message string, fields map[string]string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	e := api.Event{At: time.Now().UTC(), Kind: kind, Subject: subject, Message: message, Fields: fields}
	if _, err := c.store.AppendEvent(ctx, e); err != nil {
		c.log.Warn("event is lost", "kind", kind, "subject", subject, "message", message, "err", err)
	}
}
