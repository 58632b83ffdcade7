//go:build lab

package guest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The program is compiled with what all such programs have, and packed with its files.
func TestMake(t *testing.T) {
	const source = "//go:build ignore\n\npackage main\n\nfunc main() { println(\"made\", begin(0, \"\")) }\n"
	name := filepath.Join(t.TempDir(), "initrd")
	if err := Make(t.Context(), name, []byte(source), map[string][]byte{"script": []byte("echo what is in it"), "redis/ld.so": []byte("a library")}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"init\x00", "script\x00", "echo what is in it", "redis\x00", "redis/ld.so\x00", "modules/virtio_blk.ko\x00", "dev/console\x00", "TRAILER!!!"} {
		if !bytes.Contains(got, []byte(want)) {
			t.Errorf("there is no %q in it", want)
		}
	}
	if err := Make(t.Context(), name, []byte("package main\n"), nil); err == nil || !strings.Contains(err.Error(), "compile init") {
		t.Errorf("a program that is none: %v", err)
	}
}
