package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"heliotrope/imagesync"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/topologies/lab/guest"
)

// Where nodes see the lab's image store, and its controller the key that signs for it.
const (
	storePath = "/var/lib/heliotrope/image-store"
	keysPath  = "/var/lib/heliotrope/image-keys"
)

// buildImages makes the lab's own guest where no other images were given, and the lab's image
// store with that guest's disk.
func (c *config) buildImages(ctx context.Context) error {
	if c.Images != nil || c.WithoutControl || c.Light {
		return nil
	}
	dir := c.layout().file("images/guest")
	c.Images = map[string]string{"guest": dir}
	if err := guest.Build(ctx, dir); err != nil || !c.ImageStore {
		return err
	}
	return c.buildStore(ctx, dir)
}

// buildStore makes the image store, and version 1 of image guest. The guest's directory keeps the
// kernel, and says that the disk is the store's.
func (c *config) buildStore(ctx context.Context, dir string) (err error) {
	disk := filepath.Join(dir, "disk.img")
	if err := errors.Join(guest.WriteDisk(disk), os.WriteFile(filepath.Join(dir, "disk.store"), nil, 0o644)); err != nil {
		return err
	}
	store, err := openStore(ctx, c.layout(), false)
	if err != nil {
		return fmt.Errorf("make image store: %w", err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	raw, err := imagesync.OpenRaw(disk)
	if err != nil {
		return fmt.Errorf("read guest's disk: %w", err)
	}
	_, _, err = store.Import(ctx, "guest", raw, imagesync.ImportOptions{From: "the lab's guest"})
	return errors.Join(err, raw.Close(), os.Remove(disk))
}

// ImageStore opens the image store of a lab that has one. The caller closes it.
func ImageStore(ctx context.Context, t Target) (*imagesync.Store, error) {
	l, err := t.layout()
	if err != nil {
		return nil, err
	}
	return openStore(ctx, l, true)
}

// openStore opens the store, which is made if it need not be there.
func openStore(ctx context.Context, l layout, there bool) (*imagesync.Store, error) {
	where := l.imageStore()
	d, err := depot.OpenDir(where)
	if err != nil {
		return nil, err
	}
	store, err := imagesync.Open(ctx, where, d, imagesync.Options{Keys: keyring.Dir(l.imageKeys()), There: there})
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return store, nil
}

// stores lets a node see the image store, and its keys if it writes images.
func (c config) stores(n *plan, writes bool) {
	if !c.ImageStore {
		return
	}
	n.Trees[storePath] = c.layout().imageStore()
	if writes {
		n.Trees[keysPath] = c.layout().imageKeys()
	}
}

// imageStoreFlag is what agents and the controller are told of the store.
func (c config) imageStoreFlag() []string {
	if !c.ImageStore {
		return nil
	}
	return []string{"--image-store", storePath}
}
