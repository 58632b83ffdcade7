package imagebench

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"heliotrope/controller/cli/images"
	"heliotrope/imagesync"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/nbd"
	"heliotrope/topologies/lab/claim"
	"heliotrope/topologies/lab/guest"
)

// A VM boots the Debian root: by direct kernel boot, under plain emulation, with virtio-blk. Its first
// answer is its SSH server's, to a program in Python inside, after the log and cron have started; the
// program writes it to the console. The file of the local boot is in the page cache.
//
// The other site's store is behind a line, which is a model: all reads of its depot go over it, packs
// as they are stored. The clock starts when the site begins to open the version, before there is a
// volume, and stops at the answer.

const (
	bootRTT    = 80 * time.Millisecond
	bootRate   = 100e6 / 8 // bytes a second, of each direction that matters: towards the VM
	bootRounds = 3
	bootLimit  = 3 * time.Minute
	bootMany   = 50 // volumes

	bootScript = `
ip link set lo up
mkdir -p /run/sshd
rsyslogd
cron
/usr/sbin/sshd
perl -MPOSIX -MSocket -MFile::Find -e 1
python3 -c '
import asyncio, email, http.server, json, logging, socket, sqlite3, ssl, urllib.request
c = socket.create_connection(("127.0.0.1", 22), 60)
print("ANSWER", c.recv(64).decode().strip(), flush=True)
'
exec sleep 1000000
`
	bootAnswer = "ANSWER SSH-2.0"
)

//go:embed boot_init.go
var bootInit []byte

// line is the way to the other site's store: each read waits for a round trip, and what comes
// for what comes before it.
type line struct {
	depot.Depot
	bytes *pipe
}

// pipe is what all reads share.
type pipe struct {
	lock  chan struct{}
	free  time.Time // when what was asked for has left the other end
	bytes int64
	reads int
}

func newPipe() *pipe { return &pipe{lock: make(chan struct{}, 1)} }

// cross waits for n bytes that are asked for now.
func (p *pipe) cross(ctx context.Context, n int) error {
	p.lock <- struct{}{}
	asked := time.Now().Add(bootRTT / 2)
	if p.free.Before(asked) {
		p.free = asked
	}
	p.free = p.free.Add(time.Duration(float64(n) / bootRate * float64(time.Second)))
	p.bytes, p.reads = p.bytes+int64(n), p.reads+1
	here := p.free.Add(bootRTT / 2)
	<-p.lock
	t := time.NewTimer(time.Until(here))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Get is depot.Depot's, as is ReadAt.
func (l *line) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	b, err := l.Depot.Get(ctx, name, limit)
	return b, errors.Join(err, l.bytes.cross(ctx, len(b)))
}

func (l *line) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	return errors.Join(l.Depot.ReadAt(ctx, name, p, off), l.bytes.cross(ctx, len(p)))
}

// booted is what a boot came to.
type booted struct {
	Seconds float64 `json:"seconds"`
	Wire    int64   `json:"wire_bytes"`     // that came before the answer, as they are stored
	Reads   int     `json:"reads"`          // over the line
	Chunks  int64   `json:"content_bytes"`  // of chunks that were here at the answer
	Share   float64 `json:"share_of_image"` // of its content
}

// bootFigures are those of the part.
type bootFigures struct {
	Content     int64    `json:"image_content_bytes"`
	Local       []booted `json:"local"`
	Demand      []booted `json:"nothing_prefetched"`
	Unknown     []booted `json:"without_working_set"`
	Known       []booted `json:"with_working_set"`
	WorkingSet  int      `json:"working_set_chunks"`
	FiftySecond float64  `json:"50_volumes_s"`
	FiftyDisk   int64    `json:"50_volumes_disk_bytes"`
}

// boot measures how much longer than at home a VM takes to its first answer where the image is not.
func boot(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	if err := b.images(ctx); err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp(b.Images, "run-")
	if err != nil {
		return nil, nil, err
	}
	y := &bootYard{b: b, dir: dir, root: filepath.Join(b.Images, "v1.raw")}
	err = y.measure(ctx)
	if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
		return nil, y.figures, err
	}
	f := &y.figures
	return []claim.Claim{
		measured("boot here, s", bootMedian(f.Local)),
		measured("boot with the working set, s", bootMedian(f.Known)),
		claim.New("boot with the working set next to local", bootMedian(f.Known)/bootMedian(f.Local), "<=", 2),
		claim.New("50 volumes, s", f.FiftySecond, "<=", 5),
		claim.New("50 volumes, bytes on the disk next to one image", float64(f.FiftyDisk)/float64(f.Content), "<=", 0.01),
	}, f, nil
}

