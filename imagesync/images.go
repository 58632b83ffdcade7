package imagesync

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"heliotrope/imagesync/delta"
	"heliotrope/imagesync/manifest"
)

const (
	imageDir    = "images"
	manifestDir = "manifests"
	sketchDir   = "sketches"
	pinDir      = "pins"
	retiredDir  = "retired"
)

// versionFile sorts as the numbers do.
func versionFile(dir, image string, number int) string {
	return fmt.Sprintf("%s/%s/%08d", dir, image, number)
}

// ErrNotFound is that of an image or a version which is not there.
var ErrNotFound = errors.New("no such image")

// Versions lists all versions of an image, oldest first; of all images if it is "".
func (s *Store) Versions(ctx context.Context, image string) ([]manifest.Version, error) {
	dir := imageDir
	if image != "" {
		if err := manifest.CheckName(image); err != nil {
			return nil, err
		}
		dir += "/" + image
	}
	var all []manifest.Version
	for info, err := range s.depot.List(ctx, dir) {
		if err != nil {
			return nil, fmt.Errorf("list images: %w", err)
		}
		v, err := s.version(ctx, info.Name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list images: %s: %w", info.Name, err)
		}
		all = append(all, v)
	}
	slices.SortStableFunc(all, func(a, b manifest.Version) int {
		if c := strings.Compare(a.Image, b.Image); c != 0 {
			return c
		}
		return a.Number - b.Number
	})
	return all, nil
}

func (s *Store) version(ctx context.Context, file string) (manifest.Version, error) {
	b, err := s.depot.Get(ctx, file, 1<<16)
	if err != nil {
		return manifest.Version{}, err
	}
	v, err := manifest.Verify(b, s.config.Key)
	if err == nil && file != versionFile(imageDir, v.Image, v.Number) {
		return manifest.Version{}, fmt.Errorf("it is of %s: %w", v.Ref(), ErrDamaged)
	}
	return v, err
}

// Version finds what people write: IMAGE, the newest version, or IMAGE@NUMBER.
func (s *Store) Version(ctx context.Context, ref string) (manifest.Version, error) {
	image, number, exact := strings.Cut(ref, "@")
	if err := manifest.CheckName(image); err != nil {
		return manifest.Version{}, err
	}
	if exact {
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 {
			return manifest.Version{}, fmt.Errorf("%q is no version: write %s@1, or %[2]s for the newest", ref, image)
		}
		v, err := s.version(ctx, versionFile(imageDir, image, n))
		if errors.Is(err, fs.ErrNotExist) {
			return manifest.Version{}, fmt.Errorf("%s: %w", ref, ErrNotFound)
		}
		return v, err
	}
	newest, err := s.newest(ctx, image)
	if err == nil && newest.Number == 0 {
		err = fmt.Errorf("%s: %w", image, ErrNotFound)
	}
	return newest, err
}

// newest is the newest version of an image; its number is 0 if there is none.
func (s *Store) newest(ctx context.Context, image string) (v manifest.Version, err error) {
	last := ""
	for info, err := range s.depot.List(ctx, imageDir+"/"+image) {
		if err != nil {
			return v, fmt.Errorf("list versions: %w", err)
		}
		last = max(last, info.Name)
	}
	if last == "" {
		return v, nil
	}
	if v, err = s.version(ctx, last); err != nil {
		return manifest.Version{}, fmt.Errorf("read %s: %w", last, err)
	}
	return v, nil
}

// nextNumber is the one that the next version of an image gets.
func (s *Store) nextNumber(ctx context.Context, newest manifest.Version, image string) (int, error) {
	b, err := s.depot.Get(ctx, retiredDir+"/"+image, 64)
	if errors.Is(err, fs.ErrNotExist) {
		return newest.Number + 1, nil
	}
	if err != nil {
		return 0, err
	}
	retired, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("read %s/%s: %w", retiredDir, image, ErrDamaged)
	}
	return max(newest.Number, retired) + 1, nil
}

// publish signs a version and makes it the newest, if no other was faster (fs.ErrExist).
func (s *Store) publish(ctx context.Context, v manifest.Version) error {
	if s.key == nil {
		return fmt.Errorf("sign %s: %w", v.Ref(), ErrReadOnly)
	}
	b, err := manifest.Sign(v, s.key)
	if err != nil {
		return err
	}
	return s.depot.Create(ctx, versionFile(imageDir, v.Image, v.Number), b)
}

// ErrReadOnly is that of a store whose key is not here.
var ErrReadOnly = errors.New("the store's key is not here: copy its .key file from where the store was made")

