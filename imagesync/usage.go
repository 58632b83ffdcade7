package imagesync

import (
	"context"

	"heliotrope/imagesync/manifest"
)

// Usage is what versions take in the store, in bytes.
type Usage struct {
	Versions []VersionUsage `json:"versions"`
	Content  int64          `json:"content_bytes"` // of all versions, as if nothing were shared
	Packs    int64          `json:"pack_bytes"`
	Quota    int64          `json:"quota_bytes,omitempty"`
}

// VersionUsage is what one takes.
type VersionUsage struct {
	Ref     string `json:"version"`
	Size    int64  `json:"size_bytes"`
	Content int64  `json:"content_bytes"` // that is not zeros
	Stored  int64  `json:"stored_bytes"`  // of its different chunks, compressed
	Alone   int64  `json:"alone_bytes"`   // of them, what no other version needs: gc frees that when it is removed
}

// Ratio is how many bytes of content there are for a byte of the packs.
func (u Usage) Ratio() float64 { return float64(u.Content) / float64(max(u.Packs, 1)) }

// Usage reckons what each version takes.
func (s *Store) Usage(ctx context.Context) (Usage, error) {
	u := Usage{Versions: []VersionUsage{}, Quota: s.config.Quota}
	if err := s.Refresh(ctx); err != nil {
		return u, err
	}
	all, err := s.Versions(ctx, "")
	if err != nil {
		return u, err
	}
	users := map[manifest.ID]int{} // how many versions need a chunk; each counts once
	var sets []map[manifest.ID]int64
	for _, v := range all {
		m, err := s.Manifest(ctx, v.Root)
		if err != nil {
			return u, err
		}
		set := map[manifest.ID]int64{}
		for _, id := range m.Content() {
			if _, at, ok := s.find(id); ok {
				set[id] = int64(at.Len())
			}
		}
		for id := range set {
			users[id]++
		}
		sets = append(sets, set)
	}
	for i, v := range all {
		w := VersionUsage{Ref: v.Ref(), Size: v.Size, Content: v.Content}
		for id, n := range sets[i] {
			w.Stored += n
			if users[id] == 1 {
				w.Alone += n
			}
		}
		u.Content += v.Content
		u.Versions = append(u.Versions, w)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, p := range s.packs {
		u.Packs += p.Size
	}
	return u, nil
}

// Lack is what is missing of a version, in bytes.
type Lack struct {
	Content int64 // by whole chunks
	Stored  int64 // as the store has them, which is what crosses
}

// Lacks reckons what somebody has to get of a version who has another one, as hosts take it: what
// is at the same place in both does not come (package site). A zero root: he has none.
func (s *Store) Lacks(ctx context.Context, root, has manifest.ID) (l Lack, err error) {
	want, err := s.Manifest(ctx, root)
	if err != nil {
		return l, err
	}
	var other *manifest.Manifest
	if !has.IsZero() {
		if other, err = s.Manifest(ctx, has); err != nil {
			return l, err
		}
	}
	if err := s.Refresh(ctx); err != nil {
		return l, err
	}
	for i, id := range want.Content() {
		if other != nil && i < other.Chunks() && other.At(i) == id {
			continue
		}
		l.Content += manifest.ChunkSize
		if _, at, ok := s.find(id); ok {
			l.Stored += int64(at.Len())
		}
	}
	return l, nil
}
