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
)

// What agent and server say to each other, by HTTP on a socket that only root may use:
//
//	GET    /v1/status
//	GET    /v1/life           ends when the server does
//	PUT    /v1/volumes/VM     a wanted; the answer is a made
//	DELETE /v1/volumes/VM
//	PUT    /v1/images/REF     lets a version come; the answer is an agentapi.ImageCache
//	POST   /v1/stop
const answerLimit = 4 << 20 // bytes

// wanted is a volume that is to be there.
type wanted struct {
	Image string `json:"image,omitempty"` // IMAGE or IMAGE@VERSION; for one that is there already it does not matter
	Base  string `json:"base,omitempty"`  // in place of Image: exactly this version
	Fresh bool   `json:"fresh,omitempty"` // what is there is worth nothing
}

// made is a volume that is there.
type made struct {
	Base  string `json:"base"`
	Bytes int64  `json:"bytes"`
}

// Errors that cross the socket.
var (
	// ErrNoImage is that of an image which the store does not have.
	ErrNoImage = errors.New("the image store has no such image")
	errServer  = errors.New("the server of disks could not")
)

type wireError struct {
	NoImage bool   `json:"no_image,omitempty"`
	Message string `json:"message"`
}

func answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		v = wireError{errors.Is(err, imagesync.ErrNotFound), err.Error()}
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
	b, err := io.ReadAll(io.LimitReader(resp.Body, answerLimit))
	if err != nil {
		return fmt.Errorf("ask the server of disks: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var e wireError
		if json.Unmarshal(b, &e) != nil || e.Message == "" {
			return fmt.Errorf("%w: status %d", errServer, resp.StatusCode)
		}
		if e.NoImage {
			return fmt.Errorf("%w: %s", ErrNoImage, e.Message)
		}
		return errors.New(e.Message)
	}
	if err := json.Unmarshal(b, v); err != nil {
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
	err = c.call(ctx, http.MethodPut, "/v1/volumes/"+url.PathEscape(vm), w, &m)
	return m, err
}

func (c *client) remove(ctx context.Context, vm string) error {
	return c.call(ctx, http.MethodDelete, "/v1/volumes/"+url.PathEscape(vm), nil, &struct{}{})
}

func (c *client) pull(ctx context.Context, ref string) (out agentapi.ImageCache, err error) {
	err = c.call(ctx, http.MethodPut, "/v1/images/"+url.PathEscape(ref), nil, &out)
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
