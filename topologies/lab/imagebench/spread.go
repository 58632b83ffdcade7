package imagebench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/imagesync/spread"
	"heliotrope/internal/accept"
	"heliotrope/topologies/lab/claim"
)

const (
	spreadBytes = 256 << 20 // of the image
	spreadPiece = 4 << 20   // the largest there may be, which is the hardest
	spreadMbits = 100
	spreadMany  = 16
)

// spreadRun is one way to bring the image to hosts, and what it took.
type spreadRun struct {
	Name   string  `json:"name"`
	Hosts  int     `json:"hosts"`
	Star   bool    `json:"star"`         // all get it from the source
	Killed bool    `json:"killed"`       // the middle of the chain, when it has half
	Time   float64 `json:"s"`            // until the last one has all
	CPU    float64 `json:"process_cpu"`  // cores of this process, which is all hosts
	Busy   float64 `json:"machine_busy"` // share of the machine's processor time that somebody used
	Waited float64 `json:"waited_cpu"`   // threads of this process that waited for a processor, on average
	Moves  int     `json:"moves"`        // to another feeder; without a death there should be none
	Sent   float64 `json:"source_sent"`  // bytes that the source gave to TCP, next to the image's
}

func spreadPart(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	return spreadTo(ctx, b.Out, spreadBytes)
}

// spreadTo brings an image of so many bytes of noise from one host to 1 to 16 others, each
// behind a link of 100 Mbit/s up and down, and to four from the source alone; and to eight of which the
// one in the middle is cut off when it has half.
//
// All hosts are in this process, each in a namespace of its own. They store nothing but hold what came
// against the image: sixteen disks on one would be what is measured.
func spreadTo(ctx context.Context, out io.Writer, size int) ([]claim.Claim, any, error) {
	image, outline, err := noise(size)
	if err != nil {
		return nil, nil, err
	}
	runs := []*spreadRun{
		{Hosts: 1}, {Hosts: 2}, {Hosts: 4}, {Hosts: 8}, {Hosts: spreadMany},
		{Name: "8, one killed", Hosts: 8, Killed: true}, {Name: "4, a star", Hosts: 4, Star: true},
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "hosts\ts\tnext to one\tsource sent\tmoves\tCPU of this\twaited\tmachine busy\t")
	for _, r := range runs {
		if r.Name == "" {
			r.Name = fmt.Sprint(r.Hosts)
		}
		if err := r.run(ctx, out, image, outline); err != nil {
			return nil, runs, fmt.Errorf("spread to %s: %w", r.Name, err)
		}
		fmt.Fprintf(w, "%s\t%.2f\t%.3f\t%.4f\t%d\t%.2f\t%.2f\t%.2f\t\n", r.Name, r.Time, r.Time/runs[0].Time, r.Sent, r.Moves, r.CPU, r.Waited, r.Busy)
	}
	w.Flush()
	claims := []claim.Claim{measured("time for one host, s", runs[0].Time)}
	for _, r := range runs[1:] {
		switch next := r.Time / runs[0].Time; {
		case r.Star: // only to compare
		case r.Killed:
			claims = append(claims, claim.New("time with a node killed midway next to one host", next, "<=", 1.4))
		default:
			claims = append(claims, claim.New(fmt.Sprintf("time for %d hosts next to one", r.Hosts), next, "<=", 1.15))
		}
		if r.Hosts == spreadMany {
			claims = append(claims, claim.New("bytes over the source's link next to the image", r.Sent, "<=", 1.02))
		}
	}
	return claims, runs, nil
}

// noise is an image that nothing compresses.
func noise(size int) ([][]byte, *spread.Outline, error) {
	all := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(all) // it never fails
	var image [][]byte
	var pieces []spread.Piece
	for len(all) > 0 {
		p := all[:min(spreadPiece, len(all))]
		all = all[len(p):]
		image, pieces = append(image, p), append(pieces, spread.Piece{Length: uint32(len(p)), Hash: spread.HashOf(p)})
	}
	outline, err := spread.NewOutline(pieces)
	return image, outline, err
}

// run measures.
func (r *spreadRun) run(ctx context.Context, out io.Writer, image [][]byte, outline *spread.Outline) (err error) {
	y, err := newYard(r.Hosts+1, spreadMbits)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, y.close()) }()
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelWarn})) // a feeder that is lost is worth a word
	hosts, err := r.start(ctx, y, log, image, outline)
	defer func() {
		for _, h := range hosts {
			h.stop()
		}
	}()
	if err != nil {
		return err
	}
	began, own, machine, waited := time.Now(), processCPU(), machineCPU(), processWaited()
	if err := r.transfer(ctx, y, hosts); err != nil {
		return err
	}
	r.Time = time.Since(began).Seconds()
	r.CPU = (processCPU() - own).Seconds() / r.Time
	r.Waited = (processWaited() - waited).Seconds() / r.Time
	r.Busy = machineCPU().busySince(machine)
	for _, h := range hosts[1:] {
		r.Moves += h.share.Progress().Feeders - 1
	}
	r.Sent = float64(hosts[0].sent.Load()) / float64(outline.Bytes())
	return nil
}

