package images_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"heliotrope/controller/cli"
	"heliotrope/controller/cli/images"
	"heliotrope/hostagent"
)

// bench is a directory with two stores and files.
type bench struct {
	*testing.T
	dir string
}

// run runs a command line; its words are files of the directory where they begin with "./".
func (b *bench) run(line string) (out string, code int) {
	b.Helper()
	args := []string{"image", "--store", filepath.Join(b.dir, "store"), "--keys", filepath.Join(b.dir, "keys")}
	for word := range strings.FieldsSeq(line) {
		if rest, ok := strings.CutPrefix(word, "./"); ok {
			word = filepath.Join(b.dir, rest)
		}
		args = append(args, word)
	}
	root := cli.Command("test")
	root.AddCommand(images.Command())
	root.SetArgs(args)
	var said bytes.Buffer
	root.SetOut(&said)
	root.SetErr(&said)
	err := root.ExecuteContext(b.Context())
	if err != nil {
		said.WriteString(err.Error())
	}
	return said.String(), cli.ExitCode(err)
}

// must runs a command line that has to do what it says.
func (b *bench) must(line string) string {
	b.Helper()
	out, code := b.run(line)
	if code != 0 {
		b.Fatalf("%s: exit code %d: %s", line, code, out)
	}
	return out
}

func (b *bench) write(name string, content []byte) {
	b.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), content, 0o600); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) qemuImg(args ...string) {
	b.Helper()
	cmd := exec.Command("qemu-img", args...)
	cmd.Dir = b.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
}

func (b *bench) same(one, two string) {
	b.Helper()
	x, err := os.ReadFile(filepath.Join(b.dir, one))
	if err != nil {
		b.Fatal(err)
	}
	y, err := os.ReadFile(filepath.Join(b.dir, two))
	if err != nil {
		b.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		b.Errorf("%s is not %s", one, two)
	}
}

func newBench(t *testing.T) (*bench, []byte) {
	b := &bench{t, t.TempDir()}
	content := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{1}).Read(content[1<<20:])
	b.write("disk.raw", content)
	return b, content
}

// A store is not made where an agent has its hosts' images, each in a directory of its name.
func TestTheStoreIsNotTheAgents(t *testing.T) {
	agents := filepath.Join(hostagent.Default().StateDir, "images")
	if store := images.Command().PersistentFlags().Lookup("store").DefValue; store == agents {
		t.Errorf("both are in %s", store)
	}
}

func TestAnImagesWay(t *testing.T) {
	b, content := newBench(t)
	if out := b.must("import debian ./disk.raw"); !strings.Contains(out, "debian@1") {
		t.Error(out)
	}
	copy(content[2<<20:], "something else")
	b.write("disk2.raw", content)
	b.qemuImg("convert", "-f", "raw", "-O", "qcow2", "-c", "disk2.raw", "disk2.qcow2")
	b.must("import debian ./disk2.qcow2")
	var list []struct {
		Image   string `json:"image"`
		Version int    `json:"version"`
		Size    int64  `json:"size_bytes"`
	}
	if err := json.Unmarshal([]byte(b.must("list debian -o json")), &list); err != nil || len(list) != 2 || list[1].Version != 2 || list[1].Size != 3<<20 {
		t.Errorf("%+v, %v", list, err)
	}
	b.must("export debian ./out.raw")
	b.same("out.raw", "disk2.raw")
	b.must("push debian@1 --to ./other")
	var sent struct {
		Wire int64 `json:"wire_bytes"`
		Data int64 `json:"data_bytes"`
	}
	for _, line := range []string{"push debian --to ./other --dry-run -o json", "push debian --to ./other -o json"} {
		if err := json.Unmarshal([]byte(b.must(line)), &sent); err != nil || sent.Data != 4096 || sent.Wire > 8192 {
			t.Errorf("%s: %+v, %v", line, sent, err)
		}
	}
	b.must("--store ./other export debian ./out.raw")
	b.same("out.raw", "disk2.raw")
	b.must("clone debian@1 web")
	b.must("export web ./out.raw")
	b.same("out.raw", "disk.raw")
	b.must("pin debian@1")
	if out, code := b.run("remove debian@1"); code != 1 || !strings.Contains(out, "unpin it first") {
		t.Error(code, out)
	}
	b.must("unpin debian@1")
	if out := b.must("remove debian@1 --dry-run"); !strings.Contains(out, "debian@1 would be removed") {
		t.Error(out)
	}
	b.must("remove debian@1")
	b.must("gc")
	if out := b.must("verify"); !strings.Contains(out, "2 versions") {
		t.Error(out)
	}
	if out := b.must("du"); !strings.Contains(out, "web@1") {
		t.Error(out)
	}
}

