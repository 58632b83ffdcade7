package endpoints

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/topologies/lab"
)

// App is a real application that runs in light VMs. Make it with StartApp.
type App struct {
	Name  string
	Tiers []pattern.Tier // what there is to be found in its traffic

	recipe  recipe
	dirs    []Place
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu    sync.Mutex
	ended error // of the first server that ended by itself
}

// recipe says how an application runs. A job is a shell script in one VM; $dir is a
// directory of the application's own there, which goes with it.
type recipe struct {
	serve   []job                   // until the application is closed; each ends with exec
	ready   []job                   // tried until they succeed
	prepare []job                   // once
	load    func(seconds int) []job // all at once
	tiers   []pattern.Tier
}

type job struct {
	at     Place
	script string
}

// recipes are made for places whose first ones serve; least is how many they need. What
// each needs of Debian is in topologies/lab/deps.sh.
var recipes = map[string]struct {
	least int
	make  func([]Place) recipe
}{
	"postgres": {2, postgres},
	"redis":    {2, redis},
	"etcd":     {4, etcd},
	"nginx":    {4, nginx},
	"iperf3":   {2, iperf3},
}

// Apps are the names of all applications.
func Apps() []string { return slices.Sorted(maps.Keys(recipes)) }

const (
	appDir     = "/run/heliotrope-app-" // and the VM's name: in the VM's own /run, where it has one
	appReady   = 30 * time.Second
	appPause   = 100 * time.Millisecond
	appOutput  = 2000 // bytes of what a job said that an error quotes
	appUnwinds = 10 * time.Second
)

// StartApp starts an application in light VMs and returns when it serves. It runs until
// Close, or until ctx ends.
func StartApp(ctx context.Context, name string, places []Place) (*App, error) {
	r, ok := recipes[name]
	if !ok {
		return nil, fmt.Errorf("start application: there is no %q: there are %s", name, strings.Join(Apps(), ", "))
	}
	if len(places) < r.least {
		return nil, fmt.Errorf("start %s: it needs %d VMs, got %d", name, r.least, len(places))
	}
	made := r.make(places)
	running, cancel := context.WithCancel(ctx)
	a := &App{Name: name, Tiers: made.tiers, recipe: made, dirs: places, cancel: cancel}
	for _, j := range made.serve {
		a.running.Go(func() {
			err := j.run(running)
			if running.Err() == nil {
				a.mu.Lock()
				defer a.mu.Unlock()
				a.ended = errors.Join(a.ended, fmt.Errorf("%s at %s has ended: %w", name, j.at.VM, errors.Join(err, errors.New("by itself"))))
			}
		})
	}
	if err := a.rise(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), a.Close())
	}
	return a, nil
}

// rise waits until all servers answer, and prepares them.
func (a *App) rise(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, appReady, fmt.Errorf("not ready after %v", appReady))
	defer cancel()
	for _, j := range a.recipe.ready {
		for {
			err := j.run(ctx)
			if err == nil {
				break
			}
			if failed := a.failed(); failed != nil {
				return failed
			}
			select {
			case <-ctx.Done():
				return errors.Join(context.Cause(ctx), err)
			case <-time.After(appPause):
			}
		}
	}
	for _, j := range a.recipe.prepare {
		if err := j.run(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (a *App) failed() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ended
}

// Load has the application's clients work for some whole seconds.
func (a *App) Load(ctx context.Context, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d+appUnwinds)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	for _, j := range a.recipe.load(max(int(d/time.Second), 1)) {
		group.Go(func() error { return j.run(ctx) })
	}
	if err := errors.Join(group.Wait(), a.failed()); err != nil {
		return fmt.Errorf("load %s: %w", a.Name, err)
	}
	return nil
}

// Close ends the application and removes its data.
func (a *App) Close() error {
	a.cancel()
	a.running.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), appUnwinds)
	defer cancel()
	var problems []error
	for _, p := range a.dirs {
		problems = append(problems, job{p, "cd /; rm -rf $dir"}.run(ctx))
	}
	return errors.Join(problems...)
}

