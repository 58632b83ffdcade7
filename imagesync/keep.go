package imagesync

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"heliotrope/imagesync/manifest"
)

const needDir = "needs"

// needFile is a need as it is stored.
type needFile struct {
	Root  manifest.ID `json:"root"`
	Since time.Time   `json:"since"`
}

// ErrNeeded is that of a version which somebody said to need.
var ErrNeeded = errors.New("needed")

// Need keeps a version, and all that it consists of, until NoNeed, for an owner: a disk that
// stands on it, as HOST/VOLUME. Unlike a Hold it does not expire, so that a host may be switched
// off for a year. A version that somebody needs cannot be removed.
func (s *Store) Need(ctx context.Context, v manifest.Version, owner string) error {
	file, err := needName(v, owner)
	if err != nil {
		return err
	}
	if err := s.depot.Put(ctx, file, strings.NewReader(string(encodeJSON(needFile{v.Root, s.now().UTC()})))); err != nil {
		return fmt.Errorf("say that %s is needed: %w", v.Ref(), err)
	}
	// First the need, then what is condemned: GC goes the other way round.
	condemned, err := s.condemned(ctx)
	if err == nil {
		err = s.stays(ctx, v, condemned)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("say that %s is needed: %w", v.Ref(), err), s.depot.Delete(ctx, file))
	}
	return nil
}

// NoNeed ends what Need did, if it did.
func (s *Store) NoNeed(ctx context.Context, v manifest.Version, owner string) error {
	file, err := needName(v, owner)
	if err != nil {
		return err
	}
	if err := s.depot.Delete(ctx, file); err != nil {
		return fmt.Errorf("say that %s is not needed: %w", v.Ref(), err)
	}
	return nil
}

func needName(v manifest.Version, owner string) (string, error) {
	host, volume, ok := strings.Cut(owner, "/")
	if !ok || manifest.CheckName(host) != nil || manifest.CheckName(volume) != nil {
		return "", fmt.Errorf("%.120q is nobody who needs an image: write HOST/VOLUME", owner)
	}
	return versionFile(needDir, v.Image, v.Number) + "/" + owner, nil
}

// Needs lists who needs a version.
func (s *Store) Needs(ctx context.Context, v manifest.Version) (owners []string, err error) {
	dir := versionFile(needDir, v.Image, v.Number)
	for info, err := range s.depot.List(ctx, dir) {
		if err != nil {
			return nil, fmt.Errorf("list who needs %s: %w", v.Ref(), err)
		}
		owners = append(owners, strings.TrimPrefix(info.Name, dir+"/"))
	}
	return owners, nil
}

// unneeded is an error if somebody needs a version.
func (s *Store) unneeded(ctx context.Context, v manifest.Version) error {
	owners, err := s.Needs(ctx, v)
	if err != nil || len(owners) == 0 {
		return err
	}
	return fmt.Errorf("%s is %w by the disk of %s: remove that first, or say \"image release\" if its host is gone for good",
		v.Ref(), ErrNeeded, strings.Join(owners, ", "))
}

// neededRoots are those of what somebody needs, each with one who does.
func (s *Store) neededRoots(ctx context.Context) (map[manifest.ID]string, error) {
	roots := map[manifest.ID]string{}
	for info, err := range s.depot.List(ctx, needDir) {
		if err != nil {
			return nil, fmt.Errorf("list needs: %w", err)
		}
		var n needFile
		err := s.getJSON(ctx, info.Name, &n)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read need: %w", err)
		}
		roots[n.Root] = path.Base(path.Dir(info.Name)) + "/" + path.Base(info.Name)
	}
	return roots, nil
}

// SweepNeeds ends the needs of a host's volumes that are not among those which it has: what a host
// that was killed, or could not reach the store, left behind. has says of a volume's name which
// version it stands on; a zero ID: there is no such volume.
func (s *Store) SweepNeeds(ctx context.Context, host string, has func(volume string) manifest.ID) error {
	for info, err := range s.depot.List(ctx, needDir) {
		if err != nil {
			return fmt.Errorf("sweep needs: %w", err)
		}
		if path.Base(path.Dir(info.Name)) != host {
			continue
		}
		var n needFile
		if err := s.getJSON(ctx, info.Name, &n); err != nil {
			return fmt.Errorf("sweep needs: %w", err)
		}
		if has(path.Base(info.Name)) == n.Root {
			continue
		}
		if err := s.depot.Delete(ctx, info.Name); err != nil {
			return fmt.Errorf("sweep needs: %w", err)
		}
	}
	return nil
}
