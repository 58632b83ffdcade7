package agentapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"heliotrope"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

// eventLimit is the longest event, in bytes.
const eventLimit = 64 << 10

// Agent is one host's agent as the controller sees it, for as long as one connection
// lasts. Its methods return ErrStale, ErrUnknown, ErrBusy and ErrInvalid where the agent
// said so; any other error means that nobody knows whether the order arrived.
type Agent struct {
	host heliotrope.HostID
	http *http.ClientConn
	conn *endingConn
}

func newAgent(ctx context.Context, host heliotrope.HostID, conn *endingConn) (*Agent, error) {
	h, err := clientHTTP2(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("open agent connection: %w", err)
	}
	return &Agent{host, h, conn}, nil
}

func (a *Agent) close() { a.http.Close() }

// Host is whose agent it is, by its certificate.
func (a *Agent) Host() heliotrope.HostID { return a.host }

// Done is closed when the connection has ended.
func (a *Agent) Done() <-chan struct{} { return a.conn.done }

// Status asks for the host's state.
func (a *Agent) Status(ctx context.Context) (HostStatus, error) {
	var s HostStatus
	if err := call(ctx, a.http, http.MethodGet, "/v1/status", nil, &s); err != nil {
		return HostStatus{}, fmt.Errorf("get status of %s: %w", a.host, err)
	}
	return s, nil
}

// Watch calls f for each event until ctx or the connection ends; it never returns nil.
// Events before the call are not told.
func (a *Agent) Watch(ctx context.Context, f func(Event)) error {
	resp, err := send(ctx, a.http, http.MethodGet, "/v1/events", nil)
	if err != nil {
		return fmt.Errorf("watch %s: %w", a.host, err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, eventLimit)
	for lines.Scan() {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("watch %s: parse event: %w", a.host, err)
		}
		f(e)
	}
	return fmt.Errorf("watch %s: %w", a.host, errors.Join(lines.Err(), io.EOF))
}

// Probe gives a ProbeOrder and returns what came of it, a Path for each peer.
func (a *Agent) Probe(ctx context.Context, order ProbeOrder) ([]Path, error) {
	var paths []Path
	if err := call(ctx, a.http, http.MethodPost, "/v1/probe", order, &paths); err != nil {
		return nil, fmt.Errorf("probe from %s: %w", a.host, err)
	}
	return paths, nil
}

// PutVM gives a VMOrder and waits until it is carried out. It may be repeated.
func (a *Agent) PutVM(ctx context.Context, order VMOrder) error {
	var done struct{}
	if err := call(ctx, a.http, http.MethodPut, "/v1/vms/"+url.PathEscape(string(order.VM)), order, &done); err != nil {
		return fmt.Errorf("put VM %s on %s: %w", order.VM, a.host, err)
	}
	return nil
}

// RemoveVM gives a RemoveOrder and waits until it is carried out. It may be repeated.
func (a *Agent) RemoveVM(ctx context.Context, order RemoveOrder) error {
	var done struct{}
	if err := call(ctx, a.http, http.MethodDelete, "/v1/vms/"+url.PathEscape(string(order.VM)), order, &done); err != nil {
		return fmt.Errorf("remove VM %s from %s: %w", order.VM, a.host, err)
	}
	return nil
}

// PutMove gives a MoveOrder and returns at once with what the move is at; GetMove tells
// how it goes on. It may be repeated.
func (a *Agent) PutMove(ctx context.Context, order MoveOrder) (MoveReport, error) {
	var r MoveReport
	if err := call(ctx, a.http, http.MethodPut, "/v1/moves/"+url.PathEscape(string(order.Move)), order, &r); err != nil {
		return MoveReport{}, fmt.Errorf("order %s of move %s from %s: %w", order.Step, order.Move, a.host, err)
	}
	return r, nil
}

// GetMove returns what the host's part of a move is at, once it is not at revision after
// any more, or after about 20 s. The state of a move that the host does not know is
// MoveUnknown.
func (a *Agent) GetMove(ctx context.Context, id heliotrope.MoveID, role Role, after uint64) (MoveReport, error) {
	q := url.Values{"after": {strconv.FormatUint(after, 10)}, "role": {string(role)}}
	var r MoveReport
	if err := call(ctx, a.http, http.MethodGet, "/v1/moves/"+url.PathEscape(string(id))+"?"+q.Encode(), nil, &r); err != nil {
		return MoveReport{}, fmt.Errorf("get move %s from %s: %w", id, a.host, err)
	}
	return r, nil
}

// FollowMove gives a MoveOrder and calls f with what the move is at, and with every change of
// that as it happens, until ctx or the connection ends; it never returns nil. An order, and the
// change that it brings about, take one round trip.
func (a *Agent) FollowMove(ctx context.Context, order MoveOrder, f func(MoveReport)) error {
	resp, err := send(ctx, a.http, http.MethodPut, "/v1/moves/"+url.PathEscape(string(order.Move))+"?follow", order)
	if err != nil {
		return fmt.Errorf("order %s of move %s from %s: %w", order.Step, order.Move, a.host, err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, bodyLimit)
	var last MoveReport
	for lines.Scan() {
		r := MoveReport{}
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("follow move %s at %s: %w", order.Move, a.host, err)
		}
		if r.XML == "" {
			r.XML = last.XML
		}
		last = r
		f(r)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("follow move %s at %s: %w", order.Move, a.host, err)
	}
	// An agent of before tells of one at a time.
	for err == nil {
		if last, err = a.GetMove(ctx, order.Move, order.Role, last.Rev); err == nil {
			f(last)
		}
	}
	return err
}
