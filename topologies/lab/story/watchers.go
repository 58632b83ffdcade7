package story

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"heliotrope/topologies/lab"
)

// visitor asks the guest for its own account of itself, from the client's network.
type visitor struct {
	pid   int
	guest netip.Addr
}

// account is what the guest says.
type account struct {
	Ticks struct {
		BootID  string `json:"boot_id"`
		Ticks   int64  `json:"ticks"`
		Resumes int64  `json:"resumes"`
	}
	Memory struct {
		Pages int `json:"pages"`
		Bad   int `json:"bad"`
	}
	Disk struct {
		Records uint64 `json:"records"`
		LastSeq uint64 `json:"last_seq"`
		Bad     int    `json:"bad"`
	}
}

func (v *visitor) account(ctx context.Context) (account, error) {
	var a account
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for path, into := range map[string]any{"/ticks": &a.Ticks, "/checksum": &a.Memory, "/disk": &a.Disk} {
		if err := v.ask(ctx, path, into); err != nil {
			return a, err
		}
	}
	return a, nil
}

// ask reads one of the guest's pages.
func (v *visitor) ask(ctx context.Context, path string, into any) error {
	client := &http.Client{Transport: &http.Transport{DialContext: v.dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+v.guest.String()+path, nil)
	if err != nil {
		return fmt.Errorf("ask guest: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask guest: %w", err)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	err = errors.Join(err, resp.Body.Close())
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		return fmt.Errorf("read guest's answer to %s: %w", path, err)
	}
	return nil
}

// dial connects from the client's network namespace. A socket belongs to the namespace in
// which it was made, so the thread may go home afterwards.
func (v *visitor) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = inside(v.pid, func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// inside runs f on a thread that is in the network namespace of process pid.
func inside(pid int, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("open own namespace: %w", err)
	}
	defer home.Close()
	there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return fmt.Errorf("open namespace of process %d: %w", pid, err)
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace of process %d: %w", pid, err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked and ends with its goroutine.
		return errors.Join(err, fmt.Errorf("leave namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// guestChange is what a move did to the guest.
type guestChange struct {
	Continuous bool  `json:"continuous"` // the same boot, and its ticks went on
	Ticks      int64 `json:"ticks"`      // since before the move, 100 a second while it ran
	BadPages   int   `json:"bad_pages"`
	Pages      int   `json:"pages"`
	BadRecords int   `json:"bad_records"`
	Records    int   `json:"records"`
}

func compare(before, after account) guestChange {
	return guestChange{
		Continuous: before.Ticks.BootID == after.Ticks.BootID && after.Ticks.Ticks > before.Ticks.Ticks,
		Ticks:      after.Ticks.Ticks - before.Ticks.Ticks,
		BadPages:   after.Memory.Bad, Pages: after.Memory.Pages,
		BadRecords: after.Disk.Bad, Records: int(after.Disk.Records),
	}
}

func (g guestChange) String() string {
	if g.Continuous && g.BadPages == 0 && g.BadRecords == 0 {
		return fmt.Sprintf("intact (%d pages, %d records)", g.Pages, g.Records)
	}
	return fmt.Sprintf("DAMAGED: same boot %t, %d bad pages, %d bad records", g.Continuous, g.BadPages, g.BadRecords)
}

// routers notes when the kernel of each router changed its route to the VM.
type routers struct {
	done  chan struct{}
	group sync.WaitGroup
	mu    sync.Mutex
	last  map[string]time.Time
}

func listenRouters(status lab.Status, public netip.Addr) (*routers, error) {
	r := &routers{done: make(chan struct{}), last: make(map[string]time.Time)}
	for _, n := range status.Nodes {
		if n.Kind != lab.KindRouter {
			continue
		}
		if err := r.listen(n, public); err != nil {
			r.close()
			return nil, fmt.Errorf("listen to routes of %s: %w", n.Name, err)
		}
	}
	return r, nil
}

func (r *routers) listen(n lab.NodeStatus, public netip.Addr) error {
	ns, err := netns.GetFromPid(n.PID)
	if err != nil {
		return err
	}
	defer ns.Close()
	updates := make(chan netlink.RouteUpdate, 64)
	if err := netlink.RouteSubscribeWithOptions(updates, r.done, netlink.RouteSubscribeOptions{Namespace: &ns}); err != nil {
		return err
	}
	r.group.Go(func() {
		for u := range updates {
			at := time.Now()
			if u.Type == unix.RTM_NEWROUTE && u.Dst != nil && u.Dst.IP.String() == public.String() {
				r.mu.Lock()
				r.last[n.Name] = at
				r.mu.Unlock()
			}
		}
	})
	return nil
}

// convergedAfter is how long after t the last router changed its route, in milliseconds; 0
// when none did.
func (r *routers) convergedAfter(t time.Time) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	longest := time.Duration(0)
	for _, at := range r.last {
		longest = max(longest, at.Sub(t))
	}
	return float64(longest.Microseconds()) / 1000
}

func (r *routers) close() {
	close(r.done)
	r.group.Wait()
}