// run runs a job to its end; what it said is in the error.
func (j job) run(ctx context.Context) error {
	var said bytes.Buffer
	script := "dir=" + appDir + string(j.at.VM) + "; mkdir -p $dir; cd $dir; " + j.script
	code, err := lab.Enter(ctx, j.at.PID, []string{"sh", "-ec", script}, lab.Stdio{Out: &said, Err: &said})
	if err == nil && code != 0 {
		text := strings.TrimSpace(said.String())
		err = fmt.Errorf("it ended with %d: %s", code, text[max(0, len(text)-appOutput):])
	}
	if err != nil {
		return fmt.Errorf("run at %s: %w", j.at.VM, err)
	}
	return nil
}

// user runs a command as another user: several servers refuse to be root.
func user(name string) string {
	return "setpriv --reuid=" + name + " --regid=" + name + " --init-groups "
}

func tier(name string, places []Place, serves, uses []traffic.Service) pattern.Tier {
	t := pattern.Tier{Name: name, Serves: serves, Uses: uses}
	for _, p := range places {
		t.Members = append(t.Members, traffic.VM(p.VM))
	}
	return t
}

func tcp(port uint16) []traffic.Service {
	return []traffic.Service{{Protocol: traffic.TCP, Port: port}}
}

// at is the same script in several places.
func at(places []Place, script string) []job {
	var all []job
	for _, p := range places {
		all = append(all, job{p, script})
	}
	return all
}

// postgres is a PostgreSQL server and clients that run pgbench's TPC-B.
func postgres(p []Place) recipe {
	server, clients := p[:1], p[1:]
	as, to := user("postgres"), "-h "+p[0].Address.String()+" -U postgres "
	return recipe{
		serve: at(server, `bin=$(echo /usr/lib/postgresql/*/bin | tr ' ' '\n' | tail -n1); chown postgres .
rm -rf data; `+as+`$bin/initdb -D data -A trust --no-sync >init.log; echo 'host all all all trust' >>data/pg_hba.conf
exec `+as+`$bin/postgres -D data -c listen_addresses='*' -c unix_socket_directories=$dir -c fsync=off -c dynamic_shared_memory_type=mmap -c max_connections=200`),
		ready:   at(server, "pg_isready -q "+to),
		prepare: at(server, "pgbench -q -i -s 1 "+to+"postgres"),
		load:    func(s int) []job { return at(clients, fmt.Sprintf("pgbench -n -c 2 -R 20 -T %d %s postgres", s, to)) },
		tiers:   []pattern.Tier{tier("tcp/5432 server", server, tcp(5432), nil), tier("clients of tcp/5432", clients, nil, tcp(5432))},
	}
}

// redis is a Redis server and clients that set and get.
func redis(p []Place) recipe {
	server, clients, to := p[:1], p[1:], p[0].Address.String()
	return recipe{
		serve: at(server, "chown redis .; exec "+user("redis")+"redis-server --dir $dir --bind 0.0.0.0 --protected-mode no --save '' --appendonly no"),
		ready: at(server, "redis-cli -h "+to+" ping | grep -q PONG"),
		load: func(s int) []job {
			// It counts requests, not seconds: it is begun again until the time is over.
			return at(clients, fmt.Sprintf(`end=$(($(date +%%s)+%d)); while [ $(date +%%s) -lt $end ]; do
redis-benchmark -h %s -q -c 2 -n 20 -d 512 -t set,get >/dev/null; sleep 0.2; done`, s, to))
		},
		tiers: []pattern.Tier{tier("tcp/6379 server", server, tcp(6379), nil), tier("clients of tcp/6379", clients, nil, tcp(6379))},
	}
}

