package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"heliotrope/controller/api"
	"heliotrope/imagesync"
	"heliotrope/imagesync/depot"
)

// A scrub reads all of the store once in Config.Scrub, a little at a time, since a disk tells of a
// bit that has turned only who reads it, and the copy that it can be mended from may be gone by then.
// It goes through the packs by name, so that it knows how far it is by one name, and begins where it was after
// a restart; packs that are made meanwhile may have to wait for the next round.
const (
	scrubOften, scrubSeldom = time.Minute, 10 * time.Minute // between two looks
	// What was missed, since no controller led, is made good at no more than so many times the usual pace.
	catchUp = 4
)

// scrubbing is the scrub as it stands.
type scrubbing struct {
	asked chan struct{} // of size 1: a round is to begin at once

	mu      sync.Mutex
	state   scrubState
	trouble string // of the last look
	read    uint64 // bytes, since this process began
}

// scrubState is what is on the disk of it.
type scrubState struct {
	Began time.Time `json:"began"` // this round
	After string    `json:"after"` // the last pack that was read
	Packs int       `json:"packs"`
	Bytes int64     `json:"bytes"` // of them
	All   int64     `json:"all"`   // of the store's packs
	Whole bool      `json:"whole"` // all was read
	Hurry bool      `json:"hurry"` // at no pace
	Bad   []string  `json:"bad"`   // packs
	// As of the last round that was whole, or since damage was found.
	Ended   time.Time         `json:"ended"`
	Damaged []api.ImageDamage `json:"damaged"`
}

// share is how much of the store a round has read by now, if it keeps its pace: at most so
// much more than it has that it catches up with what it has missed.
func (s scrubState) share(now time.Time, period, tick time.Duration) int64 {
	if s.Hurry || period <= 0 {
		return s.All
	}
	due := float64(s.All) * now.Sub(s.Began).Seconds() / period.Seconds()
	most := float64(s.Bytes) + catchUp*float64(s.All)*tick.Seconds()/period.Seconds()
	return int64(math.Ceil(min(due, most, float64(s.All))))
}

// over says whether there is nothing to read until another round begins.
func (s scrubState) over(now time.Time, period time.Duration) bool {
	if s.Began.IsZero() {
		return period <= 0
	}
	return s.Whole && (period <= 0 || now.Before(s.Began.Add(period)))
}

// begin begins a round.
func (s *scrubState) begin(now time.Time, hurry bool) {
	*s = scrubState{Began: now, Hurry: hurry, Ended: s.Ended, Damaged: s.Damaged}
}

