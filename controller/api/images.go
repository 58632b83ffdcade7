package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"heliotrope"
)

// Image is a version of an image in the controller's store.
type Image struct {
	Image        string    `json:"image" example:"debian"`
	Version      int       `json:"version" doc:"1, 2, …; the newest is what the image is."`
	Root         string    `json:"root" doc:"BLAKE3 of its manifest: the same content has the same."`
	SizeBytes    int64     `json:"size_bytes" doc:"That a guest sees."`
	ContentBytes int64     `json:"content_bytes" doc:"Of what is not zeros."`
	CreatedAt    time.Time `json:"created_at"`
	From         string    `json:"from,omitempty" doc:"What it was made of."`
	Pinned       bool      `json:"pinned" doc:"It cannot be removed."`
	NeededBy     []string  `json:"needed_by,omitempty" doc:"Disks that stand on it, as VM on host: it cannot be removed either."`
}

// Ref is how people write it: IMAGE@VERSION.
func (i Image) Ref() string { return fmt.Sprintf("%s@%d", i.Image, i.Version) }

// UploadRequest says what is to be sent.
type UploadRequest struct {
	Image     string `json:"image" minLength:"1" maxLength:"63" doc:"The image of which it becomes the next version." example:"debian"`
	SizeBytes int64  `json:"size_bytes" minimum:"1" doc:"Of the file."`
	SHA256    string `json:"sha256,omitempty" pattern:"^([0-9a-f]{64})?$" doc:"Of the file, in hexadecimal: a file that has another is refused."`
	Format    string `json:"format,omitempty" enum:"raw,qcow2," doc:"Default: what the file begins like."`
	From      string `json:"from,omitempty" maxLength:"200" doc:"What it is, for people; default: who sent it." example:"debian-12-genericcloud-amd64.qcow2"`
}

// States of an upload. Done and failed are the last.
const (
	UploadReceiving = "receiving"
	UploadImporting = "importing"
	UploadDone      = "done"
	UploadFailed    = "failed"
)

// Upload is a file that is sent to the controller in parts, and becomes a version of an
// image once it is whole.
type Upload struct {
	ID          string    `json:"id"`
	Image       string    `json:"image"`
	SizeBytes   int64     `json:"size_bytes"`
	OffsetBytes int64     `json:"offset_bytes" doc:"How much has come, for good: the next part begins there."`
	State       string    `json:"state" doc:"receiving, importing, done or failed."`
	Progress    float64   `json:"progress" doc:"Of the import, 0 to 1."`
	Note        string    `json:"note,omitempty" doc:"Why it failed."`
	Made        *Image    `json:"made,omitempty" doc:"The version, once it is done."`
	NewBytes    int64     `json:"new_bytes,omitempty" doc:"Of its content, what the store did not have."`
	ExpiresAt   time.Time `json:"expires_at" doc:"When it is forgotten if nothing more comes."`
}

// MaxPart is the most bytes that one part of an upload has.
const MaxPart = 8 << 20

// MediaPart is the type of a part, and HeaderOffset says where it begins: names of the tus
// resumable upload protocol 1.0.
const (
	MediaPart    = "application/offset+octet-stream"
	HeaderOffset = "Upload-Offset"
)

// PushRequest says where a version is to be, before a VM there needs it.
type PushRequest struct {
	Sites        []heliotrope.SiteID `json:"sites,omitempty" doc:"Default: all."`
	DryRun       bool                `json:"dry_run,omitempty" doc:"Only say what would come, how long it would take and what it would cost."`
	RateBitsPerS int64               `json:"rate_bits_per_s,omitempty" minimum:"0" doc:"Most that crosses the WAN to each site, of content; default: any."`
	// InWindow keeps the push to times in which a policy's would go.
	Priority string `json:"priority,omitempty" enum:"low,normal,high," doc:"Who goes first over a link that images share (links' images_rate in the topology); default: as the image's policy, else normal."`
	InWindow bool   `json:"in_window,omitempty" doc:"Hosts let it cross a WAN only in the windows of the image's policy; default: at once."`
}

// States of a place.
const (
	PlaceAbsent  = "absent"   // nothing has come
	PlaceComing  = "coming"   // some has
	PlaceWaits   = "waits"    // it is to come, and nothing comes now: note says why
	PlaceHere    = "here"     // all has
	PlaceAway    = "away"     // the host is not connected
	PlaceNoStore = "no-store" // it has no image store
	PlaceFailed  = "failed"   // it did not take the order
	PlaceFull    = "full"     // what it may keep of images (--image-cache) has no room for it
)

