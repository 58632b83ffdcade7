package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope/topologies/lab/node"
)

// bringControl waits for the controller, gives it the topology, and joins every host to
// it as an engineer would: a token from the controller, used once by the agent.
func (s *supervisor) bringControl(ctx context.Context) error {
	api := newAPI(filepath.Join(s.config.layout().controller(), "api.sock"))
	controller, err := s.node("controller")
	if err != nil {
		return err
	}
	err = s.expect(ctx, controller, "controller", func() error {
		return api.call(ctx, http.MethodGet, "/readyz", "", nil, nil)
	})
	if err != nil {
		return err
	}
	s.progress("the controller answers")
	text, err := os.ReadFile(s.config.TopologyFile)
	if err != nil {
		return fmt.Errorf("read topology: %w", err)
	}
	if err := api.call(ctx, http.MethodPut, "/v1/topology", "application/yaml", text, nil); err != nil {
		return fmt.Errorf("apply topology: %w", err)
	}
	joining, joinCtx := errgroup.WithContext(ctx)
	joining.SetLimit(joinsAtOnce)
	for _, n := range s.nodes {
		if n.plan.Kind == KindHost {
			joining.Go(func() error { return s.join(joinCtx, api, n) })
		}
	}
	if err := joining.Wait(); err != nil {
		return err
	}
	s.progress("every host is connected")
	return nil
}

func (s *supervisor) join(ctx context.Context, api controllerAPI, n *handle) error {
	var token struct {
		Token string `json:"token"`
	}
	path := "/v1/hosts/" + url.PathEscape(string(n.plan.Host))
	if err := api.call(ctx, http.MethodPost, path+"/token", "application/json", nil, &token); err != nil {
		return fmt.Errorf("get token for %s: %w", n.plan.Host, err)
	}
	d := s.config.agent(s.config.Topology.Controller.Address, token.Token)
	if err := n.order(node.Order{Start: &d}); err != nil {
		return err
	}
	return s.expect(ctx, n, "agent", func() error {
		var host struct {
			State string `json:"state"`
		}
		err := api.call(ctx, http.MethodGet, path, "", nil, &host)
		if err == nil && host.State != "up" {
			err = fmt.Errorf("the controller calls %s %s", n.plan.Host, host.State)
		}
		return err
	})
}

// joinsAtOnce keeps a hundred agents that all start from starving what they join.
const joinsAtOnce = 8

// hopeless is how often a daemon may end before it is given up.
const hopeless = 20

// expect asks until there is no error, ctx ends, or the daemon that it depends on has
// ended too often. The error then quotes the daemon.
func (s *supervisor) expect(ctx context.Context, n *handle, daemon string, ask func() error) error {
	var last error
	err := poll(ctx, 50*time.Millisecond, func(time.Duration) bool {
		if last = ask(); last == nil {
			return true
		}
		d, _ := n.daemon(daemon)
		return d.Restarts >= hopeless
	})
	if last == nil {
		return nil
	}
	log := s.config.layout().log(n.plan.Node, daemon)
	if err == nil {
		err = fmt.Errorf("it ended %d times", hopeless)
	}
	return fmt.Errorf("wait for %s on %s: %w (%w); the end of %s: %s", daemon, n.plan.Node, err, last, log, tail(log))
}

// tail is the last line that a daemon itself wrote.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	last := "(empty)"
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "lab: ") {
			last = line
		}
	}
	return last
}

// controllerAPI is the controller's HTTP API on its unix socket.
type controllerAPI struct{ client *http.Client }

func newAPI(socket string) controllerAPI {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return controllerAPI{&http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 20 * time.Second}}
}

// call makes one request and decodes the answer into to, unless that is nil.
func (a controllerAPI) call(ctx context.Context, method, path, contentType string, body []byte, to any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://controller"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if method == http.MethodPut {
		req.Header.Set("If-Match", "*") // the lab's controller is as old as the lab
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return fmt.Errorf("call controller: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode >= 300 {
		return errors.New(resp.Status + ": " + string(bytes.TrimSpace(answer)))
	}
	if to == nil {
		return nil
	}
	if err := json.Unmarshal(answer, to); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}
