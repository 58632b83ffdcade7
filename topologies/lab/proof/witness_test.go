//go:build lab

package proof

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/topologies/lab"
)

// hypervisor asks one host's libvirt for a VM's state, over a virsh that stays.
type hypervisor struct {
	in  io.Writer
	out *bufio.Reader
}

// state is libvirt's word, "absent" where there is no such domain.
func (h hypervisor) state() (string, error) {
	if _, err := fmt.Fprintf(h.in, "domstate %s\nuri\n", web); err != nil {
		return "", err
	}
	state := "absent"
	for {
		line, err := h.out.ReadString('\n')
		if err != nil {
			return "", err
		}
		line = strings.TrimSpace(line)
		switch {
		case line == "qemu:///system":
			return state, nil
		case line == "" || strings.HasPrefix(line, "virsh #"):
		default:
			state = line
		}
	}
}

// witness looks at web's QEMUs at both ends in turn until the test ends, and fails it if
// both run: here, there and here again, with no other state in between.
func witness(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	group, ctx := errgroup.WithContext(ctx)
	var both [2]hypervisor
	for i, host := range []heliotrope.HostID{here, there} {
		inR, inW := io.Pipe()
		outR, outW := io.Pipe()
		both[i] = hypervisor{inW, bufio.NewReader(outR)}
		group.Go(func() error {
			_, err := lab.Exec(ctx, world.target, string(host), []string{"virsh", "-q", "-c", "qemu:///system"}, lab.Stdio{In: inR, Out: outW})
			inR.CloseWithError(io.EOF)
			outW.CloseWithError(io.EOF)
			return err
		})
		context.AfterFunc(ctx, func() { inW.Close(); outR.Close() })
	}
	looked, ran := 0, 0
	group.Go(func() error {
		tick := time.NewTicker(25 * time.Millisecond)
		defer tick.Stop()
		running := 0 // looks in a row
		for {
			for i, h := range both {
				state, err := h.state()
				if err != nil {
					return fmt.Errorf("ask hypervisor %d: %w", i, err)
				}
				if looked++; state == "running" {
					running++
					ran++
				} else {
					running = 0
				}
				if running >= 3 {
					t.Errorf("look %d: web runs at both ends", looked)
					running = 0
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return nil
			}
		}
	})
	t.Cleanup(func() {
		if ctx.Err() != nil {
			t.Errorf("the witness went blind: %v", context.Cause(ctx))
		}
		cancel()
		group.Wait() // it ends by the loss of its pipes
		t.Logf("witness: looked %d times at web's QEMUs, of which %d ran", looked, ran)
		if ran == 0 {
			t.Error("the witness saw nothing")
		}
	})
}
