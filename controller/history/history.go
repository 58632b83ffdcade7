// Package history keeps what was counted in Parquet files, in a directory or a bucket, for
// as long as is wanted: who sent how much to whom, of which service, in windows of five
// minutes.
//
// A window is one file, date=2026-11-25/hour=13/traffic-20261125T130500Z-NAME-ID.parquet:
// directories as Hive names them, which DuckDB, Spark and ClickHouse read as columns.
// Until a window is over its bins are in a journal on a local disk, each written before Add
// returns. Then its file is made beside the journal and waits there until the bucket has it.
// A controller that is killed goes on where it was: a file that was being written is written
// again under its own name. A power failure loses what the kernel had not written yet of
// the journals. Journals stay, as .done, for as long as a host may send the same bin again;
// that is how it is not counted twice.
//
// Bins that come after their window's file was written make another file of that window;
// rows of the same window add up.
package history

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"heliotrope/internal/bucket"
	"heliotrope/scheduler/traffic"
)

// Options say how long history is and how it is cut.
type Options struct {
	Controller string        // its name, [a-z0-9-]; part of files' names
	Retention  time.Duration // 0: 24 hours
	Window     time.Duration // whole seconds that divide an hour; 0: 5 minutes
	Journal    string        // directory on a local disk; empty: journal/ in the URL's own directory
	Backlog    int64         // bytes of files that wait for the bucket, at most; 0: 1 GiB
	Log        *slog.Logger
}

const (
	cutAfter    = 10 * time.Second // a window's end, its file is written
	forgetAfter = 15 * time.Minute // a window's end, no host sends its bins again
	sweepEvery  = 10 * time.Minute
	retryWithin = time.Minute // of a bucket that is back, what waits is written
	stampFormat = "20060102T150405Z"
)

// History is a bucket with files, and the windows that are not in it yet. Make it with Open.
type History struct {
	bucket bucket.Bucket
	Options

	cutting sync.Mutex         // one Cut at a time
	mu      sync.Mutex         // guards all below
	windows map[int64]*window  // those that bins are added to, by their first second
	over    []*window          // those that have no file yet
	waiting []stored           // files that the bucket does not have yet, the next one first
	shed    int                // files that waited too long
	seen    map[string]seqsets // bins by host and boot, of windows of the last minutes
	dones   map[string]time.Time
}

// seqsets are the bins' numbers of one boot, by the first second of their window.
type seqsets map[int64]map[uint64]bool

