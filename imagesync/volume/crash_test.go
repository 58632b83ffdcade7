package volume

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// The child of TestKilled is this program, told by its environment where the volume is and
// where its random numbers begin.
const (
	childDir  = "HELIOTROPE_VOLUME_TEST_DIR"
	childSeed = "HELIOTROPE_VOLUME_TEST_SEED"
)

const (
	crashChunks  = 32
	crashBlocks  = crashChunks * chunkBlocks
	crashWriters = 4
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		seed, err := strconv.ParseUint(os.Getenv(childSeed), 10, 64)
		if err == nil {
			err = child(dir, seed)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func crashBase() *memoryBase { return newMemoryBase(crashChunks*ChunkSize, 8) }

func crashOpen(dir string, epoch uint64) (*Cache, *Volume, error) {
	c, err := OpenCache(filepath.Join(dir, "base"), crashBase(), CacheOptions{Identity: "b"})
	if err != nil {
		return nil, nil, err
	}
	v, err := Open(filepath.Join(dir, "v"), Options{Base: c, Epoch: epoch})
	return c, v, err
}

// stamped is a block's content that says which write it is of: 0 for zeros.
func stamped(block, stamp int64) []byte {
	if stamp == 0 {
		return make([]byte, BlockSize)
	}
	return bytes.Repeat(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(block)+1), uint64(stamp)), BlockSize/16)
}

// child writes, and says on its standard output what it is about to write ("w block count
// stamp"), and when it was told that what it wrote, or flushed, is done ("f writer": all that
// writer had written before).
func child(dir string, seed uint64) error {
	_, v, err := crashOpen(dir, seed)
	if err != nil {
		return err
	}
	v.journal.slack = 12
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	failed := make(chan error)
	for w := range int64(crashWriters) {
		go func() { failed <- childWriter(v, rand.New(rand.NewPCG(seed, uint64(w))), w, int64(seed)<<20, say) }()
	}
	go func() {
		for {
			if err := childCommit(v, dir); err != nil {
				failed <- err
				return
			}
			if err := childSnapshot(v); err != nil {
				failed <- err
				return
			}
		}
	}()
	return <-failed
}

// childWriter has every crashWriters-th chunk for itself.
func childWriter(v *Volume, rng *rand.Rand, w, stamp int64, say func(string, ...any)) error {
	ctx := context.Background()
	for {
		stamp += crashWriters
		from := (rng.Int64N(crashChunks/crashWriters)*crashWriters + w) * chunkBlocks
		from += rng.Int64N(chunkBlocks)
		n := 1 + rng.Int64N(chunkBlocks-from%chunkBlocks)
		switch rng.IntN(6) {
		case 0:
			if err := v.Flush(ctx); err != nil {
				return err
			}
			say("f %d", w)
		case 1:
			say("w %d %d 0", from, n)
			if err := v.Trim(ctx, from*BlockSize, n*BlockSize); err != nil {
				return err
			}
			say("f %d", w)
		default:
			var p []byte
			for b := range n {
				p = append(p, stamped(from+b, stamp+w)...)
			}
			fua := rng.IntN(5) == 0
			say("w %d %d %d", from, n, stamp+w)
			if err := v.WriteAt(ctx, p, from*BlockSize, fua); err != nil {
				return err
			}
			say("f %d", w)
		}
	}
}

// childCommit commits to a copy of the last commit, which it then puts in its place.
func childCommit(v *Volume, dir string) error {
	committed := filepath.Join(dir, "committed")
	image, err := os.ReadFile(committed)
	if err != nil {
		return err
	}
	return v.Commit(context.Background(), func(_ context.Context, i int, chunk []byte) error {
		copy(image[i*ChunkSize:], chunk)
		return nil
	}, func(context.Context) error {
		if err := os.WriteFile(committed+".new", image, 0o600); err != nil {
			return err
		}
		return os.Rename(committed+".new", committed)
	})
}

// childSnapshot reads a snapshot of which every block is of one write.
func childSnapshot(v *Volume) error {
	s, err := v.Snapshot()
	if err != nil {
		return err
	}
	return errors.Join(s.Read(context.Background(), func(_ context.Context, i int, chunk []byte) error {
		for b := range chunkBlocks {
			block := chunk[b*BlockSize:][:BlockSize]
			if !bytes.Equal(block, bytes.Repeat(block[:16], BlockSize/16)) && !bytes.Equal(block, crashBase().data[i*ChunkSize+b*BlockSize:][:BlockSize]) {
				return fmt.Errorf("block %d of chunk %d of a snapshot is of two writes", b, i)
			}
		}
		return nil
	}), s.Close())
}

