package site

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"heliotrope"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/volume"
)

// near are versions that lend others what has come of them. Versions of an image are alike: what
// a VM's disk or an upgrade has left alone is at the same place in the next one. So of a version only
// what it has elsewhere than those that are here comes from the store.
type near struct {
	mu  sync.RWMutex // held for reading by who takes, so that nobody closes what is taken from
	all []*Site
}

// Lend lets the source's other versions take what is here of this one, until Withdraw.
func (s *Source) Lend(of *Site) {
	s.near.mu.Lock()
	defer s.near.mu.Unlock()
	s.near.all = append(s.near.all, of)
}

// Withdraw ends that: the version may be closed then.
func (s *Source) Withdraw(of *Site) {
	s.near.mu.Lock()
	defer s.near.mu.Unlock()
	s.near.all = slices.DeleteFunc(s.near.all, func(o *Site) bool { return o == of })
}

// take reads a chunk of a version from another one that has it at the same place. It is looked at
// like one from the store: a bit that the disk has flipped is not passed on.
func (n *near) take(of *manifest.Manifest, i int, dst []byte) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	id := of.At(i)
	for _, other := range n.all {
		b, ok := other.base.(*storeBase)
		if ok && b.Manifest != of && i < b.Chunks() && b.At(i) == id && other.cache.ReadNow(dst, int64(i)*volume.ChunkSize) && manifest.Name(dst) == id {
			return true
		}
	}
	return false
}

// Cached is the version of which something has come to dir.
func Cached(dir string, root manifest.ID) (v manifest.Version, err error) {
	b, err := os.ReadFile(filepath.Join(cacheDir(dir, root), versionName))
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err == nil && v.Root != root {
		err = fmt.Errorf("it is %s", v.Root)
	}
	if err != nil {
		return v, fmt.Errorf("read version %.16s: %w", root, err)
	}
	return v, nil
}

func pulledFile(dir string, root manifest.ID) string {
	return filepath.Join(cacheDir(dir, root), "pulled")
}

// Pull is how a version is to come of which all is to be here though no volume needs it.
type Pull struct {
	Windows []heliotrope.Hours `json:"windows,omitempty"` // times in which it may cross a WAN; none: always
	Rate    heliotrope.BitRate `json:"rate,omitempty"`    // of content that comes from the store and nobody waits for; zero: any
	Chain   []Peer             `json:"chain,omitempty"`   // hosts along which it comes, in order; none: from the store

	Priority string `json:"priority,omitempty"` // of ImagePolicy; for who divides a link
	Shared   bool   `json:"shared,omitempty"`   // images share a link on its way: it comes by the part of it that somebody gives, and waits before
}

// Peer is a host that passes versions on, and where it is asked.
type Peer struct {
	Host  heliotrope.HostID `json:"host"`
	Relay netip.AddrPort    `json:"relay"`
}

// Pulled says whether all of a version is to be in dir though no volume needs it, and how it is to come.
func Pulled(dir string, root manifest.ID) (p Pull, pulled bool) {
	b, err := os.ReadFile(pulledFile(dir, root))
	if err == nil && len(b) > 0 {
		err = json.Unmarshal(b, &p)
	}
	return p, err == nil
}

// SetPulled remembers that, or forgets it: nil.
func SetPulled(dir string, root manifest.ID, p *Pull) error {
	if p != nil {
		return writeJSON(pulledFile(dir, root), p)
	}
	if err := os.Remove(pulledFile(dir, root)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget that a version is to be here: %w", err)
	}
	return nil
}
