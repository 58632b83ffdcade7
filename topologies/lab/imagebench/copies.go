package imagebench

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"heliotrope/topologies/lab/claim"
)

//go:embed make-images.sh
var makeImages string

// images makes the images, if they are not there.
func (b *Bench) images(ctx context.Context) error { return Images(ctx, b.Images, b.Out) }

// Images makes the images in dir, unless they are there; what that takes is told to out.
func Images(ctx context.Context, dir string, out io.Writer) error {
	script := exec.CommandContext(ctx, "bash", "-c", makeImages, "make-images", dir)
	script.Stderr = out
	if err := script.Run(); err != nil {
		return fmt.Errorf("make images in %s: %w", dir, err)
	}
	return nil
}

// used is what a tool took. Processor time is of all of its processes, at both ends.
type used struct {
	Tool   string  `json:"tool"`
	Wire   int64   `json:"wire_bytes"`
	CPU    float64 `json:"cpu_seconds"`
	Wall   float64 `json:"seconds"`
	detail string
}

// timed runs a program and adds what it took.
func (u *used) timed(ctx context.Context, name string, args ...string) ([]byte, error) {
	began := time.Now()
	cmd := exec.CommandContext(ctx, name, args...)
	var wrong bytes.Buffer
	cmd.Stderr = &wrong
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, bytes.TrimSpace(wrong.Bytes()))
	}
	u.Wall += time.Since(began).Seconds()
	u.CPU += (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	return out, nil
}

// tool copies the next state of a disk to where the last one is.
type tool interface {
	copy(ctx context.Context, file string) (used, error)
}

// ours imports to one store and has another one pull.
type ours struct{ program, dir, image string }

func (o ours) command(store string, args ...string) []string {
	return append([]string{"image", "--store", filepath.Join(o.dir, store), "--keys", filepath.Join(o.dir, "keys"), "-o", "json"}, args...)
}

func (o ours) copy(ctx context.Context, file string) (used, error) {
	u := used{Tool: "heliotrope"}
	if _, err := u.timed(ctx, o.program, o.command("here", "import", o.image, file)...); err != nil {
		return u, err
	}
	read := u.CPU
	out, err := u.timed(ctx, o.program, o.command("there", "pull", o.image, "--from", filepath.Join(o.dir, "here"))...)
	if err != nil {
		return u, err
	}
	var said struct {
		Wire int64 `json:"wire_bytes"`
	}
	err = json.Unmarshal(out, &said)
	u.Wire, u.detail = said.Wire, fmt.Sprintf("%.2f s to import, %.2f to send and take", read, u.CPU-read)
	return u, err
}

// check compares what came with what was sent.
func (o ours) check(ctx context.Context, file string) error {
	out := filepath.Join(o.dir, "check.raw")
	var u used
	if _, err := u.timed(ctx, o.program, o.command("there", "export", o.image, out)...); err != nil {
		return err
	}
	defer os.Remove(out)
	return compare(ctx, out, file)
}

func compare(ctx context.Context, a, b string) error {
	if out, err := exec.CommandContext(ctx, "cmp", a, b).CombinedOutput(); err != nil {
		return fmt.Errorf("what came is not what was sent: %w: %s", err, out)
	}
	return nil
}

// rsync has its two ends talk through a pipe that it takes for a remote shell.
type rsync struct{ dir string }

var rsyncBytes = regexp.MustCompile(`Total bytes (?:sent|received): ([0-9,]+)`)

func (r rsync) copy(ctx context.Context, file string) (used, error) {
	u := used{Tool: "rsync -z"}
	to := filepath.Join(r.dir, "disk.raw")
	out, err := u.timed(ctx, "rsync", "-z", "-I", "-S", "--no-whole-file", "--stats", "-e", `sh -c 'shift; exec "$@"' sh`, file, "there:"+to)
	if err != nil {
		return u, err
	}
	for _, m := range rsyncBytes.FindAllStringSubmatch(string(out), -1) {
		n, err := strconv.ParseInt(strings.ReplaceAll(m[1], ",", ""), 10, 64)
		if err != nil {
			return u, err
		}
		u.Wire += n
	}
	return u, compare(ctx, to, file)
}

// chunker is casync or desync: chunks go to a store, which counts as the wire, and from there to
// a copy, with the last one as seed.
type chunker struct{ program, dir string }

