package story

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/scheduler/replay"
	"heliotrope/topologies"
	"heliotrope/topologies/lab"
	"heliotrope/topologies/lab/probe"
)

// Sun lets a day of three offices pass in minutes, each as busy as offices are at its hour,
// and has the autopilot move the VM that they use. The day begins when the European office
// alone is at work and the VM is there, where the day before would have left it.
type Sun struct {
	stage
	Day   time.Duration     // how long 24 hours last
	Peak  int               // requests a second of an office at its busiest
	Still heliotrope.HostID // where the VM stays, without an autopilot; empty: it follows

	offices []*office
	service *service
	hosted  map[heliotrope.SiteID]heliotrope.HostID // a host of each site that has one
	home    heliotrope.HostID                       // where the VM begins the day
	dawn    time.Time
}

// office is a population of clients.
type office struct {
	Name  heliotrope.ClientID
	ahead int // hours of UTC, by the sun
	probe *probe.Client
	reach map[heliotrope.SiteID]float64 // ms to a host of each site, by the network alone
}

const (
	firstHour  = 12 // UTC
	dayHours   = 24
	movesADay  = 6
	leastDay   = 3 * time.Minute // below it a window of traffic is hours of the day
	leastSpan  = 10 * time.Second
	windowsDay = 48 // windows of traffic in a day: half an hour each
	allDay     = "day"
)

// Run tells the story. It fails if something did not hold, and says what.
func (s *Sun) Run(ctx context.Context) (err error) {
	s.started = time.Now()
	t, file, err := s.load()
	if err != nil {
		return err
	}
	if err := s.up(ctx, t, file); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	defer func() { err = errors.Join(err, s.down(ctx)) }()
	if err := os.Remove(file); err != nil {
		return fmt.Errorf("remove topology: %w", err)
	}
	stop, err := s.populate(ctx, t)
	defer stop()
	if err != nil {
		return err
	}
	if err := s.measure(ctx, t); err != nil {
		return err
	}
	if s.service, err = s.serve(ctx, t); s.service != nil {
		defer s.service.end()
	}
	if err != nil {
		return err
	}
	if err := s.pass(ctx); err != nil {
		return err
	}
	d, err := s.account(ctx)
	if err != nil {
		return err
	}
	return s.conclude(ctx, d)
}

// load reads the topology, with the pool as fast as the day, into a file for the controller.
func (s *Sun) load() (t heliotrope.Topology, file string, err error) {
	if s.Day < leastDay || s.Peak < 10 {
		return t, "", fmt.Errorf("a day of %v with %d requests a second tells nothing: it takes %v and 10", s.Day, s.Peak, leastDay)
	}
	data, err := topologies.Example("sun")
	if err != nil {
		return t, "", err
	}
	if t, err = topologies.Parse(data, "sun.yaml", topologies.Options{}); err != nil {
		return t, "", err
	}
	s.public = t.VMs[s.VM].NICs[0].Public
	s.hosted = map[heliotrope.SiteID]heliotrope.HostID{}
	for id, h := range t.Hosts {
		s.hosted[h.Site] = id
	}
	for id, p := range t.Pools {
		p.Window = heliotrope.Duration(s.window())
		p.CoolDownPerVM = heliotrope.Duration(s.hours(1))
		p.MaxMovesPerHour, p.MaxMovesPerDay = movesADay, movesADay
		if s.Still != "" {
			p.Autopilot = heliotrope.AutopilotOff
		}
		t.Pools[id] = p
	}
	if s.Still != "" {
		vm := t.VMs[s.VM]
		if _, ok := t.Hosts[s.Still]; !ok {
			return t, "", fmt.Errorf("there is no host %q: there are %v", s.Still, slices.Sorted(maps.Keys(t.Hosts)))
		}
		vm.Host = s.Still
		t.VMs[s.VM] = vm
	}
	s.home = t.VMs[s.VM].Host
	text, err := topologies.Marshal(t)
	if err != nil {
		return t, "", err
	}
	f, err := os.CreateTemp("", "heliotrope-sun-*.yaml")
	if err != nil {
		return t, "", fmt.Errorf("write topology: %w", err)
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return t, "", errors.Join(fmt.Errorf("write topology: %w", err), os.Remove(f.Name()))
	}
	return t, f.Name(), nil
}

// hours is how long hours of the day last.
func (s *Sun) hours(n int) time.Duration { return s.Day * time.Duration(n) / dayHours }

// window is of the traffic that decides.
func (s *Sun) window() time.Duration { return max(leastSpan, s.Day/windowsDay).Round(time.Second) }

// asks is how many requests a second an office so many hours ahead of UTC makes in an hour of
// UTC, 24 and above too.
func (s *Sun) asks(ahead, hour int) int {
	top := slices.Max(replay.OfficeHours[:])
	return int(math.Round(float64(s.Peak) * replay.OfficeHours[(hour+ahead+dayHours)%dayHours] / top))
}

