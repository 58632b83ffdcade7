package imagebench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/nbd"
)

// A disk that is served ("heliotrope image serve") is written to by several clients at once and its
// server killed while a write or a flush is under way: the clock of the kill starts right before the
// request goes out, and runs for up to what such a request usually takes. What the next server gives is
// read whole. The kernel lives on, so all that was answered must be there, flushed or not; a block
// of a request that was not answered is what it was or what it was to become, never a mixture.

const (
	diskSize    = 8 << 20
	diskBlock   = manifest.BlockSize
	diskChunk   = manifest.ChunkSize / diskBlock // blocks
	diskWriters = 4                              // clients at once; each has every fourth chunk for itself
	diskLife    = 25                             // rounds that a volume lives for
)

// What a block may hold, beside what was written to it: that has a number of its own.
const (
	stampZero = iota
	stampImage
	stampFirst
)

// disks is a volume after the other, and what must be in it.
type disks struct {
	*world
	image  []byte // on which the volumes stand
	number int    // of the volume
	looked int    // blocks
	usual  map[string]time.Duration

	mu       sync.Mutex
	stamp    uint64     // the last one
	possible [][]uint64 // of each block, the oldest first
	pending  [diskWriters]string
	killing  bool
}

// run kills servers until so many were in a write, and as many in a flush.
func (d *disks) run(ctx context.Context, each int) error {
	d.image = make([]byte, diskSize)
	rand.NewChaCha8([32]byte{2}).Read(d.image[:diskSize*3/4])
	file := filepath.Join(d.dir, "base.raw")
	if err := os.WriteFile(file, d.image, 0o600); err != nil {
		return err
	}
	var u used
	if _, err := u.timed(ctx, d.program, d.command("here", "import", "base", file)...); err != nil {
		return err
	}
	for round := 0; d.killed["write"] < each || d.killed["flush"] < each; round++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if round%diskLife == 0 {
			if err := d.fresh(); err != nil {
				return err
			}
		}
		victim := "write"
		switch {
		case round%10 == 5:
			victim = "opening"
		case d.killed["flush"] < d.killed["write"]:
			victim = "flush"
		}
		if err := d.round(ctx, victim); err != nil {
			return fmt.Errorf("kill a server of disks in %s: %w", victim, err)
		}
		if len(d.lost)+len(d.wrong)+len(d.failed) > 100 {
			return nil // it has said enough
		}
	}
	return d.round(ctx, "") // what the last one has left
}

func (d *disks) host() string { return filepath.Join(d.dir, fmt.Sprintf("host-%d", d.number)) }

// fresh has the next volume, whose cache is empty.
func (d *disks) fresh() error {
	if err := os.RemoveAll(d.host()); err != nil {
		return err
	}
	d.number++
	d.possible = make([][]uint64, diskSize/diskBlock)
	for i := range d.possible {
		d.possible[i] = []uint64{stampImage}
	}
	return nil
}

