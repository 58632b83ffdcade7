// Package kept has the pages of VMs that came to a host or went from it, so that a VM which comes
// back, or one like it, finds most of its memory there.
//
// What is kept is memory of guests: the directory is root's alone, and best one in memory. A file
// has the digests of a VM's pages, then the pages; it is written after a move, replaced as a whole,
// and never changed.
//
// Digests are keyed with a secret of the host, which it tells to those who send it VMs. Whoever
// does not know it can neither ask for a page by guessing at its content nor make two pages of one
// digest.
package kept

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"heliotrope"
	"heliotrope/migration/wan"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// Site is what a host keeps.
type Site struct {
	root, dir string // all of it, and what is one tenant's
	maxPages  int    // of all tenants
	log       *slog.Logger
	key       [32]byte
	queue     chan keepsake
}

type keepsake struct {
	site   *Site
	vm     heliotrope.VMID
	mirror *wan.Mirror
}

// The head of a file: siteMagic, the sum of the mirror, how many pages, and the length of what
// says where they are.
const (
	siteMagic = "heliotrope pages"
	siteHead  = len(siteMagic) + 16 + 8 + 8
	siteExt   = ".pages"
	// unfinished files are those of an agent that died.
	unfinished = "new-*"
	pageBytes  = 4096
	writeBytes = 256 << 10 // at once
	DigestLen  = len(wan.Digest{})
	// MaxPages bounds what a source keeps of a destination's digests: about 30 MB.
	MaxPages = 1 << 20
)

// New returns the site in dir, which it makes if there is none. It keeps no more than
// maxPages pages of 4 KiB.
func New(dir string, maxPages int, log *slog.Logger) (*Site, error) {
	s := &Site{root: dir, dir: dir, maxPages: min(maxPages, MaxPages), log: log, queue: make(chan keepsake, 1)}
	if err := s.open(); err != nil {
		return nil, err
	}
	for _, pattern := range []string{unfinished, filepath.Join(tenantPrefix+"*", unfinished)} {
		left, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, fmt.Errorf("make site: %w", err)
		}
		for _, f := range left {
			if err := os.Remove(f); err != nil {
				return nil, fmt.Errorf("make site: %w", err)
			}
		}
	}
	return s, nil
}

// open makes the directory and its key, if they are not there.
func (s *Site) open() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("make site: %w", err)
	}
	name := filepath.Join(s.dir, "key")
	key, err := os.ReadFile(name)
	if err == nil && len(key) != len(s.key) {
		err = errors.Join(os.Remove(name), os.ErrNotExist)
	}
	if errors.Is(err, os.ErrNotExist) {
		if err = s.makeKey(name); err == nil {
			key, err = os.ReadFile(name)
		}
	}
	if err != nil {
		return fmt.Errorf("read key of site: %w", err)
	}
	copy(s.key[:], key)
	return nil
}

// makeKey makes a key as a whole, unless somebody else has.
func (s *Site) makeKey(name string) error {
	var key [len(s.key)]byte
	rand.Read(key[:])
	f, err := os.CreateTemp(s.dir, unfinished)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(key[:])
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Link(f.Name(), name)
	}
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

// tenantPrefix is how the directories of tenants begin.
const tenantPrefix = "tenant-"

// For is what is kept of one tenant's VMs, under a key of its own: nobody else's are found in it. All of them
// have the room of the whole.
func (s *Site) For(tenant heliotrope.TenantID) *Site {
	if s == nil || tenant == "" {
		return s
	}
	own := *s
	own.dir = filepath.Join(s.root, tenantPrefix+hex.EncodeToString([]byte(tenant)))
	if err := own.open(); err != nil {
		s.log.Warn("nothing is kept of a tenant's VMs", "tenant", tenant, "error", err)
		return nil
	}
	return &own
}

// settle is how long Run lets a VM be before it writes what that has left. Streams end while the VM stands
// still, and hashing and writing take a core for a second, at both ends, that it needs to go on.
const settle = 3 * time.Second

