package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"heliotrope"
)

// maxAnswer is the largest answer that a client reads: a matrix of a million cells fits.
const maxAnswer = 512 << 20

// Client talks to a server. Its methods fail with a *Problem where the server says what is
// wrong. Make it with Find, NewUnixClient or NewClient; it may be used by many at once.
type Client struct {
	base  string
	token string
	http  *http.Client
	name  string // of the server, for people
}

// NewUnixClient is a client of the server at a unix socket.
func NewUnixClient(path string) *Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		DisableCompression: true,
	}
	return &Client{base: "http://heliotrope", http: &http.Client{Transport: transport}, name: "unix://" + path}
}

// NewClient is a client of the server at an https URL.
func NewClient(c Credentials) (*Client, error) {
	conf, err := tlsConfig(c.CA)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second}
	return &Client{base: strings.TrimSuffix(c.Server, "/"), token: c.Token, http: &http.Client{Transport: transport}, name: c.Server}, nil
}

// Server is where the client's server is, for people.
func (c *Client) Server() string { return c.name }

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// call is one request.
type call struct {
	method, path string
	query        url.Values
	header       http.Header
	body         []byte
	contentType  string
}

func (c *Client) send(ctx context.Context, q call) (*http.Response, error) {
	target := c.base + q.path
	if len(q.query) > 0 {
		target += "?" + q.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, q.method, target, bytes.NewReader(q.body))
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", c.name, err)
	}
	for k, v := range q.header {
		req.Header[k] = v
	}
	if q.contentType != "" {
		req.Header.Set("Content-Type", q.contentType)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", c.name, unwrapURL(err))
	}
	if resp.StatusCode >= 400 {
		return nil, problemOf(resp)
	}
	return resp, nil
}

// unwrapURL drops the method and the made-up host that net/http puts before an error.
func unwrapURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

func problemOf(resp *http.Response) error {
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody))
	p := &Problem{}
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || media != "application/problem+json" || json.Unmarshal(data, p) != nil {
		p = NewProblem(resp.StatusCode, fmt.Sprintf("the server answered %s", resp.Status))
	}
	p.Status = resp.StatusCode
	return p
}

// do sends a request and reads a JSON answer into out, which may be nil.
func (c *Client) do(ctx context.Context, q call, out any) (http.Header, error) {
	resp, err := c.send(ctx, q)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err == nil && out != nil && resp.StatusCode != http.StatusNoContent {
		err = json.Unmarshal(data, out)
	}
	if err != nil {
		return nil, fmt.Errorf("read answer of %s: %w", c.name, err)
	}
	return resp.Header, nil
}

func get[T any](ctx context.Context, c *Client, query url.Values, path string, parts ...any) (T, error) {
	var out T
	_, err := c.do(ctx, call{method: http.MethodGet, path: escape(path, parts...), query: query}, &out)
	return out, err
}

func list[T any](ctx context.Context, c *Client, query url.Values, path string, parts ...any) ([]T, error) {
	l, err := get[List[T]](ctx, c, query, path, parts...)
	return l.Items, err
}

func post[T any](ctx context.Context, c *Client, key string, in any, path string, parts ...any) (T, error) {
	var out T
	data, err := json.Marshal(in)
	if err != nil {
		return out, fmt.Errorf("encode request: %w", err)
	}
	q := call{method: http.MethodPost, path: escape(path, parts...), body: data, contentType: MediaJSON, header: http.Header{}}
	if key != "" {
		q.header.Set("Idempotency-Key", key)
	}
	_, err = c.do(ctx, q, &out)
	return out, err
}

// escape puts parts into the %s of path.
func escape(path string, parts ...any) string {
	for i, p := range parts {
		parts[i] = url.PathEscape(fmt.Sprint(p))
	}
	return fmt.Sprintf(path, parts...)
}

// Version is the server's.
func (c *Client) Version(ctx context.Context) (Version, error) {
	return get[Version](ctx, c, nil, "/version")
}

