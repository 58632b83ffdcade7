package history

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	neturl "net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/azureblob"
	"gocloud.dev/blob/fileblob"
	_ "gocloud.dev/blob/s3blob"
	"gocloud.dev/gcerrors"
	"google.golang.org/api/googleapi"
)

// The buckets that Open knows besides directories. In the controller S3's driver is 9 MB,
// Azure's 3 MB, and Google's, with a gRPC client for each of its APIs, 20 MB: that one is
// linked by the build tag gcs (gcs.go).

const (
	openWithin   = 10 * time.Second // a controller that starts does not wait longer for its bucket
	answerWithin = time.Minute      // a page of names, or a file, up or down
	openedName   = "bucket"         // in the journal's directory: the URL that was open before
)

// store is a kind of bucket, as its user has to know it.
type store struct{ service, bucket, credentials string }

var stores = map[string]store{
	"s3":     {"Amazon S3", "bucket", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"},
	"gs":     {"Google Cloud Storage", "bucket", "GOOGLE_APPLICATION_CREDENTIALS, the path of a key's file"},
	"azblob": {"Azure Blob Storage", "container", "AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY, or AZURE_STORAGE_CONNECTION_STRING"},
}

// place is a bucket and what its user knows of it. That of a directory has no store.
type place struct {
	*blob.Bucket
	store
	name, at string
}

// open opens the bucket at url, and makes sure that it has us where it was never open before.
func open(ctx context.Context, url string, o *Options) (place, error) {
	u, err := parse(url)
	if err != nil {
		return place{}, err
	}
	if u == nil {
		dir := url
		if rest, ok := strings.CutPrefix(url, "file://"); ok {
			if dir, err = neturl.PathUnescape(rest); err != nil {
				return place{}, err
			}
		}
		o.Journal = cmp.Or(o.Journal, filepath.Join(dir, "journal"))
		b, err := fileblob.OpenBucket(dir, &fileblob.Options{CreateDir: true, NoTempDir: true, Metadata: fileblob.MetadataDontWrite})
		return place{Bucket: b}, err
	}
	if o.Journal == "" {
		return place{}, errors.New("a bucket needs a directory for its journal")
	}
	p := place{store: stores[u.Scheme], name: u.Host}
	p.at = cmp.Or(u.Query().Get("endpoint"), u.Query().Get("domain"), p.service)
	// Google's client fetches tokens by this context as long as it lives.
	if p.Bucket, err = blob.OpenBucket(context.WithoutCancel(ctx), u.String()); err != nil {
		return place{}, p.explain(err)
	}
	if err := p.meet(ctx, url, o); err != nil {
		return place{}, errors.Join(err, p.Close())
	}
	return p, nil
}

// parse checks a bucket's URL; nil where it is a directory.
func parse(url string) (*neturl.URL, error) {
	known := blob.DefaultURLMux()
	scheme, rest, ok := strings.Cut(url, "://")
	if short, name, colon := strings.Cut(url, ":"); !ok && colon && known.ValidBucketScheme(short) {
		return nil, fmt.Errorf("%s is no bucket's URL and hardly a directory: write %s://%s", url, short, strings.TrimLeft(name, "/"))
	}
	if !ok || scheme == "file" && !strings.Contains(rest, "?") {
		return nil, nil
	}
	u, err := neturl.Parse(url)
	if err != nil {
		return nil, err
	}
	if !known.ValidBucketScheme(u.Scheme) {
		if u.Scheme == "gs" {
			return nil, errors.New("gs:// is not in this program: build it with -tags gcs")
		}
		all := slices.Sorted(slices.Values(known.BucketSchemes()))
		return nil, fmt.Errorf("nothing is known of %s://: write a directory, or %s://NAME", u.Scheme, strings.Join(all, "://NAME, "))
	}
	q := u.Query()
	if e := q.Get("endpoint"); u.Scheme == "s3" && e != "" {
		if !strings.Contains(e, "://") {
			return nil, fmt.Errorf("endpoint=%s does not say how: write http://%[1]s or https://%[1]s", e)
		}
		// Few stores but Amazon's have a host's name for each bucket.
		if !q.Has("use_path_style") && !q.Has("s3ForcePathStyle") {
			q.Set("use_path_style", "true")
			u.RawQuery = q.Encode()
		}
	}
	return u, nil
}

// meet asks the bucket for its files, and whether it takes and deletes one. One that was
// open before may be away: a controller starts without it, and what it counts waits.
func (p place) meet(ctx context.Context, url string, o *Options) error {
	known, _ := os.ReadFile(filepath.Join(o.Journal, openedName))
	before := string(known) == url
	ctx, cancel := context.WithTimeout(ctx, openWithin)
	defer cancel()
	_, _, err := p.ListPage(ctx, blob.FirstPageToken, 1, nil)
	if err = p.explain(err); err == nil && !before {
		err = p.try(ctx, "heliotrope-check-"+o.Controller)
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

// try writes a file and deletes it: a key that may only read is told at once.
func (p place) try(ctx context.Context, key string) error {
	if err := p.put(ctx, key, nil); err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	if err := p.remove(ctx, key); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// explain says what is wrong with a bucket and how it is mended.
func (p place) explain(err error) error {
	if err == nil || p.service == "" || errors.Is(err, context.Canceled) {
		return err
	}
	status, cause := answer(err)
	missing := gcerrors.Code(err) == gcerrors.NotFound && status != http.StatusForbidden // which Google's driver takes for it
	switch {
	case says(err, "get credentials:", "defaultazurecredential", "accountname is required", "default credentials"):
		return fmt.Errorf("no credentials for %s: set %s: %w", p.service, p.credentials, cause)
	case missing:
		return fmt.Errorf("no %s %q at %s: make it, or mend its name: %w", p.bucket, p.name, p.at, cause)
	case status >= 400 && status < 500:
		return fmt.Errorf("%s %q at %s refuses: %w; look at the URL, and at the credentials in %s", p.bucket, p.name, p.at, cause, p.credentials)
	case status > 0:
		return fmt.Errorf("%s %q at %s fails: %w", p.bucket, p.name, p.at, cause)
	case errors.As(err, new(*neturl.Error)) && !errors.Is(cause, context.DeadlineExceeded):
		return fmt.Errorf("cannot reach %s %q: %w; see that %s is right and up", p.bucket, p.name, cause, p.at)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s %q did not answer in time: %w; see that %s is right and up", p.bucket, p.name, cause, p.at)
	case says(err, "invalid region"):
		return fmt.Errorf("which region %s %q is in is not said: add ?region=NAME to the URL: %w", p.bucket, p.name, cause)
	}
	return err
}

// says is for errors that have no type.
func says(err error, words ...string) bool {
	text := strings.ToLower(err.Error())
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
}

// answer is what a server answered, or what kept it from doing so, without what the drivers
// wrap around it. The status is 0 where it did not answer.
func answer(err error) (status int, cause error) {
	var aws interface {
		error
		HTTPStatusCode() int
	}
	var api interface {
		error
		ErrorCode() string
	}
	var azure *azcore.ResponseError
	var google *googleapi.Error
	var sent *neturl.Error
	switch {
	case errors.As(err, &azure):
		return azure.StatusCode, fmt.Errorf("%d %s", azure.StatusCode, cmp.Or(azure.ErrorCode, http.StatusText(azure.StatusCode)))
	case errors.As(err, &api) && errors.As(err, &aws):
		return aws.HTTPStatusCode(), api
	case errors.As(err, &google):
		return google.Code, google
	case errors.As(err, &sent):
		return 0, sent.Err
	}
	return 0, err
}

// put writes a file.
func (p place) put(ctx context.Context, key string, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	return p.explain(p.WriteAll(ctx, key, data, nil))
}

// get reads a file; it is fs.ErrNotExist where it was deleted since it was listed.
func (p place) get(ctx context.Context, key string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	data, err := p.ReadAll(ctx, key)
	if gcerrors.Code(err) == gcerrors.NotFound {
		return nil, fs.ErrNotExist
	}
	return data, p.explain(err)
}

// remove deletes a file; another controller may have done so before.
func (p place) remove(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	err := p.Delete(ctx, key)
	if gcerrors.Code(err) == gcerrors.NotFound {
		return nil
	}
	return p.explain(err)
}

// next is what comes next in a list, io.EOF at its end.
func (p place) next(ctx context.Context, list *blob.ListIterator) (*blob.ListObject, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	o, err := list.Next(ctx)
	return o, p.explain(err)
}
