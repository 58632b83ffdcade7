package ovsdb

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"heliotrope/internal/reconcile"
)

// openvswitch is a real ovsdb-server and ovs-vswitchd in a directory of their own, with the
// dummy datapath, which needs no privilege.
type openvswitch struct {
	t      *testing.T
	dir    string // short: unix socket paths are
	server *exec.Cmd
}

func startOVS(t *testing.T) *openvswitch {
	t.Helper()
	dir, err := os.MkdirTemp("", "hlt-ovs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	o := &openvswitch{t: t, dir: dir}
	o.run("ovsdb-tool", "create", o.path("conf.db"), "/usr/share/openvswitch/vswitch.ovsschema")
	o.startServer()
	o.vsctl("--no-wait", "init")
	o.daemon("ovs-vswitchd", "unix:"+o.path("db.sock"), "--enable-dummy", "--unixctl="+o.path("vswitchd.ctl"))
	o.vsctl("--timeout=10", "add-br", "br-phy", "--", "set", "bridge", "br-phy", "datapath_type=dummy")
	return o
}

func (o *openvswitch) path(name string) string { return filepath.Join(o.dir, name) }

func (o *openvswitch) startServer() {
	o.t.Helper()
	os.Remove(o.path("db.sock"))
	o.server = o.daemon("ovsdb-server", o.path("conf.db"), "--remote=punix:"+o.path("db.sock"), "--unixctl="+o.path("server.ctl"))
	eventually(o.t, "ovsdb-server listens", func() error {
		c, err := net.Dial("unix", o.path("db.sock"))
		if err == nil {
			c.Close()
		}
		return err
	})
}

func (o *openvswitch) env() []string {
	return append(os.Environ(), "OVS_RUNDIR="+o.dir, "OVS_LOGDIR="+o.dir, "OVS_DBDIR="+o.dir, "OVS_SYSCONFDIR="+o.dir)
}

// daemon starts a program that lives until the test ends.
func (o *openvswitch) daemon(name string, args ...string) *exec.Cmd {
	o.t.Helper()
	args = append(args, "-vconsole:off", "-vfile:info", "--log-file="+o.path(name+".log"), "--no-chdir")
	cmd := exec.Command(name, args...)
	cmd.Env = o.env()
	if err := cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { kill(cmd) })
	return cmd
}

func kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill() // it may be dead already
	_ = cmd.Wait()
}

func (o *openvswitch) run(name string, args ...string) string {
	o.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = o.env()
	out, err := cmd.CombinedOutput()
	if err != nil {
		o.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (o *openvswitch) vsctl(args ...string) string {
	o.t.Helper()
	return o.run("ovs-vsctl", append([]string{"--db=unix:" + o.path("db.sock")}, args...)...)
}

func (o *openvswitch) connect(opts Options) *Switch {
	o.t.Helper()
	conn, err := net.Dial("unix", o.path("db.sock"))
	if err != nil {
		o.t.Fatal(err)
	}
	s, err := Connect(o.t.Context(), conn, opts)
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(s.Close)
	return s
}

// keep runs the reconcile loop over s until the returned function is called; the loop is
// kicked by changes alone, so that a missed one shows.
func keep(t *testing.T, o *openvswitch, opts Options, want Want) (*Switch, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	kick := make(chan struct{}, 1)
	opts.OnChange = func() {
		select {
		case kick <- struct{}{}:
		default:
		}
	}
	s := o.connect(opts)
	loop := reconcile.New(s.Target(), func(ctx context.Context) (map[string]Object, error) { return s.Wanted(ctx, want) },
		Equal, reconcile.Options{Resync: time.Hour, Done: func(r reconcile.Round) {
			if r.Err != nil && s.Err() == nil {
				t.Logf("round: %v", r.Err)
			}
		}})
	done := make(chan struct{})
	go func() {
		defer close(done)
		go func() {
			for {
				select {
				case <-kick:
					loop.Kick()
				case <-ctx.Done():
					return
				}
			}
		}()
		_ = loop.Run(ctx)
	}()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return s, stop
}

// round runs one round and returns the number of changes.
func round(t *testing.T, s *Switch, want Want) (int, error) {
	t.Helper()
	loop := reconcile.New(s.Target(), func(ctx context.Context) (map[string]Object, error) { return s.Wanted(ctx, want) },
		Equal, reconcile.Options{})
	return loop.Round(t.Context())
}

// converge runs rounds until one has nothing to do.
func converge(t *testing.T, s *Switch, want Want) {
	t.Helper()
	for range 3 {
		n, err := round(t, s, want)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return
		}
	}
	t.Fatal("three rounds, and still changes to make")
}

// eventually asks until check is content, for 10 s at most, and returns how long it took.
func eventually(t *testing.T, what string, check func() error) time.Duration {
	t.Helper()
	start := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return time.Since(start)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within 10 s: %v", what, err)
		}
	}
}

func expect(got, want string) error {
	if got != want {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}
