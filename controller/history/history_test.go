package history

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
)

var one = time.Date(2026, 11, 25, 13, 0, 0, 0, time.UTC)

func bin(seq int, at time.Duration, counts ...traffic.Count) traffic.Bin {
	return traffic.Bin{Host: "paris", Boot: "1", Seq: uint64(seq), Start: one.Add(at), Sampling: 1, Counts: counts}
}

func tcp(src, dst heliotrope.VMID, bytes uint64) traffic.Count {
	return traffic.Count{Key: traffic.Key{Src: traffic.VM(src), Dst: traffic.VM(dst), Service: traffic.Service{Protocol: traffic.TCP, Port: 5432}},
		Packets: bytes / 100, Bytes: bytes, Flows: 1, RTTs: 2, RTTSum: 4 * time.Millisecond, RTTMin: time.Millisecond}
}

func mustOpen(t *testing.T, url string, o Options) *History {
	t.Helper()
	o.Log, o.Controller = slog.New(slog.NewTextHandler(t.Output(), nil)), "main"
	h, err := Open(t.Context(), url, o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func keep(t *testing.T, h *History, bins ...traffic.Bin) {
	t.Helper()
	for _, b := range bins {
		if err := h.Add(b); err != nil {
			t.Fatal(err)
		}
	}
}

func rows(t *testing.T, h *History, from, to time.Duration) []Row {
	t.Helper()
	var all []Row
	err := h.Read(t.Context(), one.Add(from), one.Add(to), func(r Row) error {
		all = append(all, r)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func total(all []Row) (bytes float64) {
	for _, r := range all {
		bytes += r.Bytes
	}
	return bytes
}

// files are all that is in the bucket.
func files(t *testing.T, h *History) (keys []string) {
	t.Helper()
	for list := h.bucket.List(nil); ; {
		o, err := list.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return keys
		}
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, o.Key)
	}
}

func cut(t *testing.T, h *History) {
	t.Helper()
	if err := h.Cut(t.Context(), one.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
}

func reopened(t *testing.T, h *History, url string, o Options) *History {
	t.Helper()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	return mustOpen(t, url, o)
}

func TestWhatIsAddedIsRead(t *testing.T) {
	everywhere(t, func(t *testing.T, url, journal string) {
		h := mustOpen(t, url, Options{Journal: journal})
		sampled := tcp("a", "c", 64*1500)
		sampled.Samples, sampled.Squares, sampled.Reply = 1, 1500*1500, true
		thin := bin(3, 2*time.Second, sampled)
		thin.Sampling = 64
		out := tcp("a", "", 7)
		out.Dst, out.RTTs = traffic.Outside(netip.MustParsePrefix("2001:db8::/48")), 0
		keep(t, h, bin(1, 0, tcp("a", "b", 1000), out), bin(2, time.Second, tcp("a", "b", 500)), thin, bin(4, 5*time.Minute, tcp("a", "b", 1)))
		before := rows(t, h, 0, time.Minute)
		if err := h.Cut(t.Context(), one.Add(5*time.Minute)); err != nil {
			t.Fatal(err)
		}
		after := rows(t, h, 0, time.Minute)
		if fmt.Sprint(before) != fmt.Sprint(after) {
			t.Errorf("before it was a file:\n%v\nafter:\n%v", before, after)
		}
		if len(after) != 3 {
			t.Fatalf("%+v", after)
		}
		// Prefixes come after VMs in no order that matters; find each.
		for _, r := range after {
			switch {
			case r.Dst == out.Dst:
				if r.Bytes != 7 || r.RTT != 0 {
					t.Errorf("%+v", r)
				}
			case r.Dst == traffic.VM("b"):
				want := Row{From: one, Length: 5 * time.Minute, Host: "paris", Src: traffic.VM("a"), Dst: traffic.VM("b"), Service: out.Service,
					Bytes: 1500, Low: 1500, High: 1500, Packets: 15, Flows: 2, RTT: 2 * time.Millisecond, RTTMin: time.Millisecond}
				if r != want {
					t.Errorf("got %+v, want %+v", r, want)
				}
			default:
				if !r.Reply || r.Low > 1500 || r.Low < 1499 || r.High < 5*r.Bytes {
					t.Errorf("%+v", r)
				}
			}
		}
		m, err := h.Matrix(t.Context(), one, one.Add(10*time.Minute))
		if err != nil || len(m.Cells) != 3 || m.Cells[0].Bytes != 1501 || m.Cells[0].RTT != 2*time.Millisecond {
			t.Errorf("%+v, %v", m, err)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A kill at any byte of the journal's tail loses that bin at most, and what was whole is
// read once.
func TestJournalIsCutAnywhere(t *testing.T) {
	dir := t.TempDir()
	h := mustOpen(t, dir, Options{})
	for n := range 5 {
		keep(t, h, bin(n+1, time.Duration(n)*time.Second, tcp("a", "b", 1<<n)))
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	names, _ := filepath.Glob(filepath.Join(dir, "journal", "*.journal"))
	whole, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	last, _ := frame(ptr(bin(5, 4*time.Second, tcp("a", "b", 16))))
	for cut := len(whole) - len(last); cut <= len(whole); cut++ {
		if err := os.WriteFile(names[0], whole[:cut], 0o640); err != nil {
			t.Fatal(err)
		}
		h := mustOpen(t, dir, Options{})
		want := 15.0
		if cut == len(whole) {
			want = 31
		}
		if got := total(rows(t, h, 0, time.Minute)); got != want {
			t.Fatalf("cut at %d of %d: %v bytes, want %v", cut, len(whole), got, want)
		}
		// The host sends it again, and it goes on.
		keep(t, h, bin(4, 3*time.Second, tcp("a", "b", 8)), bin(5, 4*time.Second, tcp("a", "b", 16)), bin(6, 5*time.Second, tcp("a", "b", 32)))
		if got := total(rows(t, h, 0, time.Minute)); got != 63 {
			t.Fatalf("cut at %d of %d: then %v bytes, want 63", cut, len(whole), got)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A disk that takes half a bin costs that bin, which the host may send again, and none after it.
func TestAFullDiskCostsOneBin(t *testing.T) {
	dir := t.TempDir()
	h := mustOpen(t, dir, Options{})
	keep(t, h, bin(1, 0, tcp("a", "b", 1)))
	names, _ := filepath.Glob(filepath.Join(dir, "journal", "*.journal"))
	about, err := os.Stat(names[0])
	if err != nil {
		t.Fatal(err)
	}
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: uint64(about.Size()) + 10, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	full := h.Add(bin(2, time.Second, tcp("a", "b", 2)))
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(full, syscall.EFBIG) {
		t.Errorf("%v", full)
	}
	keep(t, h, bin(3, 2*time.Second, tcp("a", "b", 4)), bin(2, time.Second, tcp("a", "b", 2)))
	h = reopened(t, h, dir, Options{})
	if got := total(rows(t, h, 0, time.Minute)); got != 7 {
		t.Errorf("%v bytes, want 7", got)
	}
}

func ptr[T any](v T) *T { return &v }

// A kill between the file and the end of its journal makes the same file again.
func TestAFileIsWrittenTwiceUnderOneName(t *testing.T) {
	everywhere(t, func(t *testing.T, url, journal string) {
		h := mustOpen(t, url, Options{Journal: journal})
		keep(t, h, bin(1, 0, tcp("a", "b", 100)))
		cut(t, h)
		dones, _ := filepath.Glob(filepath.Join(journal, "*.done"))
		name := strings.TrimSuffix(dones[0], ".done")
		for _, waits := range []bool{false, true} {
			if err := os.Rename(name+".done", name+".journal"); err != nil {
				t.Fatal(err)
			}
			if waits {
				if err := errors.Join(os.WriteFile(name+".waiting", []byte("old"), 0o640), os.WriteFile(name+".waiting.tmp", []byte("torn"), 0o640)); err != nil {
					t.Fatal(err)
				}
			}
			h = reopened(t, h, url, Options{Journal: journal})
			if got := total(rows(t, h, 0, time.Hour)); got != 100 {
				t.Errorf("%v bytes", got)
			}
			cut(t, h)
			if got := files(t, h); len(got) != 1 || total(rows(t, h, 0, time.Hour)) != 100 {
				t.Errorf("%v", got)
			}
		}
		// After a restart the host sends it again, although its window is a file.
		h = reopened(t, h, url, Options{Journal: journal})
		keep(t, h, bin(1, 0, tcp("a", "b", 100)), bin(2, time.Second, tcp("a", "b", 11)))
		cut(t, h)
		if got := files(t, h); len(got) != 2 || total(rows(t, h, 0, time.Hour)) != 111 {
			t.Errorf("%v, %v bytes", got, total(rows(t, h, 0, time.Hour)))
		}
	})
}

func TestOnlyOurOldFilesAreDeleted(t *testing.T) {
	everywhere(t, func(t *testing.T, url, journal string) {
		h := mustOpen(t, url, Options{Journal: journal, Retention: time.Hour})
		keep(t, h, bin(1, 0, tcp("a", "b", 1)), bin(2, 5*time.Minute, tcp("a", "b", 1)))
		cut(t, h)
		others := []string{"notes.txt", "date=2026-11-25/hour=13/theirs.parquet", "date=2026-11-25/hour=13/traffic-20261125T130000Z-main-x.parquet.tmp",
			"date=2020-01-01/hour=00/traffic-20261125T130000Z-main-x.parquet"} // not where we put it
		for _, name := range others {
			if err := h.bucket.WriteAll(t.Context(), name, []byte("x"), nil); err != nil {
				t.Fatal(err)
			}
		}
		n, err := h.Expire(t.Context(), one.Add(65*time.Minute))
		if n != 1 || err != nil {
			t.Errorf("%d files, %v", n, err)
		}
		left := files(t, h)
		ours := slices.DeleteFunc(slices.Clone(left), func(f string) bool { return slices.Contains(others, f) })
		if len(left) != len(others)+1 || len(ours) != 1 || !strings.Contains(ours[0], "T130500Z-main-") {
			t.Errorf("%v", left)
		}
		if left, _ := filepath.Glob(filepath.Join(journal, "traffic-*")); len(left) != 0 {
			t.Errorf("journals are left: %v", left)
		}
	})
}

func TestOptionsAreChecked(t *testing.T) {
	if _, err := Open(t.Context(), t.TempDir(), Options{Window: 7 * time.Minute}); err == nil {
		t.Error("a window of 7 minutes")
	}
	if _, err := Open(t.Context(), "s3://lab", Options{}); err == nil {
		t.Error("a bucket without a journal")
	}
}

func FuzzReplay(f *testing.F) {
	data, _ := frame(ptr(bin(1, 0, tcp("a", "b", 1))))
	f.Add(data)
	f.Add(append(data, data[:20]...))
	f.Fuzz(func(t *testing.T, data []byte) {
		n := 0
		whole := replay(data, func(traffic.Bin) { n++ })
		if whole > len(data) || whole < n*frameHeader {
			t.Errorf("%d bins in %d of %d bytes", n, whole, len(data))
		}
	})
}

func FuzzDecode(f *testing.F) {
	dir := f.TempDir()
	h, err := Open(context.Background(), dir, Options{})
	if err != nil {
		f.Fatal(err)
	}
	if err := errors.Join(h.Add(bin(1, 0, tcp("a", "b", 1))), h.Cut(context.Background(), one.Add(time.Hour)), h.Close()); err != nil {
		f.Fatal(err)
	}
	names, _ := filepath.Glob(filepath.Join(dir, "date=*/hour=*/*"))
	data, err := os.ReadFile(names[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = decode(data, func(rs []record) error {
			for i := range rs {
				_, _ = rs[i].row()
			}
			return nil
		})
	})
}