// spreadHost is a host of the yard.
type spreadHost struct {
	share *spread.Share
	from  []spread.Feeder
	stop  func()
	ctx   context.Context
	sent  atomic.Int64 // bytes that were given to TCP
}

func hostID(i int) heliotrope.HostID { return heliotrope.HostID(fmt.Sprintf("host%d", i)) }

// start has all hosts listen and offer what they have; the first has all.
func (r *spreadRun) start(ctx context.Context, y *yard, log *slog.Logger, image [][]byte, outline *spread.Outline) (hosts []*spreadHost, err error) {
	number, targets := map[heliotrope.HostID]int{}, []spread.Host(nil)
	for i := range y.hosts {
		number[hostID(i)] = i
		targets = append(targets, spread.Host{ID: hostID(i)})
	}
	hops, err := spread.Plan(targets[0], targets[1:], nil)
	if err != nil {
		return nil, err
	}
	for i := range y.hosts {
		h := &spreadHost{}
		if i > 0 {
			h.from = hops[i-1].From
		}
		if r.Star && i > 0 {
			h.from = h.from[len(h.from)-1:]
		}
		l, err := y.listen(ctx, i)
		if err != nil {
			return hosts, err
		}
		dial := func(ctx context.Context, to heliotrope.HostID) (net.Conn, error) { return y.dial(ctx, i, number[to]) }
		node := spread.NewNode(spread.Config{Dial: dial, Log: log.With("host", hostID(i))})
		if h.share, err = node.Offer(outline, &mirror{image: image, has: make([]atomic.Bool, len(image)), all: i == 0}); err != nil {
			return hosts, errors.Join(err, l.Close())
		}
		own, cancel := context.WithCancel(ctx)
		h.ctx = own
		var serving sync.WaitGroup
		serve := func(ctx context.Context, conn net.Conn, _ func()) error { return node.Serve(ctx, conn, nil) }
		serving.Go(func() { accept.Loop{Who: "host", Log: log, Serve: serve}.Run(own, counted{l, &h.sent}) }) // until it is stopped
		h.stop = func() { cancel(); serving.Wait(); h.share.Close() }
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// transfer returns when all hosts have all, but for the one that is killed.
func (r *spreadRun) transfer(ctx context.Context, y *yard, hosts []*spreadHost) error {
	victim := -1
	if r.Killed {
		victim = len(hosts) / 2
	}
	group, ctx := errgroup.WithContext(ctx)
	for i, h := range hosts[1:] {
		group.Go(func() error {
			own, cancel := context.WithCancel(ctx)
			defer cancel()
			if i+1 == victim {
				group.Go(func() error { defer cancel(); return cutAtHalf(own, y, victim, h.share) })
			}
			err := h.share.Receive(own, h.from, spread.Demand)
			if i+1 == victim && ctx.Err() == nil && own.Err() != nil {
				return nil
			}
			return err
		})
	}
	return group.Wait()
}

// cutAtHalf cuts a host off when it has half.
func cutAtHalf(ctx context.Context, y *yard, host int, s *spread.Share) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for p := s.Progress(); p.Bytes < p.AllBytes/2; p = s.Progress() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return y.cut(host)
}

// mirror is a store that holds what is put against the image, and gives that.
type mirror struct {
	image [][]byte
	has   []atomic.Bool
	all   bool
}

func (m *mirror) Has(i int) bool { return m.all || m.has[i].Load() }

func (m *mirror) Put(i int, data []byte) error {
	if !bytes.Equal(data, m.image[i]) {
		return fmt.Errorf("piece %d differs from the image", i)
	}
	m.has[i].Store(true)
	return nil
}

func (m *mirror) Get(i int) ([]byte, error) { return m.image[i], nil }

// counted counts what is written to the connections of a listener.
type counted struct {
	net.Listener
	sent *atomic.Int64
}

func (l counted) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countedConn{conn, l.sent}, nil
}

type countedConn struct {
	net.Conn
	sent *atomic.Int64
}

func (c countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent.Add(int64(n))
	return n, err
}

// processCPU is the processor time that this process has used.
func processCPU() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// processWaited is for how long this process's threads could have run and did not: what a
// chain loses so it does not catch up, for no link is faster than the others.
func processWaited() (all time.Duration) {
	threads, _ := filepath.Glob("/proc/self/task/*/schedstat") // the pattern is a good one
	for _, name := range threads {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		var ran, waited int64
		fmt.Sscan(string(stat), &ran, &waited)
		all += time.Duration(waited)
	}
	return all
}

// cpuTicks is what the machine's processors have done since they started.
type cpuTicks struct{ busy, all float64 }

func machineCPU() (c cpuTicks) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return c
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	for i, f := range strings.Fields(line)[1:] {
		var n float64
		fmt.Sscan(f, &n)
		if i > 7 { // guests' time is in user's already
			break
		}
		if c.all += n; i != 3 && i != 4 { // idle, waiting
			c.busy += n
		}
	}
	return c
}

func (c cpuTicks) busySince(o cpuTicks) float64 { return (c.busy - o.busy) / max(1, c.all-o.all) }
