package imagebench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"heliotrope/imagesync"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/imagesync/manifest"
	"heliotrope/topologies/lab/claim"
)

// Here nothing is killed. Two writers go on from one version at the same time; the disk is
// full somewhere in an import; a bit of a file of a store is another one; a bit of what is read from another
// store is. What must hold is the same: nothing that was acknowledged is lost, nothing wrong is given.

const (
	faultRaces   = 100
	faultOnDisk  = 300
	faultOnWire  = 200
	faultMounted = 16 << 20 // bytes of the disk that is full
	faultStep    = 300 << 10
)

// faultFigures are those of the part.
type faultFigures struct {
	Races     int `json:"races"`
	OneWinner int `json:"races_with_one_winner"`
	Full      int `json:"imports_onto_a_full_disk"` // that failed for it
	OnDisk    int `json:"bits_flipped_on_disk"`
	Found     int `json:"of_them_found"`
	OnWire    int `json:"bits_flipped_on_the_wire"`
	Refused   int `json:"of_them_refused"` // the others came right: the bit was in what can be had again
}

type faulty struct {
	dir     string
	random  *rand.Rand
	figures faultFigures
	verdict
}

// faults measures it.
func faults(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	dir, err := os.MkdirTemp("", "faults")
	if err != nil {
		return nil, nil, err
	}
	f := &faulty{dir: dir, random: rand.New(rand.NewPCG(5, 6))}
	for _, run := range []func(context.Context) error{f.races, f.full, f.flips, f.noise} {
		if err == nil {
			err = run(ctx)
		}
	}
	if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
		return nil, f.figures, err
	}
	n := f.figures
	b.Say("%d of %d races with one winner; %d imports onto a full disk; of %d bits on disk %d found, of %d on the wire %d refused", n.OneWinner, n.Races,
		n.Full, n.OnDisk, n.Found, n.OnWire, n.Refused)
	claims := []claim.Claim{
		claim.New("two writers race: of one each time", float64(n.OneWinner)/float64(n.Races), "==", 1),
		claim.New("full disk: imports that failed for it", float64(n.Full), ">=", 10),
		claim.New("flipped bits on disk: found", float64(n.Found)/float64(n.OnDisk), "==", 1),
		claim.New("flipped bits on the wire: pulls", float64(n.OnWire), ">=", faultOnWire),
	}
	for _, c := range f.judge(b) {
		c.Name = "faults" + strings.TrimPrefix(c.Name, "crashes")
		claims = append(claims, c)
	}
	return claims, n, nil
}

// memory is an image.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }

// Extents is imagesync.Source's.
func (m memory) Extents(yield func(off, length int64, zero bool) bool) error {
	yield(0, int64(len(m)), false)
	return nil
}

func (f *faulty) bytes(n int) memory {
	m := make(memory, n)
	rand.NewChaCha8([32]byte{byte(f.random.Uint32()), byte(f.random.Uint32()), byte(f.random.Uint32())}).Read(m)
	return m
}

// store opens one of the part's stores; all have the same keys.
func (f *faulty) store(ctx context.Context, name string, wire func(depot.Depot) depot.Depot) (*imagesync.Store, error) {
	d, err := depot.OpenDir(filepath.Join(f.dir, name))
	if err != nil {
		return nil, err
	}
	at, o := depot.Depot(d), imagesync.Options{Keys: keyring.Dir(filepath.Join(f.dir, "keys"))}
	if wire != nil {
		at, o.There = wire(d), true
	}
	return imagesync.Open(ctx, filepath.Join(f.dir, name), at, o)
}

