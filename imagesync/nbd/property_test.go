package nbd

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// swap is exports of which the device is another for each check.
type swap struct {
	mu     sync.Mutex
	device Device
}

func (s *swap) Export(context.Context, string) (Export, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Export{Device: s.device, MultiConn: true}, nil
}

func (s *swap) Names(context.Context) ([]string, error) { return nil, nil }

// half is one of two clients, which has a half of the device for itself and knows what has to
// be there.
type half struct {
	base    int64
	model   []byte
	batches [][]Op
}

// drawHalf draws batches of requests that do not overlap within a batch, so that the order
// does not matter in which they are carried out.
func drawHalf(t *rapid.T, name string, base, size int64) *half {
	h := &half{base: base, model: make([]byte, size)}
	fill := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, name+" data"), 0))
	for range rapid.IntRange(1, 4).Draw(t, name+" batches") {
		cuts := rapid.SliceOfNDistinct(rapid.Int64Range(0, size), 2, 16, rapid.ID[int64]).Draw(t, name+" cuts")
		slices.Sort(cuts)
		var batch []Op
		for i := range cuts[1:] {
			op := Op{Kind: rapid.SampledFrom([]Kind{Read, Write, Write, Trim, WriteZeroes}).Draw(t, name+" kind"), FUA: rapid.Bool().Draw(t, name+" fua"),
				Offset: base + cuts[i], Length: int(cuts[i+1] - cuts[i])}
			if op.Kind == Write {
				op.Data = make([]byte, op.Length)
				for i := range op.Data {
					op.Data[i] = byte(fill.Uint32())
				}
			}
			batch = append(batch, op)
		}
		h.batches = append(h.batches, append(batch, Op{Kind: Flush}))
	}
	return h
}

// run sends the batches and holds what is read against the model.
func (h *half) run(c *Client) error {
	for _, batch := range h.batches {
		i, wrong := 0, error(nil)
		err := c.Run(8, func() (Op, bool) {
			if i++; i > len(batch) {
				return Op{}, false
			}
			return batch[i-1], true
		}, func(op Op, data []byte) {
			at := op.Offset - h.base
			if op.Kind == Read && !bytes.Equal(data, h.model[at:at+int64(op.Length)]) {
				wrong = errors.New("a read differs from what was written")
			}
		})
		if err := errors.Join(err, wrong); err != nil {
			return err
		}
		for _, op := range batch {
			switch part := h.model[max(0, op.Offset-h.base):][:op.Length]; op.Kind {
			case Write:
				copy(part, op.Data)
			case Trim, WriteZeroes:
				clear(part)
			}
		}
	}
	return nil
}

// What two clients write at once is what a third one reads, and what is said of holes and of
// what changed agrees with it.
func TestContentIsWhatWasWritten(t *testing.T) {
	const size = 256<<10 + 2*777
	dir := t.TempDir()
	file := func(t *rapid.T) Device {
		path := filepath.Join(dir, "image")
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
			t.Fatal(err)
		}
		d, err := OpenFile(path, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d
	}
	for name, device := range map[string]func(t *rapid.T) Device{
		"memory":  func(*rapid.T) Device { return newMemory(size) },
		"waiting": func(*rapid.T) Device { d := newMemory(size); d.never = true; return d },
		"file":    file,
	} {
		t.Run(name, func(t *testing.T) {
			s := &swap{}
			path := serve(t, NewServer(s, nil, logTo(t)))
			rapid.Check(t, func(t *rapid.T) {
				s.mu.Lock()
				s.device = device(t)
				s.mu.Unlock()
				var clients [3]*Client
				for i := range clients {
					var err error
					if clients[i], err = Dial(context.Background(), "unix", path, ""); err != nil {
						t.Fatal(err)
					}
					defer clients[i].Close()
				}
				halves := []*half{drawHalf(t, "left", 0, size/2), drawHalf(t, "right", size/2, size/2)}
				var g sync.WaitGroup
				errs := make([]error, 2)
				for i, h := range halves {
					g.Go(func() { errs[i] = h.run(clients[i]) })
				}
				g.Wait()
				if err := errors.Join(errs...); err != nil {
					t.Fatal(err)
				}
				want, got := slices.Concat(halves[0].model, halves[1].model), make([]byte, size)
				if err := clients[2].Do(Op{Kind: Read, Length: size}, got); err != nil || !bytes.Equal(got, want) {
					t.Fatal("other content than was written", err)
				}
				checkExtents(t, s.device, want)
			})
		})
	}
}

// checkExtents holds extents against content: what is said to be zeros is, the range is
// covered, and what is not zeros was written.
func checkExtents(t *rapid.T, d Device, content []byte) {
	at := int64(0)
	err := d.Extents(context.Background(), 0, d.Size(), func(e Extent) bool {
		if e.Zero && !isZero(content[at:at+e.Length]) {
			t.Fatalf("%d bytes at %d are said to be zeros", e.Length, at)
		}
		at += e.Length
		return true
	})
	if err != nil || at != d.Size() {
		t.Fatalf("extents end at %d of %d: %v", at, d.Size(), err)
	}
	tracker, ok := d.(Tracker)
	if !ok {
		return
	}
	rest := bytes.Clone(content)
	if err := tracker.Dirty(context.Background(), 0, d.Size(), func(off, n int64) bool { clear(rest[off : off+n]); return true }); err != nil || !isZero(rest) {
		t.Fatal("something was written and is not told as that", err)
	}
}
