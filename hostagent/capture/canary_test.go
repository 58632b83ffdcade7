//go:build lab

package capture

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"heliotrope/scheduler/traffic"
)

const (
	canaryEnv  = "HELIOTROPE_TEST_CANARY"
	canaryTo   = "10.0.0.2:4000"
	canaryMask = 0x5a
	canarySize = 64 // all of it within the snap length
)

// What packets carry is nowhere in this process but in the rings. Only another process
// has the canary itself; here it is masked.
func TestCanary(t *testing.T) {
	if masked := os.Getenv(canaryEnv); masked != "" {
		sendCanary(t, masked)
		return
	}
	masked := make([]byte, canarySize)
	rand.Read(masked)
	for _, source := range bothSources {
		t.Run(string(source), func(t *testing.T) {
			s := newSite(t, "h1")
			a, b := s.plug(t, 1), s.plug(t, 2)
			c := s.watch(t, orders(source, 1, a, b))
			seq := c.now(t)
			err := a.inside(func() error {
				child := exec.Command(os.Args[0], "-test.run=^TestCanary$")
				child.Env = append(os.Environ(), canaryEnv+"="+hex.EncodeToString(masked))
				out, err := child.CombinedOutput()
				if err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			sum := c.sum(t, seq)
			k := traffic.Key{Src: traffic.VM("vm1"), Dst: traffic.VM("vm2"), Service: traffic.Service{Protocol: traffic.UDP, Port: 4000}}
			if n := sum.counts[k]; n.Packets != 100 {
				t.Errorf("got %+v, want 100 packets", n)
			}
			bins, _ := c.after(0)
			for _, bin := range bins {
				text, err := json.Marshal(bin)
				if err != nil {
					t.Fatal(err)
				}
				if has(text, masked) {
					t.Error("the canary is in a bin")
				}
			}
			// The rings come last: reading them makes a copy here.
			if at := search(t, masked, false); at != "" {
				t.Errorf("the canary is in %s", at)
			}
			if at := search(t, masked, true); at == "" && source == traffic.SourcePackets {
				t.Error("the canary is not even in the rings: this test finds nothing")
			}
		})
		// The copy of a ring that was found must not be found by the next one.
		rand.Read(masked)
	}
}

func sendCanary(t *testing.T, text string) {
	canary, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	for i := range canary {
		canary[i] ^= canaryMask
	}
	conn, err := net.DialTimeout("udp", canaryTo, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for sent := 0; sent < 100; {
		if _, err := conn.Write(canary); err == nil { // nobody listens: an error is of one before
			sent++
		}
	}
}

// search looks for the canary in this process's writable memory: in the rings or in all
// the rest. It returns the mapping that has it.
func search(t *testing.T, masked []byte, rings bool) string {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	block := make([]byte, 1<<20)
	for lines := bufio.NewScanner(bytes.NewReader(maps)); lines.Scan(); {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil {
			t.Fatal(err)
		}
		if mode[1] != 'w' || strings.Contains(lines.Text(), "socket:") != rings {
			continue
		}
		for at := from; at < to; at += uint64(len(block) - canarySize) { // they overlap
			n, _ := memory.ReadAt(block[:min(uint64(len(block)), to-at)], int64(at))
			if has(block[:n], masked) {
				return lines.Text()
			}
		}
	}
	return ""
}

// has says whether a third of the canary is in b, without making a copy of it.
func has(b, masked []byte) bool {
	const part = canarySize / 3
	for start := 0; start+part <= canarySize; start += part {
		first := masked[start] ^ canaryMask
		for i := 0; i+part <= len(b); i++ {
			j := bytes.IndexByte(b[i:len(b)-part+1], first)
			if j < 0 {
				break
			}
			i += j
			same := 1
			for same < part && b[i+same] == masked[start+same]^canaryMask {
				same++
			}
			if same == part {
				return true
			}
		}
	}
	return false
}
