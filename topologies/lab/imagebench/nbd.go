package imagebench

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"heliotrope/imagesync/nbd"
	"heliotrope/topologies/lab/claim"
)

// Our NBD server and nbdkit's file plugin serve the same raw image, one after the other, each
// as a process of its own over a unix socket; the same client asks both. All of the image is
// in the page cache: what is measured is the way to a client, not a disk.

const (
	serveName = "serve-nbd" // the hidden command

	nbdRounds  = 5 // of each workload and server; the median counts
	nbdImage   = 1 << 30
	nbdTime    = 700 * time.Millisecond // of each run
	nbdConnect = 10 * time.Second       // within which a server has to answer
)

// nbdBench is how to measure.
type nbdBench struct {
	Say    func(format string, args ...any)
	Dir    string   // for the image; empty: the system's for temporary files
	Serve  []string // program and arguments that serve-nbd's arguments follow
	Image  int64    // bytes
	Time   time.Duration
	Rounds int
}

// nbdServeCommand serves an image until it is told to end.
func nbdServeCommand() *cobra.Command {
	return &cobra.Command{Use: serveName + " IMAGE SOCKET", Hidden: true, Args: cobra.ExactArgs(2), SilenceUsage: true,
		RunE: func(cmd *cobra.Command, args []string) error { return serveNBD(cmd.Context(), args[0], args[1]) }}
}

func serveNBD(ctx context.Context, image, socket string) (err error) {
	d, err := nbd.OpenFile(image, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	l, err := nbd.Listen(ctx, socket)
	if err != nil {
		return err
	}
	exports := nbd.Static{"": {Device: d, MultiConn: true}}
	if err := nbd.NewServer(exports, nil, slog.New(slog.NewTextHandler(os.Stderr, nil))).Serve(ctx, l); ctx.Err() == nil {
		return err
	}
	return nil
}

// workload is what the client does.
type workload struct {
	name   string
	kind   nbd.Kind
	size   int // bytes of a request
	depth  int
	random bool
}

var workloads = []workload{
	{"4 KiB random reads, depth 1", nbd.Read, 4 << 10, 1, true},
	{"4 KiB random reads, depth 32", nbd.Read, 4 << 10, 32, true},
	{"64 KiB reads in order, depth 32", nbd.Read, 64 << 10, 32, false},
	{"1 MiB reads in order, depth 32", nbd.Read, 1 << 20, 32, false},
	{"4 KiB random writes, depth 32", nbd.Write, 4 << 10, 32, true},
}

const copyName = "nbdcopy of all"

// nbdFigures are what one workload came to: medians over the rounds.
type nbdFigures struct {
	Workload string  `json:"workload"`
	Unit     string  `json:"unit"` // requests/s or GB/s
	Ours     float64 `json:"ours"`
	Nbdkit   float64 `json:"nbdkit"`
	Ratio    float64 `json:"ratio"`
	// What the servers used of processors: µs a request, or seconds for 10^9 bytes.
	OursCPU   float64 `json:"ours_cpu"`
	NbdkitCPU float64 `json:"nbdkit_cpu"`

	ours, nbdkit []nbdRun // of each round
}

// nbdRun is one run of a workload.
type nbdRun struct{ rate, cpu float64 }

// nbdServer is a server's process.
type nbdServer struct {
	cmd    *exec.Cmd
	socket string
}

// startNBD starts a server and waits until it answers.
func startNBD(ctx context.Context, socket string, argv ...string) (*nbdServer, error) {
	s := &nbdServer{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), socket: socket}
	s.cmd.Stderr = os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	s.cmd.WaitDelay = nbdConnect
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(argv[0]), err)
	}
	limited, cancel := context.WithTimeout(ctx, nbdConnect)
	defer cancel()
	for {
		c, err := nbd.Dial(limited, "unix", socket, "")
		if err == nil {
			return s, c.Close()
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-limited.Done():
			return nil, errors.Join(fmt.Errorf("start %s: %w", filepath.Base(argv[0]), err), s.stop())
		}
	}
}

func (s *nbdServer) stop() error {
	s.cmd.Process.Signal(syscall.SIGTERM)
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil // by the signal
	}
	return err
}

func (s *nbdServer) uri() string { return "nbd+unix:///?socket=" + s.socket }

// nbdPart measures our server next to nbdkit's.
func nbdPart(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, fmt.Errorf("find own program: %w", err)
	}
	return nbdBench{Say: b.Say, Serve: []string{self, "lab", "bench-image", serveName}}.measure(ctx)
}