func bootMedian(all []booted) float64 {
	sorted := slices.SortedFunc(slices.Values(all), func(a, b booted) int { return cmp.Compare(a.Seconds, b.Seconds) })
	return sorted[len(sorted)/2].Seconds
}

// bootYard is where VMs boot.
type bootYard struct {
	b       *Bench
	dir     string
	root    string // the image's file
	kernel  string
	initrd  string
	version manifest.Version
	figures bootFigures
}

func (y *bootYard) measure(ctx context.Context) error {
	if err := y.prepare(ctx); err != nil {
		return err
	}
	if err := y.many(ctx); err != nil {
		return fmt.Errorf("make %d volumes: %w", bootMany, err)
	}
	set := filepath.Join(y.dir, "boot.json")
	first, err := y.away(ctx, "record", images.SiteOptions{WorkingSet: set, Record: bootLimit})
	if err != nil {
		return fmt.Errorf("boot to be recorded: %w", err)
	}
	y.tell("recorded", first)
	f := &y.figures
	text, err := os.ReadFile(set)
	if err != nil {
		return err
	}
	var recorded struct{ Chunks []int }
	if err := json.Unmarshal(text, &recorded); err != nil {
		return err
	}
	f.WorkingSet = len(recorded.Chunks)
	y.b.Say("the working set has %d chunks, %.1f MB", f.WorkingSet, float64(f.WorkingSet)*manifest.ChunkSize/1e6)
	for round := range bootRounds {
		none := filepath.Join(y.dir, "none.json")
		for _, k := range []struct {
			what string
			into *[]booted
			o    images.SiteOptions
		}{
			{"local", &f.Local, images.SiteOptions{}},
			{"working set", &f.Known, images.SiteOptions{WorkingSet: set}},
			{"no working set", &f.Unknown, images.SiteOptions{WorkingSet: none}},
			{"no prefetch", &f.Demand, images.SiteOptions{WorkingSet: none, NoPrefetch: true}},
		} {
			var r booted
			if k.what == "local" {
				r, err = y.local(ctx)
			} else {
				r, err = y.away(ctx, fmt.Sprintf("site-%d", round), k.o)
			}
			if err != nil {
				return fmt.Errorf("boot, %s: %w", k.what, err)
			}
			*k.into = append(*k.into, r)
			y.tell(k.what, r)
		}
	}
	y.b.Say("medians: local %.2f s, working set %.2f, no working set %.2f, no prefetch %.2f", bootMedian(f.Local), bootMedian(f.Known),
		bootMedian(f.Unknown), bootMedian(f.Demand))
	return nil
}

func (y *bootYard) tell(what string, r booted) {
	y.b.Say("%-14s  %6.2f s, %6.1f MB crossed in %5d reads, %6.1f MB of content (%.0f%%) were here", what, r.Seconds, float64(r.Wire)/1e6, r.Reads,
		float64(r.Chunks)/1e6, 100*r.Share)
}

// prepare makes the store and the guest's initial RAM disk.
func (y *bootYard) prepare(ctx context.Context) error {
	var err error
	if y.kernel, err = guest.Kernel(); err != nil {
		return err
	}
	y.initrd = filepath.Join(y.dir, "initrd")
	if err := guest.Make(ctx, y.initrd, bootInit, map[string][]byte{"script": []byte(bootScript)}); err != nil {
		return fmt.Errorf("make initial RAM disk: %w", err)
	}
	s, err := openStore(ctx, y.dir, "far")
	if err != nil {
		return err
	}
	defer s.Close()
	raw, err := imagesync.OpenRaw(y.root)
	if err != nil {
		return err
	}
	defer raw.Close()
	y.version, _, err = s.Import(ctx, "debian", raw, imagesync.ImportOptions{})
	y.figures.Content = y.version.Content
	return err
}

