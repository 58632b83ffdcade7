package bench

import (
	"bufio"
	"context"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"heliotrope/scheduler/perf"
)

const (
	cacheLine    = 64
	unknownCache = 32 << 20 // taken for the last-level cache where nobody tells
	leastArea    = 64 << 20
	memoryShare  = 16       // of the memory that is free, one part
	chaseLoads   = 10_000   // in a slice
	triadBytes   = 12 << 20 // in a slice
)

// memory measures latency and bandwidth over an area of at least twice the last-level
// cache. Where so much may not be taken nothing is measured: it would be the cache.
func (j *job) memory(ctx context.Context) error {
	free, err := kibibytes("/proc/meminfo", "MemAvailable")
	if err != nil {
		return err
	}
	size := int64(1) << bits.Len64(uint64(max(2*lastCache(), leastArea)-1))
	if most := min(j.budget.Memory, free/memoryShare); size > most {
		return errMissing(fmt.Sprintf("%d MiB are needed to get past the caches, and %d may be taken", size>>20, most>>20))
	}
	area, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return fmt.Errorf("map memory: %w", err)
	}
	defer unix.Munmap(area)
	_ = unix.Madvise(area, unix.MADV_HUGEPAGE) // as guests get them, where there are any
	j.result.MemoryBytes = size
	words := unsafe.Slice((*uint64)(unsafe.Pointer(&area[0])), size/8)
	floats := unsafe.Slice((*float64)(unsafe.Pointer(&area[0])), size/8)
	onThread(func(t *thread) {
		j.found(perf.MemoryLatency, chase(ctx, t, words, time.Duration(latencyShare*float64(j.budget.CPU))))
		j.found(perf.MemoryBandwidth, triad(ctx, t, floats, time.Duration(bandwidthShare*float64(j.budget.CPU))))
	})
	return nil
}

// chase follows a chain through all cache lines of an area, in an order that no prefetcher
// knows, and returns the seconds that a load took in each slice. The order is a linear
// congruential generator's, of full period: each line says which is next.
func chase(ctx context.Context, t *thread, area []uint64, d time.Duration) []float64 {
	const words = cacheLine / 8
	lines := uint64(len(area) / words)
	for i := range lines {
		if i%(1<<16) == 0 && ctx.Err() != nil {
			return nil
		}
		area[i*words] = (i*1664525 + 1013904223) % lines * words
	}
	var took []float64
	at := uint64(0)
	for spent := time.Duration(0); (spent < d || len(took) < leastSlices) && ctx.Err() == nil; {
		begun := t.now()
		for range chaseLoads {
			at = area[at]
		}
		slice := t.now() - begun
		spent += slice
		took = append(took, slice.Seconds()/chaseLoads)
	}
	if at >= uint64(len(area)) { // never, but the loads are not for nothing
		return nil
	}
	return took
}

// triad is STREAM's: a = b + s*c over three arrays, a slice of them at a time. It returns
// the bytes per second of each slice, which are 24 for an element.
func triad(ctx context.Context, t *thread, area []float64, d time.Duration) []float64 {
	const step = triadBytes / 24
	n := len(area) / 3 / step * step
	a, b, c := area[:n], area[n:2*n], area[2*n:3*n]
	clear(area)
	var rates []float64
	for spent, at := time.Duration(0), 0; (spent < d || len(rates) < leastSlices) && ctx.Err() == nil; at = (at + step) % n {
		begun := t.now()
		x, y, z := a[at:at+step], b[at:at+step], c[at:at+step]
		for i := range x {
			x[i] = y[i] + 3*z[i]
		}
		slice := t.now() - begun
		spent += slice
		rates = append(rates, triadBytes/slice.Seconds())
	}
	return rates
}

// lastCache is the size of the last-level cache in bytes.
func lastCache() int64 {
	largest := int64(0)
	files, _ := filepath.Glob("/sys/devices/system/cpu/cpu0/cache/index*/size") // the pattern is right
	for _, f := range files {
		data, err := os.ReadFile(f)
		kib, ok := strings.CutSuffix(strings.TrimSpace(string(data)), "K")
		if n, err2 := strconv.ParseInt(kib, 10, 64); err == nil && ok && err2 == nil {
			largest = max(largest, n<<10)
		}
	}
	if largest > 0 {
		return largest
	}
	n, err := kibibytes("/proc/cpuinfo", "cache size") // of some processors that is not the last
	if err != nil {
		n = unknownCache
	}
	return max(n, unknownCache)
}

// kibibytes reads a line "name : 123 kB" of a file, and returns bytes.
func kibibytes(file, name string) (int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", name, err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		if number, _, ok := strings.Cut(strings.TrimSpace(value), " "); ok && strings.TrimSpace(key) == name {
			if n, err := strconv.ParseInt(number, 10, 64); err == nil {
				return n << 10, nil
			}
		}
	}
	return 0, fmt.Errorf("read %s: %s does not tell", name, file)
}
