package images

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/libvirt"
	"heliotrope/imagesync"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/nbd"
	"heliotrope/imagesync/site"
	"heliotrope/imagesync/spread"
	"heliotrope/imagesync/volume/disk"
)

// bootTime is for how long the reads of a new disk are taken for those of its boot.
const bootTime = time.Minute

// sweepRetry is when the store is asked again that could not be reached.
const sweepRetry = time.Minute

// server serves the disks of a host.
type server struct {
	c      Config
	owner  string // by which the store knows this host
	boot   string
	log    *slog.Logger
	source *site.Source
	stop   context.CancelFunc

	peers      *peers
	background context.Context // of what goes on while volumes are open
	budget     budget
	spared     atomic.Int64 // bytes that moves out of here did not have to copy
	snapshots  snapshots

	mu     sync.Mutex // held by whoever opens, makes, or removes
	sites  map[manifest.ID]*opened
	disks  map[string]*served
	broken map[string]error // why a volume that is there could not be opened
	// dropped are versions that were pulled and are to come no more, since there was no room for them.
	dropped map[manifest.ID]agentapi.ImageCache
}

// opened is a version that volumes stand on.
type opened struct {
	*site.Site
	life context.Context // of what goes on for it
	end  context.CancelFunc
	run  sync.WaitGroup
	// coming is how all of it comes: a volume reads it, or it was pulled. nil: only what is asked for does.
	coming *coming
	// pulled is that it stays open though no volume needs it: it was asked for, or lends what it has.
	pulled bool
	pull   atomic.Pointer[site.Pull] // how it is to come, where it was asked for
	part   part                      // of links that images share
	needed atomic.Bool               // a volume reads it: it may come at any time
}

// coming is a way on which all of a version comes.
type coming struct {
	along   bool // a chain of hosts
	feeders []spread.Feeder
	end     context.CancelFunc
	done    chan struct{}
}

// mayCome says whether something of it that nobody waits for may come now.
func (on *opened) mayCome() bool {
	p := on.pull.Load()
	if p == nil || on.needed.Load() {
		return true
	}
	open, _ := heliotrope.InHours(p.Windows, time.Now())
	return open
}

// served is a volume that is open.
type served struct {
	*site.Disk
	on  *opened
	end context.CancelFunc // of the record of its boot
}

// Serve serves the disks of a host until ctx ends or an agent says so. One process does at a
// time: another one waits.
func Serve(ctx context.Context, c Config) error {
	signal.Ignore(syscall.SIGPIPE) // the log may end with the agent
	for dir, mode := range map[string]os.FileMode{c.Dir: 0o700, c.DiskDir: 0o711} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return fmt.Errorf("serve disks: %w", err)
		}
	}
	lock, err := disk.OSDirectory(c.Dir).Lock("server.lock", true)
	if err != nil {
		return fmt.Errorf("serve disks: %w", err)
	}
	defer lock.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s := &server{c: c, boot: rand.Text(), log: c.Log, stop: stop, source: &site.Source{Dial: c.dial},
		sites: map[manifest.ID]*opened{}, disks: map[string]*served{}, broken: map[string]error{}, dropped: map[manifest.ID]agentapi.ImageCache{}}
	s.budget, s.peers = budget{dir: c.Dir, limit: c.Cache}, newPeers(c)
	if s.owner, err = site.Owner(c.Dir, c.Host); err != nil {
		return fmt.Errorf("serve disks: %w", err)
	}
	if err := s.snapshots.load(c.Dir); err != nil {
		return fmt.Errorf("serve disks: %w", err)
	}
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s.background = background
	if err := s.openAll(ctx); err != nil {
		return fmt.Errorf("serve disks: %w", err)
	}
	err = s.listen(ctx)
	cancel()
	err = errors.Join(err, s.close())
	if err != nil {
		return fmt.Errorf("serve disks: %w", err)
	}
	return nil
}

// dial opens the store, which has to be there.
func (c Config) dial(ctx context.Context) (*imagesync.Store, error) {
	if c.Store == "" {
		return nil, errors.New("this host has no image store: its agent was started without --image-store")
	}
	if path, local := strings.CutPrefix(c.Store, "file://"); local || !strings.Contains(c.Store, "://") {
		if _, err := os.Stat(path); err != nil { // to open it would make it
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	d, where, err := depot.Open(ctx, c.Store)
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	store, err := imagesync.Open(ctx, where, d, imagesync.Options{Keys: keyring.Dir(c.Keys), Log: c.Log, There: true})
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return store, nil
}

// listen serves QEMU and the agent.
func (s *server) listen(ctx context.Context) error {
	disks, err := nbd.Listen(ctx, libvirt.VolumeSocket(s.c.DiskDir))
	if err != nil {
		return err
	}
	defer disks.Close()
	if err := libvirt.GiveTo(s.c.User, libvirt.VolumeSocket(s.c.DiskDir)); err != nil {
		return err
	}
	control, err := nbd.Listen(ctx, s.c.controlSocket())
	if err != nil {
		return err
	}
	s.log.Info("disks are served", "store", s.c.Store, "volumes", len(s.disks), "socket", libvirt.VolumeSocket(s.c.DiskDir))
	others, err := nbd.Listen(ctx, s.c.peerSocket())
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.peers.serve(gctx, others) })
	g.Go(func() error {
		n := nbd.NewServer(s, nil, s.log)
		n.Cut = true
		return n.Serve(gctx, disks)
	})
	g.Go(func() error {
		h := &http.Server{Handler: s.handler(), BaseContext: func(net.Listener) context.Context { return gctx }}
		stop := context.AfterFunc(gctx, func() { h.Close() })
		defer stop()
		return h.Serve(control)
	})
	g.Go(func() error { return s.sweep(gctx) })
	g.Go(func() error { return s.keepBudget(gctx) })
	if err := g.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.status(), nil) })
	mux.HandleFunc("GET /v1/life", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("PUT /v1/volumes/{vm}", func(w http.ResponseWriter, r *http.Request) {
		var want wanted
		err := readJSON(w, r, &want)
		var m made
		if err == nil {
			m, err = s.put(r.Context(), r.PathValue("vm"), want)
		}
		answer(w, m, err)
	})
	mux.HandleFunc("DELETE /v1/volumes/{vm}", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, s.remove(r.Context(), r.PathValue("vm")))
	})
	mux.HandleFunc("PUT /v1/images/{ref}", func(w http.ResponseWriter, r *http.Request) {
		var p pulling
		err := readJSON(w, r, &p)
		var c agentapi.ImageCache
		if err == nil {
			c, err = s.pull(r.Context(), r.PathValue("ref"), p)
		}
		answer(w, c, err)
	})
	s.moveHandlers(mux)
	s.handleSnapshots(mux)
	mux.HandleFunc("POST /v1/stop", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, struct{}{}, nil)
		s.stop()
	})
	return mux
}

// sweep tells the store once what is not needed here any more.
func (s *server) sweep(ctx context.Context) error {
	for s.c.Store != "" {
		store, err := s.source.Store(ctx)
		if err == nil {
			s.mu.Lock() // nobody makes a volume meanwhile
			err = store.SweepNeeds(ctx, s.owner, func(volume string) manifest.ID {
				o, err := site.ReadOrigin(s.c.Dir, volume)
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					s.log.Warn("a volume cannot be read: the store keeps what it needs", "error", err)
				}
				return o.Base.Root
			})
			s.mu.Unlock()
		}
		if err == nil || ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.log.Warn("the image store cannot be reached", "store", s.c.Store, "error", err)
		t := time.NewTimer(sweepRetry)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
	return nil
}
