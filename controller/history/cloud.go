package history

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	neturl "net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"

	"heliotrope/internal/bucket"
)

const (
	openWithin = 10 * time.Second // a controller that starts does not wait longer for its bucket
	openedName = "bucket"         // in the journal's directory: the URL that was open before
)

// open opens the bucket at url, and makes sure that it has us where it was never open before.
func open(ctx context.Context, url string, o *Options) (bucket.Bucket, error) {
	u, err := bucket.Parse(url)
	if err != nil {
		return bucket.Bucket{}, err
	}
	if u == nil {
		dir := url
		if rest, ok := strings.CutPrefix(url, "file://"); ok {
			if dir, err = neturl.PathUnescape(rest); err != nil {
				return bucket.Bucket{}, err
			}
		}
		o.Journal = cmp.Or(o.Journal, filepath.Join(dir, "journal"))
		b, err := fileblob.OpenBucket(dir, &fileblob.Options{CreateDir: true, NoTempDir: true, Metadata: fileblob.MetadataDontWrite})
		return bucket.Of(b), err
	}
	if o.Journal == "" {
		return bucket.Bucket{}, errors.New("a bucket needs a directory for its journal")
	}
	b, err := bucket.Open(ctx, u)
	if err != nil {
		return bucket.Bucket{}, err
	}
	if err := meet(ctx, b, url, o); err != nil {
		return bucket.Bucket{}, errors.Join(err, b.Close())
	}
	return b, nil
}

// meet asks the bucket for its files, and whether it takes and deletes one. One that was
// open before may be away: a controller starts without it, and what it counts waits.
func meet(ctx context.Context, b bucket.Bucket, url string, o *Options) error {
	known, _ := os.ReadFile(filepath.Join(o.Journal, openedName))
	before := string(known) == url
	ctx, cancel := context.WithTimeout(ctx, openWithin)
	defer cancel()
	_, _, err := b.ListPage(ctx, blob.FirstPageToken, 1, nil)
	if err = b.Explain(err); err == nil && !before {
		err = b.Try(ctx, "heliotrope-check-"+o.Controller)
	}
	if err != nil && before {
		o.Log.Error("open traffic history: what is counted waits for it", "error", err)
		return nil
	}
	if err != nil || before {
		return err
	}
	if err := os.MkdirAll(o.Journal, 0o750); err != nil {
		return fmt.Errorf("make journal: %w", err)
	}
	if err := os.WriteFile(filepath.Join(o.Journal, openedName), []byte(url), 0o640); err != nil {
		return fmt.Errorf("note bucket: %w", err)
	}
	return nil
}