// round starts a server, looks at what the last one has left, and kills it: in a request of a kind,
// before it serves, or (no victim) not at all.
func (d *disks) round(ctx context.Context, victim string) error {
	socket := filepath.Join(d.dir, "sock")
	prefetch := []string{"off", "on", "20M"}[d.number%3]
	cmd := exec.CommandContext(ctx, d.program, d.command("here", "serve", "base", "--socket", socket, "--dir", d.host(), "--volume", "vm", "--prefetch", prefetch)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stderr = &said
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }() // how it ended its state says
	kill := func() { _ = cmd.Process.Kill(); <-ended }
	defer kill()
	if usual := d.usual["opening"]; victim == "opening" && usual > 0 {
		pause(ctx, time.Duration(d.random.Int64N(int64(usual))))
		c, err := nbd.Dial(ctx, "unix", socket, "vm")
		kill()
		if err == nil {
			_ = c.Close() // nobody answers any more
		} else {
			d.killed["opening"]++
		}
		return nil
	}
	clients, err := d.connect(ctx, socket, ended)
	for _, c := range clients {
		defer c.Close()
	}
	if err != nil {
		d.fails("the server of volume %d: %v: %s", d.number, err, bytes.TrimSpace(said.Bytes()))
		return nil
	}
	d.usual["opening"] = time.Since(began)
	if err := d.look(clients[0]); err != nil {
		d.fails("volume %d: %v: %s", d.number, err, bytes.TrimSpace(said.Bytes()))
		return nil
	}
	if victim == "" {
		return nil
	}
	d.work(ctx, clients, victim, kill)
	if state := cmd.ProcessState; state.Exited() {
		d.fails("the server of volume %d has ended with %d: %s", d.number, state.ExitCode(), bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

// connect waits until the server serves, or has ended.
func (d *disks) connect(ctx context.Context, socket string, ended <-chan struct{}) (clients []*nbd.Client, err error) {
	limited, cancel := context.WithTimeout(ctx, nbdConnect)
	defer cancel()
	for len(clients) < diskWriters {
		c, err := nbd.Dial(limited, "unix", socket, "vm")
		if err == nil {
			clients = append(clients, c)
			continue
		}
		select {
		case <-ended:
			return clients, errors.New("it has ended by itself")
		case <-limited.Done():
			return clients, err
		case <-time.After(time.Millisecond):
		}
	}
	return clients, nil
}

// look reads all of the volume. From here on a block is what it is now.
func (d *disks) look(c *nbd.Client) error {
	const piece = 256 << 10
	at := int64(0)
	return c.Run(8, func() (nbd.Op, bool) {
		op := nbd.Op{Kind: nbd.Read, Offset: at, Length: piece}
		at += piece
		return op, op.Offset < diskSize
	}, func(op nbd.Op, p []byte) {
		for ; len(p) > 0; p = p[diskBlock:] {
			d.lookAt(op.Offset/diskBlock, p[:diskBlock])
			op.Offset += diskBlock
		}
	})
}

func (d *disks) lookAt(block int64, got []byte) {
	d.looked++
	may := d.possible[block]
	for _, stamp := range may {
		if bytes.Equal(got, d.content(block, stamp)) {
			d.possible[block] = []uint64{stamp}
			return
		}
	}
	// What it was before is a write that is lost; all else is wrong.
	is := uint64(stampImage)
	if at := binary.LittleEndian.Uint64(got); at == uint64(block)+1 {
		is = binary.LittleEndian.Uint64(got[8:])
	} else if at == 0 {
		is = stampZero
	}
	if is <= d.stamp && bytes.Equal(got, d.content(block, is)) {
		d.loses("volume %d: block %d is of write %d, and may be of %v", d.number, block, is, may)
		d.possible[block] = []uint64{is} // it is said once
		return
	}
	d.spoils("volume %d: block %d begins with %x, and may be of write %v", d.number, block, got[:32], may)
	d.possible[block] = []uint64{may[len(may)-1]}
}

// content is what a block holds after a write.
func (d *disks) content(block int64, stamp uint64) []byte {
	switch stamp {
	case stampZero:
		return make([]byte, diskBlock)
	case stampImage:
		return d.image[block*diskBlock:][:diskBlock]
	}
	return bytes.Repeat(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(block)+1), stamp), diskBlock/16)
}

// work has all clients write and flush until the server is killed, which is after so many
// requests of the victim's kind.
func (d *disks) work(ctx context.Context, clients []*nbd.Client, victim string, kill func()) {
	d.killing, d.pending = false, [diskWriters]string{}
	left, chosen := 1+d.random.IntN(30), 0
	delay := time.Duration(d.random.Int64N(int64(d.usual[victim]*5/4) + 1))
	now := make(chan struct{})
	asking := func(w int, kind string) { // with the lock
		if d.pending[w] = kind; kind == victim {
			if left--; left == 0 {
				chosen = w
				close(now)
			}
		}
	}
	var writers sync.WaitGroup
	for w, c := range clients {
		r := rand.New(rand.NewPCG(d.random.Uint64(), uint64(w)))
		writers.Go(func() { d.write(w, c, r, asking) })
	}
	over := make(chan struct{})
	go func() { writers.Wait(); close(over) }()
	select {
	case <-now:
		pause(ctx, delay)
	case <-over: // none of them could go on
	case <-ctx.Done():
	}
	d.mu.Lock()
	d.killing = true
	d.mu.Unlock()
	kill()
	<-over
	in := d.pending[chosen]
	for _, other := range d.pending {
		if in == "" || in != victim && other == victim {
			in = other
		}
	}
	if in != "" {
		d.killed[in]++
	}
}

// write writes and flushes until that cannot be done any more. The blocks are this client's alone.
func (d *disks) write(w int, c *nbd.Client, r *rand.Rand, asking func(int, string)) {
	for {
		first := (r.Int64N(diskSize/diskBlock/diskChunk/diskWriters)*diskWriters + int64(w)) * diskChunk
		first += r.Int64N(diskChunk)
		n := 1 + r.Int64N(diskChunk-first%diskChunk)
		op := nbd.Op{Kind: nbd.Write, Offset: first * diskBlock, Length: int(n * diskBlock), FUA: r.IntN(6) == 0}
		kind := "write"
		switch r.IntN(10) {
		case 0, 1:
			op, kind, n = nbd.Op{Kind: nbd.Flush}, "flush", 0
		case 2:
			op.Kind = nbd.Trim
		case 3:
			op.Kind = nbd.WriteZeroes
		}
		d.mu.Lock()
		stamp := uint64(stampZero)
		if op.Kind == nbd.Write {
			d.stamp = max(d.stamp+1, stampFirst)
			stamp = d.stamp
		}
		for block := first; block < first+n; block++ {
			d.possible[block] = append(d.possible[block], stamp)
			if op.Kind == nbd.Write {
				op.Data = append(op.Data, d.content(block, stamp)...)
			}
		}
		asking(w, kind)
		d.mu.Unlock()
		began := time.Now()
		err := c.Do(op, nil)
		took := time.Since(began)
		d.mu.Lock()
		if err != nil {
			if !d.killing {
				d.fails("volume %d: %s: %v", d.number, kind, err)
			}
			d.mu.Unlock()
			return
		}
		d.usual[kind] += (took - d.usual[kind]) / 8
		d.ended[kind]++
		d.pending[w] = ""
		for block := first; block < first+n; block++ {
			d.possible[block] = []uint64{stamp}
		}
		d.mu.Unlock()
	}
}

// pause waits for so long, or until ctx ends.
func pause(ctx context.Context, long time.Duration) {
	t := time.NewTimer(long)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
