package bgp

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"heliotrope/internal/reconcile"
)

// The tests run in a network and mount namespace of their own, so that nothing they make
// outlives them. A second copy of the test binary is the speaker that gets killed.
const (
	inNamespace = "HELIOTROPE_BGP_TEST_NAMESPACE"
	asSpeaker   = "HELIOTROPE_BGP_TEST_SPEAKER"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asSpeaker) != "":
		if err := speakUntilKilled(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case os.Getenv(inNamespace) != "":
		if err := setUpNamespace(); err != nil {
			fmt.Fprintln(os.Stderr, "set up namespace:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	default:
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), inNamespace+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "run tests in a network namespace (root needed):", err)
			os.Exit(1)
		}
	}
}

func setUpNamespace() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil { // for ip netns and bird
		return fmt.Errorf("mount /run: %w", err)
	}
	return exec.Command("ip", "link", "set", "lo", "up").Run()
}

const as = 65000

var (
	controllerAddr = netip.MustParseAddr("10.99.0.1")
	routerAddr     = netip.MustParseAddr("10.99.0.2")
	public         = netip.MustParseAddr("198.51.100.7")
	hostHere       = netip.MustParseAddr("10.1.0.21") // on the router's own LAN
	hostThere      = netip.MustParseAddr("10.2.0.21") // behind its static route
)

const birdConfig = `
log %q all;
router id 10.99.0.2;
graceful restart wait 10;
protocol device { scan time 5; }
protocol direct { ipv4; }
protocol static { ipv4; route 10.2.0.0/24 via 10.1.0.254; }
protocol kernel {
  graceful restart yes;
  ipv4 { import none; export where source ~ [ RTS_BGP, RTS_STATIC ]; };
}
protocol bgp heliotrope {
  local 10.99.0.2 as 65000;
  neighbor 10.99.0.1 as %d;
  %s
  graceful restart yes;
  long lived graceful restart yes;
  error wait time 1, 2;
  ipv4 { import all; export %s; gateway recursive; };
}
`

// router is a namespace with a LAN, a kernel table and a real BIRD.
type router struct {
	t    *testing.T
	ns   string
	dir  string
	bird *exec.Cmd
}