// Status is the whole system on one screen.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, nil, "/v1/status")
}

// Ready returns the checks of /readyz, and a Problem when one of them fails.
func (c *Client) Ready(ctx context.Context) ([]Check, error) {
	return list[Check](ctx, c, nil, "/readyz")
}

// Topology is the one in force, without passwords, and its revision.
func (c *Client) Topology(ctx context.Context) (heliotrope.Topology, int64, error) {
	var t heliotrope.Topology
	header, err := c.do(ctx, call{method: http.MethodGet, path: "/v1/topology"}, &t)
	if err != nil {
		return t, 0, err
	}
	rev, err := strconv.ParseInt(strings.Trim(header.Get("ETag"), `"`), 10, 64)
	if err != nil {
		return t, 0, fmt.Errorf("read ETag of topology: %w", err)
	}
	return t, rev, nil
}

// TopologyYAML is the topology in force as a file.
func (c *Client) TopologyYAML(ctx context.Context) ([]byte, error) {
	resp, err := c.send(ctx, call{method: http.MethodGet, path: "/v1/topology", header: http.Header{"Accept": {MediaYAML}}})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
}

func (c *Client) sendTopology(ctx context.Context, verb string, yaml []byte, out any) error {
	_, err := c.do(ctx, call{method: http.MethodPost, path: "/v1/topology/" + verb, body: yaml, contentType: MediaYAML}, out)
	return err
}

// ValidateTopology has the server look for all that is wrong with a topology file.
func (c *Client) ValidateTopology(ctx context.Context, yaml []byte) (TopologyCheck, error) {
	var out TopologyCheck
	err := c.sendTopology(ctx, "validate", yaml, &out)
	return out, err
}

// PlanTopology says what applying would do.
func (c *Client) PlanTopology(ctx context.Context, yaml []byte) (TopologyPlan, error) {
	var out TopologyPlan
	err := c.sendTopology(ctx, "plan", yaml, &out)
	return out, err
}

// DiffTopology says in what a file differs from the topology in force.
func (c *Client) DiffTopology(ctx context.Context, yaml []byte) (TopologyPlan, error) {
	var out TopologyPlan
	err := c.sendTopology(ctx, "diff", yaml, &out)
	return out, err
}

// ApplyTopology puts a file in force if the one in force has revision ifMatch (0: there is
// none, -1: any).
func (c *Client) ApplyTopology(ctx context.Context, yaml []byte, ifMatch int64) (TopologyPlan, error) {
	q := call{method: http.MethodPut, path: "/v1/topology", body: yaml, contentType: MediaYAML, header: http.Header{}}
	switch ifMatch {
	case -1:
		q.header.Set("If-Match", "*")
	case 0:
		q.header.Set("If-None-Match", "*")
	default:
		q.header.Set("If-Match", ETag(ifMatch))
	}
	var out TopologyPlan
	_, err := c.do(ctx, q, &out)
	return out, err
}

// Demand is what the topology says that clients ask, by region.
func (c *Client) Demand(ctx context.Context) ([]Demand, error) {
	return list[Demand](ctx, c, nil, "/v1/demand")
}

// Sites are all sites.
func (c *Client) Sites(ctx context.Context) ([]Site, error) {
	return list[Site](ctx, c, nil, "/v1/sites")
}

// Networks are all networks.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	return list[Network](ctx, c, nil, "/v1/networks")
}

// Hosts are all hosts.
func (c *Client) Hosts(ctx context.Context) ([]Host, error) {
	return list[Host](ctx, c, nil, "/v1/hosts")
}

// Host is one host.
func (c *Client) Host(ctx context.Context, h heliotrope.HostID) (Host, error) {
	return get[Host](ctx, c, nil, "/v1/hosts/%s", h)
}