func TestWhatIsRefused(t *testing.T) {
	b, content := newBench(t)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(content)
	z.Close()
	b.write("disk.raw.gz", packed.Bytes())
	b.write("page.qcow2", []byte("<!DOCTYPE html><title>404</title>"))
	b.qemuImg("create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "child.qcow2")
	b.qemuImg("create", "-q", "-f", "vmdk", "disk.vmdk", "1M")
	b.must("import debian ./disk.raw")
	for line, want := range map[string]string{
		"import debian ./disk.raw.gz":    "1 unpack it first",
		"import debian ./page.qcow2":     "1 the download went wrong",
		"import debian ./disk.vmdk":      "1 qemu-img convert -f vmdk",
		"import debian ./child.qcow2":    "1 --backing",
		"import debian ./nix":            "1 no such file",
		"import ../x ./disk.raw":         "1 is no name of an image",
		"import debian":                  "2 accepts 2 arg",
		"frob":                           "2 unknown command",
		"show nix":                       "3 no such image",
		"show debian@7":                  "3 no such image",
		"list nix":                       "3 no such image",
		"export nix ./x":                 "3 no such image",
		"quota lots":                     "1 is no number of bytes",
		"push debian":                    "2 at least one of the flags in the group [to sites]",
		"push debian --to ./x --sites y": "2 [to sites]",
		"push debian --to ftp://x":       "1 nothing is known of ftp://",
		"import debian ./disk.raw --foo": "2 unknown flag",
	} {
		out, code := b.run(line)
		if code != int(want[0]-'0') || !strings.Contains(out, want[2:]) {
			t.Errorf("%s: exit code %d: %s", line, code, out)
		}
	}
	b.must("import child ./child.qcow2 --backing")
	b.must("export child ./out.raw")
	b.same("out.raw", "disk.raw")
	b.must("import packed ./disk.raw.gz --format raw") // who says so means it
}

func TestDamageIsTold(t *testing.T) {
	b, _ := newBench(t)
	b.must("import debian ./disk.raw")
	packs, err := filepath.Glob(filepath.Join(b.dir, "store", "packs", "*"))
	if err != nil || len(packs) != 1 {
		t.Fatal(packs, err)
	}
	content, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	content[1<<20] ^= 1
	if err := os.WriteFile(packs[0], content, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := b.run("verify"); code != 1 || !strings.Contains(out, "debian@1") || !strings.Contains(out, "damaged") {
		t.Error(code, out)
	}
	if out, code := b.run("export debian ./out.raw"); code != 1 || !strings.Contains(out, "damaged") {
		t.Error(code, out)
	}
	if _, err := os.Stat(filepath.Join(b.dir, "out.raw")); err == nil {
		t.Error("half an image was exported")
	}
	for line, want := range map[string]string{"verify --dry-run": "are for --mend", "verify --mend --quick": "leave --quick out", "verify --mend --from ./nowhere --dry-run": "no image store"} {
		if out, code := b.run(line); code != 1 || !strings.Contains(out, want) {
			t.Errorf("%s: %d, %s", line, code, out)
		}
	}
	if _, err := os.Stat(filepath.Join(b.dir, "nowhere")); err == nil {
		t.Error("a store was made where one was to be read")
	}
	if out, code := b.run("verify --mend --dry-run"); code != 1 || !strings.Contains(out, "would be mended: 1 pack") {
		t.Error(code, out)
	}
	if out, code := b.run("verify --mend"); code != 1 || !strings.Contains(out, "1 lost") {
		t.Error(code, out)
	}
	b.must("import again ./disk.raw")
	if out := b.must("verify -o json"); !strings.Contains(out, `"Findings": []`) {
		t.Error(out)
	}
	b.must("export debian ./out.raw")
}

// An image comes by HTTP, and says where from.
func TestImportByHTTP(t *testing.T) {
	b, content := newBench(t)
	s := httptest.NewServer(http.FileServer(http.Dir(b.dir)))
	defer s.Close()
	sum := sha256.Sum256(content)
	line := "import debian " + s.URL + "/disk.raw --downloads ./downloads --sha256 "
	if out, code := b.run(line + strings.Repeat("00", 32)); code != 1 || !strings.Contains(out, "damaged on its way") {
		t.Error(code, out)
	}
	if out, code := b.run(line + "12"); code != 1 || !strings.Contains(out, "64 hexadecimal digits") {
		t.Error(code, out)
	}
	b.must(line + hex.EncodeToString(sum[:]))
	b.must("export debian ./out.raw")
	b.same("out.raw", "disk.raw")
	if out := b.must("show debian"); !strings.Contains(out, s.URL+"/disk.raw sha256:"+hex.EncodeToString(sum[:])) {
		t.Error(out)
	}
	left, err := filepath.Glob(filepath.Join(b.dir, "downloads", "*"))
	if err != nil || len(left) != 1 || !strings.HasSuffix(left[0], ".lock") {
		t.Errorf("left of downloads are %v, %v", left, err)
	}
	if out, code := b.run("import debian ./disk.raw --sha256 " + hex.EncodeToString(sum[:])); code != 1 || !strings.Contains(out, "sha256sum") {
		t.Error(code, out)
	}
}

// A store is not made among other things.
func TestADirectoryOfOtherThingsIsNoStore(t *testing.T) {
	b, _ := newBench(t)
	if out, code := b.run("--store " + b.dir + " import debian ./disk.raw"); code != 1 || !strings.Contains(out, "other things are in it (disk.raw)") {
		t.Error(code, out)
	}
	if err := os.MkdirAll(filepath.Join(b.dir, "fresh", "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.must("--store ./fresh import debian ./disk.raw")
	b.must("--store ./fresh import debian ./disk.raw")
}

// A version that a volume stands on stays.
func TestAVolumesVersionStays(t *testing.T) {
	b, _ := newBench(t)
	b.must("import debian ./disk.raw")
	_, stop := b.serve("debian --volume web --prefetch off", serving)
	stop()
	out, code := b.run("remove debian@1")
	if code != 1 || !strings.Contains(out, "image release") {
		t.Error(code, out)
	}
	var shown struct {
		Needed []string `json:"needed_by"`
	}
	if err := json.Unmarshal([]byte(b.must("show debian -o json")), &shown); err != nil || len(shown.Needed) != 1 || !strings.HasSuffix(shown.Needed[0], "/web") || !strings.Contains(out, shown.Needed[0]) {
		t.Fatalf("%+v, %v", shown, err)
	}
	b.must("gc")
	_, stop = b.serve("debian --volume web --prefetch off", serving)
	b.compare("", "disk.raw")
	stop()
	b.must("release debian@1 " + shown.Needed[0])
	b.must("remove debian@1")
}
