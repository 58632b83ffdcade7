package probe

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// control serves the socket. Each line is a command, each answer one line of JSON, a Report,
// a Marked, a Paced or {"error": …}:
//
//	mark NAME        begin the window NAME
//	end NAME         end it
//	report NAME      report on it as far as known
//	settle NAME      end it if it is open, wait until nothing is pending, report
//	total            report on everything so far
//	window FROM TO   report on the time between two instants in RFC 3339
//	pace N           send N probes a second from now on, 0 to rest
func (p *Probe) control(ctx context.Context) error {
	if err := os.Remove(p.config.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open control socket: %w", err)
	}
	listener, err := net.Listen("unix", p.config.Socket)
	if err != nil {
		return fmt.Errorf("open control socket: %w", err)
	}
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	var group errgroup.Group
	for {
		conn, err := listener.Accept()
		if err != nil {
			listener.Close()
			group.Wait()
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("serve control socket: %w", err)
		}
		group.Go(func() error {
			p.serve(ctx, conn)
			return nil
		})
	}
}

func (p *Probe) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	lines := bufio.NewScanner(conn)
	answers := json.NewEncoder(conn)
	for lines.Scan() {
		answer, err := p.command(ctx, lines.Text())
		if err != nil {
			answer = failure{err.Error()}
		}
		if answers.Encode(answer) != nil {
			return
		}
	}
}

type failure struct {
	Error string `json:"error"`
}

// Marked answers mark and end.
type Marked struct {
	Name string    `json:"name"`
	At   time.Time `json:"at"`
}

// Paced answers pace.
type Paced struct {
	PerSecond int `json:"per_second"`
}

func (p *Probe) command(ctx context.Context, line string) (any, error) {
	word := strings.Fields(line)
	switch {
	case len(word) == 2 && word[0] == "mark":
		return Marked{word[1], p.Mark(word[1])}, nil
	case len(word) == 2 && word[0] == "end":
		at, err := p.End(word[1])
		return Marked{word[1], at}, err
	case len(word) == 2 && word[0] == "report":
		return p.Report(word[1])
	case len(word) == 2 && word[0] == "settle":
		return p.Settle(ctx, word[1])
	case len(word) == 1 && word[0] == "total":
		return p.Total(), nil
	case len(word) == 3 && word[0] == "window":
		from, err := time.Parse(time.RFC3339Nano, word[1])
		if err != nil {
			return nil, fmt.Errorf("read window: %w", err)
		}
		to, err := time.Parse(time.RFC3339Nano, word[2])
		if err != nil {
			return nil, fmt.Errorf("read window: %w", err)
		}
		return p.Window(from, to), nil
	case len(word) == 2 && word[0] == "pace":
		n, err := strconv.Atoi(word[1])
		if err != nil {
			return nil, fmt.Errorf("read pace: %w", err)
		}
		return Paced{n}, p.Pace(n)
	}
	return nil, fmt.Errorf("%q is no command: mark NAME, end NAME, report NAME, settle NAME, total, window FROM TO, pace N", line)
}

// Client asks a probe in another process by its control socket. It serves one caller at a time.
type Client struct {
	conn    net.Conn
	answers *json.Decoder
}

// Dial connects to the control socket at path.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("reach probe: %w", err)
	}
	return &Client{conn, json.NewDecoder(conn)}, nil
}

// Close leaves the probe running.
func (c *Client) Close() error { return c.conn.Close() }

// Mark begins the window name, which has no space in it.
func (c *Client) Mark(ctx context.Context, name string) (m Marked, err error) {
	err = c.ask(ctx, &m, "mark", name)
	return m, err
}

// End ends the window name.
func (c *Client) End(ctx context.Context, name string) (m Marked, err error) {
	err = c.ask(ctx, &m, "end", name)
	return m, err
}

// Report reports on the window name as far as known.
func (c *Client) Report(ctx context.Context, name string) (r Report, err error) {
	err = c.ask(ctx, &r, "report", name)
	return r, err
}

// Settle reports on the window name when nothing of it is pending, within about 5 s.
func (c *Client) Settle(ctx context.Context, name string) (r Report, err error) {
	err = c.ask(ctx, &r, "settle", name)
	return r, err
}

// Total reports on everything since the probe started.
func (c *Client) Total(ctx context.Context) (r Report, err error) {
	err = c.ask(ctx, &r, "total")
	return r, err
}

// Window reports on the time between two instants.
func (c *Client) Window(ctx context.Context, from, to time.Time) (r Report, err error) {
	err = c.ask(ctx, &r, "window", from.UTC().Format(time.RFC3339Nano), to.UTC().Format(time.RFC3339Nano))
	return r, err
}

// Pace has the probe send so many probes a second from now on; 0: none.
func (c *Client) Pace(ctx context.Context, perSecond int) error {
	var p Paced
	return c.ask(ctx, &p, "pace", strconv.Itoa(perSecond))
}

func (c *Client) ask(ctx context.Context, into any, words ...string) error {
	what := "ask probe to " + words[0]
	deadline, _ := ctx.Deadline() // the zero time is no deadline
	if err := c.conn.SetDeadline(deadline); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := fmt.Fprintln(c.conn, strings.Join(words, " ")); err != nil {
		return fmt.Errorf("%s: %w", what, errors.Join(err, ctx.Err()))
	}
	var raw json.RawMessage
	if err := c.answers.Decode(&raw); err != nil {
		return fmt.Errorf("%s: %w", what, errors.Join(err, ctx.Err()))
	}
	var failed failure
	if json.Unmarshal(raw, &failed) == nil && failed.Error != "" {
		return fmt.Errorf("%s: %s", what, failed.Error)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
