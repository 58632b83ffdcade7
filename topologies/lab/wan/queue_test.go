package wan

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestAgendaDeliversInOrder compares the rings and the heap with a sorted list.
func TestAgendaDeliversInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pipes := []*pipe{{index: -1}, {index: -1}, {index: -1}}
		var a agenda
		var cells pool
		var want []int64
		now := int64(0)
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "add") {
				depart := now + rapid.Int64Range(0, 50).Draw(t, "depart")
				a.add(rapid.SampledFrom(pipes).Draw(t, "pipe"), flight{depart: depart, cell: cells.get()})
				want = append(want, depart)
				slices.Sort(want)
				continue
			}
			now += rapid.Int64Range(0, 20).Draw(t, "later")
			for {
				_, x, ok := a.take(now)
				if !ok {
					break
				}
				cells.put(x.cell)
				if len(want) == 0 || x.depart != want[0] {
					t.Fatalf("took %d, want %v", x.depart, want)
				}
				want = want[1:]
			}
			if len(want) > 0 && want[0] <= now {
				t.Fatalf("%d is due at %d and was kept", want[0], now)
			}
		}
	})
}

// TestFifoKeepsArrivalOrderOfEqualDepartures shows that frames of one burst stay in order.
func TestFifoKeepsArrivalOrderOfEqualDepartures(t *testing.T) {
	var f fifo
	for i := range 1000 {
		f.push(flight{depart: 7, size: i})
	}
	for i := range 1000 {
		if got := f.pop().size; got != i {
			t.Fatalf("frame %d came out as number %d", got, i)
		}
	}
}

func TestPoolIsBounded(t *testing.T) {
	var p pool
	var lent []*cell
	for c := p.get(); c != nil; c = p.get() {
		lent = append(lent, c)
	}
	if len(lent) != maxCells {
		t.Fatalf("lent %d cells, want %d", len(lent), maxCells)
	}
	p.put(lent[0])
	if p.get() != lent[0] || p.get() != nil {
		t.Fatal("a returned cell is not lent once more")
	}
}
