package agentapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// What an order can meet. They cross the wire.
var (
	ErrStale   = errors.New("stale order")      // a newer term or epoch has been seen
	ErrUnknown = errors.New("unknown here")     // no such VM or move on this host
	ErrBusy    = errors.New("not now")          // a move or another order is at it
	ErrInvalid = errors.New("invalid order")    // it makes no sense, now or later
	ErrRefused = errors.New("refused")          // of a join: token or certificate is not good
	errOther   = errors.New("agent could not")  // anything else
	errTooLong = errors.New("answer too large") // more than bodyLimit
)

// bodyLimit is the largest request or answer, in bytes.
const bodyLimit = 4 << 20

var codes = []struct {
	err    error
	code   string
	status int
}{
	{ErrStale, "stale", http.StatusConflict},
	{ErrUnknown, "unknown", http.StatusNotFound},
	{ErrBusy, "busy", http.StatusLocked},
	{ErrInvalid, "invalid", http.StatusBadRequest},
	{ErrRefused, "refused", http.StatusForbidden},
	{errOther, "other", http.StatusInternalServerError},
}

type wireError struct {
	Code    string `json:"error"`
	Message string `json:"message"`
}

func writeError(w http.ResponseWriter, err error) {
	known := codes[len(codes)-1]
	for _, c := range codes {
		if errors.Is(err, c.err) {
			known = c
			break
		}
	}
	writeJSON(w, known.status, wireError{known.code, err.Error()})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// An error here is a peer that has gone; its own end of the connection tells it.
	_ = json.NewEncoder(w).Encode(v)
}

func readJSON(r io.Reader, v any) error {
	body, err := io.ReadAll(io.LimitReader(r, bodyLimit+1))
	switch {
	case err != nil:
		return fmt.Errorf("read body: %w", err)
	case len(body) > bodyLimit:
		return fmt.Errorf("%w: %w", ErrInvalid, errTooLong)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: parse body: %w", ErrInvalid, err)
	}
	return nil
}

// readError turns an answer that is no success into the error that caused it.
func readError(resp *http.Response) error {
	var e wireError
	if err := readJSON(resp.Body, &e); err != nil {
		return fmt.Errorf("%w: status %d", errOther, resp.StatusCode)
	}
	for _, c := range codes {
		if c.code == e.Code {
			return remoteError{c.err, e.Message}
		}
	}
	return remoteError{errOther, e.Message}
}

// Answered says whether an error is the other end's answer: it has heard the order, and did nothing.
func Answered(err error) bool {
	var remote remoteError
	return errors.As(err, &remote) || errors.Is(err, errOther)
}

// remoteError is an error of the other end: its words, our kind.
type remoteError struct {
	kind    error
	message string
}

func (e remoteError) Error() string { return e.message }
func (e remoteError) Unwrap() error { return e.kind }