// made opens a store and makes contents the versions of an image in it.
func (f *faulty) made(ctx context.Context, name string, contents ...memory) (*imagesync.Store, error) {
	s, err := f.store(ctx, name, nil)
	if err != nil {
		return nil, err
	}
	for _, content := range contents {
		if _, _, err := s.Import(ctx, "disk", content, imagesync.ImportOptions{}); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// exported is what a store gives of a version.
func exported(ctx context.Context, s *imagesync.Store, ref string) (buffer, error) {
	r, err := s.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	got := make(buffer, r.Size())
	return got, r.Export(ctx, got, nil)
}

// holds checks that a version is there and right.
func (f *faulty) holds(ctx context.Context, s *imagesync.Store, what, ref string, want []byte) {
	switch got, err := exported(ctx, s, ref); {
	case errors.Is(err, imagesync.ErrNotFound):
		f.loses("%s: %s: %v", what, ref, err)
	case err != nil:
		f.fails("%s: %s: %v", what, ref, err)
	case !bytes.Equal(got, want):
		f.spoils("%s: %s", what, ref)
	}
}

// races has two writers go on from the newest version, each with a store of its own on the same
// files: one of them makes the next one.
func (f *faulty) races(ctx context.Context) error {
	content := f.bytes(8 * manifest.ChunkSize)
	first, err := f.made(ctx, "races", content)
	if err != nil {
		return err
	}
	defer first.Close()
	second, err := f.store(ctx, "races", nil)
	if err != nil {
		return err
	}
	defer second.Close()
	for range faultRaces {
		newest, err := first.Version(ctx, "disk")
		if err != nil {
			return err
		}
		chunk := f.random.IntN(8)
		var made [2]manifest.Version
		var errs [2]error
		var wrote [2]memory
		var writers sync.WaitGroup
		for i, s := range []*imagesync.Store{first, second} {
			wrote[i] = f.bytes(manifest.ChunkSize)
			writers.Go(func() { made[i], errs[i] = follow(ctx, s, newest, chunk, wrote[i]) })
		}
		writers.Wait()
		f.figures.Races++
		won := -1
		for i, err := range errs {
			switch {
			case err == nil && won < 0:
				won = i
			case err == nil:
				f.loses("two writers made %s of %s", made[i].Ref(), newest.Ref())
			case !errors.Is(err, imagesync.ErrConflict):
				f.fails("a writer that raced: %v", err)
			}
		}
		if won < 0 {
			continue
		}
		f.figures.OneWinner++
		copy(content[chunk*manifest.ChunkSize:], wrote[won])
		f.holds(ctx, second, "a race", made[won].Ref(), content)
	}
	return nil
}

// follow makes the version after one, of which a chunk is another one.
func follow(ctx context.Context, s *imagesync.Store, v manifest.Version, chunk int, content []byte) (manifest.Version, error) {
	w, err := s.Begin(ctx, "disk", imagesync.BeginOptions{Size: v.Size, Base: &v, Only: true})
	if err != nil {
		return v, err
	}
	defer w.Abort(ctx)
	if err := w.Put(ctx, chunk, content); err != nil {
		return v, err
	}
	return w.Commit(ctx)
}

// full imports onto a file system of its own that has always a little more room left.
func (f *faulty) full(ctx context.Context) error {
	first, second := f.bytes(2<<20), f.bytes(5<<20)
	for left := int64(0); left < 6<<20; left += faultStep {
		if err := f.fill(ctx, left, first, second); err != nil {
			return fmt.Errorf("import onto a disk with %d bytes left: %w", left, err)
		}
	}
	return nil
}

func (f *faulty) fill(ctx context.Context, left int64, first, second memory) (err error) {
	dir := filepath.Join(f.dir, "full")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprint("size=", faultMounted)); err != nil {
		return fmt.Errorf("mount tmpfs (run as root): %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH)) }()
	s, err := f.made(ctx, "full/store", first)
	if err != nil {
		return err
	}
	defer s.Close()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, int64(st.Bavail)*st.Bsize-left), 0o600); err != nil {
		return err
	}
	_, _, failed := s.Import(ctx, "disk", second, imagesync.ImportOptions{})
	what := fmt.Sprintf("a disk with %d bytes left", left)
	if failed != nil && !errors.Is(failed, depot.ErrFull) {
		f.fails("%s: %v", what, failed)
	}
	f.holds(ctx, s, what, "disk@1", first)
	if err := os.Remove(ballast); err != nil {
		return err
	}
	if failed != nil {
		f.figures.Full++
		if _, _, err := s.Import(ctx, "disk", second, imagesync.ImportOptions{}); err != nil {
			f.fails("%s, and then room: %v", what, err)
		}
	}
	again, err := f.store(ctx, "full/store", nil)
	if err != nil {
		return err
	}
	defer again.Close()
	f.holds(ctx, again, what, "disk@1", first)
	f.holds(ctx, again, what, "disk@2", second)
	return nil
}

// flips has another bit in one of a store's files: what is read is right or an error, and
// verification finds it.
func (f *faulty) flips(ctx context.Context) error {
	content := f.bytes(1 << 20)
	copy(content[1<<19:], bytes.Repeat([]byte("heliotrope "), 20000)) // some is compressed
	s, err := f.made(ctx, "flips", content)
	if err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	var files []string
	for _, dir := range []string{"packs", "manifests", "images"} {
		err = errors.Join(err, filepath.WalkDir(filepath.Join(f.dir, "flips", dir), func(file string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				files = append(files, file)
			}
			return err
		}))
	}
	for range faultOnDisk {
		if err = errors.Join(err, f.flip(ctx, files[f.random.IntN(len(files))], content)); err != nil {
			return err
		}
	}
	return nil
}

