package wanbench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"heliotrope"
)

// away is how long a guest works at the other site before it comes back. A guest under emulation
// does in a minute what one on a processor of its own does in some seconds; what it writes in an
// hour at most it has written by then: all works are periodic within less.
const away = time.Minute

// andBack is ours where the guest has been before: it is measured on its way back.
func (y *yard) andBack(ctx context.Context, f *field, ms []*machine, l link) ([]*machine, moved, error) {
	md := ours
	var err error
	if md.pages, err = f.dirs("back"); err != nil {
		return nil, moved{}, err
	}
	md.name = oursBack
	first, _, err := y.migrate(ctx, f, ms, md, l)
	if err != nil {
		return nil, moved{}, err
	}
	err = pause(ctx, away)
	var to []*machine
	var r moved
	if err == nil {
		to, r, err = y.migrate(ctx, f, first, md, l)
	}
	if err != nil {
		err = errors.Join(err, killAll(first))
	}
	return to, r, err
}

// whereOtherWas is ours where another guest of the same work has been at both sites.
func (y *yard) whereOtherWas(ctx context.Context, f *field, ms []*machine, l link) ([]*machine, moved, error) {
	other, err := y.others(ctx, f, ms[0].work)
	if err != nil {
		return nil, moved{}, fmt.Errorf("move another guest: %w", err)
	}
	md := ours
	md.name = oursSite
	if md.pages, err = f.dirs("site"); err != nil {
		return nil, moved{}, err
	}
	for i, dir := range md.pages { // what this move leaves there is not for the next one
		if err := copyDir(other[i], dir); err != nil {
			return nil, moved{}, err
		}
	}
	return y.migrate(ctx, f, ms, md, l)
}

// others are directories with what another guest of that work has left at the sites.
func (y *yard) others(ctx context.Context, f *field, work string) (*[2]string, error) {
	if f.others[work] != nil {
		return f.others[work], nil
	}
	dirs, err := f.dirs("other")
	if err != nil {
		return nil, err
	}
	md := ours
	md.vm, md.pages = heliotrope.VMID("other"), dirs
	m, err := y.boot(ctx, f, work)
	if err != nil {
		return nil, err
	}
	ms := []*machine{m}
	for range 2 { // there and back
		to, _, err := y.migrate(ctx, f, ms, md, link{Mbits: 1000})
		if err != nil {
			return nil, errors.Join(err, killAll(ms))
		}
		ms = to
	}
	f.others[work] = dirs
	return dirs, killAll(ms)
}

// dirs makes a directory for each site.
func (f *field) dirs(name string) (*[2]string, error) {
	f.runs++
	var dirs [2]string
	for i, site := range sites {
		dirs[i] = filepath.Join(f.dir, fmt.Sprintf("pages-%s-%d-%s", name, f.runs, site))
		if err := os.Mkdir(dirs[i], 0o700); err != nil {
			return nil, err
		}
	}
	return &dirs, nil
}

func copyDir(from, to string) error { return os.CopyFS(to, os.DirFS(from)) }

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