func (b nbdBench) measure(ctx context.Context) (claims []claim.Claim, figures any, err error) {
	b.Image, b.Time, b.Rounds = cmp.Or(b.Image, nbdImage), cmp.Or(b.Time, nbdTime), cmp.Or(b.Rounds, nbdRounds)
	dir, err := os.MkdirTemp(b.Dir, "nbd")
	if err != nil {
		return nil, nil, fmt.Errorf("make a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	image := filepath.Join(dir, "image")
	if err := makeImage(image, b.Image); err != nil {
		return nil, nil, err
	}
	// Sockets are in a directory with a short name, whatever Dir is.
	sockets, err := os.MkdirTemp("", "nbd")
	if err != nil {
		return nil, nil, fmt.Errorf("make a directory: %w", err)
	}
	defer os.RemoveAll(sockets)
	socket := filepath.Join(sockets, "ours")
	ours, err := startNBD(ctx, socket, slices.Concat(b.Serve, []string{image, socket})...)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, ours.stop()) }()
	socket = filepath.Join(sockets, "nbdkit")
	theirs, err := startNBD(ctx, socket, "nbdkit", "--foreground", "--exit-with-parent", "--unix", socket, "file", image)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, theirs.stop()) }()
	rows, err := b.compare(ctx, image, ours, theirs)
	if err != nil {
		return nil, rows, err
	}
	features, err := nbdFeatures(ctx, ours.uri())
	return append(b.judge(rows), features...), rows, err
}

// compare runs all workloads, and the copy, against both servers in turn.
func (b nbdBench) compare(ctx context.Context, image string, ours, theirs *nbdServer) ([]nbdFigures, error) {
	rows := make([]nbdFigures, len(workloads)+1)
	for round := range b.Rounds {
		for i := range rows {
			servers := []*nbdServer{ours, theirs}
			if round%2 == 1 {
				slices.Reverse(servers)
			}
			for _, s := range servers {
				value, err := b.once(ctx, i, s)
				if err = errors.Join(err, syncImage(image)); err != nil {
					return rows, err
				}
				if s == ours {
					rows[i].ours = append(rows[i].ours, value)
				} else {
					rows[i].nbdkit = append(rows[i].nbdkit, value)
				}
			}
		}
	}
	for i := range rows {
		r := &rows[i]
		r.Workload, r.Unit = copyName, "GB/s"
		if i < len(workloads) {
			if r.Workload = workloads[i].name; workloads[i].random {
				r.Unit = "requests/s"
			}
		}
		r.Ours, r.OursCPU = medians(r.ours)
		r.Nbdkit, r.NbdkitCPU = medians(r.nbdkit)
		r.Ratio = r.Ours / r.Nbdkit
		b.Say("%-32s ours %9.4g, nbdkit %9.4g %s: %.2f; of processors %.3g, %.3g", r.Workload, r.Ours, r.Nbdkit, r.Unit, r.Ratio, r.OursCPU, r.NbdkitCPU)
	}
	return rows, nil
}

func medians(runs []nbdRun) (rate, cpu float64) {
	var rates, cpus []float64
	for _, r := range runs {
		rates, cpus = append(rates, r.rate), append(cpus, r.cpu)
	}
	slices.Sort(rates)
	slices.Sort(cpus)
	return rates[len(rates)/2], cpus[len(cpus)/2]
}

// once runs one workload, or the copy, against a server.
func (b nbdBench) once(ctx context.Context, i int, s *nbdServer) (r nbdRun, err error) {
	before, began := s.cpu(), time.Now()
	var requests, bytes float64
	if i < len(workloads) {
		requests, err = b.run(ctx, workloads[i], s)
		bytes = requests * float64(workloads[i].size)
	} else {
		bytes, err = float64(b.Image), copyAll(ctx, s)
	}
	took, cpu := time.Since(began).Seconds(), (s.cpu() - before).Seconds()
	if i < len(workloads) && workloads[i].random {
		return nbdRun{requests / took, cpu * 1e6 / requests}, err
	}
	return nbdRun{bytes / 1e9 / took, cpu / (bytes / 1e9)}, err
}