// TestKilled kills a process that writes to a volume, again and again: what was answered, flushed
// or not, is there, every other block is what it was or what a later write made it, and a block that
// is not as it was committed is dirty.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir, base := t.TempDir(), crashBase()
	check(t, os.WriteFile(filepath.Join(dir, "committed"), base.data, 0o600))
	c, err := OpenCache(filepath.Join(dir, "base"), base, CacheOptions{Identity: "b"})
	check(t, err)
	v, err := Create(filepath.Join(dir, "v"), Options{Base: c})
	check(t, err)
	check(t, v.Close())
	check(t, c.Close())
	m := &killed{t: t, dir: dir, base: base}
	for b := range int64(crashBlocks) {
		m.possible[b] = []int64{-1}
	}
	rng := rand.New(rand.NewPCG(21, 21))
	for round := range uint64(60) {
		m.run(round+1, rng.IntN(400))
		m.inspect(round + 1)
	}
	t.Logf("%d writes, %d flushes", m.writes, m.flushes)
}

type killed struct {
	t    *testing.T
	dir  string
	base *memoryBase
	// possible are the stamps that a block may have, the oldest first; -1 is the base.
	possible        [crashBlocks][]int64
	writes, flushes int
}

// run lets a child say some lines and kills it.
func (m *killed) run(seed uint64, lines int) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+m.dir, fmt.Sprint(childSeed, "=", seed))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	check(m.t, err)
	check(m.t, cmd.Start())
	in := bufio.NewReader(out)
	for n := 0; ; n++ {
		if n == lines {
			check(m.t, cmd.Process.Kill())
		}
		line, err := in.ReadString('\n')
		if err == io.EOF {
			break
		}
		check(m.t, err)
		m.heard(line)
	}
	_ = cmd.Wait()
	if stderr.Len() > 0 {
		m.t.Fatalf("child %d: %s", seed, stderr.String())
	}
}

func (m *killed) heard(line string) {
	var w, from, n, stamp int64
	if _, err := fmt.Sscanf(line, "f %d\n", &w); err == nil {
		m.flushes++
		for b := range m.possible {
			if p := m.possible[b]; int64(b)/chunkBlocks%crashWriters == w {
				m.possible[b] = p[len(p)-1:]
			}
		}
		return
	}
	if _, err := fmt.Sscanf(line, "w %d %d %d\n", &from, &n, &stamp); err != nil {
		m.t.Fatalf("a child says %q", line)
	}
	m.writes++
	for b := from; b < from+n; b++ {
		m.possible[b] = append(m.possible[b], stamp)
	}
}

// inspect looks at what a killed child has left.
func (m *killed) inspect(epoch uint64) {
	c, v, err := crashOpen(m.dir, epoch)
	if err != nil {
		m.t.Fatalf("after child %d: %v", epoch, err)
	}
	got := make([]byte, crashBlocks*BlockSize)
	check(m.t, v.ReadAt(context.Background(), got, 0))
	clean := bytes.Clone(got)
	committed, err := os.ReadFile(filepath.Join(m.dir, "committed"))
	check(m.t, err)
	check(m.t, v.Dirty(context.Background(), 0, v.Size(), func(off, n int64) bool {
		copy(clean[off:off+n], committed[off:off+n])
		return true
	}))
	for b := range m.possible {
		p := got[b*BlockSize:][:BlockSize]
		found := false
		for _, stamp := range m.possible[b] {
			if stamp == -1 && bytes.Equal(p, m.base.data[b*BlockSize:][:BlockSize]) || stamp >= 0 && bytes.Equal(p, stamped(int64(b), stamp)) {
				m.possible[b] = []int64{stamp}
				found = true
				break
			}
		}
		if !found {
			m.t.Fatalf("after child %d block %d begins with %x; it may be one of %v", epoch, b, p[:32], m.possible[b])
		}
		if !bytes.Equal(clean[b*BlockSize:][:BlockSize], committed[b*BlockSize:][:BlockSize]) {
			m.t.Fatalf("after child %d block %d is clean, and not what was committed", epoch, b)
		}
	}
	check(m.t, v.Close())
	check(m.t, c.Close())
}