func startRouter(t *testing.T, asn int, options, export string) *router {
	t.Helper()
	r := &router{t: t, ns: fmt.Sprintf("hlt-bgp-%d", os.Getpid()), dir: t.TempDir()}
	run(t, "ip", "netns", "add", r.ns)
	t.Cleanup(func() {
		run(t, "ip", "link", "del", "c0")
		run(t, "ip", "netns", "del", r.ns)
	})
	for _, args := range []string{
		"link add c0 type veth peer name r0 netns " + r.ns,
		"addr add 10.99.0.1/24 dev c0", "link set c0 up",
		"-n " + r.ns + " addr add 10.99.0.2/24 dev r0", "-n " + r.ns + " link set r0 up",
		"-n " + r.ns + " link set lo up",
		"-n " + r.ns + " link add lan type veth peer name lan-far",
		"-n " + r.ns + " addr add 10.1.0.1/24 dev lan", "-n " + r.ns + " link set lan up", "-n " + r.ns + " link set lan-far up",
	} {
		run(t, "ip", strings.Fields(args)...)
	}
	conf := fmt.Sprintf(birdConfig, filepath.Join(r.dir, "bird.log"), asn, options, export)
	if err := os.WriteFile(filepath.Join(r.dir, "bird.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	r.startBIRD()
	t.Cleanup(func() { kill(r.bird) })
	return r
}

func (r *router) startBIRD() {
	r.t.Helper()
	r.bird = exec.Command("ip", "netns", "exec", r.ns, "bird", "-f", "-R", "-c", filepath.Join(r.dir, "bird.conf"),
		"-s", filepath.Join(r.dir, "ctl"), "-P", filepath.Join(r.dir, "pid"))
	r.bird.Stdout, r.bird.Stderr = r.t.Output(), r.t.Output()
	if err := r.bird.Start(); err != nil {
		r.t.Fatal(err)
	}
	eventually(r.t, "BIRD answers", func() error {
		_, err := net.Dial("unix", filepath.Join(r.dir, "ctl"))
		return err
	})
}

func (r *router) birdc(command string) string {
	r.t.Helper()
	return run(r.t, "birdc", "-s", filepath.Join(r.dir, "ctl"), command)
}

// via returns the gateway of the kernel's /32 to a, empty where there is no such route.
func (r *router) via(a netip.Addr) string {
	r.t.Helper()
	var routes []struct{ Dst, Gateway string }
	out := run(r.t, "ip", "-j", "-n", r.ns, "route", "show", "exact", a.String()+"/32")
	if err := json.Unmarshal([]byte(out), &routes); err != nil {
		r.t.Fatalf("ip route: %v: %s", err, out)
	}
	if len(routes) == 0 {
		return ""
	}
	return routes[0].Gateway
}

// reaches waits until the kernel's route to a is via gateway.
func (r *router) reaches(a netip.Addr, gateway string) time.Duration {
	r.t.Helper()
	return eventually(r.t, fmt.Sprintf("route to %v via %q", a, gateway), func() error {
		if got := r.via(a); got != gateway {
			return fmt.Errorf("via %q", got)
		}
		return nil
	})
}

// events records the kernel's route changes until the returned function is called.
func (r *router) events() (stop func() []string) {
	r.t.Helper()
	cmd := exec.Command("ip", "-4", "-ts", "-n", r.ns, "monitor", "route")
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	var lines []string
	var mu sync.Mutex
	done := make(chan struct{})
	go func() {
		defer close(done)
		for in := bufio.NewScanner(out); in.Scan(); {
			mu.Lock()
			lines = append(lines, in.Text())
			mu.Unlock()
		}
	}()
	has := func(mark string) bool {
		mu.Lock()
		defer mu.Unlock()
		return strings.Contains(strings.Join(lines, "\n"), mark)
	}
	eventually(r.t, "monitor listens", func() error {
		run(r.t, "ip", "-n", r.ns, "route", "replace", "192.0.2.1/32", "dev", "lan")
		run(r.t, "ip", "-n", r.ns, "route", "del", "192.0.2.1/32", "dev", "lan")
		if !has("192.0.2.1") {
			return io.EOF
		}
		return nil
	})
	return func() []string {
		r.t.Helper()
		run(r.t, "ip", "-n", r.ns, "route", "replace", "192.0.2.2/32", "dev", "lan")
		eventually(r.t, "monitor catches up", func() error {
			if !has("192.0.2.2") {
				return io.EOF
			}
			return nil
		})
		kill(cmd)
		<-done
		var ours []string
		for _, l := range lines {
			if !strings.Contains(l, "192.0.2.") {
				ours = append(ours, l)
			}
		}
		return ours
	}
}

// speak runs a speaker in this process until the test ends or stop is called.
func speak(t *testing.T, c Config) (s *Speaker, stop func()) {
	t.Helper()
	c.AS, c.RouterID = as, controllerAddr
	c.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("Run: got %v, want %v", err, context.Canceled)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

// want makes routes the only ones announced, in one round, and opens the sessions.
func want(ctx context.Context, s *Speaker, routes map[string]Route) (changes int, err error) {
	loop := reconcile.New(s.Target(), func(context.Context) (map[string]Route, error) { return routes, nil }, Equal, reconcile.Options{})
	if changes, err = loop.Round(ctx); err == nil {
		s.Ready()
	}
	return changes, err
}

// speakUntilKilled is the speaker that TestKilledSpeaker kills.
func speakUntilKilled() error {
	ctx := context.Background()
	s, err := New(Config{AS: as, RouterID: controllerAddr})
	if err != nil {
		return err
	}
	go func() {
		routes := map[string]Route{}
		for i := range 20 {
			routes[Key(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}))] = Route{NextHop: hostHere, Epoch: 1}
		}
		err := s.SetPeers(ctx, []Peer{{Address: routerAddr, AS: as}, {Address: netip.MustParseAddr("10.99.0.77"), AS: as}}) // one is not there
		if _, err2 := want(ctx, s, routes); err != nil || err2 != nil {
			fmt.Fprintln(os.Stderr, err, err2)
			os.Exit(1)
		}
	}()
	return s.Run(ctx)
}

func startSpeaker(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asSpeaker+"=1")
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	return cmd
}

func kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill() // it may be dead already
	_ = cmd.Wait()
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// eventually asks until check is content, for 15 s at most, and returns how long it took.
func eventually(t *testing.T, what string, check func() error) time.Duration {
	t.Helper()
	start := time.Now()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return time.Since(start)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within 15 s: %v", what, err)
		}
	}
}