// Scrub scrubs until ctx ends, while this controller leads.
func (m *Images) Scrub(ctx context.Context) error {
	if err := m.loadScrub(); err != nil {
		m.cfg.Log.Error("take up the image store's scrub", "err", err) // it begins anew
	}
	every := min(max(m.cfg.Scrub/1000, scrubOften), scrubSeldom)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for hurry := false; ; {
		if _, term := m.cfg.Hosts.ImageHosts(); term != 0 {
			err := m.scrubOnce(ctx, time.Now(), every, hurry)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			m.scrubTrouble(err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.scrub.asked:
			hurry = true
		case <-tick.C:
			hurry = false
		}
	}
}

// scrubTrouble notes why a look came to nothing, and logs it when that changes.
func (m *Images) scrubTrouble(err error) {
	trouble := ""
	if err != nil {
		trouble = err.Error()
	}
	m.scrub.mu.Lock()
	defer m.scrub.mu.Unlock()
	if trouble != "" && trouble != m.scrub.trouble {
		m.cfg.Log.Warn("scrub the image store", "err", err)
	}
	m.scrub.trouble = trouble
}

// scrubOnce reads what is due.
func (m *Images) scrubOnce(ctx context.Context, now time.Time, every time.Duration, hurry bool) error {
	m.scrub.mu.Lock()
	st := m.scrub.state
	m.scrub.mu.Unlock()
	if hurry || !st.over(now, m.cfg.Scrub) && (st.Whole || st.Began.IsZero()) {
		st.begin(now, hurry)
	}
	if st.over(now, m.cfg.Scrub) && len(st.Damaged) == 0 {
		return nil
	}
	s, err := m.open(ctx)
	if err != nil {
		return err
	}
	packs, err := s.Packs(ctx)
	if err != nil {
		return err
	}
	if !st.Whole {
		st.All = 0
		for _, p := range packs {
			st.All += p.Size
		}
		if err := m.readPacks(ctx, s, packs, &st, st.share(now, m.cfg.Scrub, every)); err != nil {
			return errors.Join(err, m.keepScrub(st))
		}
	}
	// What is damaged may have been mended.
	if st.Whole && st.Ended.Before(st.Began) || len(st.Bad) > 0 || len(st.Damaged) > 0 {
		if err := m.judge(ctx, s, packs, &st); err != nil {
			return err
		}
	}
	if st.Whole && st.Ended.Before(st.Began) {
		st.Ended = now
	}
	return m.keepScrub(st)
}

// readPacks reads packs until the round has read so many bytes, or all packs.
func (m *Images) readPacks(ctx context.Context, s *imagesync.Store, packs []depot.Info, st *scrubState, due int64) error {
	first, _ := slices.BinarySearchFunc(packs, st.After, func(p depot.Info, after string) int { return cmp.Or(strings.Compare(p.Name, after), -1) })
	for _, p := range packs[first:] {
		if st.Bytes >= due {
			return nil
		}
		err := s.CheckPack(ctx, p.Name)
		if errors.Is(err, imagesync.ErrDamaged) {
			st.Bad, err = append(st.Bad, p.Name), nil
		}
		if err != nil {
			return err
		}
		st.After, st.Packs, st.Bytes = p.Name, st.Packs+1, st.Bytes+p.Size
		m.scrub.mu.Lock()
		m.scrub.read += uint64(p.Size)
		m.scrub.state = *st // for who asks meanwhile
		m.scrub.mu.Unlock()
	}
	st.Whole = true
	return nil
}

// judge finds out whom damage concerns, and tells of what is new, once.
func (m *Images) judge(ctx context.Context, s *imagesync.Store, packs []depot.Info, st *scrubState) error {
	st.Bad = slices.DeleteFunc(st.Bad, func(name string) bool {
		return !slices.ContainsFunc(packs, func(p depot.Info) bool { return p.Name == name })
	})
	r, err := s.VerifyKnowing(ctx, st.Bad)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, d := range st.Damaged {
		known[d.What] = true
	}
	was := len(st.Damaged)
	st.Damaged = nil
	fresh := map[string]string{} // what is new, by version
	for _, f := range r.Findings {
		d := api.ImageDamage{What: f.What, Why: f.Err.Error(), NeededBy: f.Images}
		st.Damaged = append(st.Damaged, d)
		for _, version := range f.Images {
			if !known[d.What] {
				fresh[version] = cmp.Or(fresh[version], fmt.Sprintf("%s: %s", d.What, d.Why))
			}
		}
	}
	for version, why := range fresh {
		image, number, _ := strings.Cut(version, "@")
		m.cfg.Tell(image, fmt.Sprintf("version %s is damaged in the store (%s); \"heliotrope image verify --mend --from STORE\" brings back what is lost", number, why))
	}
	if was > 0 && len(st.Damaged) == 0 {
		m.cfg.Tell("image-store", "nothing in the image store is damaged any more")
	}
	return nil
}

// loadScrub takes up what was kept.
func (m *Images) loadScrub() error {
	b, err := os.ReadFile(m.cfg.ScrubFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var st scrubState
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err == nil {
		m.scrub.mu.Lock()
		m.scrub.state = st
		m.scrub.mu.Unlock()
	}
	return err
}

// keepScrub keeps how far a scrub is.
func (m *Images) keepScrub(st scrubState) error {
	m.scrub.mu.Lock()
	m.scrub.state = st
	m.scrub.mu.Unlock()
	b, err := json.Marshal(st)
	if err == nil {
		err = os.WriteFile(m.cfg.ScrubFile+".part", b, 0o600)
	}
	if err == nil {
		err = os.Rename(m.cfg.ScrubFile+".part", m.cfg.ScrubFile)
	}
	if err != nil {
		return fmt.Errorf("keep scrub: %w", err)
	}
	return nil
}

// ImageScrub implements api.Images.
func (m *Images) ImageScrub(context.Context) (api.ImageScrub, error) {
	m.scrub.mu.Lock()
	defer m.scrub.mu.Unlock()
	st := m.scrub.state
	return api.ImageScrub{EveryS: m.cfg.Scrub.Seconds(), BeganAt: st.Began, Packs: st.Packs, ReadBytes: st.Bytes, AllBytes: st.All, Whole: st.Whole, EndedAt: st.Ended,
		Damaged: append([]api.ImageDamage{}, st.Damaged...), Error: m.scrub.trouble}, nil
}

// ScrubImages implements api.Images.
func (m *Images) ScrubImages(ctx context.Context) (api.ImageScrub, error) {
	if _, term := m.cfg.Hosts.ImageHosts(); term == 0 {
		return api.ImageScrub{}, api.Unavailable("this controller does not lead: ask the one that does")
	}
	select {
	case m.scrub.asked <- struct{}{}:
	default: // it is to begin already
	}
	return m.ImageScrub(ctx)
}

// Scrubbed is how many bytes were read by scrubs since the process began, how many things are
// damaged, and when the last round ended that read all.
func (m *Images) Scrubbed() (read uint64, damaged int, ended time.Time) {
	m.scrub.mu.Lock()
	defer m.scrub.mu.Unlock()
	return m.scrub.read, len(m.scrub.state.Damaged), m.scrub.state.Ended
}
