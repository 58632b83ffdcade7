package lab

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"heliotrope"
	"heliotrope/topologies/lab/node"
	"heliotrope/topologies/lab/wan"
)

// Status is a running lab.
type Status struct {
	Name       string       `json:"name"`
	Dir        string       `json:"dir"`
	Supervisor int          `json:"supervisor"` // its process ID
	Since      time.Time    `json:"since"`
	Topology   string       `json:"topology"` // name of the topology
	File       string       `json:"file,omitempty"`
	Nodes      []NodeStatus `json:"nodes"`
	Links      []LinkStatus `json:"links"`
}

// DaemonStatus is one daemon of a node.
type DaemonStatus = node.DaemonStatus

// NodeStatus is one node of a lab.
type NodeStatus struct {
	Name    string            `json:"name"`
	Kind    Kind              `json:"kind"`
	Site    heliotrope.SiteID `json:"site"`
	Address netip.Addr        `json:"address"`
	Host    heliotrope.HostID `json:"host,omitempty"` // of a host; of a VM: where it is
	VM      heliotrope.VMID   `json:"vm,omitempty"`
	PID     int               `json:"pid"` // of its PID 1, outside
	Up      bool              `json:"up"`
	Waiting string            `json:"waiting,omitempty"` // for what, where it is not up
	Daemons []DaemonStatus    `json:"daemons"`
	// Dropped frames of a router found no room in its queue to the WAN, which all its links
	// share: the WAN's process was short of a core. No link's meter has them.
	Dropped uint64 `json:"dropped,omitempty"`
}

// LinkStatus is one direction of a link as it is now.
type LinkStatus struct {
	Link  heliotrope.LinkID `json:"link"`
	From  heliotrope.SiteID `json:"from"`
	To    heliotrope.SiteID `json:"to"`
	Shape wan.Shape         `json:"shape"`
	Meter wan.Meter         `json:"meter"`
}

// Node returns a node by its name.
func (s Status) Node(name string) (NodeStatus, bool) {
	i := slices.IndexFunc(s.Nodes, func(n NodeStatus) bool { return n.Name == name })
	if i < 0 {
		return NodeStatus{}, false
	}
	return s.Nodes[i], true
}

// Daemon returns a node's daemon by its name.
func (n NodeStatus) Daemon(name string) (DaemonStatus, bool) {
	i := slices.IndexFunc(n.Daemons, func(d DaemonStatus) bool { return d.Name == name })
	if i < 0 {
		return DaemonStatus{}, false
	}
	return n.Daemons[i], true
}

// Read returns what runs in the lab, ErrNotRunning where nothing does.
func Read(ctx context.Context, t Target) (Status, error) {
	l, err := t.layout()
	if err != nil {
		return Status{}, err
	}
	return ask(ctx, l, request{})
}

// Change changes a WAN link and returns the lab after it.
func Change(ctx context.Context, t Target, c LinkChange) (Status, error) {
	l, err := t.layout()
	if err != nil {
		return Status{}, err
	}
	return ask(ctx, l, request{Link: &c})
}

// Kill sends a signal to a daemon of a node; the node starts again what ends.
func Kill(ctx context.Context, t Target, k KillOrder) error {
	l, err := t.layout()
	if err != nil {
		return err
	}
	_, err = ask(ctx, l, request{Kill: &k})
	return err
}

