package traffic

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func second(n int) time.Time { return noon.Add(time.Duration(n) * time.Second) }

func tcp(src, dst heliotrope.VMID, bytes uint64) Count {
	return Count{Key: Key{Src: VM(src), Dst: VM(dst), Service: Service{TCP, 80}}, Packets: bytes/1000 + 1, Bytes: bytes}
}

func bin(host heliotrope.HostID, seq int, counts ...Count) Bin {
	return Bin{Host: host, Boot: "1", Seq: uint64(seq), Start: second(seq), Sampling: 1, Counts: counts}
}

func take(t interface{ Fatal(...any) }, l *Ledger, bins ...Bin) {
	for _, b := range bins {
		if err := l.Add(b, b.Start.Add(time.Second)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestABinCountsOnce(t *testing.T) {
	l := NewLedger(Limits{})
	b := bin("paris", 1, tcp("a", "b", 1000))
	take(t, l, b)
	if err := l.Add(b, second(2)); !errors.Is(err, ErrKnown) {
		t.Errorf("a second time: %v", err)
	}
	again := b
	again.Boot = "2" // the agent restarted: not the same bin
	take(t, l, again)
	other := b
	other.Host = "lyon"
	take(t, l, other)
	if m := l.Matrix(second(2), 2*time.Second); len(m.Cells) != 1 || m.Cells[0].Bytes != 3000 {
		t.Errorf("%+v", m.Cells)
	}
	if s := l.Stats(); s.Bins != 3 || s.Known != 1 {
		t.Errorf("%+v", s)
	}
}

func TestBinsOfAnotherTimeAreRefused(t *testing.T) {
	l := NewLedger(Limits{})
	b := bin("paris", 0, tcp("a", "b", 1000))
	for _, c := range []struct {
		now  time.Duration
		want error
	}{
		{LatestBin + time.Second, ErrLate},
		{-11 * time.Second, ErrEarly},
		{-9 * time.Second, nil},
	} {
		b.Seq++
		if err := l.Add(b, b.Start.Add(c.now)); !errors.Is(err, c.want) {
			t.Errorf("%v after it: %v, want %v", c.now, err, c.want)
		}
	}
	if s := l.Stats(); s.Bins != 1 || s.Late != 1 || s.Early != 1 {
		t.Errorf("%+v", s)
	}
}

// A ledger is the sum of its bins, in whatever order they come.
func TestMatrixIsTheSumOfBins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := NewLedger(Limits{})
		vms := []heliotrope.VMID{"a", "b", "c"}
		var bins []Bin
		for i := range rapid.IntRange(1, 40).Draw(t, "bins") {
			at := rapid.IntRange(0, 100).Draw(t, "second")
			b := bin("paris", i+1)
			b.Start = second(at)
			for range rapid.IntRange(0, 4).Draw(t, "rows") {
				c := tcp(rapid.SampledFrom(vms).Draw(t, "src"), rapid.SampledFrom(vms).Draw(t, "dst"), rapid.Uint64Range(1, 1e6).Draw(t, "bytes"))
				c.Service.Port = rapid.SampledFrom([]uint16{80, 443}).Draw(t, "port")
				b.Counts = append(b.Counts, c)
			}
			bins = append(bins, b)
		}
		for _, b := range rapid.Permutation(bins).Draw(t, "order") {
			if err := l.Add(b, second(100)); err != nil {
				t.Fatal(err)
			}
		}
		from := rapid.IntRange(0, 90).Draw(t, "from")
		to := rapid.IntRange(from+1, 101).Draw(t, "to")
		m := l.Matrix(second(to), time.Duration(to-from)*time.Second)
		if !m.From.Equal(second(from)) || !m.To.Equal(second(to)) {
			t.Fatalf("asked for %d to %d, got %v to %v", from, to, m.From, m.To)
		}
		want, got := map[Key]float64{}, map[Key]float64{}
		for _, b := range bins {
			if !b.Start.Before(m.From) && b.Start.Before(m.To) {
				for _, c := range b.Counts {
					want[c.Key] += float64(c.Bytes)
				}
			}
		}
		for _, c := range m.Cells {
			var all float64
			for _, s := range c.Services {
				got[Key{c.Src, c.Dst, s.Service, s.Reply}] = s.Bytes
				all += s.Bytes
			}
			if all != c.Bytes || c.Low != c.Bytes || c.High != c.Bytes {
				t.Fatalf("%+v", c)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		if !slices.IsSortedFunc(m.Cells, func(c, d Cell) int { return ahead([]Cell{c}, []Cell{d}) }) {
			t.Fatal("cells are not in order")
		}
	})
}

// Windows of every age add up, and say how long they are where the grain is gone.
func TestOldWindowsAreCoarse(t *testing.T) {
	l := NewLedger(Limits{})
	const day = 24 * 3600
	for n := range day {
		if n%10 == 0 {
			b := bin("paris", n+1, tcp("a", "b", 10))
			b.Start = second(n)
			take(t, l, b)
		}
	}
	for _, c := range []struct{ end, span, grain int }{
		{day, 1, 1}, {day, 60, 1}, {day - 300, 7, 10}, {day - 1800, 100, 60}, {day - 4*3600, 1000, 600},
		{day - 20*3600, 10, 3600}, {day, day, 1}, {day - 10, day - 10, 1},
	} {
		m := l.Matrix(second(c.end), time.Duration(c.span)*time.Second)
		from, to := int(m.From.Sub(noon).Seconds()), int(m.To.Sub(noon).Seconds())
		if from > c.end-c.span || to < c.end || from <= c.end-c.span-c.grain || to >= c.end+c.grain {
			t.Errorf("%d s before %d: the window is %d to %d, want it at most %d s larger", c.span, c.end, from, to, c.grain)
		}
		var bytes float64
		for _, cell := range m.Cells {
			bytes += cell.Bytes
		}
		if want := float64((to+9)/10-(from+9)/10) * 10; bytes != want {
			t.Errorf("%d to %d: %v bytes, want %v", from, to, bytes, want)
		}
	}
}

func TestMissingIsWhatWasExpected(t *testing.T) {
	l := NewLedger(Limits{})
	l.Expect("paris", second(0), time.Time{})
	l.Expect("lyon", second(5), second(10))
	l.Expect("rome", second(50), time.Time{})
	for n := range 20 {
		if n != 3 && n != 4 {
			take(t, l, bin("paris", n, tcp("a", "b", 1)))
		}
	}
	m := l.Matrix(second(20), 20*time.Second)
	want := map[heliotrope.HostID]float64{"paris": 0.1, "lyon": 1}
	if fmt.Sprint(m.Missing) != fmt.Sprint(want) {
		t.Errorf("missing %v, want %v", m.Missing, want)
	}
	l.Expect("paris", second(18), second(18)) // not any more
	if m := l.Matrix(second(40), 20*time.Second); m.Missing["paris"] != 0 {
		t.Errorf("missing %v", m.Missing)
	}
}

func TestDecayedIsAMeanRate(t *testing.T) {
	l := NewLedger(Limits{})
	for n := range 3600 {
		rate := uint64(1000)
		if n >= 3600-60 {
			rate = 5000
		}
		take(t, l, bin("paris", n, tcp("a", "b", rate)))
	}
	m := l.Decayed(second(3600), time.Minute)
	// One half-life at 5000, all before at 1000.
	got := m.Cells[0].Bytes / m.To.Sub(m.From).Seconds()
	if want := 3000.0; math.Abs(got-want) > 0.01*want {
		t.Errorf("%.1f bytes/s, want %.1f", got, want)
	}
}

func TestSeries(t *testing.T) {
	l := NewLedger(Limits{})
	for n := range 300 {
		take(t, l, bin("paris", n, tcp("a", "b", uint64(n)), tcp("b", "a", 1e6), tcp("a", "c", 10)))
	}
	points := l.Series(Between(VM("a"), VM("b")), second(280), 10*time.Second, 2)
	for i, want := range []float64{2845, 2945} { // 280+…+289
		if points[i].Bytes != want || !points[i].At.Equal(second(280+10*i)) {
			t.Errorf("%+v, want %v", points[i], want)
		}
	}
	group := l.Series(Within([]End{VM("a"), VM("c")}), second(280), 5*time.Second, 1)
	if group[0].Bytes != 50 {
		t.Errorf("%+v", group)
	}
	// Seconds that are only in slots of 10 s have their mean.
	old := l.Series(Between(VM("b"), VM("a")), second(60), time.Second, 3)
	for _, p := range old {
		if math.Abs(p.Bytes-1e6) > 1 {
			t.Errorf("%+v", p)
		}
	}
}

func TestSamplingsAddUp(t *testing.T) {
	l := NewLedger(Limits{})
	fine, coarse := bin("paris", 1), bin("lyon", 1)
	fine.Sampling, coarse.Sampling = 16, 400
	c := tcp("a", "b", 16*100*1000)
	c.Samples, c.Squares = 100, 100*1000*1000
	fine.Counts = []Count{c}
	c.Bytes, c.Samples, c.Squares = 400*5*500, 5, 5*500*500
	coarse.Counts = []Count{c}
	take(t, l, fine, coarse)
	m := l.Matrix(second(2), 2*time.Second)
	cell := m.Cells[0]
	if cell.Bytes != 2.6e6 {
		t.Fatalf("%+v", cell)
	}
	sigma := math.Sqrt(16*15*100*1e6 + 400*399*5*250e3)
	if cell.Low < cell.Bytes-2.2*sigma || cell.Low > cell.Bytes-sigma || cell.High < cell.Bytes+1.9*sigma || cell.High > cell.Bytes+5*sigma {
		t.Errorf("[%.0f, %.0f] with a standard error of %.0f", cell.Low, cell.High, sigma)
	}
	if want := 3.69 * 400 * 1500; m.Unseen != want {
		t.Errorf("unseen %v, want %v", m.Unseen, want)
	}
}

func TestRTTAndBurst(t *testing.T) {
	l := NewLedger(Limits{})
	c := tcp("a", "b", 10_000)
	c.Peak, c.Active = 5000, 4
	c.RTTs, c.RTTSum, c.RTTMin = 2, 6*time.Millisecond, 2*time.Millisecond
	d := c
	d.RTTs, d.RTTSum, d.RTTMin = 1, 3*time.Millisecond, 3*time.Millisecond
	take(t, l, bin("paris", 1, c), bin("paris", 2, d))
	cell := l.Matrix(second(3), 2*time.Second).Cells[0]
	if cell.RTT != 3*time.Millisecond || cell.RTTMin != 2*time.Millisecond || cell.Burst != 2 {
		t.Errorf("%+v", cell)
	}
}

// Limits hold whatever comes, and what went is counted.
func TestLimitsHold(t *testing.T) {
	limits := Limits{Ends: 90, Keys: 2000, Cells: 1200}
	l := NewLedger(limits)
	var sent float64
	for n := range 400 {
		b := bin("paris", n)
		for i := range 50 {
			bytes := uint64(1)
			if i == 0 {
				bytes = 1e6 // the large one stays
			}
			b.Counts = append(b.Counts, tcp("a", heliotrope.VMID(fmt.Sprint("b", (i*(n/100*37+1))%150)), bytes))
			sent += float64(bytes)
		}
		take(t, l, b)
		if s := l.Stats(); s.Cells > limits.Cells || s.Keys > limits.Keys || s.Ends > limits.Ends {
			t.Fatalf("after %d bins: %+v", n+1, s)
		}
		kept := 0
		for i := range l.rings {
			for _, s := range l.rings[i].slots {
				kept += len(s.tallies)
			}
		}
		if kept != l.Stats().Cells {
			t.Fatalf("%d cells are kept, %d are counted", kept, l.Stats().Cells)
		}
	}
	if l.Stats().Coarsened == 0 || l.Stats().Evicted == 0 {
		t.Errorf("%+v", l.Stats())
	}
	m := l.Matrix(second(400), 400*time.Second)
	if top := slices.MaxFunc(m.Cells, func(a, b Cell) int { return cmp.Compare(a.Bytes, b.Bytes) }); top.Bytes < 400e6 {
		t.Errorf("the largest has %v of 400e6 bytes", top.Bytes)
	}
}

func TestSweepKeepsWhatIsInUse(t *testing.T) {
	l := NewLedger(Limits{Ends: 8})
	for n, vm := range []heliotrope.VMID{"a", "b", "c", "d", "e", "f"} {
		b := bin("paris", n+1, tcp(vm, "z", 100))
		b.Start = noon.Add(time.Duration(n) * 10 * time.Hour) // each forgets all but two before
		take(t, l, b)
	}
	if s := l.Stats(); s.Evicted != 0 || s.Ends > 6 {
		t.Errorf("%+v", s)
	}
	m := l.Matrix(noon.Add(51*time.Hour), 24*time.Hour)
	var names []string
	for _, c := range m.Cells {
		names = append(names, c.Src.String())
	}
	if want := []string{"d", "e", "f"}; !slices.Equal(names, want) {
		t.Errorf("%v, want %v", names, want)
	}
}

// large is what 10,000 VMs with 20 peers each send in one second: the bins of hosts.
func large(second, rows int) []Bin {
	const vms, peers, hosts = 10_000, 20, 100
	bins := make([]Bin, hosts)
	for h := range bins {
		b := bin(heliotrope.HostID(fmt.Sprint("host-", h)), second)
		for i := range rows / hosts {
			edge := (second*rows/hosts + i) % (vms / hosts * peers)
			src := h*vms/hosts + edge/peers
			dst := (src*7 + edge%peers*131 + 1) % vms
			c := tcp(heliotrope.VMID(fmt.Sprintf("web-%05d", src)), heliotrope.VMID(fmt.Sprintf("web-%05d", dst)), uint64(1000+i))
			c.Samples, c.Squares, c.Active, c.Peak, c.Flows = 3, 3e6, 4, 1500, 1
			if i%10 == 0 {
				c.Dst = Outside(netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(dst), 0}), 24))
			}
			b.Counts = append(b.Counts, c)
		}
		bins[h] = b
	}
	return bins
}

