package history

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"math"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"gocloud.dev/blob"

	"heliotrope/scheduler/traffic"
)

const longest = time.Hour // that a window can be

// stored is a file of ours, in the bucket or on the way there.
type stored struct {
	name, key string
	from      time.Time
	size      int64
}

// files are all files of ours in the bucket, whichever controller's, by date.
func (h *History) files(ctx context.Context) iter.Seq2[stored, error] {
	return func(yield func(stored, error) bool) {
		list := h.bucket.List(&blob.ListOptions{Prefix: "date="})
		for {
			o, err := h.bucket.Next(ctx, list)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(stored{}, fmt.Errorf("list history: %w", err))
				return
			}
			name, ok := strings.CutSuffix(path.Base(o.Key), ".parquet")
			if !ok {
				continue
			}
			if from, ok := started(name); ok && key(name, from) == o.Key && !yield(stored{name, o.Key, from, o.Size}, nil) {
				return
			}
		}
	}
}

// Read calls do with the rows of all windows that have a part in [from, to), one file after
// the other, and then of those that the bucket does not have.
func (h *History) Read(ctx context.Context, from, to time.Time, do func(Row) error) error {
	within := func(begin time.Time, length time.Duration) bool {
		return begin.Before(to) && begin.Add(length).After(from)
	}
	rows := func(records []record) error {
		for i := range records {
			row, err := records[i].row()
			if err != nil {
				return err
			}
			if within(row.From, row.Length) {
				if err := do(row); err != nil {
					return err
				}
			}
		}
		return nil
	}
	file := func(key string, data []byte, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // its time was over meanwhile
			return nil
		}
		if err == nil {
			err = decode(data, rows)
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
		return nil
	}
	// What is not in the bucket is noted first, and left out should it be there by then.
	windows, waiting, noted := h.outside(within)
	for f, err := range h.files(ctx) {
		if err != nil {
			return err
		}
		if noted[f.key] || !within(f.from, longest) {
			continue
		}
		data, err := h.bucket.Get(ctx, f.key)
		if err := file(f.key, data, err); err != nil {
			return err
		}
	}
	for _, f := range waiting {
		data, err := os.ReadFile(h.waits(f.name))
		if errors.Is(err, fs.ErrNotExist) { // the bucket has it by now
			data, err = h.bucket.Get(ctx, f.key)
		}
		if err := file(f.key, data, err); err != nil {
			return err
		}
	}
	for _, records := range windows {
		if err := rows(records); err != nil {
			return err
		}
	}
	return nil
}

// outside is what the bucket does not have: windows that have no file, and files that wait.
func (h *History) outside(within func(time.Time, time.Duration) bool) (windows [][]record, waiting []stored, keys map[string]bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	keys = map[string]bool{}
	for _, w := range slices.AppendSeq(slices.Clone(h.over), maps.Values(h.windows)) {
		if within(w.from, w.length) {
			windows = append(windows, w.records())
			keys[key(w.name, w.from)] = true
		}
	}
	for _, f := range h.waiting {
		if within(f.from, longest) {
			waiting = append(waiting, f)
			keys[f.key] = true
		}
	}
	return windows, waiting, keys
}

// Matrix adds the rows of all windows that have a part in [from, to) up. From and To are
// those of the windows. Intervals add up as those of independent errors.
func (h *History) Matrix(ctx context.Context, from, to time.Time) (traffic.Matrix, error) {
	m := traffic.Matrix{From: from, To: to, Cells: []traffic.Cell{}}
	cells := map[[2]traffic.End]*traffic.Cell{}
	err := h.Read(ctx, from, to, func(r Row) error {
		if r.From.Before(m.From) {
			m.From = r.From
		}
		if end := r.From.Add(r.Length); end.After(m.To) {
			m.To = end
		}
		c, ok := cells[[2]traffic.End{r.Src, r.Dst}]
		if !ok {
			c = &traffic.Cell{Src: r.Src, Dst: r.Dst}
			cells[[2]traffic.End{r.Src, r.Dst}] = c
		}
		add(c, r)
		return nil
	})
	for _, c := range cells {
		c.Low, c.High = c.Bytes-math.Sqrt(c.Low), c.Bytes+math.Sqrt(c.High)
		slices.SortFunc(c.Services, func(s, t traffic.ServiceShare) int { return cmp.Compare(t.Bytes, s.Bytes) })
		m.Cells = append(m.Cells, *c)
	}
	slices.SortFunc(m.Cells, func(c, d traffic.Cell) int { return cmp.Or(c.Src.Compare(d.Src), c.Dst.Compare(d.Dst)) })
	return m, err
}

// add takes a row in; Low and High are sums of squares till the end.
func add(c *traffic.Cell, r Row) {
	c.Bytes += r.Bytes
	c.Low += (r.Bytes - r.Low) * (r.Bytes - r.Low)
	c.High += (r.High - r.Bytes) * (r.High - r.Bytes)
	if r.RTT > 0 { // weighed by packets: how many samples there were is not kept
		c.RTT = time.Duration((float64(c.RTT)*c.Packets + float64(r.RTT)*r.Packets) / max(c.Packets+r.Packets, 1))
		if c.RTTMin == 0 || r.RTTMin < c.RTTMin {
			c.RTTMin = r.RTTMin
		}
	}
	c.Packets += r.Packets
	c.Flows += r.Flows
	for i := range c.Services {
		if s := &c.Services[i]; s.Service == r.Service && s.Reply == r.Reply {
			s.Bytes += r.Bytes
			return
		}
	}
	c.Services = append(c.Services, traffic.ServiceShare{Service: r.Service, Reply: r.Reply, Bytes: r.Bytes})
}
