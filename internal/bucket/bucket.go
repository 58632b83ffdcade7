// Package bucket opens the buckets of clouds by their URLs, and says what is wrong with one in
// words that mend it. S3 and what speaks it, Azure's, and by a build tag Google's.
package bucket

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	neturl "net/url"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/azureblob"
	_ "gocloud.dev/blob/s3blob"
	"gocloud.dev/gcerrors"
	"google.golang.org/api/googleapi"
)

// In the controller S3's driver is 9 MB, Azure's 3 MB, and Google's, with a gRPC client for each
// of its APIs, 20 MB: that one is linked by the build tag gcs (gcs.go).

const answerWithin = time.Minute // a page of names, or a file, up or down

// store is a kind of bucket, as its user has to know it.
type store struct{ service, bucket, credentials string }

var stores = map[string]store{
	"s3":     {"Amazon S3", "bucket", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"},
	"gs":     {"Google Cloud Storage", "bucket", "GOOGLE_APPLICATION_CREDENTIALS, the path of a key's file"},
	"azblob": {"Azure Blob Storage", "container", "AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY, or AZURE_STORAGE_CONNECTION_STRING"},
}

// Bucket is a bucket and what its user knows of it.
type Bucket struct {
	*blob.Bucket
	store
	name, at string
}

// Open opens the bucket at a URL that Parse has read.
func Open(ctx context.Context, u *neturl.URL) (Bucket, error) {
	b := Bucket{store: stores[u.Scheme], name: u.Host}
	b.at = cmp.Or(u.Query().Get("endpoint"), u.Query().Get("domain"), b.service)
	// Google's client fetches tokens by this context as long as it lives.
	opened, err := blob.OpenBucket(context.WithoutCancel(ctx), u.String())
	if err != nil {
		return Bucket{}, b.Explain(err)
	}
	b.Bucket = opened
	return b, nil
}

// Of is a bucket of which there is nothing to explain: a directory, or one in memory.
func Of(b *blob.Bucket) Bucket { return Bucket{Bucket: b} }

// Parse checks a bucket's URL; nil where it is a directory.
func Parse(url string) (*neturl.URL, error) {
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

// Try writes a file and deletes it: a key that may only read is told at once.
func (b Bucket) Try(ctx context.Context, key string) error {
	if err := b.Put(ctx, key, nil); err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	if err := b.Remove(ctx, key); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// Explain says what is wrong with a bucket and how it is mended.
func (b Bucket) Explain(err error) error {
	if err == nil || b.service == "" || errors.Is(err, context.Canceled) {
		return err
	}
	status, cause := answer(err)
	missing := gcerrors.Code(err) == gcerrors.NotFound && status != http.StatusForbidden // which Google's driver takes for it
	switch {
	case says(err, "get credentials:", "defaultazurecredential", "accountname is required", "default credentials"):
		return fmt.Errorf("no credentials for %s: set %s: %w", b.service, b.credentials, cause)
	case missing:
		return fmt.Errorf("no %s %q at %s: make it, or mend its name: %w", b.bucket, b.name, b.at, cause)
	case status >= 400 && status < 500:
		return fmt.Errorf("%s %q at %s refuses: %w; look at the URL, and at the credentials in %s", b.bucket, b.name, b.at, cause, b.credentials)
	case status > 0:
		return fmt.Errorf("%s %q at %s fails: %w", b.bucket, b.name, b.at, cause)
	case errors.As(err, new(*neturl.Error)) && !errors.Is(cause, context.DeadlineExceeded):
		return fmt.Errorf("cannot reach %s %q: %w; see that %s is right and up", b.bucket, b.name, cause, b.at)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s %q did not answer in time: %w; see that %s is right and up", b.bucket, b.name, cause, b.at)
	case says(err, "invalid region"):
		return fmt.Errorf("which region %s %q is in is not said: add ?region=NAME to the URL: %w", b.bucket, b.name, cause)
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

// Put writes a file.
func (b Bucket) Put(ctx context.Context, key string, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	return b.Explain(b.WriteAll(ctx, key, data, nil))
}

// Get reads a file; it is fs.ErrNotExist where it was deleted since it was listed.
func (b Bucket) Get(ctx context.Context, key string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	data, err := b.ReadAll(ctx, key)
	if gcerrors.Code(err) == gcerrors.NotFound {
		return nil, fs.ErrNotExist
	}
	return data, b.Explain(err)
}

// Remove deletes a file; another controller may have done so before.
func (b Bucket) Remove(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	err := b.Delete(ctx, key)
	if gcerrors.Code(err) == gcerrors.NotFound {
		return nil
	}
	return b.Explain(err)
}

// Next is what comes next in a list, io.EOF at its end.
func (b Bucket) Next(ctx context.Context, list *blob.ListIterator) (*blob.ListObject, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	o, err := list.Next(ctx)
	return o, b.Explain(err)
}
