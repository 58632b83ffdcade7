package imagebench

import (
	"bytes"
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
	if err := cmd.ExecuteContext(context.Background()); err == nil || !strings.Contains(err.Error(), "store, bitmap, nbd, crash, faults, spread, boot, copies") {
		t.Error(err)
	}
}

// What is not as it may be is seen: an earlier write is lost, all else is wrong, and a block may
// be of a request that was not answered.
func TestWhatIsLostIsSeen(t *testing.T) {
	d := &disks{world: &world{}, image: bytes.Repeat([]byte{7}, diskSize), stamp: 9, possible: make([][]uint64, diskSize/diskBlock)}
	mixed := append(d.content(0, 5)[:diskBlock/2:diskBlock/2], d.content(0, 6)[diskBlock/2:]...)
	for i, c := range []struct {
		may         []uint64
		got         []byte
		lost, wrong int
	}{
		{[]uint64{5, 6}, d.content(0, 5), 0, 0},
		{[]uint64{5, 6}, d.content(0, 6), 0, 0},
		{[]uint64{stampImage}, d.content(0, stampImage), 0, 0},
		{[]uint64{6}, d.content(0, 5), 1, 0},
		{[]uint64{6}, d.content(0, stampZero), 1, 0},
		{[]uint64{6}, d.content(0, stampImage), 1, 0},
		{[]uint64{5, 6}, mixed, 0, 1},
		{[]uint64{6}, d.content(1, 6), 0, 1},
	} {
		d.verdict, d.possible[0] = verdict{}, c.may
		d.lookAt(0, c.got)
		if len(d.lost) != c.lost || len(d.wrong) != c.wrong || len(d.possible[0]) != 1 {
			t.Errorf("%d: lost %v, wrong %v", i, d.lost, d.wrong)
		}
	}
}
