package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/topologies/lab/node"
	"heliotrope/topologies/lab/wan"
)

// request is what others ask of the supervisor on lab.sock, one per connection. An empty
// request asks for the status alone; each is answered by it.
type request struct {
	Link *LinkChange `json:"link,omitempty"`
	Kill *KillOrder  `json:"kill,omitempty"`
}

type response struct {
	Error  string  `json:"error,omitempty"`
	Status *Status `json:"status,omitempty"`
}

// LinkChange changes a WAN link at run time; nil fields stay as they are.
type LinkChange struct {
	Link   heliotrope.LinkID    `json:"link"`
	From   heliotrope.SiteID    `json:"from,omitempty"` // only in the direction from here; empty: both
	Delay  *heliotrope.Duration `json:"delay,omitempty"`
	Jitter *heliotrope.Duration `json:"jitter,omitempty"`
	Loss   *float64             `json:"loss,omitempty"` // share, 0 to 1
	Rate   *heliotrope.BitRate  `json:"rate,omitempty"`
	Queue  *heliotrope.Duration `json:"queue,omitempty"`
	Down   *bool                `json:"down,omitempty"`
}

// KillOrder sends a signal to a daemon. One that ends is started again.
type KillOrder struct {
	Node   string      `json:"node"`
	Daemon string      `json:"daemon"`
	Signal unix.Signal `json:"signal"`
}

// serve answers requests until ctx ends.
func (s *supervisor) serve(ctx context.Context, listener net.Listener) error {
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	group := &errgroup.Group{}
	group.SetLimit(16)
	for {
		conn, err := listener.Accept()
		if err != nil {
			group.Wait() // they return nil
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept on control socket: %w", err)
		}
		group.Go(func() error {
			s.answer(ctx, conn)
			return nil
		})
	}
}

// answer serves one connection. A caller that goes away is its own affair.
func (s *supervisor) answer(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var req request
	if json.NewDecoder(conn).Decode(&req) != nil {
		return
	}
	var resp response
	if err := s.do(req); err != nil {
		resp.Error = err.Error()
	}
	status := s.status()
	resp.Status = &status
	json.NewEncoder(conn).Encode(resp) // see above
}

func (s *supervisor) do(req request) error {
	switch {
	case req.Link != nil:
		return s.changeLink(*req.Link)
	case req.Kill != nil:
		return s.kill(*req.Kill)
	}
	return nil
}

func (s *supervisor) changeLink(c LinkChange) error {
	link, ok := s.config.Topology.Links[c.Link]
	if !ok {
		return fmt.Errorf("change link: the topology has no link %q", c.Link)
	}
	if c.From != "" && !slices.Contains(link.Between[:], c.From) {
		return fmt.Errorf("change link %s: it does not end at %q", c.Link, c.From)
	}
	for i, from := range link.Between {
		if c.From != "" && c.From != from {
			continue
		}
		from, to := string(from), string(link.Between[1-i])
		shape, err := s.wan.Shape(from, to)
		if err != nil {
			return fmt.Errorf("change link: %w", err)
		}
		if err := s.wan.SetShape(from, to, c.apply(shape)); err != nil {
			return fmt.Errorf("change link: %w", err)
		}
	}
	s.log.Info("link changed", "change", c)
	return nil
}

func (c LinkChange) apply(s wan.Shape) wan.Shape {
	set(&s.Delay, (*time.Duration)(c.Delay))
	set(&s.Jitter, (*time.Duration)(c.Jitter))
	set(&s.Queue, (*time.Duration)(c.Queue))
	set(&s.Loss, c.Loss)
	set(&s.Rate, c.Rate)
	set(&s.Down, c.Down)
	return s
}

func set[T any](field *T, value *T) {
	if value != nil {
		*field = *value
	}
}

func (s *supervisor) kill(k KillOrder) error {
	n, err := s.node(k.Node)
	if err != nil {
		return err
	}
	d, ok := n.daemon(k.Daemon)
	if !ok {
		return fmt.Errorf("signal daemon: node %s has no daemon %q", k.Node, k.Daemon)
	}
	if d.PID == 0 {
		return fmt.Errorf("signal daemon: %s does not run on %s", k.Daemon, k.Node)
	}
	return n.order(node.Order{Signal: &node.Signal{Daemon: k.Daemon, Signal: k.Signal}})
}

// ErrNotRunning says that no supervisor of the lab lives.
var ErrNotRunning = errors.New("the lab does not run")

// ask makes one request of a lab's supervisor.
func ask(ctx context.Context, l layout, req request) (Status, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", l.socket())
	if err != nil {
		return Status{}, fmt.Errorf("%w (%s): %w", ErrNotRunning, l, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return Status{}, fmt.Errorf("ask lab: %w", err)
	}
	var resp response
	if err := json.NewDecoder(conn).Decode(&resp); err != nil {
		return Status{}, fmt.Errorf("read lab's answer: %w", err)
	}
	if resp.Error != "" {
		return Status{}, errors.New(resp.Error)
	}
	return *resp.Status, nil
}