// ImagePlace is what a host has of a version.
type ImagePlace struct {
	Host         heliotrope.HostID `json:"host"`
	Site         heliotrope.SiteID `json:"site"`
	State        string            `json:"state" doc:"absent, coming, waits, here, away, no-store, failed or full."`
	HereBytes    int64             `json:"here_bytes" doc:"Of its content, by what the host told lately."`
	ContentBytes int64             `json:"content_bytes"`
	Disks        int               `json:"disks,omitempty" doc:"VMs' disks that stand on it there."`
	Note         string            `json:"note,omitempty"`

	// Of a dry run, for hosts that it would come to.
	MissingBytes int64   `json:"missing_bytes,omitempty" doc:"Dry run: of its content, what the host has neither of it nor, at the same place, of another version."`
	WireBytes    int64   `json:"wire_bytes,omitempty" doc:"Dry run: the same as the store has it, compressed: what crosses from there; 0 where a host of the site passes it on, which note names."`
	ETAS         float64 `json:"eta_s,omitempty" doc:"Dry run: seconds until all hosts of the site have it, if the link from the store's site has nothing to carry but images, and those only that come already; 0 where there is no such link, or none with a rate."`
	CostUSD      float64 `json:"cost_usd,omitempty" doc:"Dry run: what those bytes cost by that link's price."`
}

// ImagePolicyQuery picks images that have a policy, or tries another one.
type ImagePolicyQuery struct {
	Image  heliotrope.ImageID  // only this one
	Policy string              // as if Image had this policy; empty: as the topology says
	Sites  []heliotrope.SiteID // with Policy, at these sites only

	Priority string // with Policy; empty: as the topology says
}

// ImagePolicy is a policy of the topology, and what it would have come where.
type ImagePolicy struct {
	Image    heliotrope.ImageID  `json:"image"`
	Policy   string              `json:"policy" doc:"everywhere, follow or on-demand."`
	Priority string              `json:"priority" doc:"low, normal or high."`
	Sites    []heliotrope.SiteID `json:"sites,omitempty" doc:"Nowhere else."`
	Version  int                 `json:"version,omitempty" doc:"The newest in the store."`
	Note     string              `json:"note,omitempty" doc:"Why nothing comes."`
	Open     bool                `json:"open" doc:"It may cross a WAN now."`
	Until    time.Time           `json:"until,omitzero" doc:"When that is otherwise; absent: never."`
	Comes    []ImageComes        `json:"comes" doc:"By site."`
}

// ImageComes is what a policy has come to a site.
type ImageComes struct {
	Site   heliotrope.SiteID `json:"site"`
	Why    string            `json:"why" doc:"That it is to be there."`
	Hosts  int               `json:"hosts" doc:"That are to have it."`
	Here   int               `json:"here" doc:"Hosts that have all of it."`
	Coming int               `json:"coming" doc:"Hosts that were told to get it."`
	Away   int               `json:"away,omitempty" doc:"Hosts that are not connected, or have no image store."`
	Full   int               `json:"full,omitempty" doc:"Hosts whose --image-cache has no room for it."`
	At     time.Time         `json:"at,omitzero" doc:"When the hosts that lack it, and were not told, are told; absent: there are none, or no window opens."`

	MissingBytes int64   `json:"missing_bytes" doc:"Of its content, what those hosts and those that were told lack."`
	WireBytes    int64   `json:"wire_bytes" doc:"The same as it crosses from the store."`
	ETAS         float64 `json:"eta_s" doc:"Seconds that it takes, if the link from the store's site has nothing to carry but images, and those only that come already; 0 where there is none with a rate."`
	CostUSD      float64 `json:"cost_usd" doc:"By that link's price."`
}