// local boots from a copy of the file.
func (y *bootYard) local(ctx context.Context) (booted, error) {
	disk := filepath.Join(y.dir, "local.raw")
	var u used
	if _, err := u.timed(ctx, "cp", "--sparse=always", y.root, disk); err != nil {
		return booted{}, err
	}
	defer os.Remove(disk)
	if _, err := u.timed(ctx, "sync", disk); err != nil {
		return booted{}, err
	}
	r, began := booted{}, time.Now()
	err := y.run(ctx, disk, func() { r.Seconds = time.Since(began).Seconds() })
	return r, err
}

// away boots where nothing of the image is.
func (y *bootYard) away(ctx context.Context, name string, o images.SiteOptions) (r booted, err error) {
	dir := filepath.Join(y.dir, name)
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	there, err := depot.OpenDir(filepath.Join(y.dir, "far"))
	if err != nil {
		return r, err
	}
	way := &line{there, newPipe()}
	s, err := imagesync.Open(ctx, filepath.Join(y.dir, "far"), way, imagesync.Options{Keys: keyring.Dir(filepath.Join(y.dir, "keys"))})
	if err != nil {
		return r, err
	}
	defer s.Close()
	began := time.Now()
	before := way.bytes.bytes
	base, err := s.Open(ctx, y.version.Ref())
	if err != nil {
		return r, err
	}
	defer base.Close()
	site, err := images.OpenSite(dir, base.Version, base, o)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, site.Close()) }()
	exports, err := site.Exports([]string{"vm"}, false)
	if err != nil {
		return r, err
	}
	socket := filepath.Join(dir, "sock")
	l, err := nbd.Listen(ctx, socket)
	if err != nil {
		return r, err
	}
	serving, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- site.Run(serving, l, exports) }()
	err = y.run(ctx, "nbd+unix:///?socket="+socket, func() {
		way.bytes.lock <- struct{}{}
		r = booted{Wire: way.bytes.bytes - before, Reads: way.bytes.reads, Seconds: time.Since(began).Seconds()}
		<-way.bytes.lock
		r.Chunks = int64(site.Present()) * manifest.ChunkSize
		r.Share = float64(r.Chunks) / float64(y.version.Content)
	})
	stop()
	return r, errors.Join(err, <-ended)
}

// run boots a VM until it answers, calls answered, and ends it.
func (y *bootYard) run(ctx context.Context, disk string, answered func()) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-kernel", y.kernel, "-initrd", y.initrd, "-append", guest.CommandLine, "-drive", "file="+disk+",format=raw,if=virtio")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var wrong bytes.Buffer
	cmd.Stderr = &wrong
	console, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start QEMU: %w: run make deps", err)
	}
	var said strings.Builder
	ok := false
	for lines := bufio.NewScanner(io.TeeReader(console, &said)); !ok && lines.Scan(); {
		ok = strings.Contains(lines.Text(), bootAnswer)
	}
	if ok {
		answered()
	}
	cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	if !ok {
		return fmt.Errorf("the guest did not answer (%v); console: %s; QEMU: %s", ctx.Err(), said.String(), wrong.String())
	}
	return nil
}

// many makes volumes.
func (y *bootYard) many(ctx context.Context) error {
	s, err := openStore(ctx, y.dir, "far")
	if err != nil {
		return err
	}
	defer s.Close()
	base, err := s.Open(ctx, y.version.Ref())
	if err != nil {
		return err
	}
	defer base.Close()
	dir := filepath.Join(y.dir, "many")
	began := time.Now()
	site, err := images.OpenSite(dir, base.Version, base, images.SiteOptions{NoPrefetch: true})
	if err != nil {
		return err
	}
	var names []string
	for i := range bootMany {
		names = append(names, fmt.Sprintf("vm%d", i))
	}
	_, err = site.Exports(names, false)
	y.figures.FiftySecond = time.Since(began).Seconds()
	if err = errors.Join(err, site.Close()); err != nil {
		return err
	}
	y.figures.FiftyDisk, err = treeOnDisk(dir)
	y.b.Say("%d volumes: %.2f s, %.2f MB on the disk", bootMany, y.figures.FiftySecond, float64(y.figures.FiftyDisk)/1e6)
	return errors.Join(err, os.RemoveAll(dir))
}

// treeOnDisk is what files and directories take of the disk, bytes.
func treeOnDisk(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			n += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	return n, err
}
