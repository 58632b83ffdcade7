package imagebench

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"

	"heliotrope/controller/cli"
	"heliotrope/controller/cli/images"
	"heliotrope/topologies/lab/claim"
)

// TestMain lets the test's own program be the command that is killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "image" {
		root := cli.Command("test")
		root.AddCommand(images.Command())
		os.Exit(cli.ExitCode(root.Execute()))
	}
	os.Exit(m.Run())
}

// Sixty processes are killed here; the benchmark kills five hundred.
func TestCrash(t *testing.T) {
	b := &Bench{Images: t.TempDir(), Points: 60}
	b.Out = io.Discard
	claims, _, err := crash(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	wantHold(t, claims)
}

func wantHold(t *testing.T, claims []claim.Claim) {
	t.Helper()
	for _, c := range claims {
		if !c.Holds {
			t.Errorf("%s: %v, must be %s %v", c.Name, c.Value, c.Op, c.Bound)
		}
	}
}

// A part that there is not is told, with those that there are.
func TestParts(t *testing.T) {
	cmd := Command()
	cmd.SetArgs([]string{"--only", "nix"})
	cmd.SetOut(io.Discard)
	cmd.SetErr(io.Discard)
	if err := cmd.ExecuteContext(context.Background()); err == nil || !strings.Contains(err.Error(), "copies, bitmap, store, nbd, spread, crash, boot") {
		t.Error(err)
	}
}
