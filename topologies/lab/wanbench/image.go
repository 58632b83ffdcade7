package wanbench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"heliotrope/imagesync"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/site"
)

// overImage is ours where both sites have the image of the guest's disk, and nothing of other moves.
func (y *yard) overImage(ctx context.Context, f *field, ms []*machine, l link) ([]*machine, moved, error) {
	if err := f.haveImage(ctx); err != nil {
		return nil, moved{}, fmt.Errorf("bring the image to the sites: %w", err)
	}
	md := ours
	md.name, md.images, md.image = oursImage, &f.images, f.image.String()
	return y.migrate(ctx, f, ms, md, l)
}

// haveImage brings the guests' disk to both sites as a version of a store, as agents do.
func (f *field) haveImage(ctx context.Context) error {
	if !f.image.IsZero() {
		return nil
	}
	d, err := depot.OpenDir(filepath.Join(f.dir, "image-store"))
	if err != nil {
		return err
	}
	store, err := imagesync.Open(ctx, "image-store", d, imagesync.Options{Keys: keyring.Dir(filepath.Join(f.dir, "image-keys"))})
	if err != nil {
		return err
	}
	raw, err := imagesync.OpenRaw(f.root)
	if err != nil {
		return errors.Join(err, store.Close())
	}
	v, _, err := store.Import(ctx, "debian", raw, imagesync.ImportOptions{})
	source := &site.Source{Dial: func(context.Context) (*imagesync.Store, error) { return store, nil }}
	for i := range sites {
		if err == nil {
			f.images[i], err = f.bring(ctx, source, v, sites[i])
		}
	}
	if err = errors.Join(err, raw.Close(), store.Close()); err == nil {
		f.image = v.Root
	}
	return err
}

// bring lets a version come to a site, and returns where its caches are.
func (f *field) bring(ctx context.Context, source *site.Source, v manifest.Version, name string) (caches string, err error) {
	dir := filepath.Join(f.dir, "images-"+name)
	base, err := source.Base(ctx, dir, v)
	if err != nil {
		return "", err
	}
	s, err := site.Open(dir, v, base, site.Options{})
	if err != nil {
		return "", err
	}
	s.Fill(ctx)
	return site.Caches(dir), errors.Join(s.Close(), context.Cause(ctx))
}
