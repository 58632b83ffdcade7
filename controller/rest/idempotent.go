package rest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"

	"heliotrope/controller/api"
)

// takesKey are the routes on which an Idempotency-Key has an effect.
func takesKey(pattern string) bool {
	switch pattern {
	case "POST /v1/migrations", "POST /v1/plans", "POST /v1/uploads", "POST /v1/snapshots", "POST /v1/hosts/{host}/token", "PUT /v1/topology":
		return true
	}
	return false
}

// idempotent gives the kept answer to a key that was used before with the same request.
// Only success is kept: what failed had no effect and may be tried again. The effect
// itself holds across a crash between effect and answer, since the id of what is made
// comes from the key (see nameOf) or applying twice is the same as once.
func (h *handler) idempotent(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Idempotency-Key")
		_, pattern := h.mux.Handler(r)
		if key == "" || !takesKey(pattern) {
			next.ServeHTTP(w, r)
			return
		}
		if len(key) > 255 {
			writeProblem(w, r, &api.Problem{Type: api.TypeBadRequest, Title: "Bad request", Status: http.StatusBadRequest,
				Detail: "the key is longer than 255 bytes", Errors: []api.FieldProblem{{Detail: "too long", Pointer: "header.Idempotency-Key"}}})
			return
		}
		key, hash := keyName(r, key), requestHash(r)
		state, data, err := h.Answers.Claim(r.Context(), key, hash)
		switch {
		case err != nil:
			writeProblem(w, r, h.problem(r.Context(), "claim key", err))
		case state == api.Kept:
			replay(w, r, data)
		case state == api.Claimed:
			h.answerOnce(w, r, next, key, hash)
		case state == api.Reused:
			writeProblem(w, r, &api.Problem{Type: api.TypeKeyReused, Title: "Key used before", Status: http.StatusUnprocessableEntity,
				Detail: "this Idempotency-Key was used with another request", Hint: "take a new key for a new request"})
		default:
			w.Header().Set("Retry-After", "1")
			writeProblem(w, r, &api.Problem{Type: api.TypeKeyBusy, Title: "Still running", Status: http.StatusConflict,
				Detail: "the first request with this Idempotency-Key has no answer yet", Hint: "send it again in a second"})
		}
	})
}

// keyName keeps callers' keys apart, and is short however long the key is.
func keyName(r *http.Request, key string) string {
	return hashOf(callerOf(r.Context()), r.Method, r.URL.Path, key)
}

func requestHash(r *http.Request) string {
	data, _ := r.Context().Value(bodyKey).([]byte)
	return hashOf(r.URL.RawQuery, r.Header.Get("Content-Type"), r.Header.Get("If-Match"), r.Header.Get("If-None-Match"), string(data))
}

func hashOf(parts ...string) string {
	sum := sha256.New()
	for _, p := range parts {
		part := sha256.Sum256([]byte(p))
		sum.Write(part[:])
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// answerOnce runs the request and keeps its answer before it is given. The caller may
// hang up meanwhile: what was begun is brought to an end all the same.
func (h *handler) answerOnce(w http.ResponseWriter, r *http.Request, next http.Handler, key, hash string) {
	rec := &recorder{header: http.Header{}, status: http.StatusOK}
	done := false
	keepCtx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), longest)
	defer cancel()
	defer func() {
		if done {
			return
		}
		if err := h.Answers.Release(keepCtx, key, hash); err != nil {
			h.opts.Log.Warn("idempotency key stays claimed until it expires", "err", err)
		}
	}()
	next.ServeHTTP(rec, r.WithContext(keepCtx))
	if rec.status/100 == 2 {
		data, err := json.Marshal(api.Answer{Status: rec.status, Headers: rec.header, Body: rec.body.Bytes()})
		if err == nil {
			err = h.Answers.Keep(keepCtx, key, hash, data)
		}
		if err != nil {
			h.opts.Log.Warn("answer is not kept for its idempotency key", "err", err)
		}
		done = true
	}
	rec.copyTo(w)
}

func replay(w http.ResponseWriter, r *http.Request, data []byte) {
	var a api.Answer
	if err := json.Unmarshal(data, &a); err != nil || a.Status == 0 {
		writeProblem(w, r, api.NewProblem(http.StatusInternalServerError, "the answer kept for this Idempotency-Key cannot be read"))
		return
	}
	w.Header().Set("Idempotency-Replayed", "true")
	(&recorder{header: a.Headers, status: a.Status, body: *bytes.NewBuffer(a.Body)}).copyTo(w)
}

// recorder holds an answer back.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header            { return r.header }
func (r *recorder) WriteHeader(status int)         { r.status = status }
func (r *recorder) Write(data []byte) (int, error) { return r.body.Write(data) }

func (r *recorder) copyTo(w http.ResponseWriter) {
	for k, v := range r.header {
		w.Header()[k] = v
	}
	w.WriteHeader(r.status)
	_, _ = w.Write(r.body.Bytes()) // the caller is gone
}

// nameOf is the name of what a request makes: with an Idempotency-Key the same for the same
// caller and key, else a new one.
func nameOf(ctx context.Context, kind, key string) string {
	name := rand.Text()
	if key != "" {
		name = hashOf(callerOf(ctx), kind, key)
	}
	return strings.ToLower(name[:16])
}