func (f *faulty) flip(ctx context.Context, file string, content []byte) error {
	was, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	flipped := bytes.Clone(was)
	flipBit(f.random, flipped)
	if err := os.WriteFile(file, flipped, 0o600); err != nil {
		return err
	}
	f.figures.OnDisk++
	found := true // a store that does not open has said so
	if s, err := f.store(ctx, "flips", nil); err == nil {
		if got, err := exported(ctx, s, "disk"); err == nil && !bytes.Equal(got, content) {
			f.spoils("a bit in %s", file)
		}
		report, err := s.Verify(ctx, true, nil)
		found = err != nil || len(report.Findings) > 0
		if err := s.Close(); err != nil {
			return err
		}
	}
	if found {
		f.figures.Found++
	}
	return os.WriteFile(file, was, 0o600)
}

func flipBit(r *rand.Rand, p []byte) { p[r.IntN(len(p))] ^= 1 << r.IntN(8) }

// noise pulls from a store beyond a wire that changes a bit of what is read: what arrives is right,
// or nothing does.
func (f *faulty) noise(ctx context.Context) error {
	content := f.bytes(700_000)
	far, err := f.made(ctx, "far", f.bytes(500_000), content)
	if err != nil {
		return err
	}
	defer far.Close()
	for tries := 0; f.figures.OnWire < faultOnWire && tries < 4*faultOnWire; tries++ {
		wire := &noisyWire{random: f.random, after: 1 + f.random.IntN(20)}
		if err := f.pull(ctx, wire, content); err != nil {
			return err
		}
	}
	return nil
}

func (f *faulty) pull(ctx context.Context, wire *noisyWire, content []byte) (err error) {
	near, err := f.store(ctx, "near", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, near.Close(), os.RemoveAll(filepath.Join(f.dir, "near"))) }()
	from, failed := f.store(ctx, "far", func(d depot.Depot) depot.Depot { wire.Depot = d; return wire })
	if failed == nil {
		defer from.Close()
		_, _, failed = near.Pull(ctx, from, "disk")
	}
	if !wire.flipped {
		return nil // it took fewer reads
	}
	f.figures.OnWire++
	if failed == nil {
		f.holds(ctx, near, "a bit on the wire", "disk", content)
		return nil
	}
	f.figures.Refused++
	if all, err := near.Versions(ctx, ""); err != nil || len(all) > 0 {
		f.spoils("of a pull that failed there is %v, %v", all, err)
	}
	return nil
}

// noisyWire is a depot of which one read comes with another bit.
type noisyWire struct {
	depot.Depot
	random  *rand.Rand
	after   int // reads
	flipped bool
}

func (w *noisyWire) spoil(p []byte) {
	if w.after--; w.after == 0 && len(p) > 0 {
		flipBit(w.random, p)
		w.flipped = true
	}
}

// Get is depot.Depot's, as is ReadAt.
func (w *noisyWire) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	b, err := w.Depot.Get(ctx, name, limit)
	w.spoil(b)
	return b, err
}

func (w *noisyWire) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	err := w.Depot.ReadAt(ctx, name, p, off)
	w.spoil(p)
	return err
}
