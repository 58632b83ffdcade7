package story

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/imagesync"
	"heliotrope/imagesync/delta"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/imagesync/manifest"
	"heliotrope/topologies"
	"heliotrope/topologies/lab/claim"
)

// gallery is what became of an image in the stores of two sites.
type gallery struct {
	First   delta.Stats `json:"first_copy"` // of version 1
	Next    delta.Stats `json:"next_copy"`  // of version 2
	Content int64       `json:"content_bytes"`
	ClonesS float64     `json:"fifty_clones_s"`
	Wrong   int         `json:"findings"` // of the verification of both stores
	Spread  delivery    `json:"spread"`
}

// delivery is how an uploaded image came to hosts by the topology's policy.
type delivery struct {
	Places  []api.ImagePlace `json:"places"`
	Seconds float64          `json:"seconds"` // from the upload's end until all hosts have it
}

const (
	gallerySize = 128 << 20 // bytes of the image
	rewritten   = 200       // blocks of it that version 2 changes
	clones      = 50
)

// images imports an image of what the guests boot, changes a little of it as a VM does, and
// brings both versions to another site's store.
func (d *Demo) images(ctx context.Context) (g gallery, err error) {
	dir, err := os.MkdirTemp("", "heliotrope-demo-images-")
	if err != nil {
		return g, fmt.Errorf("make directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "disk.raw")
	if err := makeDisk(file); err != nil {
		return g, err
	}
	keys := keyring.Dir(filepath.Join(dir, "keys"))
	var stores [2]*imagesync.Store
	for i, name := range []string{"us", "eu"} {
		at, where, err := depot.Open(ctx, filepath.Join(dir, name))
		if err != nil {
			return g, err
		}
		if stores[i], err = imagesync.Open(ctx, where, at, imagesync.Options{Keys: keys}); err != nil {
			return g, err
		}
	}
	us, eu := stores[0], stores[1]
	if g.First, g.Content, err = publish(ctx, us, eu, file); err != nil {
		return g, err
	}
	if err := rewrite(file); err != nil {
		return g, err
	}
	if g.Next, _, err = publish(ctx, us, eu, file); err != nil {
		return g, err
	}
	d.say("an image of %d MB of content went to another store in %.1f MB; its next version, with %d blocks changed, in %.0f kB",
		g.Content/1e6, float64(g.First.Bytes)/1e6, rewritten, float64(g.Next.Bytes)/1e3)
	began := time.Now()
	for i := range clones {
		if _, err := eu.Clone(ctx, "guest", fmt.Sprintf("guest-%d", i)); err != nil {
			return g, err
		}
	}
	g.ClonesS = time.Since(began).Seconds()
	for _, s := range stores {
		r, err := s.Verify(ctx, true, nil)
		if err != nil {
			return g, err
		}
		g.Wrong += len(r.Findings)
	}
	d.say("%d clones of it took %.0f ms and no room; every byte of both stores is what was written", clones, g.ClonesS*1e3)
	g.Spread, err = d.deliver(ctx, file)
	return g, err
}

// deliver gives an image a policy, uploads it, and waits until it is where the policy says.
func (d *Demo) deliver(ctx context.Context, file string) (v delivery, err error) {
	const image = "shop"
	t, _, err := d.client.Topology(ctx)
	if err != nil {
		return v, err
	}
	t.Images = map[heliotrope.ImageID]heliotrope.ImagePolicy{image: {Policy: heliotrope.ImageEverywhere}}
	text, err := topologies.Marshal(t)
	if err != nil {
		return v, err
	}
	if _, err := d.client.ApplyTopology(ctx, text, -1); err != nil {
		return v, err
	}
	f, err := os.Open(file)
	if err != nil {
		return v, fmt.Errorf("upload image: %w", err)
	}
	defer f.Close()
	u, err := d.client.CreateUpload(ctx, api.UploadRequest{Image: image, SizeBytes: gallerySize, Format: "raw"}, "")
	if err != nil {
		return v, err
	}
	if u, err = d.client.Send(ctx, u, f, 10*time.Second, func(api.Upload) {}); err != nil {
		return v, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	began := time.Now()
	err = d.until(ctx, func(ctx context.Context) error {
		if u, err = d.client.Upload(ctx, u.ID); err != nil || u.State != api.UploadDone {
			return errors.Join(err, fmt.Errorf("the upload is %s", u.State))
		}
		if v.Places, err = d.client.ImagePlaces(ctx, image); err != nil {
			return err
		}
		for _, p := range v.Places {
			if p.State != api.PlaceHere {
				err = errors.Join(err, fmt.Errorf("%s is %s at %s: %s", image, p.State, p.Host, p.Note))
			}
		}
		return err
	})
	v.Seconds = time.Since(began).Seconds()
	d.say("an image with the policy everywhere was uploaded; %.1f s later all %d hosts had it, before a VM there needs it", v.Seconds, len(v.Places))
	return v, err
}

// publish makes a version of the file in one store and brings it to the other.
func publish(ctx context.Context, from, to *imagesync.Store, file string) (sent delta.Stats, content int64, err error) {
	raw, err := imagesync.OpenRaw(file)
	if err != nil {
		return sent, 0, err
	}
	defer raw.Close()
	v, _, err := from.Import(ctx, "guest", raw, imagesync.ImportOptions{From: "the guests' kernel"})
	if err != nil {
		return sent, 0, err
	}
	_, sent, err = to.Pull(ctx, from, "guest")
	return sent, v.Content, err
}

// makeDisk makes a disk with this very program on it, which is what a disk's content is like.
func makeDisk(file string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		return fmt.Errorf("read this program: %w", err)
	}
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	_, err = f.WriteAt(program[:min(len(program), gallerySize/2)], 8<<20)
	if err = errors.Join(err, f.Truncate(gallerySize), f.Close()); err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	return nil
}

// rewrite changes blocks here and there, in place.
func rewrite(file string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("change disk: %w", err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	block := make([]byte, manifest.BlockSize)
	for range rewritten {
		rand.NewChaCha8([32]byte{byte(random.Uint32()), byte(random.Uint32())}).Read(block)
		_, wrong := f.WriteAt(block, random.Int64N(gallerySize/manifest.BlockSize)*manifest.BlockSize)
		err = errors.Join(err, wrong)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("change disk: %w", err)
	}
	return nil
}

// claims are what must hold of images; what did not come that far has none.
func (g gallery) claims() []claim.Claim {
	if g.Content == 0 {
		return nil
	}
	changed := float64(rewritten * manifest.BlockSize)
	here := 0.0
	for _, p := range g.Spread.Places {
		if p.State == api.PlaceHere {
			here++
		}
	}
	return []claim.Claim{
		claim.New("bytes that an image's next version took, next to its changed blocks", float64(g.Next.Bytes)/changed, "<=", 1.1),
		claim.New("seconds for 50 clones of an image", g.ClonesS, "<=", 5),
		claim.New("hosts that lack an image of which its policy says that it is to be everywhere", float64(len(g.Spread.Places))-here, "==", 0),
		claim.New("bytes in the image stores that are not what was written", float64(g.Wrong), "==", 0),
	}
}
