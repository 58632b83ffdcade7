package story

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/topologies/lab"
)

//go:embed etcd-leader.sh
var etcdLeader []byte

// service is a replicated one: an etcd replica at each site, staff at each that writes to the
// replica beside it, and 'heliotrope leader follow', which has it led where that is answered
// soonest.
type service struct {
	dir    string
	group  sync.WaitGroup
	stop   context.CancelFunc
	staffs []*staff

	mu        sync.Mutex
	elections []election
	wrong     error // why a part of it ended before its time
}

// staff are who writes at a site.
type staff struct {
	site    heliotrope.SiteID
	ahead   int
	tell    io.Writer
	answers *json.Decoder
	reach   map[heliotrope.SiteID]float64 // ms until an answer with the leader at each site, by the network alone
	hours   []asked
}

// election is a change of the leader, as 'heliotrope leader follow' tells it.
type election struct {
	UTC   string          `json:"utc"`
	At    time.Time       `json:"at"`
	Leads heliotrope.VMID `json:"leads"`
	To    heliotrope.VMID `json:"to"`
	Done  bool            `json:"done"`
	TookS float64         `json:"took_s"`
	Says  string          `json:"says"`
}

const (
	replicaPrefix          = "kv-"
	etcdClients, etcdPeers = 2379, 2380
	// Writers are fewer than who uses the VM: each write is three on one machine's disk.
	writersShare = 6
)

func replicaOf(site heliotrope.SiteID) heliotrope.StubID {
	return heliotrope.StubID(replicaPrefix + string(site))
}
func staffOf(site heliotrope.SiteID) heliotrope.StubID {
	return heliotrope.StubID("staff-" + string(site))
}

// serve starts the service, led where the VM is, and who follows its staff.
func (s *Sun) serve(ctx context.Context, t heliotrope.Topology) (v *service, err error) {
	v = &service{}
	ctx, v.stop = context.WithCancel(ctx)
	if v.dir, err = os.MkdirTemp("", "heliotrope-sun-"); err != nil {
		return v, fmt.Errorf("make service's directory: %w", err)
	}
	sites := slices.Sorted(maps.Keys(s.hosted))
	var cluster, clients []string
	for _, site := range sites {
		at := t.Stubs[replicaOf(site)].Address
		cluster = append(cluster, fmt.Sprintf("%s=http://%s", replicaOf(site), netip.AddrPortFrom(at, etcdPeers)))
		clients = append(clients, fmt.Sprintf("%s=%s", replicaOf(site), netip.AddrPortFrom(at, etcdClients)))
	}
	for _, site := range sites {
		v.replica(ctx, s, site, t.Stubs[replicaOf(site)].Address, strings.Join(cluster, ","))
	}
	program, err := s.program(v.dir, replicaOf(sites[0]), strings.Join(clients, " "))
	if err != nil {
		return v, err
	}
	if err := s.elect(ctx, program, replicaOf(t.Hosts[s.home].Site)); err != nil {
		return v, err
	}
	for _, site := range sites {
		if err := v.hire(ctx, s, t, site); err != nil {
			return v, err
		}
	}
	if err := s.answers(ctx, v, t); err != nil {
		return v, err
	}
	if s.Still == "" {
		v.follow(ctx, s, program)
	}
	s.say("a service of %d etcd replicas, led by %s; 'heliotrope leader follow' looks after that", len(sites), replicaOf(t.Hosts[s.home].Site))
	return v, nil
}

// part runs one process of the service until ctx ends.
func (v *service) part(ctx context.Context, what string, run func() (code int, err error)) {
	v.group.Go(func() {
		code, err := run()
		if ctx.Err() != nil {
			return
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		v.wrong = errors.Join(v.wrong, err, fmt.Errorf("%s exited with %d", what, code))
	})
}

// replica runs etcd at a site. Its times are what the longest way on earth takes.
func (v *service) replica(ctx context.Context, s *Sun, site heliotrope.SiteID, at netip.Addr, cluster string) {
	name := string(replicaOf(site))
	peers, clients := "http://"+netip.AddrPortFrom(at, etcdPeers).String(), "http://"+netip.AddrPortFrom(at, etcdClients).String()
	argv := []string{"etcd", "--name", name, "--data-dir", filepath.Join(v.dir, name), "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
		"--listen-client-urls", clients, "--advertise-client-urls", clients, "--initial-cluster", cluster, "--initial-cluster-state", "new",
		"--heartbeat-interval", "300", "--election-timeout", "3000", "--logger", "zap", "--log-level", "error"}
	v.part(ctx, name, func() (int, error) {
		return lab.Exec(ctx, s.target, name, argv, lab.Stdio{Out: os.Stderr, Err: os.Stderr})
	})
}

// program writes what says and changes who leads, to be run on this machine.
func (s *Sun) program(dir string, node heliotrope.StubID, replicas string) (path string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own program: %w", err)
	}
	script := filepath.Join(dir, "etcd-leader")
	path = filepath.Join(dir, "program")
	text := fmt.Sprintf("#!/bin/sh\nexec %s lab exec --lab %s %s -- env 'REPLICAS=%s' sh %s \"$@\"\n", self, s.Name, node, replicas, script)
	if err := errors.Join(os.WriteFile(script, etcdLeader, 0o700), os.WriteFile(path, []byte(text), 0o700)); err != nil {
		return "", fmt.Errorf("write program: %w", err)
	}
	return path, nil
}

