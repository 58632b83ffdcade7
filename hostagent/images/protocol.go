package images

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
	"time"

	"heliotrope/hostagent/agentapi"
	"heliotrope/imagesync"
	"heliotrope/imagesync/site"
)

// What agent and server say to each other, by HTTP on a socket that only root may use:
//
//	GET    /v1/status
//	GET    /v1/life           ends when the server does
//	PUT    /v1/volumes/VM     a wanted; the answer is a made
//	DELETE /v1/volumes/VM
//	PUT    /v1/volumes/VM/leaving  a move is to take it away; the answer is a leaving
//	DELETE /v1/volumes/VM/leaving  it does not
//	PUT    /v1/volumes/VM/telling  a telling, which holds until the request ends; the answer is a told
//	PUT    /v1/volumes/VM/arrived  a move has brought all of it
//	PUT    /v1/volumes/VM/left     a move has taken it away
//	PUT    /v1/snapshots/ID   an agentapi.SnapshotOrder; the answer is an agentapi.ImageSnapshot
//	PUT    /v1/images/REF     a pulling: lets a version come; the answer is an agentapi.ImageCache
//	POST   /v1/stop
const answerLimit = 4 << 20 // bytes

// wanted is a volume that is to be there.
type wanted struct {
	Image string `json:"image,omitempty"` // IMAGE or IMAGE@VERSION; for one that is there already it does not matter
	Base  string `json:"base,omitempty"`  // in place of Image: exactly this version
	Fresh bool   `json:"fresh,omitempty"` // what is there is worth nothing
	Move  string `json:"move,omitempty"`  // by which it comes; only what differs from what is here
	Came  string `json:"came,omitempty"`  // what left here by this move would do in place of a fresh one
}

// pulling is how a version is to come before a volume needs it.
type pulling struct {
	site.Pull
	Lend bool                `json:"lend,omitempty"` // when it may come was said before
	Part *agentapi.ImagePart `json:"part,omitempty"` // and nothing else: it comes already
}

// made is a volume that is there.
type made struct {
	Base  string   `json:"base"`
	Bytes int64    `json:"bytes"`
	Has   site.Has `json:"has,omitempty"` // where a move is to bring it
}

// Errors that cross the socket.
var (
	// ErrNoImage is that of an image which the store does not have.
	ErrNoImage = errors.New("the image store has no such image")
	errServer  = errors.New("the server of disks could not")
)

type wireError struct {
	NoImage bool   `json:"no_image,omitempty"`
	Unknown bool   `json:"unknown,omitempty"` // agentapi.ErrUnknown
	Busy    bool   `json:"busy,omitempty"`    // agentapi.ErrBusy
	Message string `json:"message"`
}

// serverError is an error of the server's: its words, and what an agent tells a controller.
type serverError struct {
	kind    error
	message string
}

func (e serverError) Error() string { return e.message }
func (e serverError) Unwrap() error { return e.kind }

func answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		v = wireError{errors.Is(err, imagesync.ErrNotFound), errors.Is(err, agentapi.ErrUnknown), errors.Is(err, agentapi.ErrBusy), err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v) // an agent that has gone
}

// client asks a server.
type client struct{ http *http.Client }

func newClient(socket string) *client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &client{&http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConns: 4, IdleConnTimeout: time.Minute}}}
}

// call asks and reads the answer into v.
func (c *client) call(ctx context.Context, method, path string, body, v any) error {
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return readAnswer(resp, v)
}

// readAnswer reads an answer, or the error that it is, from what may go on after it.
func readAnswer(resp *http.Response, v any) error {
	in := json.NewDecoder(io.LimitReader(resp.Body, answerLimit))
	if resp.StatusCode != http.StatusOK {
		var e wireError
		if in.Decode(&e) != nil || e.Message == "" {
			return fmt.Errorf("%w: status %d", errServer, resp.StatusCode)
		}
		if e.NoImage {
			return fmt.Errorf("%w: %s", ErrNoImage, e.Message)
		}
		for kind, is := range map[error]bool{agentapi.ErrUnknown: e.Unknown, agentapi.ErrBusy: e.Busy} {
			if is {
				return serverError{kind, e.Message}
			}
		}
		return errors.New(e.Message)
	}
	if err := in.Decode(v); err != nil {
		return fmt.Errorf("ask the server of disks: %w", err)
	}
	return nil
}

func (c *client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://images"+path, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the server of disks: %w", err)
	}
	return resp, nil
}

func (c *client) status(ctx context.Context) (s agentapi.ImageStatus, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

func (c *client) put(ctx context.Context, vm string, w wanted) (m made, err error) {
	err = c.call(ctx, http.MethodPut, volumePath(vm), w, &m)
	return m, err
}

func (c *client) remove(ctx context.Context, vm string) error {
	return c.call(ctx, http.MethodDelete, volumePath(vm), nil, &struct{}{})
}

func (c *client) leave(ctx context.Context, vm string) (l leaving, err error) {
	err = c.call(ctx, http.MethodPut, volumePath(vm)+"/leaving", nil, &l)
	return l, err
}

func (c *client) stay(ctx context.Context, vm string) error {
	return c.call(ctx, http.MethodDelete, volumePath(vm)+"/leaving", nil, &struct{}{})
}

func (c *client) arrive(ctx context.Context, vm string) error {
	return c.call(ctx, http.MethodPut, volumePath(vm)+"/arrived", nil, &struct{}{})
}

func (c *client) keep(ctx context.Context, vm string) error {
	return c.call(ctx, http.MethodPut, volumePath(vm)+"/left", nil, &struct{}{})
}

// tell has a volume's QEMU told what a destination has, until end.
func (c *client) tell(ctx context.Context, vm string, what telling) (t told, end func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(answerWithin, cancel)
	defer late.Stop()
	resp, err := c.send(ctx, http.MethodPut, volumePath(vm)+"/telling", what)
	if err == nil {
		if err = readAnswer(resp, &t); err != nil {
			resp.Body.Close()
		}
	}
	if err != nil {
		cancel()
		return t, nil, err
	}
	return t, func() { cancel(); resp.Body.Close() }, nil
}

func volumePath(vm string) string { return "/v1/volumes/" + url.PathEscape(vm) }

func (c *client) pull(ctx context.Context, ref string, p pulling) (out agentapi.ImageCache, err error) {
	err = c.call(ctx, http.MethodPut, "/v1/images/"+url.PathEscape(ref), p, &out)
	return out, err
}

func (c *client) stop(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/stop", nil, &struct{}{})
}

// life waits until the server has ended, or ctx has.
func (c *client) life(ctx context.Context) error {
	resp, err := c.send(ctx, http.MethodGet, "/v1/life", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