// CreateToken makes a token with which the host joins. key may be empty.
func (c *Client) CreateToken(ctx context.Context, h heliotrope.HostID, key string) (JoinToken, error) {
	return post[JoinToken](ctx, c, key, struct{}{}, "/v1/hosts/%s/token", h)
}

// DrainHost has all VMs leave the host, and lets none come.
func (c *Client) DrainHost(ctx context.Context, h heliotrope.HostID, r DrainRequest) error {
	_, err := post[struct{}](ctx, c, "", r, "/v1/hosts/%s/drain", h)
	return err
}

// UndrainHost lets VMs come to the host again.
func (c *Client) UndrainHost(ctx context.Context, h heliotrope.HostID) error {
	_, err := post[struct{}](ctx, c, "", struct{}{}, "/v1/hosts/%s/undrain", h)
	return err
}

// RevokeHost refuses the host's certificate from now on.
func (c *Client) RevokeHost(ctx context.Context, h heliotrope.HostID) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: escape("/v1/hosts/%s", h)}, nil)
	return err
}

// VMs are all VMs.
func (c *Client) VMs(ctx context.Context) ([]VM, error) { return list[VM](ctx, c, nil, "/v1/vms") }

// VM is one VM.
func (c *Client) VM(ctx context.Context, vm heliotrope.VMID) (VM, error) {
	return get[VM](ctx, c, nil, "/v1/vms/%s", vm)
}

// PreviewMigration says what a move would be like.
func (c *Client) PreviewMigration(ctx context.Context, r MigrationRequest) (MigrationPreview, error) {
	r.DryRun = true
	return post[MigrationPreview](ctx, c, "", r, "/v1/migrations")
}

// StartMigration starts a move. The same key gives the same migration; it may be empty.
func (c *Client) StartMigration(ctx context.Context, r MigrationRequest, key string) (Migration, error) {
	r.DryRun = false
	return post[Migration](ctx, c, key, r, "/v1/migrations")
}

// Migrations are the newest migrations, of one VM or (empty) of all.
func (c *Client) Migrations(ctx context.Context, vm heliotrope.VMID, active bool) ([]Migration, error) {
	q := url.Values{"limit": {strconv.Itoa(PageLimit)}}
	if vm != "" {
		q.Set("vm", string(vm))
	}
	if active {
		q.Set("active", "true")
	}
	return list[Migration](ctx, c, q, "/v1/migrations")
}

// Migration is one migration as it is.
func (c *Client) Migration(ctx context.Context, id heliotrope.MoveID) (Migration, error) {
	return get[Migration](ctx, c, nil, "/v1/migrations/%s", id)
}

// AwaitMigration returns the migration when its revision is above after, or after 30 s.
func (c *Client) AwaitMigration(ctx context.Context, id heliotrope.MoveID, after int64) (Migration, error) {
	q := url.Values{"wait": {"true"}, "after": {strconv.FormatInt(after, 10)}}
	return get[Migration](ctx, c, q, "/v1/migrations/%s", id)
}

// WatchMigration calls seen for each new state of a migration, and returns its last. While
// the server is away it goes on asking until ctx ends.
func (c *Client) WatchMigration(ctx context.Context, id heliotrope.MoveID, seen func(Migration)) (Migration, error) {
	var m Migration
	for {
		next, err := c.AwaitMigration(ctx, id, m.Revision)
		var p *Problem
		if errors.As(err, &p) && p.final() || ctx.Err() != nil {
			return m, err
		}
		if err != nil {
			if !pause(ctx, time.Second) {
				return m, context.Cause(ctx)
			}
			continue
		}
		if next.Revision != m.Revision {
			m = next
			seen(m)
		}
		if m.Ended() {
			return m, nil
		}
	}
}

// final says that asking again would not help.
func (p *Problem) final() bool { return p.Status < 500 && p.Status != http.StatusTooManyRequests }

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// AbortMigration asks for a rollback.
func (c *Client) AbortMigration(ctx context.Context, id heliotrope.MoveID) (Migration, error) {
	return post[Migration](ctx, c, "", struct{}{}, "/v1/migrations/%s/abort", id)
}