func BenchmarkAdd(b *testing.B) {
	const rows = 50_000
	var seconds [][]Bin
	for n := range 20 {
		seconds = append(seconds, large(n, rows))
	}
	l := NewLedger(Limits{})
	n := 0
	for b.Loop() {
		for _, bin := range seconds[n%len(seconds)] {
			bin.Seq, bin.Start = uint64(n), second(n)
			take(b, l, bin)
		}
		n++
	}
	b.ReportMetric(rows*float64(n)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64(l.Stats().Cells), "cells")
}

func BenchmarkAddJSON(b *testing.B) {
	const rows = 50_000
	var encoded [][]byte
	for _, bin := range large(0, rows) {
		data, err := json.Marshal(bin)
		if err != nil {
			b.Fatal(err)
		}
		encoded = append(encoded, data)
	}
	l := NewLedger(Limits{})
	n := 0
	for b.Loop() {
		for _, data := range encoded {
			var bin Bin
			if err := json.Unmarshal(data, &bin); err != nil {
				b.Fatal(err)
			}
			bin.Seq, bin.Start = uint64(n), second(n)
			take(b, l, bin)
		}
		n++
	}
	b.ReportMetric(rows*float64(n)/b.Elapsed().Seconds(), "rows/s")
}

func BenchmarkMatrix(b *testing.B) {
	l := NewLedger(Limits{})
	for n := range 310 {
		for _, bin := range large(n, 50_000) {
			take(b, l, bin)
		}
	}
	var m Matrix
	for b.Loop() {
		m = l.Matrix(second(310), 5*time.Minute)
	}
	b.ReportMetric(float64(len(m.Cells)), "cells")
	b.ReportMetric(float64(l.Stats().Cells), "kept")
}
