package imagebench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"heliotrope/topologies/lab/claim"
)

// verdict is what was found where something is killed or spoilt.
type verdict struct {
	lost   []string // what was acknowledged, and is not there
	wrong  []string // bytes that are none of those that may be there
	failed []string // what could not be done any more
}

func (v *verdict) loses(format string, args ...any) {
	v.lost = append(v.lost, fmt.Sprintf(format, args...))
}
func (v *verdict) spoils(format string, args ...any) {
	v.wrong = append(v.wrong, fmt.Sprintf(format, args...))
}
func (v *verdict) fails(format string, args ...any) {
	v.failed = append(v.failed, fmt.Sprintf(format, args...))
}

// judge says what is claimed of it, and the first of each kind to people.
func (v *verdict) judge(b *Bench) (claims []claim.Claim) {
	for _, k := range []struct {
		name string
		all  []string
	}{{"acknowledged, and lost", v.lost}, {"wrong bytes", v.wrong}, {"operations that failed afterwards", v.failed}} {
		for _, what := range k.all[:min(len(k.all), 10)] {
			b.Say("%s: %s", strings.ToUpper(k.name), what)
		}
		claims = append(claims, claim.New("crashes: "+k.name, float64(len(k.all)), "==", 0))
	}
	return claims
}

// world is two stores, what must be in them, and what was killed.
type world struct {
	ours
	verdict
	random   *rand.Rand
	versions map[int][]byte // of the first store's image, by number: they are there
	highest  int
	killed   map[string]int
	ended    map[string]int
	took     map[string]time.Duration // an operation that nobody disturbs
}

// crash kills processes that change stores, and those that serve disks which are written to, at
// any time, and looks whether what was acknowledged is there and whether what is there is right.
func crash(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(b.Images, 0o750); err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp(b.Images, "run-")
	if err != nil {
		return nil, nil, err
	}
	w := &world{ours: ours{self, dir, "disk"}, random: rand.New(rand.NewPCG(1, 2)), versions: map[int][]byte{},
		killed: map[string]int{}, ended: map[string]int{}, took: map[string]time.Duration{}}
	d := &disks{world: w, usual: map[string]time.Duration{}}
	if err = w.run(ctx, b.Points); err == nil {
		err = d.run(ctx, b.Points/5)
	}
	if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
		return nil, nil, err
	}
	killed, ended, claims := 0, b.Points, []claim.Claim(nil)
	for _, op := range []string{"import", "push", "gc", "write", "flush"} {
		n := w.killed[op]
		killed += n
		b.Say("%-7s killed %3d, ended before it was %d", op, n, w.ended[op])
		claims = append(claims, claim.New("crashes: kill -9 in "+op, float64(n), ">=", float64(b.Points/10)))
		ended = min(ended, w.ended[op])
	}
	b.Say("%-7s killed %3d; %d volumes, %d blocks looked at", "opening", w.killed["opening"], d.number, d.looked)
	claims = append(claims,
		claim.New("crashes: kill -9 in any of them", float64(killed), ">=", float64(b.Points)),
		claim.New("crashes: of each that came to their end, at least", float64(ended), ">=", float64(min(b.Points/50, 5))))
	return append(claims, w.judge(b)...), map[string]any{"killed": w.killed, "ended": w.ended, "volumes": d.number, "blocks": d.looked}, nil
}

const crashSize = 12 << 20 // bytes of the image: some packs are never full, import takes 0.1 s

func (w *world) run(ctx context.Context, points int) error {
	content := make([]byte, crashSize)
	rand.NewChaCha8([32]byte{1}).Read(content)
	copy(content[4<<20:], make([]byte, 2<<20))
	file := filepath.Join(w.dir, "disk.raw")
	for killed := 0; killed < points; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// The next state: some runs of bytes are other ones.
		next := bytes.Clone(content)
		for range 1 + w.random.IntN(30) {
			at := w.random.IntN(crashSize - 70000)
			rand.NewChaCha8([32]byte{byte(w.random.Uint32()), byte(w.random.Uint32()), byte(w.random.Uint32())}).Read(next[at : at+w.random.IntN(70000)])
		}
		if err := os.WriteFile(file, next, 0o600); err != nil {
			return err
		}
		var op string
		var args []string
		switch n := w.random.IntN(10); {
		case n < 5 || w.highest == 0:
			op, args = "import", w.command("here", "import", w.image, file)
		case n < 8:
			op, args = "push", w.command("here", "push", w.image, "--to", filepath.Join(w.dir, "there"))
		default:
			op, args = "gc", w.command("here", "gc", "--dense", "0.9")
			if err := w.retire(ctx); err != nil {
				return err
			}
		}
		done, err := w.kill(ctx, op, args)
		if err != nil {
			return err
		}
		if !done {
			killed++
		}
		if err := w.look(ctx, op, done, next); err != nil {
			return err
		}
		if op == "import" && done {
			content = next
		}
	}
	return w.lookAtAll(ctx)
}

// kill runs a program and kills it somewhere on its way; done says that it was faster. How long
// its way is the last run tells that nobody killed, the first one for sure.
func (w *world) kill(ctx context.Context, op string, args []string) (done bool, err error) {
	cmd := exec.CommandContext(ctx, w.program, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return false, err
	}
	ends := make(chan error, 1)
	go func() { ends <- cmd.Wait() }()
	var kill <-chan time.Time
	if usual := w.took[op]; usual > 0 {
		timer := time.NewTimer(time.Duration(w.random.Int64N(int64(usual * 5 / 4))))
		defer timer.Stop()
		kill = timer.C
	}
	select {
	case err = <-ends:
	case <-kill:
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return false, err
		}
		err = <-ends
	}
	if err == nil {
		w.took[op] = time.Since(began)
		w.ended[op]++
		return true, nil
	}
	if cmd.ProcessState.Exited() {
		w.fails("%s: %s", op, bytes.TrimSpace(said.Bytes()))
		return true, nil
	}
	w.killed[op]++
	w.took[op] += w.took[op] / 20 // it takes longer than it did, if it never comes to its end
	return false, nil
}

// retire removes a version, so that gc has something to do.
func (w *world) retire(ctx context.Context) error {
	for number := range w.versions {
		if number == w.highest {
			continue
		}
		var u used
		if _, err := u.timed(ctx, w.program, w.command("here", "remove", fmt.Sprintf("%s@%d", w.image, number))...); err != nil {
			return err
		}
		delete(w.versions, number)
		return nil
	}
	return nil
}