// Names lists the labs below DefaultDir, running or not.
func Names() ([]string, error) {
	entries, err := os.ReadDir(DefaultDir)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (s *supervisor) status() Status {
	st := Status{
		Name: s.config.Name, Dir: s.config.Dir, Supervisor: os.Getpid(), Since: s.began,
		Topology: s.config.Topology.Name, File: s.config.TopologyFile,
	}
	for _, n := range s.nodes {
		st.Nodes = append(st.Nodes, n.status())
	}
	meters := s.wan.Meters()
	for _, id := range slices.Sorted(maps.Keys(s.config.Topology.Links)) {
		ends := s.config.Topology.Links[id].Between
		for i, from := range ends {
			to := ends[1-i]
			shape, err := s.wan.Shape(string(from), string(to))
			if err != nil {
				continue // a port appears with its site and never goes
			}
			st.Links = append(st.Links, LinkStatus{id, from, to, shape, meters[wan.Pair{From: string(from), To: string(to)}]})
		}
	}
	return st
}

func (h *handle) status() NodeStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	st := NodeStatus{
		Name: h.plan.Node, Kind: h.plan.Kind, Site: h.plan.Site, Address: h.plan.Address, Host: h.plan.Host, VM: h.plan.VM, PID: h.pid,
		Up: !h.gone && up(len(h.last.Daemons))(h.last), Daemons: slices.Clone(h.last.Daemons),
	}
	switch {
	case h.gone:
		st.PID, st.Waiting = 0, "gone: "+h.last.Error
	case !st.Up:
		st.Waiting = missing(h.last)
	}
	if st.PID != 0 && st.Kind == KindRouter {
		st.Dropped = droppedAt(st.PID)
	}
	return st
}

// Drops says in words which frames the lab itself was too slow for, empty where none.
func (s Status) Drops() string {
	var words []string
	for _, n := range s.Nodes {
		if n.Dropped > 0 {
			words = append(words, fmt.Sprintf("%s dropped %d frames that found no room in its queue to the WAN: this machine is short of a core", n.Name, n.Dropped))
		}
	}
	return strings.Join(words, "\n")
}

// WriteTable writes the status for people.
func (s Status) WriteTable(out io.Writer, now time.Time) error {
	fmt.Fprintf(out, "lab %s, topology %s, up %s, in %s\n\n", s.Name, s.Topology, age(now, s.Since), s.Dir)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tKIND\tSITE\tADDRESS\tSTATE\tDAEMON\tPID\tUP\tRESTARTS")
	for _, n := range s.Nodes {
		state := "up"
		if !n.Up {
			state = n.Waiting
		}
		head := fmt.Sprintf("%s\t%s\t%s\t%s\t%s", n.Name, n.Kind, n.Site, n.Address, state)
		if len(n.Daemons) == 0 {
			fmt.Fprintf(w, "%s\t\t\t\t\n", head)
		}
		for _, d := range n.Daemons {
			pid, up := "-", d.LastExit
			if d.PID != 0 {
				pid, up = fmt.Sprint(d.PID), age(now, d.Started)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\n", head, d.Name, pid, up, d.Restarts)
			head = "\t\t\t\t"
		}
	}
	if err := w.Flush(); err != nil || len(s.Links) == 0 {
		return err
	}
	fmt.Fprintln(out)
	if err := s.writeLinks(out, ""); err != nil || s.Drops() == "" {
		return err
	}
	_, err := fmt.Fprintf(out, "\n%s\n", s.Drops())
	return err
}

// writeLinks writes the state of one link, or of all.
func (s Status) writeLinks(out io.Writer, only heliotrope.LinkID) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LINK\tFROM\tTO\tDELAY\tJITTER\tLOSS\tRATE\tBYTES\tDROPPED")
	for _, l := range s.Links {
		if only == "" || only == l.Link {
			fmt.Fprintln(w, l.row())
		}
	}
	return w.Flush()
}

func (l LinkStatus) row() string {
	rate, delay := "unlimited", l.Shape.Delay.String()
	if l.Shape.Rate != 0 {
		rate = l.Shape.Rate.String()
	}
	if l.Shape.Down {
		delay = "down"
	}
	return strings.Join([]string{
		string(l.Link), string(l.From), string(l.To), delay, l.Shape.Jitter.String(),
		fmt.Sprintf("%.4g%%", 100*l.Shape.Loss), rate, fmt.Sprint(l.Meter.Bytes),
		fmt.Sprint(l.Meter.LossDrop + l.Meter.QueueDrop + l.Meter.DownDrop),
	}, "\t")
}

func age(now, then time.Time) string { return now.Sub(then).Round(time.Second).String() }
