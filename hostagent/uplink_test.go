package hostagent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/paths"
)

const (
	insideEnv = "HELIOTROPE_TEST_INSIDE"
	routerMAC = "02:00:00:00:00:fe"
)

// TestUplink runs itself again in a network namespace, next to one that is the site's router.
func TestUplink(t *testing.T) {
	if os.Getenv(insideEnv) != "" {
		lookFromInside(t)
		return
	}
	router := exec.Command("sleep", "60")
	router.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := router.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { router.Process.Kill(); router.Wait() }()
	script := fmt.Sprintf(`set -e
		ip link set lo up
		ip link add eth0 mtu 1400 type veth peer name r0 netns %[1]d
		nsenter -t %[1]d -n ip link set r0 address %[2]s mtu 1400 up
		nsenter -t %[1]d -n ip address add 192.0.2.1/24 dev r0
		ip link set eth0 up
		ip address add 192.0.2.2/24 dev eth0
		ip route add default via 192.0.2.1
		exec %[3]s -test.run='^TestUplink$' -test.v`, router.Process.Pid, routerMAC, os.Args[0])
	inside := exec.Command("sh", "-c", script)
	inside.Env = append(os.Environ(), insideEnv+"=1")
	inside.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := inside.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestUplink") {
		t.Errorf("inside: %v\n%s", err, out)
	}
}

func lookFromInside(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	hub := newHub()
	events := hub.watch(ctx)
	u := &uplink{hub: hub}
	done := make(chan struct{})
	go func() { defer close(done); u.run(ctx) }()
	select {
	case e := <-events:
		for e.What != "gateway "+routerMAC {
			e = <-events
		}
	case <-ctx.Done():
		t.Fatal("no word of the gateway")
	}
	if mac, mtu := u.gateway(); mac.String() != routerMAC || mtu != 1400 {
		t.Errorf("gateway: got %s, MTU %d, want %s, 1400", mac, mtu, routerMAC)
	}

	ways := paths.New(nil)
	peers := map[heliotrope.HostID]netip.Addr{"router": netip.MustParseAddr("192.0.2.1"), "nobody": netip.MustParseAddr("192.0.2.9")}
	got, err := ways.Probe(ctx, agentapi.ProbeOrder{Size: 1400, Peers: peers})
	if err != nil || len(got) != 2 {
		t.Fatalf("probe: got %+v, %v", got, err)
	}
	if got[0].Peer != "nobody" || got[0].Error == "" || got[0].MTU != 0 {
		t.Errorf("probe of nobody: got %+v", got[0])
	}
	if got[1].Error != "" || got[1].MTU != 1400 || got[1].RTT <= 0 {
		t.Errorf("probe of the router: got %+v", got[1])
	}
	got, err = ways.Probe(ctx, agentapi.ProbeOrder{Size: 1401, Peers: peers})
	if err != nil || !strings.Contains(got[1].Error, "MTU") || got[1].MTU != 1400 {
		t.Errorf("a probe that is too large: got %+v, %v", got, err)
	}
	if _, err := ways.Probe(ctx, agentapi.ProbeOrder{Size: 10}); err == nil {
		t.Error("a probe of 10 bytes was made")
	}
	cancel()
	<-done
}

// A gateway that the kernel forgets is not lost, one that is replaced is.
func TestGatewayIsKept(t *testing.T) {
	u := &uplink{}
	one, two := heliotrope.MAC{2, 0, 0, 0, 0, 1}, heliotrope.MAC{2, 0, 0, 0, 0, 2}
	for _, step := range []struct {
		seen, want heliotrope.MAC
		changed    bool
	}{
		{heliotrope.MAC{}, heliotrope.MAC{}, false}, {one, one, true}, {heliotrope.MAC{}, one, false}, {one, one, false}, {two, two, true},
	} {
		changed := u.note(step.seen, 0, nil)
		if got, _ := u.gateway(); got != step.want || changed != step.changed {
			t.Errorf("after %s: got %s, changed %t, want %s, %t", step.seen, got, changed, step.want, step.changed)
		}
	}
}