// aheadOf is how many hours a site is ahead of UTC, by the sun.
func aheadOf(site heliotrope.Site) int { return int(math.Round(site.Longitude / 15)) }

// populate lets the offices' people in: as many as there are an hour before the day begins.
func (s *Sun) populate(ctx context.Context, t heliotrope.Topology) (stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, f := range stops {
			f()
		}
	}
	if err := s.booted(ctx, t); err != nil {
		return stop, err
	}
	for _, id := range slices.Sorted(maps.Keys(t.Clients)) {
		o := &office{Name: id, ahead: aheadOf(t.Sites[t.Clients[id].Site]), reach: map[heliotrope.SiteID]float64{}}
		before := max(1, s.asks(o.ahead, firstHour-1))
		end, err := s.probeFrom(ctx, string(id), before, &o.probe)
		stops = append(stops, end)
		if err == nil {
			err = o.probe.Pace(ctx, before) // on its connection, too
		}
		if err != nil {
			return stop, err
		}
		s.offices = append(s.offices, o)
	}
	s.say("%d offices use %s (VM %s), each over a connection that it keeps all day", len(s.offices), s.public, s.VM)
	return stop, nil
}

// booted waits until the guest answers.
func (s *Sun) booted(ctx context.Context, t heliotrope.Topology) error {
	status, err := lab.Read(ctx, s.target)
	if err != nil {
		return err
	}
	n, _ := status.Node(string(slices.Sorted(maps.Keys(t.Clients))[0]))
	v := &visitor{pid: n.PID, guest: s.public}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := s.until(ctx, func(ctx context.Context) error { _, err := v.account(ctx); return err }); err != nil {
		return fmt.Errorf("wait for the guest: %w", err)
	}
	return nil
}

// measure asks the network how far each office is from each site, whoever is there. It is
// the least that a VM at that site could answer in.
func (s *Sun) measure(ctx context.Context, t heliotrope.Topology) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, o := range s.offices {
		group.Go(func() error {
			for _, site := range slices.Sorted(maps.Keys(s.hosted)) {
				ms, err := s.ping(ctx, string(o.Name), t.Hosts[s.hosted[site]].Address)
				if err != nil {
					return err
				}
				o.reach[site] = ms
			}
			return nil
		})
	}
	return group.Wait()
}

// ping is the shortest of some round trips, ms.
func (s *Sun) ping(ctx context.Context, from string, to netip.Addr) (ms float64, err error) {
	var out bytes.Buffer
	code, err := lab.Exec(ctx, s.target, from, []string{"ping", "-q", "-c", "10", "-i", "0.05", "-W", "2", to.String()}, lab.Stdio{Out: &out, Err: &out})
	if err != nil {
		return 0, err
	}
	_, numbers, found := bytes.Cut(out.Bytes(), []byte("min/avg/max/mdev = "))
	if _, err = fmt.Sscanf(string(numbers), "%g", &ms); code != 0 || !found || err != nil {
		return 0, fmt.Errorf("ping %s from %s: %s", to, from, out.String())
	}
	return ms, nil
}

// pass lets the day pass, hour by hour.
func (s *Sun) pass(ctx context.Context) error {
	if s.Still == "" {
		s.say("a pool of %s, autopilot: auto, policy: follow-the-sun; 24 h last %v from now", s.VM, s.Day)
	} else {
		s.say("%s stays at %s; 24 h last %v from now", s.VM, s.Still, s.Day)
	}
	for _, o := range s.offices {
		if _, err := o.probe.Mark(ctx, allDay); err != nil {
			return fmt.Errorf("%s: %w", o.Name, err)
		}
	}
	s.dawn = time.Now()
	for h := range dayHours {
		line := ""
		if err := s.service.pace(s, firstHour+h); err != nil {
			return err
		}
		for _, o := range s.offices {
			n := s.asks(o.ahead, firstHour+h)
			if err := o.probe.Pace(ctx, n); err != nil {
				return fmt.Errorf("%s: %w", o.Name, err)
			}
			line += fmt.Sprintf("  %s %2d/s", o.Name, n)
		}
		vm, err := s.client.VM(ctx, s.VM)
		if err != nil {
			return err
		}
		s.say("%s UTC%s   %s is at %s", clockOf(h), line, s.VM, vm.Site)
		select {
		case <-time.After(time.Until(s.dawn.Add(s.hours(h + 1)))):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := s.service.pace(s, 0); err != nil { // it takes in the last hour
		return err
	}
	return s.until(ctx, func(ctx context.Context) error { // what is under way is the day's
		open, err := s.client.Migrations(ctx, s.VM, true)
		if err == nil && len(open) > 0 {
			err = fmt.Errorf("%s is on its way to %s", s.VM, open[0].To)
		}
		return err
	})
}

// clockOf is the beginning of the h-th hour of the day, as clocks show it.
func clockOf(h int) string { return fmt.Sprintf("%02d:00", (firstHour+h)%dayHours) }