// ImageScrub is a round of reading all of the image store, for what is not what was written.
type ImageScrub struct {
	EveryS    float64       `json:"every_s" doc:"Seconds in which all of the store is read once; 0: only when it is asked for."`
	BeganAt   time.Time     `json:"began_at,omitzero" doc:"This round."`
	Packs     int           `json:"packs" doc:"That were read."`
	ReadBytes int64         `json:"read_bytes"`
	AllBytes  int64         `json:"all_bytes" doc:"Of the store's packs."`
	Whole     bool          `json:"whole" doc:"All was read; the next round begins when its time has come."`
	EndedAt   time.Time     `json:"ended_at,omitzero" doc:"When a round last had read all."`
	Damaged   []ImageDamage `json:"damaged" doc:"By the last round, less what was mended since."`
	Error     string        `json:"error,omitempty" doc:"Why the store cannot be read at the moment."`
}

// ImageDamage is something in the image store that is not what was written.
type ImageDamage struct {
	What     string   `json:"what" doc:"A pack, a manifest, a version or a chunk."`
	Why      string   `json:"why"`
	NeededBy []string `json:"needed_by,omitempty" doc:"Versions of images."`
}

// Images keeps VM images. Where the controller has no store every method fails with Unavailable.
type Images interface {
	// Images are all versions, or those of one image, in order.
	Images(ctx context.Context, image string) ([]Image, error)
	// Image is one: IMAGE is the newest, IMAGE@2 the second.
	Image(ctx context.Context, ref string) (Image, error)
	// RemoveImage removes a version; Conflict while it is pinned, or a disk stands on it.
	RemoveImage(ctx context.Context, ref string) (Image, error)
	// PinImage keeps a version from being removed, or ends that.
	PinImage(ctx context.Context, ref string, pin bool) (Image, error)

	// PushImage lets a version come to the hosts of some sites, and does not wait for it.
	PushImage(ctx context.Context, ref string, r PushRequest) ([]ImagePlace, error)
	// ImagePlaces says how much of a version each host has, by site and host.
	ImagePlaces(ctx context.Context, ref string) ([]ImagePlace, error)

	// ImagePolicies are those of the topology, and what they would have come now or when a window opens.
	ImagePolicies(ctx context.Context, q ImagePolicyQuery) ([]ImagePolicy, error)

	// ImageScrub is how far the store's scrub is, and what it has found.
	ImageScrub(ctx context.Context) (ImageScrub, error)
	// ScrubImages has all of the store read, at once and without a pace.
	ScrubImages(ctx context.Context) (ImageScrub, error)

	// CreateUpload begins an upload under id; if there is one under id already it returns that.
	CreateUpload(ctx context.Context, id string, r UploadRequest) (Upload, error)
	// Uploads are those that are under way, or ended lately, the newest first.
	Uploads(ctx context.Context) ([]Upload, error)
	// Upload is one of them.
	Upload(ctx context.Context, id string) (Upload, error)
	// AppendUpload adds a part, which is on the disk when it returns; Conflict where the part
	// does not begin at the upload's offset. The last part begins the import.
	AppendUpload(ctx context.Context, id string, offset int64, part []byte) (Upload, error)
	// DropUpload forgets an upload and what came of it; Conflict while it is imported.
	DropUpload(ctx context.Context, id string) error
}

// Images are all versions, or (image not empty) those of one image.
func (c *Client) Images(ctx context.Context, image string) ([]Image, error) {
	q := url.Values{}
	if image != "" {
		q.Set("image", image)
	}
	return list[Image](ctx, c, q, "/v1/images")
}

// Image is one version: IMAGE is the newest, IMAGE@2 the second.
func (c *Client) Image(ctx context.Context, ref string) (Image, error) {
	return get[Image](ctx, c, nil, "/v1/images/%s", ref)
}

// RemoveImage removes a version.
func (c *Client) RemoveImage(ctx context.Context, ref string) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: escape("/v1/images/%s", ref)}, nil)
	return err
}

// PinImage keeps a version from being removed, or ends that.
func (c *Client) PinImage(ctx context.Context, ref string, pin bool) (Image, error) {
	verb := "unpin"
	if pin {
		verb = "pin"
	}
	return post[Image](ctx, c, "", struct{}{}, "/v1/images/%s/"+verb, ref)
}

// PushImage lets a version come to the hosts of some sites.
func (c *Client) PushImage(ctx context.Context, ref string, r PushRequest) ([]ImagePlace, error) {
	l, err := post[List[ImagePlace]](ctx, c, "", r, "/v1/images/%s/push", ref)
	return l.Items, err
}

// ImagePlaces says how much of a version each host has.
func (c *Client) ImagePlaces(ctx context.Context, ref string) ([]ImagePlace, error) {
	return list[ImagePlace](ctx, c, nil, "/v1/images/%s/places", ref)
}

