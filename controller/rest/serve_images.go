package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"heliotrope"
	"heliotrope/controller/api"
)

type (
	imageQuery struct {
		Image string `query:"image" maxLength:"63" doc:"Only versions of this image."`
	}
	policyQuery struct {
		Image    string   `query:"image" maxLength:"63" doc:"Only of this image."`
		Policy   string   `query:"policy" enum:"everywhere,follow,on-demand," doc:"What if the image had this policy?"`
		Priority string   `query:"priority" enum:"low,normal,high," doc:"With policy: and this priority?"`
		Site     []string `query:"site,explode" doc:"With policy: at this site only. May stand there several times."`
	}
	imageRef struct {
		Ref string `path:"ref" doc:"IMAGE is its newest version, IMAGE@2 the second."`
	}
	pushImage struct {
		Ref  string `path:"ref" doc:"IMAGE is its newest version, IMAGE@2 the second."`
		Body api.PushRequest
	}
	uploadRef struct {
		ID string `path:"id"`
	}
	createUpload struct {
		Key  string `header:"Idempotency-Key" doc:"Same key and request: same answer, one upload; for a day."`
		Body api.UploadRequest
	}
	uploadPart struct {
		ID      string `path:"id"`
		Offset  int64  `header:"Upload-Offset" required:"true" minimum:"0" doc:"Where in the file the part begins: the upload's offset."`
		RawBody []byte `contentType:"application/offset+octet-stream"`
	}
	uploadBegun struct {
		Location string `header:"Location" doc:"Where its parts go."`
		Body     api.Upload
	}
)

func (h *handler) registerImages(routes huma.API) {
	handle(h, routes, operation("GET", "/v1/images", "list-images", "Versions of VM images in the controller's store", 422), func(ctx context.Context, in *imageQuery) (*body[api.List[api.Image]], error) {
		if err := h.stored(); err != nil {
			return nil, err
		}
		all, err := h.Images.Images(ctx, in.Image)
		return listOf(all), err
	})
	for _, one := range []struct {
		method, path, id, summary string
		do                        func(context.Context, string) (api.Image, error)
	}{
		{"GET", "/v1/images/{ref}", "get-image", "One version", func(ctx context.Context, ref string) (api.Image, error) { return h.Images.Image(ctx, ref) }},
		{"DELETE", "/v1/images/{ref}", "remove-image", "Remove a version; 409 while it is pinned or a disk stands on it", func(ctx context.Context, ref string) (api.Image, error) { return h.Images.RemoveImage(ctx, ref) }},
		{"POST", "/v1/images/{ref}/pin", "pin-image", "Keep a version from being removed", func(ctx context.Context, ref string) (api.Image, error) { return h.Images.PinImage(ctx, ref, true) }},
		{"POST", "/v1/images/{ref}/unpin", "unpin-image", "Let a pinned version be removed", func(ctx context.Context, ref string) (api.Image, error) { return h.Images.PinImage(ctx, ref, false) }},
	} {
		op := operation(one.method, one.path, one.id, one.summary, 404, 409)
		handle(h, routes, op, func(ctx context.Context, in *imageRef) (*body[api.Image], error) {
			if err := h.stored(); err != nil {
				return nil, err
			}
			i, err := one.do(ctx, in.Ref)
			return &body[api.Image]{i}, err
		})
	}
	push := operation("POST", "/v1/images/{ref}/push", "push-image", "Let a version come to the hosts of some sites, before a VM there needs it", 400, 404, 415, 422)
	push.DefaultStatus = http.StatusAccepted
	handle(h, routes, push, func(ctx context.Context, in *pushImage) (*body[api.List[api.ImagePlace]], error) {
		if err := h.stored(); err != nil {
			return nil, err
		}
		all, err := h.Images.PushImage(ctx, in.Ref, in.Body)
		return listOf(all), err
	})
	handle(h, routes, operation("GET", "/v1/images/{ref}/places", "image-places", "How much of a version each host has", 404), func(ctx context.Context, in *imageRef) (*body[api.List[api.ImagePlace]], error) {
		if err := h.stored(); err != nil {
			return nil, err
		}
		all, err := h.Images.ImagePlaces(ctx, in.Ref)
		return listOf(all), err
	})
	handle(h, routes, operation("GET", "/v1/image-policies", "image-policies", "Policies of images, and what they would have come: where, when, how many bytes, for how much", 404, 422),
		func(ctx context.Context, in *policyQuery) (*body[api.List[api.ImagePolicy]], error) {
			if err := h.stored(); err != nil {
				return nil, err
			}
			q := api.ImagePolicyQuery{Image: heliotrope.ImageID(in.Image), Policy: in.Policy, Priority: in.Priority}
			for _, s := range in.Site {
				q.Sites = append(q.Sites, heliotrope.SiteID(s))
			}
			all, err := h.Images.ImagePolicies(ctx, q)
			return listOf(all), err
		})
	for _, one := range []struct {
		method, id, summary string
		status              int
		do                  func(context.Context) (api.ImageScrub, error)
	}{
		{"GET", "image-scrub", "How far the image store's scrub is, which reads all of it for bits that have turned, and what is damaged", http.StatusOK, func(ctx context.Context) (api.ImageScrub, error) { return h.Images.ImageScrub(ctx) }},
		{"POST", "scrub-images", "Read all of the image store now", http.StatusAccepted, func(ctx context.Context) (api.ImageScrub, error) { return h.Images.ScrubImages(ctx) }},
	} {
		op := operation(one.method, "/v1/image-scrub", one.id, one.summary)
		op.DefaultStatus = one.status
		handle(h, routes, op, func(ctx context.Context, _ *struct{}) (*body[api.ImageScrub], error) {
			if err := h.stored(); err != nil {
				return nil, err
			}
			s, err := one.do(ctx)
			return &body[api.ImageScrub]{s}, err
		})
	}
	h.registerUploads(routes)
}

