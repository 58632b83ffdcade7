package imagebench

import (
	"flag"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

// All of it runs, however quick this machine is today; every feature is seen.
func TestNBDPart(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b := nbdBench{Say: t.Logf, Dir: t.TempDir(), Serve: []string{self, "-test.run=^TestServeNBD$", "--"}, Image: 8 << 20, Time: 20 * time.Millisecond, Rounds: 1}
	claims, figures, err := b.measure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if rows, ok := figures.([]nbdFigures); !ok || len(rows) != len(workloads)+1 || rows[0].Ours == 0 || rows[0].Nbdkit == 0 {
		t.Errorf("%+v", figures)
	}
	for _, c := range claims {
		if strings.HasPrefix(c.Name, "nbdinfo") && !c.Holds {
			t.Errorf("%s does not hold", c.Name)
		}
	}
}

// TestServeNBD is the server's process of the test above. By itself it does nothing.
func TestServeNBD(t *testing.T) {
	if flag.NArg() != 2 {
		return
	}
	ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGTERM)
	defer stop()
	if err := serveNBD(ctx, flag.Arg(0), flag.Arg(1)); err != nil {
		t.Fatal(err)
	}
}
