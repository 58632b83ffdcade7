package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/site"
	"heliotrope/imagesync/volume/disk"
)

// What is kept of disks that have left goes when nobody has asked for it for keptFor, or when the
// file system has less than a twentieth of itself left.
const (
	keptFor  = 7 * 24 * time.Hour
	freePart = 20
)

// leaving is a volume that a move is about to take away.
type leaving struct {
	Move string `json:"move"`           // by which it leaves
	Came string `json:"came,omitempty"` // by which it came, if what it has become since is known
}

// telling is what QEMU is told of a volume that leaves, as long as who asked for it stays.
type telling struct {
	Move string   `json:"move"`
	Has  site.Has `json:"has"`            // what the destination has
	QEMU int      `json:"qemu,omitempty"` // its process
}

// told answers it.
type told struct {
	Spared int64 `json:"spared_bytes"` // that the destination had when it began
}

// moveHandlers are what agents ask a server about moves.
func (s *server) moveHandlers(mux *http.ServeMux) {
	mux.HandleFunc("PUT /v1/volumes/{vm}/leaving", func(w http.ResponseWriter, r *http.Request) {
		l, err := s.leave(r.Context(), r.PathValue("vm"))
		answer(w, l, err)
	})
	mux.HandleFunc("DELETE /v1/volumes/{vm}/leaving", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, s.with(r.Context(), r.PathValue("vm"), (*served).Stay))
	})
	mux.HandleFunc("PUT /v1/volumes/{vm}/telling", s.tell)
	mux.HandleFunc("PUT /v1/volumes/{vm}/arrived", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, s.with(r.Context(), r.PathValue("vm"), func(d *served) error { return d.Arrive(r.Context()) }))
	})
	mux.HandleFunc("PUT /v1/volumes/{vm}/left", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, s.keep(r.Context(), r.PathValue("vm")))
	})
}

// with does something with a volume that is there.
func (s *server) with(ctx context.Context, vm string, do func(d *served) error) error {
	if err := manifest.CheckName(vm); err != nil {
		return fmt.Errorf("move disk: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.open(ctx, vm)
	if err == nil {
		err = do(d)
	}
	if err != nil {
		return fmt.Errorf("move disk of %s: %w", vm, err)
	}
	return nil
}

// leave begins to take a volume away.
func (s *server) leave(ctx context.Context, vm string) (l leaving, err error) {
	err = s.with(ctx, vm, func(d *served) (err error) {
		l.Move, l.Came, err = d.Leave()
		return err
	})
	return l, err
}

// tell has a volume's QEMU know what the destination has of it until the request ends: then
// whoever copied it has ended, or died.
func (s *server) tell(w http.ResponseWriter, r *http.Request) {
	var what telling
	var t told
	end := func() {}
	err := readJSON(w, r, &what)
	if err == nil {
		err = s.with(r.Context(), r.PathValue("vm"), func(d *served) error {
			spared, stop, err := d.Tell(what.Move, what.Has, what.QEMU)
			if err == nil {
				t.Spared, end = spared, stop
			}
			return err
		})
	}
	defer end()
	answer(w, t, err)
	if err != nil || http.NewResponseController(w).Flush() != nil {
		return
	}
	s.spared.Add(t.Spared)
	<-r.Context().Done()
}

// keep makes of a volume that leaves one that has left, or removes it if there is no room for it.
func (s *server) keep(ctx context.Context, vm string) error {
	if err := manifest.CheckName(vm); err != nil {
		return fmt.Errorf("keep disk: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waits(vm, true) { // and comes here again once it was read
		return nil
	}
	o, err := site.ReadOrigin(s.c.Dir, vm)
	if errors.Is(err, fs.ErrNotExist) || err == nil && o.Moves.Left != "" {
		return nil
	}
	kept := false
	if err == nil && s.c.Kept > 0 {
		if err = s.release(vm); err == nil {
			kept, err = site.Keep(s.c.Dir, vm)
		}
	}
	if err != nil {
		s.log.Warn("a disk that has left is not kept", "vm", vm, "error", err)
	}
	if err == nil && kept {
		s.log.Info("disk has left; it is kept in case it comes back", "vm", vm, "image", o.Base.Ref())
		return s.boundKept(ctx)
	}
	if err := s.drop(ctx, vm); err != nil {
		return fmt.Errorf("remove disk of %s: %w", vm, err)
	}
	return nil
}

// keptDisk is a volume that has left.
type keptDisk struct {
	name string
	used int64 // bytes of the disk
	when time.Time
}

// listKept lists them, the one that left first at the beginning.
func listKept(dir string) (all []keptDisk, err error) {
	names, err := site.Volumes(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		o, err := site.ReadOrigin(dir, name)
		if err != nil || o.Moves.Left == "" {
			continue // it has gone, or it is for others to find out what is wrong with it
		}
		at, when, err := site.Kept(dir, name)
		if err != nil {
			continue
		}
		used, err := disk.OSDirectory(at).Used()
		if err != nil {
			continue
		}
		all = append(all, keptDisk{name, used, when})
	}
	slices.SortFunc(all, func(a, b keptDisk) int { return cmp.Or(a.when.Compare(b.when), cmp.Compare(a.name, b.name)) })
	return all, nil
}

// boundKept removes disks that have left, the oldest first, as long as they take more than they
// may. The lock is held.
func (s *server) boundKept(ctx context.Context) error {
	all, err := listKept(s.c.Dir)
	if err != nil {
		return err
	}
	var used int64
	for _, k := range all {
		used += k.used
	}
	for _, k := range all {
		if used <= s.c.Kept && time.Since(k.when) < keptFor && !scarce(s.c.Dir) {
			return nil
		}
		if err := s.drop(ctx, k.name); err != nil {
			return err
		}
		used -= k.used
	}
	return nil
}

// scarce says whether the file system has little room left.
func scarce(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Bavail < st.Blocks/freePart
}

// note is what the two ends' servers of disks tell each other by the hypervisors' cookies: behind
// a hypervisor's own text, which ends with a zero, where one that knows of no notes does not look.
// It ends with a zero too.
type note struct {
	Leaving leaving `json:"leaving,omitzero"` // from the source
	Telling telling `json:"telling,omitzero"` // from the destination
}

const noteLimit = 4 << 10 // bytes

// withNote adds a note to a cookie.
func withNote(cookie []byte, n note) []byte {
	b, err := json.Marshal(n)
	if err != nil || len(b) > noteLimit {
		return cookie // cannot be
	}
	if len(cookie) == 0 || cookie[len(cookie)-1] != 0 {
		cookie = append(slices.Clip(cookie), 0)
	}
	return append(append(slices.Clip(cookie), b...), 0)
}

// splitNote takes a note off a cookie. What is none is the hypervisor's.
func splitNote(cookie []byte) (rest []byte, n note) {
	end := slices.Index(cookie, 0)
	if end < 0 || end+1 == len(cookie) || cookie[len(cookie)-1] != 0 || len(cookie)-end > noteLimit+2 {
		return cookie, note{}
	}
	if json.Unmarshal(cookie[end+1:len(cookie)-1], &n) != nil {
		return cookie, note{}
	}
	if end == 0 { // there was no cookie
		return nil, n
	}
	return cookie[:end+1], n
}
