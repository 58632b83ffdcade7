package hostagent

import (
	"context"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/libvirt"
	"heliotrope/migration"
	"slices"
	"time"
)

// writeWatch is how long a VM's writes to its disks take in the stretches of its move out of here. QEMU
// counts them; the counters are read ten times a second and once when the VM has stopped for good, after
// the pause, of which that would be a part. A nil one watches nothing.
type writeWatch struct {
	seen []migration.DiskWrites // the last one is still on
	from libvirt.DiskCounters   // where that began
	at   time.Time
}

// saw is told of the counters at a time in a stretch. What was counted since the last time is of
// the stretch that was on, also if another one begins.
func (w *writeWatch) saw(s migration.Stretch, c libvirt.DiskCounters, now time.Time) {
	if n := len(w.seen); n > 0 {
		w.seen[n-1] = stretch(w.seen[n-1].Stretch, w.from, c, now.Sub(w.at))
		if w.seen[n-1].Stretch == s {
			return
		}
	}
	w.seen, w.from, w.at = append(w.seen, migration.DiskWrites{Stretch: s}), c, now
}

// stretch is what lies between two readings of counters.
func stretch(s migration.Stretch, from, to libvirt.DiskCounters, lasted time.Duration) migration.DiskWrites {
	d := migration.DiskWrites{Stretch: s, Seconds: lasted.Seconds(), Writes: to.Writes - from.Writes, Flushes: to.Flushes - from.Flushes}
	mean := func(all time.Duration, n uint64) float64 {
		if n == 0 {
			return 0
		}
		return float64(all.Microseconds()) / 1000 / float64(n)
	}
	d.WriteMs, d.FlushMs = mean(to.WriteTime-from.WriteTime, d.Writes), mean(to.FlushTime-from.FlushTime, d.Flushes)
	return d
}

// now are the stretches as far as they are known.
func (w *writeWatch) now() []migration.DiskWrites {
	if w == nil {
		return nil
	}
	return slices.Clone(w.seen)
}

// on is the stretch that was seen last.
func (w *writeWatch) on() migration.Stretch {
	if w == nil || len(w.seen) == 0 {
		return migration.WritesBefore
	}
	return w.seen[len(w.seen)-1].Stretch
}

// watchWrites reads the counters of a VM that moves out. That it cannot is no reason not to move.
func (s *moves) watchWrites(ctx context.Context, m *move, in migration.Stretch, now time.Time) {
	if m.writes == nil {
		return
	}
	hv, err := s.conn.get(ctx)
	if err != nil {
		return
	}
	c, err := hv.DiskCounters(ctx, m.Begun.VM)
	if err != nil {
		s.log.Debug("read disk counters", "vm", m.Begun.VM, "error", err)
		return
	}
	m.writes.saw(in, c, now)
}

const (
	arrivedMin = time.Second     // before, the controller waits to hear that the VM runs, and for nothing else
	arrivedFor = time.Minute     // after it came here, what a VM's QEMU counts is shown with its move
	askLimit   = 2 * time.Second // of libvirt, for that
)

// arrived are the writes of a VM that came here by a move lately: its QEMU is a new one, so all that it
// has counted is of here.
func (s *moves) arrived(ctx context.Context, r agentapi.MoveReport) []migration.DiskWrites {
	since := time.Since(r.ResumedAt)
	if r.Role != agentapi.Destination || r.State != agentapi.MoveActive || since < arrivedMin || since > arrivedFor {
		return nil
	}
	s.mu.Lock()
	m := s.byID[r.Move]
	s.mu.Unlock()
	if m == nil || len(m.Begun.Disks) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	hv, err := s.conn.get(ctx)
	if err != nil {
		return nil
	}
	c, err := hv.DiskCounters(ctx, m.Begun.VM)
	if err != nil {
		s.log.Debug("read disk counters", "vm", m.Begun.VM, "error", err)
		return nil
	}
	return []migration.DiskWrites{stretch(migration.WritesAfter, libvirt.DiskCounters{}, c, since)}
}
