package hostagent

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
)

// program builds the agent.
func program(t *testing.T) string {
	t.Helper()
	agent := filepath.Join(t.TempDir(), "heliotrope-agent")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", agent, "heliotrope/cmd/heliotrope-agent").CombinedOutput(); err != nil {
		t.Fatalf("build agent: %v: %s", err, out)
	}
	return agent
}

// store gives a host an image store, and has its agent begin anew with it.
func (h *testHost) store(agent, store string) {
	h.life.Lock()
	h.config.ImageStore, h.config.ImageCache = store, 1<<30
	h.config.disks = func() *exec.Cmd {
		cmd := h.config.diskServer()
		cmd.Path, cmd.Stderr = agent, nil
		log, err := os.OpenFile(filepath.Join(h.config.RunDir, "disks.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			cmd.Stderr = log
		}
		return cmd
	}
	dead := h.dead
	h.life.Unlock()
	h.kill()
	<-dead
}

// chain is what hosts of these names are told of each other.
func (w *world) chain(hosts ...heliotrope.HostID) (all []agentapi.ImagePeer) {
	for _, h := range hosts {
		all = append(all, agentapi.ImagePeer{Host: h, Relay: w.hosts[h].relay})
	}
	return all
}

// pull orders a host to get an image.
func (w *world) pull(h heliotrope.HostID, image string, chain []agentapi.ImagePeer) {
	w.t.Helper()
	err := w.insist(h, func(ctx context.Context, a *agentapi.Agent) error {
		_, err := a.PullImage(ctx, agentapi.PullOrder{Term: 1, Image: image, Chain: chain})
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// came waits until a host has more than so many bytes of its image, or all.
func (w *world) came(h heliotrope.HostID, bytes int64) agentapi.ImageStatus {
	w.t.Helper()
	for {
		s := w.images(h)
		if len(s.Caches) == 1 && (s.Caches[0].Here > bytes || s.Caches[0].Here == s.Caches[0].Bytes) {
			return s
		}
		if pause(w.ctx, 5*time.Millisecond); w.ctx.Err() != nil {
			w.t.Fatalf("%s has %+v", h, s)
		}
	}
}

// An image that is pushed to three hosts comes from the store to the first, and from there to the others, over
// the agents' port and with the hosts' certificates. The one in the middle dies, agent and server of disks.
func TestImageIsPassedOn(t *testing.T) {
	agent, content := program(t), make([]byte, 64<<20)
	rand.NewChaCha8([32]byte{5}).Read(content)
	servers := map[heliotrope.HostID]int{}
	t.Cleanup(func() { // they outlive the agents, which would start others
		for _, pid := range servers {
			_ = syscall.Kill(pid, syscall.SIGTERM)
		}
	})
	w := newWorld(t, "c", "d")
	store := stored(t, "debian", content)
	for _, h := range w.hosts {
		h.store(agent, store)
	}
	defer func() {
		for h := range w.hosts {
			servers[h] = w.images(h).PID
		}
	}()
	all := w.chain("a", "b", "c")
	for _, h := range []heliotrope.HostID{"a", "b", "c"} {
		w.pull(h, "debian", all)
	}
	middle := w.came("b", 0)
	w.hosts["b"].kill()
	if err := syscall.Kill(middle.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	last, first := w.came("c", int64(len(content))), w.came("a", int64(len(content)))
	if size := int64(len(content)); first.Fetched != size || last.Fetched != 0 || last.FromHosts != size {
		t.Errorf("the first host has %d bytes from the store, the last %d, and %d from other hosts; want %d, 0, %d", first.Fetched, last.Fetched, last.FromHosts, size, size)
	}
	w.came("b", int64(len(content))) // its agent starts a server, which goes on

	// Who was not named gets nothing from hosts, and all from the store.
	w.pull("d", "debian", w.chain("a", "d"))
	other := w.came("d", int64(len(content)))
	if other.FromHosts != 0 || other.Fetched != int64(len(content)) {
		t.Errorf("a host that the others do not know has %d bytes from them, %d from the store", other.FromHosts, other.Fetched)
	}

	// What came is the image.
	for _, h := range []heliotrope.HostID{"c", "d"} {
		files, err := filepath.Glob(filepath.Join(w.hosts[h].config.StateDir, "vm-volumes", "caches", "*", "chunks"))
		if err != nil || len(files) != 1 {
			t.Fatalf("%s has %v, %v", h, files, err)
		}
		if got, err := os.ReadFile(files[0]); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s has something else, %v", h, err)
		}
	}
}
