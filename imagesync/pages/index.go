package pages

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/zeebo/xxh3"

	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/volume/bitmap"
)

// File is the name of an index, beside the cache. It has a head, the hashes in their order, 8 bytes each, the
// number of each one's page, 4 bytes each, and XXH3 of all that. Of pages that are alike it has the first.
//
//	magic, the image's root, the seed, how many chunks it was made of, how many pages it has
const File = "pages"

const (
	magic      = "heliotrope image pages 1\n"
	headBytes  = len(magic) + 32 + 8 + 8 + 8
	entryBytes = 8 + 4
	tailBytes  = 8
)

// head is what a file begins with.
type head struct {
	root   manifest.ID
	seed   uint64
	chunks uint64
	pages  int
}

func (h head) bytes() []byte {
	b := append([]byte(magic), h.root[:]...)
	b = binary.BigEndian.AppendUint64(b, h.seed)
	b = binary.BigEndian.AppendUint64(b, h.chunks)
	return binary.BigEndian.AppendUint64(b, uint64(h.pages))
}

var errNotWhole = errors.New("it has another form, is another image's, or was not written to its end")

// readHead reads the head of a file of the image whose cache dir is, and holds it against the file's length.
func readHead(f *os.File, dir string) (h head, err error) {
	var b [headBytes]byte
	info, err := f.Stat()
	if err != nil {
		return h, err
	}
	if _, err := io.ReadFull(f, b[:]); err != nil || string(b[:len(magic)]) != magic {
		return h, errNotWhole
	}
	rest := b[len(magic):]
	h.root = manifest.ID(rest[:32])
	h.seed, h.chunks = binary.BigEndian.Uint64(rest[32:]), binary.BigEndian.Uint64(rest[40:])
	n := binary.BigEndian.Uint64(rest[48:])
	if n > MaxPages || h.root.String() != filepath.Base(dir) || info.Size() != int64(headBytes)+int64(n)*entryBytes+tailBytes {
		return h, errNotWhole
	}
	h.pages = int(n)
	return h, nil
}

func lookAt(dir string) (head, error) {
	f, err := os.Open(filepath.Join(dir, File))
	if err != nil {
		return head{}, err
	}
	defer f.Close()
	return readHead(f, dir)
}

// Indexed is how many pages are found in the image whose cache dir is; 0: none, or there is no index.
func Indexed(dir string) int {
	h, err := lookAt(dir)
	if err != nil {
		return 0
	}
	return h.pages
}

// Index finds pages by their content.
type Index struct {
	seed   uint64
	hashes []uint64 // in their order
	pages  []uint32 // of each
	first  []uint32 // of each value of the hashes' upper bits, and one more: where those begin that have it
	shift  int
	there  bitmap.Set // chunks that are asked for
}

// Bytes is what an index of so many pages takes of memory.
func Bytes(pages int) int64 { return int64(pages) * (entryBytes + 1) }

// ReadIndex reads the index of the image whose cache dir is. One that is not whole is removed. Nothing is found in
// it before Only has said what is asked for.
func ReadIndex(dir string) (*Index, error) {
	x, err := readIndex(dir)
	if errors.Is(err, errNotWhole) {
		err = errors.Join(err, os.Remove(filepath.Join(dir, File)))
	}
	if err != nil {
		return nil, fmt.Errorf("read index of %.16s: %w", filepath.Base(dir), err)
	}
	return x, nil
}

func readIndex(dir string) (*Index, error) {
	f, err := os.Open(filepath.Join(dir, File))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h, err := readHead(f, dir)
	if err != nil {
		return nil, err
	}
	sum := xxh3.New()
	sum.Write(h.bytes())
	in := bufio.NewReaderSize(io.TeeReader(io.LimitReader(f, int64(h.pages)*entryBytes), sum), 1<<18)
	x := &Index{seed: h.seed, hashes: make([]uint64, h.pages), pages: make([]uint32, h.pages)} // the file is as long
	var b [8]byte
	for i := range x.hashes {
		if _, err := io.ReadFull(in, b[:]); err != nil {
			return nil, err
		}
		x.hashes[i] = binary.LittleEndian.Uint64(b[:])
	}
	for i := range x.pages {
		if _, err := io.ReadFull(in, b[:4]); err != nil {
			return nil, err
		}
		x.pages[i] = binary.LittleEndian.Uint32(b[:])
	}
	if _, err := io.ReadFull(f, b[:tailBytes]); err != nil {
		return nil, err
	}
	if binary.BigEndian.Uint64(b[:]) != sum.Sum64() || !slices.IsSorted(x.hashes) {
		return nil, errNotWhole
	}
	x.divide()
	return x, nil
}

