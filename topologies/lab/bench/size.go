package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/topologies"
	"heliotrope/topologies/lab"
)

// Size is what was measured at one number of hosts. Times are in seconds but where the name
// says otherwise; a time of 0 was not reached.
type Size struct {
	Hosts   int     `json:"hosts"`
	VMs     int     `json:"vms"`
	Error   string  `json:"error,omitempty"` // why the rest is missing
	Up      float64 `json:"lab_up_s"`        // daemons of all hosts started and every host joined
	Tunnels int     `json:"tunnels"`         // that stand, of hosts × (hosts − 1)
	Mesh    float64 `json:"mesh_s"`          // from the topology's PUT until all tunnels had a port and no error
	BFD     float64 `json:"bfd_s"`           // … and BFD was up on all
	BFDms   float64 `json:"bfd_interval_ms"` // between two packets of a session: more than 300 where the machine cannot carry that
	BFDUp   int     `json:"bfd_up"`          // sessions that are up at the end
	Flows   int     `json:"flows_per_host"`  // of one host
	Filled  float64 `json:"flows_s"`         // from the PUT until all hosts had all flows

	Moves     int     `json:"moves"`
	MoveP50   float64 `json:"move_p50_ms"` // from an owner's commit until all switches had acknowledged the flows
	MoveP99   float64 `json:"move_p99_ms"`
	CommitP50 float64 `json:"commit_p50_ms"` // the store's part of that
	MoveCPU   float64 `json:"move_cpu_ms"`   // of the controller, for one change at all hosts
	Wrong     int     `json:"flows_wrong"`   // wanted and not there, or there and not wanted, at the end

	RSSIdle    float64 `json:"controller_rss_idle_mib"`
	RSSPeak    float64 `json:"controller_rss_peak_mib"`
	CPUIdle    float64 `json:"controller_cpu_idle"` // cores, while nothing happens
	HostIdle   float64 `json:"host_cpu_idle"`       // cores of all hosts' daemons together, while nothing happens
	HostMemory float64 `json:"host_pss_mib"`        // of one host's daemons and agent, shared pages shared out
}

const (
	sizeLimit  = 5 * time.Minute
	agents     = time.Minute       // for everything to come up
	meshLimit  = 200 * time.Second // for the mesh, BFD included
	movesLimit = 100 * time.Second // after that, it is those that were made
	idleFor    = 5 * time.Second   // looked at for the idle figures
	settleFor  = 3 * time.Second   // left alone before that
	bfdPerCPU  = 1500              // BFD packets a second, of all hosts together, for each CPU of the machine
	checkHosts = 10                // whose flow tables are compared with what is wanted at the end
)

// run is the measurement of one size.
type run struct {
	*Fabric
	size   Size
	top    heliotrope.Topology
	target lab.Target
	dir    string // the controller's, as seen from here
	api    *api.Client
	mover  mover
	ctl    process
	hosts  []int // PID 1s of the hosts' nodes
}

// measure brings n hosts up, measures, and takes them down.
func (f *Fabric) measure(ctx context.Context, n int) Size {
	r := &run{Fabric: f, size: Size{Hosts: n, VMs: n * vmsPerHost}, top: fabric(n), target: lab.Target{Name: fmt.Sprintf("%s-%d", f.Name, n)}}
	limited, stop := context.WithTimeoutCause(ctx, sizeLimit, fmt.Errorf("not done after %v", sizeLimit))
	defer stop()
	err := r.all(limited)
	down, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err = errors.Join(err, lab.Down(down, r.target)); err != nil {
		r.size.Error = err.Error()
		f.say("%d hosts: %v", n, err)
	}
	return r.size
}

