package images

import (
	"bytes"
	"math"
	"net/http"
	"testing"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/hostagent/agentapi"
	"heliotrope/imagesync/manifest"
)

// A dry run says what each host lacks, by what it has of this version and of others, and what the
// link from the store takes for it and costs.
func TestForesee(t *testing.T) {
	r := newRig(t)
	const chunks = 32
	content := random(7, chunks*manifest.ChunkSize)
	r.send(api.UploadRequest{Image: "web"}, content)
	content = bytes.Clone(content)
	content[0]++
	content[5*manifest.ChunkSize]++
	r.send(api.UploadRequest{Image: "web"}, content)
	r.send(api.UploadRequest{Image: "other"}, random(8, chunks*manifest.ChunkSize))
	far := heliotrope.Link{Rate: 8_000_000, PricePerGB: 50}
	cache := func(image string, here int64) agentapi.ImageCache {
		return agentapi.ImageCache{Image: image, Bytes: chunks * manifest.ChunkSize, Here: here * manifest.ChunkSize}
	}
	for _, h := range []Host{
		{ID: "a-1", Site: "a", Link: far, Images: &agentapi.ImageStatus{}},
		{ID: "a-2", Site: "a", Link: far, Images: &agentapi.ImageStatus{Caches: []agentapi.ImageCache{cache("web@1", chunks), cache("other@1", chunks), cache("gone@4", chunks)}}},
		{ID: "a-3", Site: "a", Link: far, Images: &agentapi.ImageStatus{Caches: []agentapi.ImageCache{cache("web@1", chunks/2)}}},
		{ID: "a-4", Site: "a", Link: far, Images: &agentapi.ImageStatus{Caches: []agentapi.ImageCache{cache("web@2", chunks)}}},
		{ID: "a-5", Site: "a", Link: far},
		{ID: "b-1", Site: "b", Images: &agentapi.ImageStatus{Caches: []agentapi.ImageCache{cache("web@2", chunks/4), cache("empty@1", 0)}}},
	} {
		h.Agent = &agent{}
		r.hosts = append(r.hosts, h)
	}
	r.hosts = append(r.hosts, Host{ID: "b-2", Site: "b", Images: &agentapi.ImageStatus{}}) // away
	r.term = 1
	places, err := r.api.PushImage(t.Context(), "web", api.PushRequest{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	missing := map[heliotrope.HostID]int64{"a-1": chunks, "a-2": 2, "a-3": chunks - (chunks-2)/2, "b-1": chunks * 3 / 4}
	var site float64
	for _, p := range places {
		if p.Site == "a" {
			site += float64(p.WireBytes)
		}
	}
	for _, p := range places {
		if want := missing[p.Host] * manifest.ChunkSize; p.MissingBytes != want || p.WireBytes < want || p.WireBytes > want+want/100 { // noise does not compress
			t.Errorf("%s lacks %d bytes, %d of them cross; want %d", p.Host, p.MissingBytes, p.WireBytes, want)
		}
		seconds, usd := site/1e6, float64(p.WireBytes)/1e9*50
		if p.Site == "b" || p.MissingBytes == 0 {
			seconds, usd = 0, 0
		}
		if math.Abs(p.ETAS-seconds) > 1e-6 || math.Abs(p.CostUSD-usd) > 1e-9 {
			t.Errorf("%s: %v s, %v USD; want %v and %v", p.Host, p.ETAS, p.CostUSD, seconds, usd)
		}
	}
	for _, h := range r.hosts {
		if a, ok := h.Agent.(*agent); ok && len(a.orders) > 0 {
			t.Errorf("%s was ordered %+v", h.ID, a.orders)
		}
	}
	l, err := r.images.Lacks(t.Context(), Host{ID: "c-1"}, "web@1")
	if err != nil || l.Content != chunks*manifest.ChunkSize {
		t.Errorf("a host without a store lacks %+v, %v", l, err)
	}
	if _, err := r.images.Lacks(t.Context(), Host{}, "nix"); status(err) != http.StatusNotFound {
		t.Errorf("got %v, want 404", err)
	}
}