// bucket is how many hashes have the same upper bits, about: a few cache lines.
const bucket = 4

// divide makes first.
func (x *Index) divide() {
	width := max(0, bits.Len(uint(len(x.hashes)/bucket))-1)
	x.shift = 64 - width
	x.first = make([]uint32, 1<<width+1)
	for _, h := range x.hashes {
		x.first[h>>x.shift+1]++
	}
	for i := range x.first[1:] {
		x.first[i+1] += x.first[i]
	}
}

// Only says of which chunks pages are asked for, as Image.Here has it.
func (x *Index) Only(told []byte) error {
	x.there = bitmap.Set{}
	take := func() (uint64, error) {
		v, n := binary.Uvarint(told)
		if n <= 0 || v > MaxSize/manifest.ChunkSize {
			return 0, errors.New("read which chunks are there: that is no number of chunks")
		}
		told = told[n:]
		return v, nil
	}
	for at := uint64(0); len(told) > 0; {
		gap, err := take()
		if err != nil {
			return err
		}
		n, err := take()
		if err != nil {
			return err
		}
		if at += gap + n; n == 0 || at > MaxSize/manifest.ChunkSize {
			return errors.New("read which chunks are there: no image has those")
		}
		x.there.Add(int64(at-n), int64(at))
	}
	return nil
}

// Find returns the number of a page of that content, of a chunk that is asked for.
func (x *Index) Find(page *[pageBytes]byte) (number uint64, ok bool) {
	h := xxh3.HashSeed(page[:], x.seed)
	k := h >> x.shift
	for i := x.first[k]; i < x.first[k+1]; i++ {
		if x.hashes[i] == h {
			n := x.pages[i]
			return uint64(n), x.there.Has(int64(n / chunkPages))
		}
	}
	return 0, false
}

// entry is a page on its way to an index.
type entry struct {
	hash uint64
	page uint32
}

// Make makes the index of the image whose cache dir is, unless there is one of as much as has come. It takes a
// fraction of a core, and its time: nobody waits for it.
func Make(ctx context.Context, dir string) error {
	c, err := openCache(dir)
	if err != nil {
		return fmt.Errorf("find pages of %.16s: %w", filepath.Base(dir), err)
	}
	defer c.chunks.Close()
	h, err := lookAt(dir)
	if err == nil && h.chunks >= uint64(c.here.Count()) {
		return nil // what has gone since may come again
	}
	var seed [8]byte
	rand.Read(seed[:])
	h = head{root: c.root, seed: binary.LittleEndian.Uint64(seed[:]), chunks: uint64(c.here.Count())}
	all, err := c.entries(ctx, h.seed)
	if err == nil {
		err = write(dir, h, all)
	}
	if err != nil {
		return fmt.Errorf("find pages of %.16s: %w", filepath.Base(dir), err)
	}
	return nil
}

// Of the time that Make takes it rests so many parts, after each so many chunks.
const (
	rests     = 3
	restEvery = 16
)

// entries are those of all pages that are here and not zeros.
func (c *cache) entries(ctx context.Context, seed uint64) (all []entry, err error) {
	var data [manifest.ChunkSize]byte
	n, began := 0, time.Now()
	for chunk := range c.Content() {
		if !c.here.Has(int64(chunk)) || c.read(chunk, &data) != nil { // it comes again, and may be indexed then
			continue
		}
		for i := range chunkPages {
			page := data[i*pageBytes:][:pageBytes]
			if len(all) < MaxPages && !manifest.IsZeros(page) {
				all = append(all, entry{xxh3.HashSeed(page, seed), uint32(chunk*chunkPages + i)})
			}
		}
		if n++; n%restEvery == 0 {
			t := time.NewTimer(rests * time.Since(began))
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return nil, context.Cause(ctx)
			}
			began = time.Now()
		}
	}
	slices.SortFunc(all, func(a, b entry) int { return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.page, b.page)) })
	return slices.CompactFunc(all, func(a, b entry) bool { return a.hash == b.hash }), nil
}

// write replaces an index.
func write(dir string, h head, all []entry) error {
	h.pages = len(all)
	f, err := os.OpenFile(filepath.Join(dir, File+".new"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	sum := xxh3.New()
	w := bufio.NewWriterSize(io.MultiWriter(f, sum), 1<<18)
	w.Write(h.bytes())
	var b [8]byte
	for _, e := range all {
		w.Write(binary.LittleEndian.AppendUint64(b[:0], e.hash))
	}
	for _, e := range all {
		w.Write(binary.LittleEndian.AppendUint32(b[:0], e.page))
	}
	err = w.Flush() // the first error that there was
	if err == nil {
		_, err = f.Write(binary.BigEndian.AppendUint64(b[:0], sum.Sum64()))
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, File))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