func (h *handler) registerUploads(routes huma.API) {
	handle(h, routes, operation("GET", "/v1/uploads", "list-uploads", "Files that are being sent, or were lately, the newest first"), func(ctx context.Context, _ *struct{}) (*body[api.List[api.Upload]], error) {
		if err := h.stored(); err != nil {
			return nil, err
		}
		all, err := h.Images.Uploads(ctx)
		return listOf(all), err
	})
	create := operation("POST", "/v1/uploads", "create-upload", "Begin to send a file that is to become a version of an image", 400, 409, 415, 422, 507)
	create.DefaultStatus = http.StatusCreated
	handle(h, routes, create, func(ctx context.Context, in *createUpload) (*uploadBegun, error) {
		if err := h.stored(); err != nil {
			return nil, err
		}
		u, err := h.Images.CreateUpload(ctx, "u-"+nameOf(ctx, "upload", in.Key), in.Body)
		return &uploadBegun{"/v1/uploads/" + u.ID, u}, err
	})
	handle(h, routes, operation("GET", "/v1/uploads/{id}", "get-upload", "How much of a file has come, and what became of it", 404), func(ctx context.Context, in *uploadRef) (*body[api.Upload], error) {
		if err := h.stored(); err != nil {
			return nil, err
		}
		u, err := h.Images.Upload(ctx, in.ID)
		return &body[api.Upload]{u}, err
	})
	part := operation("PATCH", "/v1/uploads/{id}", "append-upload", "Send the next part of a file, at most 8 MiB; 409 where it does not begin at the upload's offset", 400, 404, 409, 413, 415, 422, 507)
	part.MaxBodyBytes = 2 * api.MaxPart // bounded refuses sooner
	handle(h, routes, part, func(ctx context.Context, in *uploadPart) (*body[api.Upload], error) {
		if err := h.stored(); err != nil {
			return nil, err
		}
		u, err := h.Images.AppendUpload(ctx, in.ID, in.Offset, in.RawBody)
		return &body[api.Upload]{u}, err
	})
	drop := operation("DELETE", "/v1/uploads/{id}", "drop-upload", "Forget an upload; 409 while it is imported", 404, 409)
	drop.DefaultStatus = http.StatusNoContent
	handle(h, routes, drop, func(ctx context.Context, in *uploadRef) (*struct{}, error) {
		if err := h.stored(); err != nil {
			return nil, err
		}
		return nil, h.Images.DropUpload(ctx, in.ID)
	})
}

// stored says that there is no image store, where there is none.
func (h *handler) stored() error {
	if h.Images == nil {
		p := api.Unavailable("the controller has no image store")
		p.Hint = "start it with --image-store DIRECTORY, or a bucket's URL"
		return p
	}
	return nil
}