// elect waits until somebody leads, and has the day begin with the one where the VM is.
func (s *Sun) elect(ctx context.Context, program string, first heliotrope.StubID) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := s.until(ctx, func(ctx context.Context) error {
		leads, err := exec.CommandContext(ctx, program, "which").Output()
		if now := strings.TrimSpace(string(leads)); err == nil && now != string(first) {
			err = fmt.Errorf("%q leads", now)
			if now != "" {
				err = errors.Join(err, exec.CommandContext(ctx, program, "move", string(first)).Run())
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("wait for the service: %w", err)
	}
	return nil
}

// hire has staff at a site write to the replica beside it, as soon as it is told how much.
func (v *service) hire(ctx context.Context, s *Sun, t heliotrope.Topology, site heliotrope.SiteID) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	f := &staff{site: site, ahead: aheadOf(t.Sites[site]), tell: inW, answers: json.NewDecoder(outR)}
	server := "http://" + netip.AddrPortFrom(t.Stubs[replicaOf(site)].Address, etcdClients).String()
	node := string(staffOf(site))
	v.part(ctx, node, func() (int, error) {
		code, err := lab.Exec(ctx, s.target, node, []string{self, "lab", "ask", "--server", server}, lab.Stdio{In: inR, Out: outW, Err: os.Stderr})
		inR.CloseWithError(io.ErrClosedPipe)
		outW.CloseWithError(io.ErrUnexpectedEOF)
		return code, err
	})
	context.AfterFunc(ctx, func() { inW.Close(); outR.Close() })
	v.staffs = append(v.staffs, f)
	return nil
}

// answers asks the network how long each staff waits for an answer, whoever leads: to the
// leader and back, and from there to the nearest other replica, which makes a majority of
// three with it.
func (s *Sun) answers(ctx context.Context, v *service, t heliotrope.Topology) error {
	ms := map[[2]heliotrope.StubID]*float64{} // from any of them to a replica
	group, ctx := errgroup.WithContext(ctx)
	for from := range s.hosted {
		for to := range s.hosted {
			for _, node := range []heliotrope.StubID{staffOf(from), replicaOf(from)} {
				way := new(float64)
				ms[[2]heliotrope.StubID{node, replicaOf(to)}] = way
				group.Go(func() (err error) {
					*way, err = s.ping(ctx, string(node), t.Stubs[replicaOf(to)].Address)
					return err
				})
			}
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, f := range v.staffs {
		f.reach = map[heliotrope.SiteID]float64{}
		for leads := range s.hosted {
			majority := math.Inf(1)
			for other := range s.hosted {
				if other != leads {
					majority = min(majority, *ms[[2]heliotrope.StubID{replicaOf(leads), replicaOf(other)}])
				}
			}
			f.reach[leads] = *ms[[2]heliotrope.StubID{staffOf(f.site), replicaOf(leads)}] + majority
		}
	}
	return nil
}

// follow runs 'heliotrope leader follow', as fast as the day.
func (v *service) follow(ctx context.Context, s *Sun, program string) {
	var replicas []string
	for _, f := range v.staffs {
		replicas = append(replicas, string(replicaOf(f.site)))
	}
	v.part(ctx, "heliotrope leader follow", func() (int, error) {
		self, err := os.Executable()
		if err != nil {
			return 0, fmt.Errorf("find own program: %w", err)
		}
		cmd := exec.CommandContext(ctx, self, "--lab", s.Name, "-o", "json", "leader", "follow", "--replicas", strings.Join(replicas, ","), "--program", program,
			"--window", s.window().String(), "--interval", "2s", "--cool-down", s.hours(1).String(), "--max-moves-per-day", fmt.Sprint(movesADay))
		cmd.Stderr, cmd.WaitDelay = os.Stderr, time.Second
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			return 0, fmt.Errorf("follow: %w", err)
		}
		v.read(s, out)
		err = cmd.Wait()
		return cmd.ProcessState.ExitCode(), err
	})
}

// read takes in what is told of who leads.
func (v *service) read(s *Sun, out io.Reader) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var e election
		if json.Unmarshal(lines.Bytes(), &e) == nil && e.Done {
			v.mu.Lock()
			v.elections = append(v.elections, e)
			v.mu.Unlock()
			s.say("  %s leads in place of %s, after %.1f s", e.To, e.Leads, e.TookS)
		}
	}
}

// pace tells each staff how much to write from now on, and takes in what became of what it
// wrote before.
func (v *service) pace(s *Sun, hour int) error {
	v.mu.Lock()
	wrong := v.wrong
	v.mu.Unlock()
	if wrong != nil {
		return wrong
	}
	for _, f := range v.staffs {
		var past asked
		_, err := fmt.Fprintln(f.tell, s.asks(f.ahead, hour)/writersShare)
		if err == nil {
			err = f.answers.Decode(&past)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", staffOf(f.site), err)
		}
		f.hours = append(f.hours, past)
	}
	return nil
}

// end stops all of it.
func (v *service) end() {
	v.stop()
	v.group.Wait()
	os.RemoveAll(v.dir)
}