func (r *run) all(ctx context.Context) error {
	if err := r.up(ctx); err != nil {
		return err
	}
	defer r.api.Close()
	defer r.mover.close()
	if err := r.mesh(ctx); err != nil {
		return errors.Join(err, r.idle(ctx)) // what it costs is of interest all the more
	}
	for _, step := range []func(context.Context) error{r.moves, r.idle, r.verify} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// up starts the lab. Its hosts have all joined when it returns.
func (r *run) up(ctx context.Context) error {
	r.say("%d hosts: starting them", r.size.Hosts)
	text, err := topologies.Marshal(seed(r.top))
	if err != nil {
		return err
	}
	file, err := os.CreateTemp("", "heliotrope-bench-*.yaml")
	if err != nil {
		return fmt.Errorf("write topology: %w", err)
	}
	defer os.Remove(file.Name())
	_, err = file.Write(text)
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("write topology: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	began := time.Now()
	err = lab.Up(ctx, lab.Options{Topology: r.top, TopologyFile: file.Name(), Name: r.target.Name, WithoutLibvirt: true,
		Images: map[string]string{}, Patience: agents, Controller: []string{self, "lab", commandName, "controller", "--bfd", r.bfd().String()}})
	if err != nil {
		return err
	}
	r.size.BFDms = ms(r.bfd())
	r.size.Up = time.Since(began).Seconds()
	status, err := lab.Read(ctx, r.target)
	if err != nil {
		return err
	}
	r.dir = filepath.Join(status.Dir, "controller")
	r.api, r.mover = api.NewUnixClient(filepath.Join(r.dir, "api.sock")), newMover(r.dir)
	for _, n := range status.Nodes {
		if n.Kind == lab.KindHost {
			r.hosts = append(r.hosts, n.PID)
		}
	}
	node, _ := status.Node("controller")
	i := slices.IndexFunc(node.Daemons, func(d lab.DaemonStatus) bool { return d.Name == "controller" })
	if i < 0 {
		return errors.New("the lab has no controller")
	}
	r.ctl = process{node.PID, node.Daemons[i].PID}
	return nil
}

// bfd is the controller's default, or what the machine can carry: each packet costs its
// hosts some 0.3 ms.
func (r *run) bfd() time.Duration {
	sessions := r.size.Hosts * (r.size.Hosts - 1)
	return max(300*time.Millisecond, time.Duration(sessions)*time.Second/time.Duration(bfdPerCPU*runtime.NumCPU())).Round(time.Millisecond)
}

func (r *run) apply(ctx context.Context, t heliotrope.Topology) (int64, error) {
	text, err := topologies.Marshal(t)
	if err != nil {
		return 0, err
	}
	plan, err := r.api.ApplyTopology(ctx, text, -1)
	return plan.Revision, err
}

// mesh measures how long the tunnels and flows take once the controller has the topology.
func (r *run) mesh(ctx context.Context) error {
	n := r.size.Hosts
	began := time.Now()
	rev, err := r.apply(ctx, r.top)
	if err != nil {
		return err
	}
	var filling errgroup.Group
	err = r.until(ctx, "the mesh", func() (bool, error) {
		m, err := r.api.Mesh(ctx)
		if err != nil {
			return false, err
		}
		r.size.Tunnels, r.size.BFDUp = count(m)
		now := time.Since(began)
		if r.size.Mesh == 0 && r.size.Tunnels == n*(n-1) {
			r.size.Mesh = now.Seconds()
			filling.Go(func() error { // flows to a host are made once there is a port to it
				err := r.api.AwaitFlows(ctx, rev)
				r.size.Filled = time.Since(began).Seconds()
				return err
			})
		}
		if r.size.BFD == 0 && r.size.BFDUp == n*(n-1) {
			r.size.BFD = now.Seconds()
		}
		return r.size.BFD != 0 || now > meshLimit, nil
	})
	if err = errors.Join(err, filling.Wait()); err != nil {
		return err
	}
	if r.size.Mesh == 0 {
		return fmt.Errorf("after %v %d of %d tunnels stand, BFD is up on %d", meshLimit, r.size.Tunnels, n*(n-1), r.size.BFDUp)
	}
	r.say("%d hosts: %d tunnels in %.1f s, BFD up on %d after %.1f s, %d flow tables filled in %.1f s",
		n, r.size.Tunnels, r.size.Mesh, r.size.BFDUp, cmp.Or(r.size.BFD, meshLimit.Seconds()), n, r.size.Filled)
	return nil
}

// count says how many tunnels have a port of their own that works, and on how many BFD is
// up. The port that all shared before has no BFD.
func count(m api.Mesh) (stand, up int) {
	for _, l := range m.Links {
		if l.BFD != "" {
			stand++
		}
		if l.BFD == "up" {
			up++
		}
	}
	return stand, up
}

// until asks done again and again, with pauses, so that asking does not itself cost what
// is measured.
func (r *run) until(ctx context.Context, what string, done func() (bool, error)) error {
	for {
		began := time.Now()
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-time.After(min(max(20*time.Millisecond, 4*time.Since(began)), 500*time.Millisecond)):
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
		}
	}
}

// idle looks at the controller and the machine while nothing happens.
func (r *run) idle(ctx context.Context) error {
	if err := wait(ctx, settleFor); err != nil {
		return err
	}
	cpu, err := r.ctl.cpu()
	if err != nil {
		return err
	}
	hosts, began := r.hostsCPU(), time.Now()
	if err := wait(ctx, idleFor); err != nil {
		return err
	}
	after, err1 := r.ctl.cpu()
	took := time.Since(began).Seconds()
	r.size.CPUIdle, r.size.HostIdle = (after-cpu).Seconds()/took, (r.hostsCPU()-hosts).Seconds()/took
	r.size.HostMemory = r.hostMemory()
	var err2 error
	r.size.RSSIdle, r.size.RSSPeak, err2 = r.ctl.memory()
	return errors.Join(err1, err2)
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// moves changes the owner of one VM after the other, each to the next host.
func (r *run) moves(ctx context.Context) error {
	profiled := make(chan error, 1)
	if r.Profile != "" {
		go func() { profiled <- r.mover.profile(ctx, r.Profile, fmt.Sprint(r.size.Hosts), 5) }()
	} else {
		profiled <- nil
	}
	cpu, err := r.ctl.cpu()
	if err != nil {
		return err
	}
	var commits, tables []time.Duration
	for i, began := 0, time.Now(); i < r.Moves && time.Since(began) < movesLimit; i++ {
		n := r.size.Hosts
		k := i * 7 % r.size.VMs
		to := host((k/vmsPerHost + 1 + i/r.size.VMs) % n)
		m, err := r.mover.move(ctx, moveOrder{vm(k), to})
		if err != nil {
			return err
		}
		commits, tables = append(commits, m.Commit), append(tables, m.Tables)
	}
	after, err := r.ctl.cpu()
	if err != nil {
		return err
	}
	r.size.Moves, r.size.CommitP50 = len(tables), ms(percentile(commits, 50))
	r.size.MoveP50, r.size.MoveP99 = ms(percentile(tables, 50)), ms(percentile(tables, 99))
	r.size.MoveCPU = ms(after-cpu) / float64(len(tables))
	r.say("%d hosts: %d changes of an owner, each in all flow tables after %.1f ms (p50), %.1f ms (p99)", r.size.Hosts, r.size.Moves, r.size.MoveP50, r.size.MoveP99)
	return <-profiled
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// percentile is the smallest of all that p percent of them do not exceed.
func percentile(all []time.Duration, p int) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[(len(sorted)*p+99)/100-1]
}

// verify reads flow tables back from switches and compares them with what is wanted.
func (r *run) verify(ctx context.Context) error {
	n := r.size.Hosts
	for i := range min(n, checkHosts) {
		h := host(i * n / min(n, checkHosts))
		d, err := r.api.FlowDiff(ctx, h)
		if err != nil {
			return err
		}
		r.size.Wrong += len(d.Missing) + len(d.Extra)
		if i > 0 {
			continue
		}
		l, err := r.api.Flows(ctx, h)
		if err != nil {
			return err
		}
		r.size.Flows = len(l.Flows)
	}
	return nil
}
