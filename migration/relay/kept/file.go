package kept

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"heliotrope/migration/wan"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// kept is a file of the site.
type kept struct {
	path   string
	at     time.Time
	sum    [16]byte
	pages  int
	places int // bytes
}

var errNotWhole = errors.New("it has another form or was not written to its end")

// look reads a file's head.
func look(path string) (kept, error) {
	f, err := os.Open(path)
	if err != nil {
		return kept{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return kept{}, err
	}
	var head [siteHead]byte
	if _, err := io.ReadFull(f, head[:]); err != nil || string(head[:len(siteMagic)]) != siteMagic {
		return kept{}, errNotWhole
	}
	k := kept{path: path, at: info.ModTime(), sum: [16]byte(head[len(siteMagic):])}
	pages, places := binary.BigEndian.Uint64(head[siteHead-16:]), binary.BigEndian.Uint64(head[siteHead-8:])
	size := uint64(info.Size())
	if pages > size || places > size || uint64(siteHead)+pages*uint64(DigestLen+pageBytes)+places != size {
		return kept{}, errNotWhole
	}
	k.pages, k.places = int(pages), int(places)
	return k, nil
}

// first is where in the file the pages begin.
func (k kept) first() int64 { return int64(siteHead + k.pages*DigestLen + k.places) }

// Mirror reads all of it, and compares its sum.
func (k kept) mirror() (*wan.Mirror, error) {
	f, err := os.Open(k.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	places := make([]byte, k.places)
	if _, err := f.ReadAt(places, k.first()-int64(k.places)); err != nil {
		return nil, err
	}
	pages := bufio.NewReaderSize(io.NewSectionReader(f, k.first(), int64(k.pages)*pageBytes), 64*pageBytes)
	m, err := wan.ReadMirror(places, k.pages, func(dst *[4096]byte) error {
		_, err := io.ReadFull(pages, dst[:])
		return err
	})
	if err == nil && m.Sum(k.pages) != k.sum {
		err = errNotWhole
	}
	return m, err
}

// list returns the files, newest first.
func (s *Site) list() ([]kept, error) { return s.listIn(s.dir) }

func (s *Site) listIn(dirs ...string) ([]kept, error) {
	var all []kept
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("list site: %w", err)
		}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), siteExt) {
				continue
			}
			k, err := look(filepath.Join(dir, e.Name()))
			if err != nil {
				s.log.Warn("cannot use pages", "file", e.Name(), "error", err)
				continue
			}
			all = append(all, k)
		}
	}
	slices.SortFunc(all, func(a, b kept) int { return cmp.Or(b.at.Compare(a.at), cmp.Compare(a.path, b.path)) })
	return all, nil
}
