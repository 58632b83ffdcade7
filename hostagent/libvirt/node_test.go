//go:build lab

package libvirt

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A node is a host of its own on this machine: the test binary runs itself again as
// PID 1 of new namespaces, with Open vSwitch and libvirt as its children. When the test
// ends, however it ends, PID 1 is killed, and with it goes everything.
type node struct {
	t     *testing.T
	name  string
	pid   int
	agent *rpc.Client
}

const (
	roleEnv = "HELIOTROPE_TEST_ROLE"
	nameEnv = "HELIOTROPE_TEST_NODE"
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "init":
		fmt.Fprintln(os.Stderr, runInit(os.Getenv(nameEnv)))
		os.Exit(1)
	case "agent":
		fmt.Fprintln(os.Stderr, runAgent())
		os.Exit(1)
	}
}

// startNode starts a host named name and waits until its daemons answer.
func startNode(t *testing.T, name string) *node {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), roleEnv+"=init", nameEnv+"="+name, "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start node %s: %v", name, err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		t.Fatalf("start node %s: said %q, %v", name, line, err)
	}
	n := &node{t: t, name: name, pid: cmd.Process.Pid}
	if n.agent, err = rpc.Dial("unix", n.path(agentSocket)); err != nil {
		t.Fatalf("reach node %s: %v", name, err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			n.showLogs()
		}
		n.agent.Close()
	})
	n.call("Dial", nothing, nil)
	return n
}

// showLogs prints what the node's daemons said last.
func (n *node) showLogs() {
	for _, log := range []string{"/var/log/exe.log", "/var/log/libvirtd.log", "/var/log/libvirt/qemu/" + string(testVM) + ".log"} {
		text, err := os.ReadFile(n.path(log))
		if err != nil {
			continue
		}
		n.t.Logf("%s %s: ...%s", n.name, log, text[max(0, len(text)-3000):])
	}
}

// agentLog is what the node's agent has said.
func (n *node) agentLog() string {
	n.t.Helper()
	text, err := os.ReadFile(n.path("/var/log/exe.log"))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}

// call has the node's agent do something that must succeed.
func (n *node) call(method string, args, reply any) {
	n.t.Helper()
	if err := n.try(method, args, reply); err != nil {
		n.t.Fatalf("%s at %s: %v", method, n.name, err)
	}
}

func (n *node) try(method string, args, reply any) error {
	if reply == nil {
		reply = new(none)
	}
	return n.agent.Call("Agent."+method, args, reply)
}

// path is where a file of the node is seen from outside.
func (n *node) path(p string) string { return fmt.Sprintf("/proc/%d/root%s", n.pid, p) }

// runInit is PID 1 of a node.
func runInit(name string) error {
	if err := setupNode(name); err != nil {
		return err
	}
	// A dead QEMU is an orphan; one that nobody reaps makes libvirt report the end of a
	// move seconds late.
	orphans := make(chan os.Signal, 64)
	signal.Notify(orphans, syscall.SIGCHLD)
	for _, argv := range [][]string{
		{"virtlogd", "-f", "/etc/libvirt/virtlogd.conf"},
		{"libvirtd", "-f", "/etc/libvirt/libvirtd.conf"},
	} {
		if err := spawn(argv, os.Environ(), nil); err != nil {
			return err
		}
	}
	if err := waitSocket("/run/libvirt/libvirt-sock"); err != nil {
		return err
	}
	os.Setenv(roleEnv, "agent")
	os.Setenv("GORACE", "halt_on_error=1") // or nobody would learn of it
	if err := spawn([]string{"/proc/self/exe", "-test.run=^$"}, os.Environ(), nil); err != nil {
		return err
	}
	if err := waitSocket(agentSocket); err != nil {
		return err
	}
	fmt.Println("ready")
	for range orphans {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
	return errors.New("end of signals")
}

// spawn starts a child that only the reaper waits for.
func spawn(argv, env []string, files []*os.File) error {
	program, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	log, err := os.OpenFile("/var/log/"+filepath.Base(argv[0])+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	attr := &os.ProcAttr{Env: env, Files: append([]*os.File{nil, log, log}, files...)}
	if _, err := os.StartProcess(program, argv, attr); err != nil {
		return fmt.Errorf("start %s: %w", argv[0], err)
	}
	return nil
}

func waitSocket(path string) error {
	var err error
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		var conn net.Conn
		if conn, err = net.Dial("unix", path); err == nil {
			return conn.Close()
		}
		<-tick.C
	}
	return err
}

func setupNode(name string) error {
	if err := syscall.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, dir := range []string{"/run", "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log"} {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	for _, dir := range []string{"/proc", "/sys"} {
		kind := map[string]string{"/proc": "proc", "/sys": "sysfs"}[dir]
		if err := syscall.Mount(kind, dir, kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	for _, dir := range []string{"/run/libvirt", "/run/openvswitch", "/run/heliotrope", "/var/log/heliotrope", "/run/disks"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	hostUUID := fmt.Sprintf("00000000-0000-4000-8000-%012x", name)
	for path, content := range map[string]string{
		"/etc/libvirt/qemu.conf": "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\n" +
			"cgroup_controllers = []\nnamespaces = []\nremember_owner = 0\n",
		"/etc/libvirt/libvirtd.conf": "host_uuid = \"" + hostUUID[:36] + "\"\nauth_unix_rw = \"none\"\n" +
			"log_outputs = \"2:stderr\"\n",
		"/etc/libvirt/virtlogd.conf": "",
		"/run/hosts":                 "127.0.0.1 localhost " + name + "\n",
		"/run/nsswitch":              "hosts: files\n",
	} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	for from, to := range map[string]string{"/run/hosts": "/etc/hosts", "/run/nsswitch": "/etc/nsswitch.conf"} {
		if err := syscall.Mount(from, to, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", to, err)
		}
	}
	return startSwitch()
}

func startSwitch() error {
	const db = "/run/openvswitch/conf.db"
	for _, argv := range [][]string{
		{"sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6"}, // flood-free, as in the field
		{"ip", "link", "set", "lo", "up"},
		{"ovsdb-tool", "create", db, "/usr/share/openvswitch/vswitch.ovsschema"},
		{"ovsdb-server", "--detach", "--no-chdir", "--pidfile", "--log-file=/var/log/ovsdb.log", "--remote=punix:/run/openvswitch/db.sock", db},
		{"ovs-vsctl", "--no-wait", "init"},
		{"ovs-vswitchd", "--detach", "--no-chdir", "--pidfile", "--log-file=/var/log/vswitchd.log", "unix:/run/openvswitch/db.sock"},
		{"ovs-vsctl", "add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev"},
		{"ip", "link", "set", "br-int", "up"},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("run %s: %w: %s", strings.Join(argv, " "), err, out)
		}
	}
	return nil
}