// Routes are the public routes.
func (c *Client) Routes(ctx context.Context) ([]Route, error) {
	return list[Route](ctx, c, nil, "/v1/routes")
}

// WhyRoute explains where an address goes.
func (c *Client) WhyRoute(ctx context.Context, a netip.Addr) (RouteWhy, error) {
	return get[RouteWhy](ctx, c, nil, "/v1/routes/why/%s", a)
}

// Mesh is every tunnel.
func (c *Client) Mesh(ctx context.Context) (Mesh, error) { return get[Mesh](ctx, c, nil, "/v1/mesh") }

// VerifyMesh proves that packets of a size pass every tunnel.
func (c *Client) VerifyMesh(ctx context.Context, packetSize int) (MeshVerification, error) {
	return post[MeshVerification](ctx, c, "", MeshVerifyRequest{packetSize}, "/v1/mesh/verify")
}

// Flows are the flows of a host's br-int.
func (c *Client) Flows(ctx context.Context, h heliotrope.HostID) (FlowList, error) {
	return get[FlowList](ctx, c, nil, "/v1/hosts/%s/flows", h)
}

// AwaitFlows returns when every host's switch has flows made from the store at revision,
// such as an applied topology's, or later; it goes on asking until ctx ends.
func (c *Client) AwaitFlows(ctx context.Context, revision int64) error {
	q := url.Values{"wait": {"true"}, "revision": {strconv.FormatInt(revision, 10)}}
	for {
		r, err := get[FlowsReached](ctx, c, q, "/v1/flows")
		if err != nil || r.Reached {
			return err
		}
	}
}

// FlowDiff is what is wanted minus what is installed.
func (c *Client) FlowDiff(ctx context.Context, h heliotrope.HostID) (FlowDiff, error) {
	return get[FlowDiff](ctx, c, nil, "/v1/hosts/%s/flows/diff", h)
}

// Events are the newest limit kept events of some kinds (none: all), oldest first.
func (c *Client) Events(ctx context.Context, after int64, limit int, kinds ...string) (EventPage, error) {
	q := url.Values{"after": {strconv.FormatInt(after, 10)}, "limit": {strconv.Itoa(limit)}, "kind": kinds}
	return get[EventPage](ctx, c, q, "/v1/events")
}

// FollowEvents calls seen for each event with an id above after (-1: from now on) as it
// happens, without a gap and without a double over lost connections, until ctx ends or
// seen fails, and returns the cause.
func (c *Client) FollowEvents(ctx context.Context, after int64, kinds []string, seen func(Event) error) error {
	for {
		err := c.followOnce(ctx, &after, kinds, seen)
		var p *Problem
		var stop stopError
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &stop):
			return stop.error
		case errors.As(err, &p) && p.final():
			return err
		}
		if !pause(ctx, time.Second) {
			return context.Cause(ctx)
		}
	}
}

// stopError is what seen returned.
type stopError struct{ error }

func (c *Client) followOnce(ctx context.Context, after *int64, kinds []string, seen func(Event) error) error {
	q := call{method: http.MethodGet, path: "/v1/events", query: url.Values{"kind": kinds}, header: http.Header{"Accept": {"text/event-stream"}}}
	if *after >= 0 {
		q.query.Set("after", strconv.FormatInt(*after, 10))
	}
	resp, err := c.send(ctx, q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, MaxBody)
	id := *after
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "id":
			if id, err = strconv.ParseInt(value, 10, 64); err != nil {
				return fmt.Errorf("read event stream: %w", err)
			}
		case "data":
			var e Event
			if err := json.Unmarshal([]byte(value), &e); err != nil {
				return fmt.Errorf("read event stream: %w", err)
			}
			if err := seen(e); err != nil {
				return stopError{err}
			}
		case "": // end of one event
			*after = id
		}
	}
	return lines.Err()
}