// Clone makes an image of another one's version, which takes no room and no time.
func (s *Store) Clone(ctx context.Context, ref, image string) (manifest.Version, error) {
	from, err := s.Version(ctx, ref)
	if err != nil {
		return manifest.Version{}, err
	}
	if newest, err := s.newest(ctx, image); err != nil || newest.Number > 0 {
		return manifest.Version{}, errors.Join(err, fmt.Errorf("%s is there already: choose another name, or remove it", image))
	}
	return s.adopt(ctx, from, image, "clone of "+from.Ref())
}

// adopt makes a version of what another one has.
func (s *Store) adopt(ctx context.Context, from manifest.Version, image, why string) (manifest.Version, error) {
	w, err := s.Begin(ctx, image, BeginOptions{Size: from.Size, From: why})
	if err != nil {
		return manifest.Version{}, err
	}
	defer w.Abort(ctx)
	// The lease was taken before the version is looked up again: GC cannot have come between.
	if _, err := s.Version(ctx, from.Ref()); err != nil {
		return manifest.Version{}, err
	}
	return w.commit(ctx, from.Root, from.Content)
}

// Pin keeps a version from being removed, Unpin ends that.
func (s *Store) Pin(ctx context.Context, ref string) error {
	v, err := s.Version(ctx, ref)
	if err != nil {
		return err
	}
	err = s.depot.Create(ctx, versionFile(pinDir, v.Image, v.Number), []byte(v.Root.String()+"\n"))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// Unpin ends what Pin did.
func (s *Store) Unpin(ctx context.Context, ref string) error {
	v, err := s.Version(ctx, ref)
	if err != nil {
		return err
	}
	return s.depot.Delete(ctx, versionFile(pinDir, v.Image, v.Number))
}

// Pinned says whether Pin holds a version.
func (s *Store) Pinned(ctx context.Context, v manifest.Version) (bool, error) {
	_, err := s.depot.Get(ctx, versionFile(pinDir, v.Image, v.Number), 1<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Remove removes a version. The bytes that nobody else needs are freed by GC.
func (s *Store) Remove(ctx context.Context, ref string) (manifest.Version, error) {
	v, err := s.Version(ctx, ref)
	if err != nil {
		return v, err
	}
	switch pinned, err := s.Pinned(ctx, v); {
	case err != nil:
		return v, err
	case pinned:
		return v, fmt.Errorf("%s is pinned: unpin it first", v.Ref())
	}
	if err := s.unneeded(ctx, v); err != nil {
		return v, err
	}
	next, err := s.nextNumber(ctx, v, v.Image)
	if err != nil {
		return v, err
	}
	if err := s.depot.Put(ctx, retiredDir+"/"+v.Image, strings.NewReader(strconv.Itoa(next-1)+"\n")); err != nil {
		return v, err
	}
	return v, s.depot.Delete(ctx, versionFile(imageDir, v.Image, v.Number))
}

// Sketch reads the digests of a version's blocks, or makes them, which reads all of it.
func (s *Store) Sketch(ctx context.Context, m *manifest.Manifest, root manifest.ID) (*delta.Sketch, error) {
	b, err := s.getCompressed(ctx, sketchDir+"/"+root.String())
	if err == nil {
		if sketch, err := delta.DecodeSketch(b, m.Size()); err == nil {
			return sketch, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrDamaged) {
		return nil, fmt.Errorf("read sketch: %w", err)
	}
	sketch, chunk := delta.NewSketch(m.Size()), make([]byte, manifest.ChunkSize)
	for i, id := range m.Content() {
		if err := s.ReadChunk(ctx, id, chunk); err != nil {
			return nil, err
		}
		sketch.Set(i, delta.DigestsOf(chunk))
	}
	return sketch, s.putCompressed(ctx, sketchDir+"/"+root.String(), sketch.Encode())
}

// putCompressed writes a manifest or a sketch.
func (s *Store) putCompressed(ctx context.Context, name string, content []byte) error {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return fmt.Errorf("open encoder: %w", err)
	}
	defer z.Close()
	return s.depot.Put(ctx, name, bytes.NewReader(z.EncodeAll(content, nil)))
}

func (s *Store) getCompressed(ctx context.Context, name string) ([]byte, error) {
	b, err := s.depot.Get(ctx, name, fileLimit)
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(fileLimit))
	if err != nil {
		return nil, fmt.Errorf("open decoder: %w", err)
	}
	defer z.Close()
	if b, err = z.DecodeAll(b, nil); err != nil {
		return nil, fmt.Errorf("%s: %w (%w)", name, ErrDamaged, err)
	}
	return b, nil
}

// roots are the manifests that versions need, each with one of these.
func (s *Store) roots(ctx context.Context) (map[manifest.ID]manifest.Version, error) {
	all, err := s.Versions(ctx, "")
	if err != nil {
		return nil, err
	}
	roots := map[manifest.ID]manifest.Version{}
	for _, v := range all {
		roots[v.Root] = v
	}
	return roots, nil
}

func encodeJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // it is one of this package's own
	}
	return append(b, '\n')
}
