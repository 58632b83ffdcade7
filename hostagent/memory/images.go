package memory

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"

	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/pages"
	"heliotrope/migration/relay"
)

// Images are what has come of images to this host, in a directory with a cache of each, named by the image's root, as
// pages of VMs' memory. It implements relay.Images.
type Images struct {
	dir string
	log *slog.Logger

	mu     sync.Mutex
	spoilt map[string]bool // by root; used no more before the agent's next start
}

// NewImages are those of a directory of caches.
func NewImages(dir string, log *slog.Logger) *Images {
	return &Images{dir: dir, log: log, spoilt: map[string]bool{}}
}

// cache is the directory of an image's cache.
func (m *Images) cache(root string) (string, error) {
	if _, err := manifest.ParseID(root); err != nil {
		return "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.spoilt[root] {
		return "", errors.New("a stream that used it did not come out right")
	}
	return filepath.Join(m.dir, root), nil
}

// Indexed implements relay.Images.
func (m *Images) Indexed(root string) int64 {
	dir, err := m.cache(root)
	if err != nil {
		return 0
	}
	return pages.Bytes(pages.Indexed(dir))
}

// Index implements relay.Images.
func (m *Images) Index(root string) (relay.ImageIndex, error) {
	dir, err := m.cache(root)
	if err != nil {
		return nil, fmt.Errorf("read index of image %.16s: %w", root, err)
	}
	x, err := pages.ReadIndex(dir)
	if err != nil {
		m.log.Warn("a VM's pages are not looked for in its image; the next server of disks makes the index again", "root", root, "error", err)
		return nil, err
	}
	return x, nil
}

// Open implements relay.Images.
func (m *Images) Open(root string) (relay.ImagePages, error) {
	dir, err := m.cache(root)
	if err != nil {
		return nil, fmt.Errorf("open image %.16s: %w", root, err)
	}
	p, err := pages.Open(dir)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Spoil implements relay.Images.
func (m *Images) Spoil(root string) {
	m.log.Warn("an image's pages are given up after a stream that did not come out right", "root", root)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.spoilt[root] = true
}
