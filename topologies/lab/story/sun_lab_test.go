//go:build lab

package story

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"heliotrope/topologies/lab/claim"
)

// A day around the earth: the VM is where its clients are at work, they are nearer by what is
// claimed, and none of them notices a move.
func TestFollowTheSun(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", dir, "heliotrope/cmd/heliotrope", "heliotrope/cmd/heliotrope-agent").CombinedOutput(); err != nil {
		t.Fatalf("build programs: %v: %s", err, out)
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "heliotrope"), "lab", "sun", "--name", fmt.Sprintf("sun-%d", os.Getpid()))
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it takes its lab down
	err := cmd.Run()
	t.Logf("%s", out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
	var result struct {
		Claims []claim.Claim `json:"claims"`
	}
	if err := json.Unmarshal(lines[len(lines)-1], &result); err != nil || len(result.Claims) != 9 {
		t.Errorf("it ends with %v claims: %v", result.Claims, err)
	}
}