func (c chunker) copy(ctx context.Context, file string) (used, error) {
	u := used{Tool: filepath.Base(c.program)}
	store, index, to := filepath.Join(c.dir, "store.castr"), filepath.Join(c.dir, "next.caibx"), filepath.Join(c.dir, "disk.raw")
	if err := os.MkdirAll(store, 0o750); err != nil {
		return u, err
	}
	before, err := treeSize(store)
	if err != nil {
		return u, err
	}
	make, extract := []string{"make", "--store=" + store, index, file}, []string{"extract", "--store=" + store, index, to + ".new"}
	if u.Tool == "desync" {
		make = []string{"make", "-s", store, index, file}
		extract = []string{"extract", "-s", store, index, to + ".new"}
	}
	if _, err := os.Stat(to); err == nil {
		last := filepath.Join(c.dir, "last.caibx")
		if u.Tool == "desync" {
			extract = []string{"extract", "-s", store, "--seed", last, index, to + ".new"}
		} else {
			extract = []string{"extract", "--store=" + store, "--seed=" + to, index, to + ".new"}
		}
	}
	if _, err := u.timed(ctx, c.program, make...); err != nil {
		return u, err
	}
	after, err := treeSize(store)
	if err != nil {
		return u, err
	}
	list, err := os.Stat(index)
	if err != nil {
		return u, err
	}
	u.Wire = after - before + list.Size()
	if _, err := u.timed(ctx, c.program, extract...); err != nil {
		return u, err
	}
	return u, errors.Join(compare(ctx, to+".new", file), os.Rename(to+".new", to),
		exec.CommandContext(ctx, "cp", "--sparse=always", to, filepath.Join(c.dir, "last")).Run(), os.Rename(index, filepath.Join(c.dir, "last.caibx")))
}

func treeSize(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	return n, err
}

// step is a state of the disk that goes to the other site.
type step struct{ name, file string }

// steps are what is copied, one after the other, to a site that begins with nothing. Each
// finds there what went before.
var steps = []step{
	{"first", "v1.raw"}, {"rebuilt", "v3.raw"}, {"back from that", "v1.raw"}, {"changed in place", "v2.raw"}, {"back as it was", "v1.raw"},
	{"a sibling", "s1.raw"}, {"another", "s2.raw"}, {"a third", "s3.raw"},
}

// copies runs each tool over all steps.
func copies(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	if err := b.images(ctx); err != nil {
		return nil, nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	results := map[string][]used{}
	fmt.Fprintf(b.Out, "\n%18s  %-11s  %9s  %6s  %6s\n", "what", "tool", "MB", "CPU s", "s")
	dir, err := os.MkdirTemp(b.Images, "run-")
	if err != nil {
		return nil, nil, err
	}
	err = b.walk(ctx, dir, self, results)
	if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
		return nil, results, err
	}
	fmt.Fprintln(b.Out)
	ratio := func(what string, of func(used) float64) float64 {
		r := results[what]
		return of(r[0]) / of(r[1])
	}
	wire, cpu := func(u used) float64 { return float64(u.Wire) }, func(u used) float64 { return u.CPU }
	claims := []claim.Claim{
		claim.New("changed in place: processor time next to rsync -z", ratio("changed in place", cpu), "<=", 0.6),
	}
	for _, s := range steps {
		bound := 1.0
		if s.name == "rebuilt" {
			bound = 0.45
		}
		claims = append(claims, claim.New(s.name+": bytes next to rsync -z", ratio(s.name, wire), "<=", bound))
		for i, u := range results[s.name] {
			if i > 0 { // of ours nothing crosses where all is known already
				claims = append(claims, measured(fmt.Sprintf("%s: MB, %s", s.name, u.Tool), wire(u)/1e6))
			}
			claims = append(claims,
				measured(fmt.Sprintf("%s: CPU s, %s", s.name, u.Tool), u.CPU),
				measured(fmt.Sprintf("%s: s, %s", s.name, u.Tool), u.Wall))
		}
	}
	return claims, results, nil
}

// measured claims of a figure of which nothing is required that there is one.
func measured(name string, value float64) claim.Claim { return claim.New(name, value, ">", 0) }

func (b *Bench) row(what string, u used) {
	fmt.Fprintf(b.Out, "%18s  %-11s  %9.1f  %6.2f  %6.2f  %s\n", what, u.Tool, float64(u.Wire)/1e6, u.CPU, u.Wall, u.detail)
}

func (b *Bench) walk(ctx context.Context, dir, self string, results map[string][]used) error {
	mine := ours{self, dir, "disk"}
	tools := []tool{mine, rsync{dir}}
	for _, program := range []string{"desync", "casync"} {
		found, err := findTool(program)
		if err != nil {
			return err
		}
		place := filepath.Join(dir, program)
		if err := os.Mkdir(place, 0o750); err != nil {
			return err
		}
		tools = append(tools, chunker{found, place})
	}
	for _, s := range steps {
		file := filepath.Join(b.Images, s.file)
		for _, t := range tools {
			u, err := t.copy(ctx, file)
			if err != nil {
				return err
			}
			results[s.name] = append(results[s.name], u)
			b.row(s.name, u)
		}
		if err := mine.check(ctx, file); err != nil {
			return err
		}
	}
	return nil
}

// findTool looks where make deps puts what Debian does not have.
func findTool(name string) (string, error) {
	if file := filepath.Join(cacheDir(), "bin", name); isFile(file) {
		return file, nil
	}
	file, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%w: run make deps", err)
	}
	return file, nil
}

func isFile(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular()
}
