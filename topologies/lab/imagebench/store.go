package imagebench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"heliotrope/topologies/lab/claim"
)

// store measures what reading in and checking take, and what versions share.
func store(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	if err := b.images(ctx); err != nil {
		return nil, nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp(b.Images, "run-")
	if err != nil {
		return nil, nil, err
	}
	figures, err := b.fillStore(ctx, ours{self, dir, "disk"})
	if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
		return nil, figures, err
	}
	return []claim.Claim{
		measured("import of new content, MB for a core's second", figures["import_new_MB_per_core_second"]),
		measured("import of all images, MB for a core's second", figures["import_MB_per_core_second"]),
		measured("verification, MB for a core's second", figures["verify_MB_per_core_second"]),
		measured("content of all versions next to what is stored", figures["content_over_packs"]),
		measured("50 clones, each a process, s", figures["50_clones_s"]),
	}, figures, nil
}

func (b *Bench) fillStore(ctx context.Context, o ours) (map[string]float64, error) {
	figures := map[string]float64{}
	fmt.Fprintf(b.Out, "\n%8s  %10s  %10s  %10s  %6s\n", "file", "content MB", "new MB", "stored MB", "CPU s")
	content, cpu := 0.0, 0.0
	for _, name := range []string{"v1", "v2", "v3", "s1", "s2", "s3"} {
		var u used
		out, err := u.timed(ctx, o.program, o.command("here", "import", name, filepath.Join(b.Images, name+".raw"))...)
		if err != nil {
			return nil, err
		}
		var said struct {
			Content int64 `json:"content_bytes"`
			New     int64 `json:"new_bytes"`
			Stored  int64 `json:"stored_bytes"`
		}
		if err := json.Unmarshal(out, &said); err != nil {
			return nil, err
		}
		fmt.Fprintf(b.Out, "%8s  %10.1f  %10.1f  %10.1f  %6.2f\n", name, float64(said.Content)/1e6, float64(said.New)/1e6, float64(said.Stored)/1e6, u.CPU)
		if name == "v1" { // all of it is new
			figures["import_new_MB_per_core_second"] = float64(said.Content) / 1e6 / u.CPU
		}
		content, cpu = content+float64(said.Content)/1e6, cpu+u.CPU
	}
	figures["import_MB_per_core_second"] = content / cpu
	var u used
	out, err := u.timed(ctx, o.program, o.command("here", "verify")...)
	if err != nil {
		return nil, err
	}
	var said struct{ Bytes int64 }
	if err := json.Unmarshal(out, &said); err != nil {
		return nil, err
	}
	figures["verify_MB_per_core_second"] = float64(said.Bytes) / 1e6 / u.CPU
	if out, err = u.timed(ctx, o.program, o.command("here", "du")...); err != nil {
		return nil, err
	}
	var usage struct {
		Content int64 `json:"content_bytes"`
		Packs   int64 `json:"pack_bytes"`
	}
	if err := json.Unmarshal(out, &usage); err != nil {
		return nil, err
	}
	figures["content_over_packs"] = float64(usage.Content) / float64(usage.Packs)
	began := time.Now()
	for i := range 50 {
		if _, err := u.timed(ctx, o.program, o.command("here", "clone", "v1", "clone-"+strconv.Itoa(i))...); err != nil {
			return nil, err
		}
	}
	figures["50_clones_s"] = time.Since(began).Seconds()
	for _, name := range []string{"import_new_MB_per_core_second", "import_MB_per_core_second", "verify_MB_per_core_second", "content_over_packs", "50_clones_s"} {
		fmt.Fprintf(b.Out, "%32s  %8.2f\n", name, figures[name])
	}
	fmt.Fprintln(b.Out)
	return figures, nil
}
