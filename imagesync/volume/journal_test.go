package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"heliotrope/imagesync/volume/bitmap"
	"heliotrope/imagesync/volume/epoch"
	"heliotrope/imagesync/volume/frame"
)

// A bit that flips in any acknowledged frame is found; one in the mark behind them costs
// nothing.
func TestFlippedBit(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := newSim()
	check(t, create(d, geometry{16 << 20, ""}, 0))
	v, err := openIn(d, Options{}, func() {})
	check(t, err)
	for i := range int64(20) {
		check(t, v.WriteAt(ctx, bytes.Repeat([]byte{byte(i + 1)}, BlockSize), i*3*BlockSize, true))
	}
	frames := int(v.journal.Seq)
	journal := d.names[journalFile]
	whole := slices.Clone(journal.data)
	if len(whole) != (frames+1)*frame.Size {
		t.Fatalf("%d bytes are not %d frames and a mark", len(whole), frames)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		at := rng.IntN(len(whole) * 8)
		journal.data = slices.Clone(whole)
		journal.data[at/8] ^= 1 << (at % 8)
		d.locks = make(map[string]bool)
		v, err := openIn(d, Options{}, func() {})
		if n := at / 8 / frame.Size; n < frames {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("bit %d of frame %d of %d: %v", at%(8*frame.Size), n, frames, err)
			}
			continue
		}
		check(t, err)
		p := make([]byte, 1)
		for i := range int64(20) {
			check(t, v.ReadAt(ctx, p, i*3*BlockSize))
			if p[0] != byte(i+1) {
				t.Fatalf("write %d is gone", i)
			}
		}
	}
}

// A tail that was not acknowledged is cut off wherever it was torn.
func TestTornTail(t *testing.T) {
	t.Parallel()
	d := newSim()
	j, err := writeJournal(d, 3, geometry{1 << 30, "x"}, new(batch))
	check(t, err)
	var want []run
	b := new(batch)
	for i := range int64(400) {
		r := run{i * 100, i*100 + 1 + i%90, what(i % int64(whats))}
		want = append(want, r)
		b.run(r)
	}
	check(t, j.append(b))
	safe := int(j.Seq) * frame.Size
	mark := slices.Clone(d.names[journalFile].data[safe:])
	more := new(batch)
	for i := range int64(400) {
		more.run(run{50_000 + i*3, 50_000 + i*3 + 1, dataDirty})
	}
	p := j.Position
	p.Durable = p.Seq - 1
	tail := more.encode(&p)
	rng := rand.New(rand.NewPCG(2, 2))
	for range 500 {
		torn := slices.Clone(tail[:rng.IntN(len(tail))])
		switch rng.IntN(4) {
		case 0:
			for at := range torn {
				if at/frame.Size%3 == 1 {
					torn[at] = 0
				}
			}
		case 1:
			for at := max(0, len(torn)-700); at < len(torn); at++ {
				torn[at] = byte(rng.Uint32())
			}
		case 2:
			torn = append(slices.Clone(mark), torn[min(len(torn), frame.Size):]...)
		}
		f := &simFile{d: newSim(), data: slices.Concat(d.names[journalFile].data[:safe], torn)}
		var got []run
		opened, g, err := openJournal(f, func(g geometry, kind frame.Kind, payload []byte) error {
			return decodeRuns(payload, g.blocks(), func(r run) { got = append(got, r) })
		})
		if err != nil || g != (geometry{1 << 30, "x"}) {
			t.Fatalf("%v, %+v", err, g)
		}
		if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
			t.Fatalf("%d runs of %d", len(got), len(want))
		}
		// And it goes on behind that.
		again := new(batch)
		again.run(run{1, 2, zeroDirty})
		check(t, opened.append(again))
		got = nil
		_, _, err = openJournal(f, func(g geometry, kind frame.Kind, payload []byte) error {
			return decodeRuns(payload, g.blocks(), func(r run) { got = append(got, r) })
		})
		if err != nil || got[len(got)-1] != (run{1, 2, zeroDirty}) {
			t.Fatalf("after %d frames more: %v, the last is %+v", len(torn)/frame.Size, err, got[len(got)-1])
		}
	}
}

func TestJournalOfAnother(t *testing.T) {
	t.Parallel()
	d := newSim()
	check(t, create(d, geometry{16 << 20, "a"}, 0))
	if _, err := openIn(d, Options{}, func() {}); err == nil {
		t.Error("a volume was opened without its base")
	}
	if _, err := openIn(d, Options{Size: 1 << 20}, func() {}); err == nil {
		t.Error("a volume was opened with another size")
	}
	if len(d.locks) != 0 {
		t.Errorf("locks that stay: %v", d.locks)
	}
	d.names[epoch.File].data[0]++
	if _, err := openIn(d, Options{}, func() {}); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged epoch: %v", err)
	}
}

// FuzzJournal: whatever the bytes, reading ends, and what it accepts is written again as it
// was read.
func FuzzJournal(f *testing.F) {
	d := newSim()
	b := new(batch)
	for i := range int64(150) {
		b.run(run{i * 7, i*7 + 3, what(i % int64(whats))})
	}
	b.addID(frameBegin, 1)
	b.run(run{5, 9, zeroDirty})
	b.addID(frameDone, 1)
	_, err := writeJournal(d, 1, geometry{1 << 30, "identity"}, b)
	check(f, err)
	f.Add(d.names[journalFile].data, true)
	f.Add(d.names[journalFile].data[:frame.Size*2+17], false)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, data []byte, sealed bool) {
		if sealed { // or hardly any frame would be looked into
			data = slices.Clone(data)
			p := frame.Position{}
			for at := 0; at+frame.Size <= len(data); at += frame.Size {
				one := slices.Clone(data[at : at+frame.Size])
				n := min(int(one[10])|int(one[11])<<8, frame.Payload)
				p.Put(data[at:], frame.Kind(one[8]), one[frame.Header:][:n])
			}
		}
		var s state
		p := frame.Position{}
		g, err := readFrames(bytes.NewReader(data), int64(len(data)), &p, func(g geometry, kind frame.Kind, payload []byte) error {
			if g.size > 1<<30 {
				return io.ErrShortBuffer // the overlay's size bounds it, elsewhere
			}
			return s.replay(g, kind, payload)
		})
		if err != nil {
			return
		}
		s.recovered()
		d := newSim()
		_, err = writeJournal(d, 2, g, s.whole(g.blocks()))
		check(t, err)
		var again state
		_, same, err := openJournal(d.names[journalFile], again.replay)
		if err != nil || same != g {
			t.Fatalf("%v, %+v", err, same)
		}
		again.recovered()
		for name, sets := range map[string][2]*bitmap.Set{"data": {&s.data, &again.data}, "zero": {&s.zero, &again.zero},
			"dirty": {&s.dirty, &again.dirty}, "frozen": {&s.frozen, &again.frozen}} {
			if a, b := list(sets[0], g.blocks()), list(sets[1], g.blocks()); a != b {
				t.Errorf("%s: %s is read again as %s", name, a, b)
			}
		}
	})
}

func list(b *bitmap.Set, n int64) (all string) {
	for from, to := range b.Runs(0, n) {
		all += fmt.Sprint(from, "-", to, " ")
	}
	return all
}