// cpu is what the server has used of processors: fields 14 and 15 of /proc/PID/stat, in
// hundredths of a second (proc(5)).
func (s *nbdServer) cpu() time.Duration {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0 // it is gone
	}
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// judge says what is claimed of the figures.
func (b nbdBench) judge(rows []nbdFigures) []claim.Claim {
	reads, bytes := rows[0].Ratio, rows[2].Ratio
	for _, r := range rows[:2] {
		reads = min(reads, r.Ratio)
	}
	for _, r := range []nbdFigures{rows[2], rows[3], rows[len(rows)-1]} {
		bytes = min(bytes, r.Ratio)
	}
	return []claim.Claim{
		claim.New("4 KiB reads/s at depth 32", rows[1].Ours, ">=", 100_000),
		claim.New("GB/s at depth 32", max(rows[2].Ours, rows[3].Ours), ">=", 2),
		claim.New("reads/s next to nbdkit", reads, ">=", 0.9),
		claim.New("bytes/s next to nbdkit", bytes, ">=", 0.9),
		claim.New("writes/s next to nbdkit", rows[4].Ratio, ">=", 0.9),
	}
}

// run has one client work for a while, and returns how many requests it made.
func (b nbdBench) run(ctx context.Context, w workload, s *nbdServer) (float64, error) {
	c, err := nbd.Dial(ctx, "unix", s.socket, "")
	if err != nil {
		return 0, err
	}
	r := rand.New(rand.NewPCG(1, uint64(w.size)))
	blocks := c.Size / int64(w.size)
	data := make([]byte, w.size)
	for i := range data {
		data[i] = byte(r.Uint32() | 1)
	}
	if w.kind == nbd.Read {
		data = nil
	}
	done := 0
	began := time.Now()
	err = c.Run(w.depth, func() (nbd.Op, bool) {
		if time.Since(began) > b.Time || ctx.Err() != nil {
			return nbd.Op{}, false
		}
		at := int64(done) % blocks
		if w.random {
			at = r.Int64N(blocks)
		}
		done++
		return nbd.Op{Kind: w.kind, Offset: at * int64(w.size), Length: w.size, Data: data}, true
	}, nil)
	if err := errors.Join(err, c.Close(), ctx.Err()); err != nil {
		return 0, fmt.Errorf("%s: %w", w.name, err)
	}
	return float64(done), nil
}

// copyAll has nbdcopy read all of an image.
func copyAll(ctx context.Context, s *nbdServer) error {
	if out, err := exec.CommandContext(ctx, "nbdcopy", s.uri(), "null:").CombinedOutput(); err != nil {
		return fmt.Errorf("nbdcopy: %w: %s", err, out)
	}
	return nil
}

// syncImage writes the image out, so that nothing of one run is left to the next.
func syncImage(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("sync image: %w", err)
	}
	return errors.Join(f.Sync(), f.Close())
}

// makeImage makes an image without zeros, which is then in the page cache.
func makeImage(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	r := rand.NewChaCha8([32]byte{1})
	p := make([]byte, 1<<20)
	for off := int64(0); off < size && err == nil; off += int64(len(p)) {
		r.Read(p)
		_, err = f.Write(p)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	return nil
}

// nbdFeatures asks nbdinfo what there is.
func nbdFeatures(ctx context.Context, uri string) ([]claim.Claim, error) {
	out, err := exec.CommandContext(ctx, "nbdinfo", "--json", uri).Output()
	if err != nil {
		return nil, fmt.Errorf("nbdinfo: %w", err)
	}
	var info struct {
		Structured bool
		Exports    []struct {
			Contexts  []string
			Flush     bool `json:"can_flush"`
			FUA       bool `json:"can_fua"`
			Trim      bool `json:"can_trim"`
			Zero      bool `json:"can_zero"`
			FastZero  bool `json:"can_fast_zero"`
			Cache     bool `json:"can_cache"`
			DF        bool `json:"can_df"`
			MultiConn bool `json:"can_multi_conn"`
		}
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return nil, fmt.Errorf("read what nbdinfo says: %w", err)
	}
	if len(info.Exports) != 1 {
		return nil, fmt.Errorf("nbdinfo tells of %d exports", len(info.Exports))
	}
	e := info.Exports[0]
	var claims []claim.Claim
	for _, f := range []struct {
		name  string
		there bool
	}{
		{"FLUSH", e.Flush}, {"FUA", e.FUA}, {"TRIM", e.Trim}, {"WRITE_ZEROES", e.Zero}, {"fast WRITE_ZEROES", e.FastZero}, {"CACHE", e.Cache}, {"DF", e.DF},
		{"structured replies", info.Structured}, {"block status", slices.Contains(e.Contexts, "base:allocation")}, {"multi-conn", e.MultiConn},
	} {
		value := 0.0
		if f.there {
			value = 1
		}
		claims = append(claims, claim.New("nbdinfo sees "+f.name, value, "==", 1))
	}
	return claims, nil
}