// etcd is a cluster of three, whose members talk among themselves, and clients of all of them.
func etcd(p []Place) recipe {
	members, clients := p[:3], p[3:]
	var cluster, ends []string
	for _, m := range members {
		cluster = append(cluster, fmt.Sprintf("%s=http://%s:2380", m.VM, m.Address))
		ends = append(ends, fmt.Sprintf("http://%s:2379", m.Address))
	}
	r := recipe{
		tiers: []pattern.Tier{tier("tcp/2379 server", members, append(tcp(2379), tcp(2380)...), tcp(2380)), tier("clients of tcp/2379", clients, nil, tcp(2379))},
	}
	for i, m := range members {
		r.serve = append(r.serve, job{m, fmt.Sprintf(`chown etcd .; rm -rf data
exec %setcd --data-dir $dir/data --name %s --listen-peer-urls http://%s:2380 --initial-advertise-peer-urls http://%s:2380 \
--listen-client-urls http://%s:2379 --advertise-client-urls %s --initial-cluster %s --initial-cluster-state new --unsafe-no-fsync --logger zap --log-outputs stderr`,
			user("etcd"), m.VM, m.Address, m.Address, m.Address, ends[i], strings.Join(cluster, ","))})
	}
	ctl := "ETCDCTL_API=3 etcdctl --dial-timeout=2s --command-timeout=5s --endpoints "
	r.ready = at(members[:1], ctl+strings.Join(ends, ",")+" endpoint health 2>&1")
	r.load = func(s int) []job {
		var all []job
		for i, c := range clients {
			all = append(all, job{c, fmt.Sprintf(`value=$(head -c 700 /dev/zero | tr '\0' x); end=$(($(date +%%s)+%d)); n=0
while [ $(date +%%s) -lt $end ]; do n=$((n+1)); %s put key-%d-$n $value >/dev/null; %s get key-%d-$n >/dev/null; done`,
				s, ctl+ends[i%len(ends)], i, ctl+ends[(i+1)%len(ends)], i)})
		}
		return all
	}
	return r
}

// nginx is a proxy, backends that have the pages (half of the others), and clients.
func nginx(p []Place) recipe {
	half := max((len(p)-1)/2, 1)
	proxy, backends, clients := p[:1], p[1:1+half], p[1+half:]
	const common = `daemon off; pid nginx.pid; worker_processes 1; error_log stderr; events { worker_connections 512; }
http { access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;`
	write := func(rest string) string {
		return "mkdir -p html; head -c 20000 /dev/urandom >html/page; cat >nginx.conf <<'END'\nuser www-data; " + common + rest + " }\nEND\nchmod 755 . html; exec nginx -p $dir -c $dir/nginx.conf"
	}
	var upstream strings.Builder
	for _, b := range backends {
		fmt.Fprintf(&upstream, " server %s:8080;", b.Address)
	}
	front := "http://" + p[0].Address.String()
	return recipe{
		serve: append(at(backends, write(" server { listen 8080; root html; }")),
			job{p[0], write(" upstream pages {" + upstream.String() + " } server { listen 80; location / { proxy_pass http://pages; } }")}),
		ready: append(at(backends, "curl -sf -o /dev/null http://127.0.0.1:8080/page"), at(clients, "curl -sf -o /dev/null "+front+"/page")...),
		load: func(s int) []job {
			return at(clients, fmt.Sprintf("end=$(($(date +%%s)+%d)); while [ $(date +%%s) -lt $end ]; do curl -sf '%s/page?[1-10]' >/dev/null; sleep 0.1; done", s, front))
		},
		tiers: []pattern.Tier{
			tier("tcp/80 server", proxy, tcp(80), tcp(8080)),
			tier("tcp/8080 server", backends, tcp(8080), nil),
			tier("clients of tcp/80", clients, nil, tcp(80)),
		},
	}
}

// iperf3 is a mesh: each sends to each other. A server serves one client at a time, so
// each has one for each peer, at the ports after iperfPort.
func iperf3(p []Place) recipe {
	const iperfPort = 5201
	r := recipe{}
	var serves []traffic.Service
	for i := range p {
		serves = append(serves, tcp(uint16(iperfPort+i))...)
	}
	r.tiers = []pattern.Tier{tier("all", p, serves, serves)}
	for i, server := range p {
		for j := range p {
			if i != j {
				r.serve = append(r.serve, job{server, fmt.Sprintf("exec iperf3 -s -p %d >/dev/null", iperfPort+j)})
			}
		}
	}
	r.ready = at(p, fmt.Sprintf("[ $(ss -Hlnt 'sport >= :%d' | wc -l) -ge %d ]", iperfPort, len(p)-1))
	r.load = func(s int) []job {
		var all []job
		for i, to := range p {
			for j, from := range p {
				if i != j {
					all = append(all, job{from, fmt.Sprintf("iperf3 -c %s -p %d -t %d -b 1M -l 8K", to.Address, iperfPort+j, s)})
				}
			}
		}
		return all
	}
	return r
}