// Open opens the history at url: a directory, or a bucket's URL such as
// s3://NAME?region=eu-west-3. Windows that were open when the process ended are so again.
func Open(ctx context.Context, url string, o Options) (*History, error) {
	if o.Controller == "" {
		o.Controller = "controller"
	}
	if o.Retention == 0 {
		o.Retention = 24 * time.Hour
	}
	if o.Window == 0 {
		o.Window = 5 * time.Minute
	}
	if o.Backlog == 0 {
		o.Backlog = 1 << 30
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Window < time.Second || o.Window%time.Second != 0 || time.Hour%o.Window != 0 {
		return nil, fmt.Errorf("a window of %v does not divide an hour", o.Window)
	}
	b, err := open(ctx, url, &o)
	if err != nil {
		return nil, err
	}
	h := &History{bucket: b, Options: o, windows: map[int64]*window{}, seen: map[string]seqsets{}, dones: map[string]time.Time{}}
	if err := h.resume(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return h, nil
}

var stem = regexp.MustCompile(`^traffic-(\d{8}T\d{6}Z)-[a-z0-9-]+$`)

// started is the time that a file's or journal's name begins with; false where the name is
// not of ours.
func started(name string) (time.Time, bool) {
	m := stem.FindStringSubmatch(name)
	if m == nil {
		return time.Time{}, false
	}
	at, err := time.Parse(stampFormat, m[1])
	return at, err == nil
}

func (h *History) journal(name string) string { return filepath.Join(h.Journal, name+".journal") }
func (h *History) done(name string) string    { return filepath.Join(h.Journal, name+".done") }
func (h *History) waits(name string) string   { return filepath.Join(h.Journal, name+".waiting") }

// resume takes in the journals that are there.
func (h *History) resume() error {
	if err := os.MkdirAll(h.Journal, 0o750); err != nil {
		return fmt.Errorf("make journal: %w", err)
	}
	entries, err := os.ReadDir(h.Journal)
	if err != nil {
		return fmt.Errorf("read journals: %w", err)
	}
	for _, e := range entries {
		name, kind, _ := strings.Cut(e.Name(), ".")
		from, ours := started(name)
		switch {
		case !ours:
		case kind == "done":
			data, err := os.ReadFile(h.done(name))
			if err != nil {
				return fmt.Errorf("read journal: %w", err)
			}
			replay(data, func(b traffic.Bin) { h.fresh(&b, from.Unix()) })
			h.dones[name] = from
		case kind == "journal":
			w := &window{name: name, from: from, length: h.Window, counts: map[countKey]*count{}}
			w.journal, err = reopen(h.journal(name), func(b traffic.Bin) {
				if h.fresh(&b, from.Unix()) {
					w.add(&b)
				}
			})
			if err != nil {
				return err
			}
			if h.windows[from.Unix()] != nil { // late bins had come while the first had no file
				h.over = append(h.over, w)
				continue
			}
			h.windows[from.Unix()] = w
		case kind == "waiting.tmp": // it was being made
			if err := os.Remove(h.waits(name) + ".tmp"); err != nil {
				return fmt.Errorf("read what waits: %w", err)
			}
		case kind == "waiting":
			if err := h.wait(name, from); err != nil {
				return err
			}
		}
	}
	return nil
}

// fresh notes a bin, and says whether it is the first time.
func (h *History) fresh(b *traffic.Bin, start int64) bool {
	id := string(b.Host) + "/" + b.Boot
	if h.seen[id] == nil {
		h.seen[id] = seqsets{}
	}
	for _, seqs := range h.seen[id] {
		if seqs[b.Seq] {
			return false
		}
	}
	if h.seen[id][start] == nil {
		h.seen[id][start] = map[uint64]bool{}
	}
	h.seen[id][start][b.Seq] = true
	return true
}

// Take adds a bin, and logs it where that fails.
func (h *History) Take(b traffic.Bin) {
	if err := h.Add(b); err != nil {
		h.Log.Error("keep traffic", "host", b.Host, "seq", b.Seq, "error", err)
	}
}

// Add adds a bin to its window. One that was added before has no effect.
func (h *History) Add(b traffic.Bin) error {
	data, err := frame(&b)
	if err != nil {
		return fmt.Errorf("encode bin: %w", err)
	}
	from := b.Start.UTC().Truncate(h.Window)
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.fresh(&b, from.Unix()) {
		return nil
	}
	w, err := h.window(from)
	if err == nil {
		err = appendFrame(w.journal, data)
	}
	if err != nil {
		delete(h.seen[string(b.Host)+"/"+b.Boot][from.Unix()], b.Seq)
		return fmt.Errorf("write journal: %w", err)
	}
	w.add(&b)
	return nil
}

func (h *History) window(from time.Time) (*window, error) {
	if w, ok := h.windows[from.Unix()]; ok {
		return w, nil
	}
	// The ID keeps a later file of the same window from taking the first one's place.
	name := fmt.Sprintf("traffic-%s-%s-%s", from.Format(stampFormat), h.Controller, strconv.FormatInt(time.Now().UnixMicro(), 36))
	f, err := os.OpenFile(h.journal(name), os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return nil, err
	}
	w := &window{name: name, from: from, length: h.Window, journal: f, counts: map[countKey]*count{}}
	h.windows[from.Unix()] = w
	return w, nil
}

// Run writes windows' files when they are over, and deletes what is older than the
// retention, until ctx ends. While the bucket is away it is tried less and less often.
func (h *History) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var swept, next time.Time
	var pause time.Duration
	for {
		now := time.Now()
		if !now.Before(next) {
			pause = h.round(ctx, now, pause)
			next = now.Add(pause)
		}
		if now.Sub(swept) >= sweepEvery {
			swept = now
			if n, err := h.Expire(ctx, now); err != nil && ctx.Err() == nil {
				h.Log.Error("delete old traffic history", "deleted", n, "error", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// round is one Cut, after a pause; it returns how long the next pause is.
func (h *History) round(ctx context.Context, now time.Time, pause time.Duration) time.Duration {
	err := h.Cut(ctx, now.Add(-cutAfter))
	files, size, shed := h.Waiting()
	switch {
	case err != nil && ctx.Err() == nil:
		h.Log.Error("write traffic history", "error", err, "waiting", files, "bytes", size, "shed", shed)
		return min(max(2*pause, time.Second), retryWithin)
	case pause > 0 && err == nil:
		h.Log.Info("traffic history is written again", "shed", shed)
	}
	return 0
}

// Cut makes the files of all windows that ended by a time, and writes those that wait to the
// bucket. What cannot be written is kept for the next Cut.
func (h *History) Cut(ctx context.Context, by time.Time) error {
	h.cutting.Lock()
	defer h.cutting.Unlock()
	h.mu.Lock()
	for start, w := range h.windows {
		if !w.from.Add(w.length).After(by) {
			h.over = append(h.over, w)
			delete(h.windows, start) // bins that come now make another
		}
	}
	over := slices.Clone(h.over)
	h.mu.Unlock()
	var failed []error
	for _, w := range over {
		if err := h.file(w); err != nil {
			failed = append(failed, fmt.Errorf("make %s: %w", w.name, err))
		}
	}
	return errors.Join(append(failed, h.deliver(ctx))...)
}

// key is where in the bucket a window's file is.
func key(name string, from time.Time) string {
	return from.UTC().Format("date=2006-01-02/hour=15/") + name + ".parquet"
}

// Expire deletes files whose window ended longer ago than the retention, and journals that
// nobody needs any more; nothing else. It returns how many files.
func (h *History) Expire(ctx context.Context, now time.Time) (n int, err error) {
	h.forget(now.Add(-forgetAfter))
	old := now.Add(-h.Retention - h.Window)
	h.cutting.Lock()
	err = h.drop(func(f stored, _ int64) bool { return !f.from.After(old) })
	h.cutting.Unlock()
	if err != nil {
		return 0, err
	}
	for f, err := range h.files(ctx) {
		if err != nil {
			return n, err
		}
		if f.from.After(old) {
			continue
		}
		if err := h.bucket.Remove(ctx, f.key); err != nil {
			return n, fmt.Errorf("delete %s: %w", f.key, err)
		}
		n++
	}
	return n, nil
}

// forget drops what was known of the bins of windows that ended before a time.
func (h *History) forget(before time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	last := before.Add(-h.Window).Unix()
	maps.DeleteFunc(h.dones, func(name string, from time.Time) bool {
		return from.Unix() < last && os.Remove(h.done(name)) == nil
	})
	maps.DeleteFunc(h.seen, func(_ string, sets seqsets) bool {
		maps.DeleteFunc(sets, func(start int64, _ map[uint64]bool) bool { return start < last })
		return len(sets) == 0
	})
}

// Close closes the bucket. Windows that are open stay in their journals, for the next Open.
func (h *History) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	errs := []error{h.bucket.Close()}
	for _, w := range slices.AppendSeq(h.over, maps.Values(h.windows)) {
		errs = append(errs, w.journal.Close())
	}
	return errors.Join(errs...)
}
