package images_test

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"heliotrope/controller/cli"
	"heliotrope/controller/cli/images"
)

// commandEnv makes the test's program the command in it.
const commandEnv = "HELIOTROPE_TEST_COMMAND"

func TestMain(m *testing.M) {
	text := os.Getenv(commandEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	var args []string
	if err := json.Unmarshal([]byte(text), &args); err != nil {
		panic(err)
	}
	root := cli.Command("test")
	root.AddCommand(images.Command())
	root.SetArgs(args)
	os.Exit(cli.ExitCode(root.Execute()))
}

// kill runs a command in a process of its own and kills it after a while, unless it was faster.
func (b *bench) kill(after time.Duration, args ...string) (whole bool) {
	b.Helper()
	text, err := json.Marshal(append([]string{"image", "--store", filepath.Join(b.dir, "store"), "--keys", filepath.Join(b.dir, "keys")}, args...))
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), commandEnv+"="+string(text))
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	late := time.AfterFunc(after, func() { cmd.Process.Kill() })
	defer late.Stop()
	return cmd.Wait() == nil
}

// A push that is killed leaves in the other store the versions that were there, the new one wholly
// or not at all, and nothing that gc does not free.
func TestPushIsKilled(t *testing.T) {
	b, _ := newBench(t)
	content := make([]byte, 6<<20)
	rand.NewChaCha8([32]byte{8}).Read(content)
	b.write("disk.raw", content)
	b.must("import debian ./disk.raw")
	b.must("push debian --to ./other")
	other := filepath.Join(b.dir, "other")
	rng := rand.New(rand.NewPCG(8, 8))
	versions, killed := 1, 0
	for round := range 10 {
		rand.NewChaCha8([32]byte{9, byte(round)}).Read(content[2<<20:])
		b.write("disk.raw", content)
		b.must("import debian ./disk.raw")
		if !b.kill(time.Duration(10+rng.IntN(150))*time.Millisecond, "push", "debian", "--to", other) {
			killed++
		}
		var all []struct {
			Version int `json:"version"`
		}
		if err := json.Unmarshal([]byte(b.must("--store ./other list debian -o json")), &all); err != nil {
			t.Fatal(err)
		}
		if len(all) != versions && len(all) != versions+1 {
			t.Fatalf("round %d: there are %d versions, and were %d", round, len(all), versions)
		}
		whole := len(all) == versions+1
		if out := b.must("--store ./other verify"); !strings.Contains(out, "of packs read") {
			t.Fatal(out)
		}
		if !whole {
			b.must("push debian --to ./other")
		}
		versions++
		b.must("--store ./other export debian ./out.raw")
		b.same("out.raw", "disk.raw")
		b.must("remove debian")
	}
	if killed < 2 {
		t.Errorf("%d of 10 pushes were killed", killed)
	}
	b.must("--store ./other gc")
	b.must("--store ./other gc")
	var u struct {
		Packs   int64 `json:"pack_bytes"`
		Content int64 `json:"content_bytes"`
	}
	if err := json.Unmarshal([]byte(b.must("--store ./other du -o json")), &u); err != nil {
		t.Fatal(err)
	}
	if most := int64(6<<20 + 10*4<<20 + 4<<20); u.Packs > most {
		t.Errorf("the packs have %d bytes, all versions need %d", u.Packs, most)
	}
}