// ImagePolicies are those of the topology, and what they would have come.
func (c *Client) ImagePolicies(ctx context.Context, q ImagePolicyQuery) ([]ImagePolicy, error) {
	v := url.Values{}
	for name, value := range map[string]string{"image": string(q.Image), "policy": q.Policy, "priority": q.Priority} {
		if value != "" {
			v.Set(name, value)
		}
	}
	for _, s := range q.Sites {
		v.Add("site", string(s))
	}
	return list[ImagePolicy](ctx, c, v, "/v1/image-policies")
}

// Uploads are those that are under way or ended lately.
func (c *Client) Uploads(ctx context.Context) ([]Upload, error) {
	return list[Upload](ctx, c, nil, "/v1/uploads")
}

// Upload is one upload as it is now.
func (c *Client) Upload(ctx context.Context, id string) (Upload, error) {
	return get[Upload](ctx, c, nil, "/v1/uploads/%s", id)
}

// CreateUpload begins an upload. The same key and request give the same one.
func (c *Client) CreateUpload(ctx context.Context, r UploadRequest, key string) (Upload, error) {
	return post[Upload](ctx, c, key, r, "/v1/uploads")
}

// AppendUpload sends a part.
func (c *Client) AppendUpload(ctx context.Context, id string, offset int64, part []byte) (Upload, error) {
	var u Upload
	_, err := c.do(ctx, call{method: http.MethodPatch, path: escape("/v1/uploads/%s", id), body: part, contentType: MediaPart,
		header: http.Header{HeaderOffset: {strconv.FormatInt(offset, 10)}}}, &u)
	return u, err
}

// DropUpload forgets an upload.
func (c *Client) DropUpload(ctx context.Context, id string) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: escape("/v1/uploads/%s", id)}, nil)
	return err
}

// Send sends what is missing of an upload from file, in parts that take about a second each.
// A part that failed is sent again, from where the controller says that it is, until nothing
// has come through for patience. Progress is told after each part.
func (c *Client) Send(ctx context.Context, u Upload, file io.ReaderAt, patience time.Duration, progress func(Upload)) (Upload, error) {
	part, last := 1<<20, time.Now()
	buf := make([]byte, MaxPart)
	for u.State == UploadReceiving {
		n := int(min(int64(part), u.SizeBytes-u.OffsetBytes))
		if _, err := file.ReadAt(buf[:n], u.OffsetBytes); err != nil {
			return u, fmt.Errorf("read what is sent: %w", err)
		}
		began := time.Now()
		next, err := c.AppendUpload(ctx, u.ID, u.OffsetBytes, buf[:n])
		if err != nil {
			if next, err = c.resume(ctx, u, err, last.Add(patience)); err != nil {
				return u, err
			}
			part = 1 << 20
		} else if took := time.Since(began); took < time.Second/2 {
			part = min(part*2, MaxPart)
		} else if took > 2*time.Second {
			part = max(part/2, 64<<10)
		}
		if next.OffsetBytes != u.OffsetBytes {
			last = time.Now()
		}
		u = next
		progress(u)
	}
	return u, nil
}

// resume asks where an upload is after a part failed, again and again until a time.
func (c *Client) resume(ctx context.Context, u Upload, failed error, until time.Time) (Upload, error) {
	for {
		if p, ok := failed.(*Problem); ok && p.Status < 500 && p.Status != http.StatusConflict && p.Status != http.StatusTooManyRequests {
			return u, failed
		}
		if time.Now().After(until) {
			return u, failed
		}
		select {
		case <-ctx.Done():
			return u, context.Cause(ctx)
		case <-time.After(time.Second):
		}
		next, err := c.Upload(ctx, u.ID)
		if err == nil {
			return next, nil
		}
		failed = err
	}
}

// ImageScrub is how far the scrub of the controller's store is.
func (c *Client) ImageScrub(ctx context.Context) (ImageScrub, error) {
	return get[ImageScrub](ctx, c, nil, "/v1/image-scrub")
}

// ScrubImages has all of the controller's store read at once.
func (c *Client) ScrubImages(ctx context.Context) (ImageScrub, error) {
	return post[ImageScrub](ctx, c, "", struct{}{}, "/v1/image-scrub")
}