// Run writes what is to be kept until ctx ends, and then what there is yet. Without it nothing is kept.
func (s *Site) Run(ctx context.Context) error {
	for {
		select {
		case k := <-s.queue:
			t := time.NewTimer(settle)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
			}
			s.keep(k)
		case <-ctx.Done():
			for {
				select {
				case k := <-s.queue:
					s.keep(k)
				default:
					return context.Cause(ctx)
				}
			}
		}
	}
}

// Next waits for what is to be kept next, and writes it at once. It returns an error if ctx ends first.
func (s *Site) Next(ctx context.Context) error {
	select {
	case k := <-s.queue:
		s.keep(k)
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Site) keep(k keepsake) {
	if err := k.site.write(k); err != nil {
		s.log.Warn("cannot keep a VM's pages", "vm", k.vm, "error", err)
	}
}

// Keep takes a mirror that nobody changes any more. It does not wait: if an earlier one is
// still being written, this one is not kept.
func (s *Site) Keep(vm heliotrope.VMID, m *wan.Mirror) {
	if s == nil || m.Len() == 0 {
		return
	}
	select {
	case s.queue <- keepsake{s, vm, m}:
	default:
		s.log.Info("a VM's pages are not kept: others are being written", "vm", vm)
	}
}

func (s *Site) path(vm heliotrope.VMID) string { return filepath.Join(s.dir, string(vm)+siteExt) }

func (s *Site) write(k keepsake) (err error) {
	n := min(k.mirror.Len(), s.maxPages)
	if err := s.evict(k.vm, n); err != nil {
		return err
	}
	f, err := os.CreateTemp(s.dir, unfinished)
	if err != nil {
		return fmt.Errorf("keep pages: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := errors.Join(s.fill(f, k.mirror, n), f.Close()); err != nil {
		return fmt.Errorf("keep pages: %w", err)
	}
	if err := os.Rename(f.Name(), s.path(k.vm)); err != nil {
		return fmt.Errorf("keep pages: %w", err)
	}
	return nil
}

func (s *Site) fill(f *os.File, m *wan.Mirror, n int) error {
	digester, err := wan.NewDigester(s.key)
	if err != nil {
		return err
	}
	sum, places := m.Sum(n), m.Places(n)
	head := append([]byte(siteMagic), sum[:]...)
	head = binary.BigEndian.AppendUint64(head, uint64(n))
	head = binary.BigEndian.AppendUint64(head, uint64(len(places)))
	for i := range n {
		d := digester.Page(m.Page(i))
		head = append(head, d[:]...)
	}
	w := bufio.NewWriterSize(f, writeBytes)
	w.Write(append(head, places...))
	for i := range n {
		w.Write(m.Page(i)[:])
	}
	return w.Flush() // the first error that there was
}

// Sum tells what is kept of a VM, of no more than maxPages pages; "": nothing.
func (s *Site) Sum(vm heliotrope.VMID, maxPages int) string {
	if s == nil {
		return ""
	}
	k, err := look(s.path(vm))
	if err != nil || k.pages > maxPages {
		return ""
	}
	return hex.EncodeToString(k.sum[:])
}

// Mirror reads what is kept of a VM, if its sum is this one.
func (s *Site) Mirror(vm heliotrope.VMID, sum string) (*wan.Mirror, error) {
	k, err := look(s.path(vm))
	if err == nil && hex.EncodeToString(k.sum[:]) != sum {
		err = errors.New("it has changed")
	}
	var m *wan.Mirror
	if err == nil {
		m, err = k.mirror()
	}
	if err != nil {
		os.Remove(s.path(vm)) // the next attempt does without
		return nil, fmt.Errorf("read kept pages: %w", err)
	}
	return m, nil
}

// evict makes room for so many pages of a VM, whose old ones count no more.
func (s *Site) evict(vm heliotrope.VMID, pages int) error {
	dirs, err := filepath.Glob(filepath.Join(s.root, tenantPrefix+"*"))
	if err != nil {
		return fmt.Errorf("list site: %w", err)
	}
	all, err := s.listIn(append(dirs, s.root)...)
	if err != nil {
		return err
	}
	room := s.maxPages - pages
	for _, k := range all {
		if k.path == s.path(vm) {
			continue
		}
		if room -= k.pages; room < 0 {
			if err := os.Remove(k.path); err != nil {
				return fmt.Errorf("remove old pages: %w", err)
			}
		}
	}
	return nil
}

// Pages are what a destination has for one stream: the pages of the VM's earlier stay
// first, then those of others.
type Pages struct {
	Mirror  *wan.Mirror // that the stream begins with, if the source has the same
	Key     [32]byte
	Digests []byte // one after another
	files   []pagesOf
	ahead   []byte // pages that were read already
	next    uint64 // the reference of their first; without any, the one behind the page that was last given out
	buf     [aheadPages * pageBytes]byte
}

type pagesOf struct {
	*os.File
	first      int64 // where its pages begin
	begin, end uint64
}

// aheadPages are read at once where pages are asked for in their order, as a VM like the one before does.
const aheadPages = 16

// Open returns what there is for a VM; it may be nothing. kept is what the source has of it.
func (s *Site) Open(vm heliotrope.VMID, kept string, maxPages int) *Pages {
	p := &Pages{}
	if s == nil {
		return p
	}
	p.Key = s.key
	var err error
	if kept != "" && kept == s.Sum(vm, maxPages) {
		if p.Mirror, err = s.Mirror(vm, kept); err != nil {
			s.log.Warn("cannot begin with what was kept", "vm", vm, "error", err)
		}
	}
	all, err := s.list()
	if err != nil {
		s.log.Warn("cannot use the site's pages", "error", err)
		return p
	}
	for _, own := range []bool{true, false} {
		for _, k := range all {
			if own != (k.path == s.path(vm)) || own && p.Mirror != nil || p.Len()+k.pages > s.maxPages {
				continue
			}
			if err := p.add(k); err != nil {
				s.log.Warn("cannot use pages", "file", k.path, "error", err)
			}
		}
	}
	return p
}

// Len is how many pages there are.
func (p *Pages) Len() int { return len(p.Digests) / DigestLen }

func (p *Pages) add(k kept) error {
	f, err := os.Open(k.path)
	if err != nil {
		return err
	}
	digests := make([]byte, k.pages*DigestLen)
	if _, err := f.ReadAt(digests, int64(siteHead)); err != nil {
		return errors.Join(err, f.Close())
	}
	begin := uint64(p.Len())
	p.Digests = append(p.Digests, digests...)
	p.files = append(p.files, pagesOf{f, k.first(), begin, uint64(p.Len())})
	return nil
}

// Page reads a page. It is not for use by several at once.
func (p *Pages) Page(ref uint64, dst *[4096]byte) error {
	if skip := ref - p.next; skip < uint64(len(p.ahead)/pageBytes) {
		p.ahead = p.ahead[skip*pageBytes:]
	} else if err := p.read(ref); err != nil {
		return err
	}
	p.ahead, p.next = p.ahead[copy(dst[:], p.ahead):], ref+1
	return nil
}

// read reads a page, and those behind it if it is the one behind the last.
func (p *Pages) read(ref uint64) error {
	p.ahead = nil
	for _, f := range p.files {
		if ref >= f.end {
			continue
		}
		pages := uint64(1)
		if ref == p.next {
			pages = min(aheadPages, f.end-ref)
		}
		n, err := f.ReadAt(p.buf[:pages*pageBytes], f.first+int64(ref-f.begin)*pageBytes)
		if n < pageBytes {
			return fmt.Errorf("read page: %w", err)
		}
		p.ahead = p.buf[:n-n%pageBytes]
		return nil
	}
	return fmt.Errorf("read page: %d is none of those that are kept", ref)
}

// Spoil removes the files that a stream used which could not be decoded: one of them may have
// changed on disk, and the next attempt is to do without.
func (s *Site) Spoil(vm heliotrope.VMID, p *Pages) {
	var errs []error
	if p.Mirror != nil {
		errs = append(errs, os.Remove(s.path(vm)))
	}
	for _, f := range p.files {
		errs = append(errs, os.Remove(f.Name()))
	}
	if len(errs) > 0 {
		s.log.Warn("kept pages are given up after a stream that did not come out right", "vm", vm, "files", len(errs), "error", errors.Join(errs...))
	}
}

// Close ends their use.
func (p *Pages) Close() {
	for _, f := range p.files {
		f.Close()
	}
}
