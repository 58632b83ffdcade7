//go:build lab

package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
)

const (
	sharedRate  = 40e6 / 8 // bytes/s: images_rate in testdata/shared.yaml
	sharedBytes = 30e6     // of an image
	sharedSlack = 4 << 20  // what may be under way, and have come since a host was last asked
)

// Two images that are pushed to a site share the link: the higher one has all of it, also when that is changed midway,
// the other one waits and says why, all comes to both hosts, once over the link, and no faster than the link's images_rate.
func TestImagesShareALink(t *testing.T) {
	s := bringStored(t, "shared")
	for k, image := range []string{"one", "two"} {
		content := make([]byte, sharedBytes)
		rand.NewChaCha8([32]byte{byte(k)}).Read(content)
		u, err := s.client.CreateUpload(t.Context(), api.UploadRequest{Image: image, SizeBytes: sharedBytes}, "")
		if err == nil {
			_, err = s.client.Send(t.Context(), u, bytes.NewReader(content), time.Minute, func(api.Upload) {})
		}
		if err != nil {
			t.Fatal(err)
		}
		s.until(time.Minute, func(context.Context) error { return s.everywhere(image, api.PlaceAbsent) }) // each host has told that it has a store
	}
	began := time.Now()
	s.push("one", heliotrope.ImageLow)
	s.push("two", heliotrope.ImageHigh)
	first := s.waits("one", "two@1 goes first over left-right")
	s.comesAlone("two", sharedBytes/20, first) // early: for the change there is all the time that the rest takes

	s.push("one", heliotrope.ImageHigh) // midway
	s.push("two", heliotrope.ImageLow)
	then := s.waits("two", "one@1 goes first over left-right")
	s.comesAlone("one", sharedBytes, then)
	for _, image := range []string{"one", "two"} {
		s.until(time.Minute, func(ctx context.Context) error { return s.everywhere(image, api.PlaceHere) })
	}
	took := time.Since(began).Seconds()
	var sum float64
	s.until(time.Minute, func(context.Context) error { // what is counted comes with hosts' statuses
		fetched := s.metric("heliotrope_image_fetched_bytes_total")
		if sum = fetched["right-1"] + fetched["right-2"]; sum < 2*sharedBytes {
			return fmt.Errorf("%.0f bytes were counted, of %.0f", sum, 2*sharedBytes)
		}
		return nil
	})
	t.Logf("%.1f MB came over the link in %.1f s, %.1f Mbit/s of %.0f", sum/1e6, took, sum*8/1e6/took, sharedRate*8/1e6)
	if sum > 2*sharedBytes+sharedSlack || sum > took*sharedRate+sharedSlack {
		t.Errorf("%.0f bytes came from the store in %.1f s", sum, took)
	}
}

// push pushes an image to all hosts.
func (s *stored) push(image, priority string) {
	s.Helper()
	if _, err := s.client.PushImage(s.Context(), image, api.PushRequest{Priority: priority}); err != nil {
		s.Fatal(err)
	}
}

// place is an image at a host.
type place struct {
	api.ImagePlace
	image string
}

// at is the image at the host to which it comes over the link.
func (s *stored) at(image string) (p place) {
	s.Helper()
	s.until(time.Minute, func(ctx context.Context) error {
		places, err := s.client.ImagePlaces(ctx, image)
		if err == nil {
			p = place{places[0], image}
		}
		return err
	})
	return p
}

// waits waits until an image waits for a reason.
func (s *stored) waits(image, why string) (p place) {
	s.Helper()
	s.until(time.Minute, func(context.Context) error {
		if p = s.at(image); p.State != api.PlaceWaits || p.Note != why {
			return fmt.Errorf("%s %s: %s; want it to wait: %s", image, p.State, p.Note, why)
		}
		return nil
	})
	return p
}

// comesAlone waits until so many bytes of an image have come. Before it is there, nothing comes of what waits for it.
func (s *stored) comesAlone(image string, bytes int64, waits place) {
	s.Helper()
	s.until(time.Minute, func(context.Context) error {
		other := s.at(waits.image) // as it was before what is looked at next
		p := s.at(image)
		if p.State != api.PlaceHere && other.HereBytes > waits.HereBytes+sharedSlack {
			s.Errorf("%d bytes came of %s, which waits: %s", other.HereBytes-waits.HereBytes, waits.image, other.Note)
		}
		if p.HereBytes < bytes {
			return fmt.Errorf("%s has %d bytes of %s, of %d: %s %s", p.Host, p.HereBytes, image, bytes, p.State, p.Note)
		}
		return nil
	})
}

// everywhere says at which host an image is not so.
func (s *stored) everywhere(image, state string) error {
	places, err := s.client.ImagePlaces(s.Context(), image)
	for _, p := range places {
		if err == nil && p.State != state {
			err = fmt.Errorf("%s has %d bytes of %s: %s %s", p.Host, p.HereBytes, image, p.State, p.Note)
		}
	}
	return err
}

// metric is what the controller counts, by host.
func (s *stored) metric(name string) map[string]float64 {
	s.Helper()
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(s.lab.Dir, "controller", "api.sock"))
	}}}
	defer c.CloseIdleConnections()
	all := map[string]float64{}
	resp, err := c.Get("http://controller/metrics")
	if err != nil {
		s.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if line := strings.NewReplacer(`{host="`, " ", `"}`, "").Replace(lines.Text()); strings.HasPrefix(line, name+" ") {
			var host string
			var value float64
			if _, err := fmt.Sscan(strings.TrimPrefix(line, name), &host, &value); err == nil {
				all[host] = value
			}
		}
	}
	return all
}
