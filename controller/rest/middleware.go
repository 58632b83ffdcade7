package rest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"heliotrope/controller/api"
)

type ctxKey int

const (
	peerKey     ctxKey = iota // peer of the connection, set by Server
	callerKey                 // string: who it is, once known
	instanceKey               // string: the request's path
	bodyKey                   // []byte: the request's body
)

// peer is who is at the other end of a unix socket.
type peer struct {
	uid   uint32
	admin bool
}

func instanceOf(ctx context.Context) string {
	s, _ := ctx.Value(instanceKey).(string)
	return s
}

func callerOf(ctx context.Context) string {
	s, _ := ctx.Value(callerKey).(string)
	return s
}

// recovered answers a panic of ours with a 500 where an answer is still possible.
func (h *handler) recovered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(v)
			}
			h.opts.Log.Error("request panicked", "method", r.Method, "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
			writeProblem(w, r, api.NewProblem(http.StatusInternalServerError, "the controller failed; its log says why"))
		}()
		header := w.Header()
		header.Set("Cache-Control", "no-store")
		header.Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), instanceKey, r.URL.Path)))
	})
}

// authorized lets in who may, no more often than the rate allows. A stranger is counted
// by address, so that guessing tokens is slow too.
func (h *handler) authorized(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, p := h.caller(r)
		if wait := h.limit.take(caller); wait > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
			writeProblem(w, r, api.NewProblem(http.StatusTooManyRequests, "you have sent too many requests"))
			return
		}
		if p != nil && !isPublic(r.URL.Path) {
			if p.Status == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", `Bearer realm="heliotrope"`)
			}
			writeProblem(w, r, p)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey, caller)))
	})
}

func isPublic(path string) bool { return path == "/healthz" || path == "/readyz" || path == "/version" }

// caller names who asks, and says what is wrong with that.
func (h *handler) caller(r *http.Request) (string, *api.Problem) {
	if p, ok := r.Context().Value(peerKey).(peer); ok {
		name := "uid:" + strconv.Itoa(int(p.uid))
		if !p.admin {
			return name, api.NewProblem(http.StatusForbidden, "only root and the controller's own user may use the unix socket")
		}
		return name, nil
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "bearer") || token == "" {
		return "stranger:" + host, api.NewProblem(http.StatusUnauthorized, "no bearer token was sent")
	}
	sum := sha256.Sum256([]byte(token))
	if len(h.opts.TokenHash) != len(sum) || subtle.ConstantTimeCompare(sum[:], h.opts.TokenHash) != 1 {
		return "stranger:" + host, api.NewProblem(http.StatusUnauthorized, "the bearer token is not valid")
	}
	return "token", nil
}

// bounded reads the body, at most 1 MiB of it (8 of a part of an image), and gives the request a deadline. After
// that nothing is read from the connection, so the read deadline is lifted: it would end
// a long answer otherwise.
func (h *handler) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		most := int64(api.MaxBody)
		if r.Method == http.MethodPatch && strings.HasPrefix(r.URL.Path, "/v1/uploads/") {
			most = api.MaxPart
		}
		data, err := io.ReadAll(io.LimitReader(r.Body, most+1))
		if err != nil {
			w.Header().Set("Connection", "close")
			writeProblem(w, r, api.NewProblem(http.StatusBadRequest, "the body could not be read to its end"))
			return
		}
		if int64(len(data)) > most {
			w.Header().Set("Connection", "close")
			writeProblem(w, r, api.NewProblem(http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d MiB", most>>20)))
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(data))
		control := http.NewResponseController(w)
		_ = control.SetReadDeadline(time.Time{}) // a writer that cannot has no deadline to lift
		ctx := context.WithValue(r.Context(), bodyKey, data)
		if !wantsStream(r) {
			_ = control.SetWriteDeadline(time.Now().Add(longest + writeLimit))
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, longest)
			defer cancel()
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// routed answers what the router would answer in plain text: 404 and 405.
func (h *handler) routed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := h.mux.Handler(r); pattern != "" {
			next.ServeHTTP(w, r)
			return
		}
		var probe statusProbe
		h.mux.ServeHTTP(&probe, r)
		if probe.status == http.StatusMethodNotAllowed {
			allow := probe.Header().Get("Allow")
			w.Header().Set("Allow", allow)
			writeProblem(w, r, api.NewProblem(probe.status, fmt.Sprintf("%s is not possible here, but %s is", r.Method, allow)))
			return
		}
		writeProblem(w, r, api.NewProblem(http.StatusNotFound, "there is no such route"))
	})
}

// statusProbe takes the status of an answer and drops the rest.
type statusProbe struct {
	status int
	header http.Header
}

func (p *statusProbe) Header() http.Header {
	if p.header == nil {
		p.header = http.Header{}
	}
	return p.header
}
func (p *statusProbe) WriteHeader(status int)         { p.status = status }
func (p *statusProbe) Write(data []byte) (int, error) { return len(data), nil }

// limiter is a token bucket for each caller.
type limiter struct {
	mu      sync.Mutex
	rate    rate.Limit
	burst   int
	callers map[string]*rate.Limiter
}

func newLimiter(perSecond float64, burst int) *limiter {
	return &limiter{rate: rate.Limit(perSecond), burst: burst, callers: map[string]*rate.Limiter{}}
}

// take takes one token, or says how long until there is one.
func (l *limiter) take(caller string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.callers[caller]
	if b == nil {
		if len(l.callers) >= 10_000 { // strangers from everywhere: forget them all
			clear(l.callers)
		}
		b = rate.NewLimiter(l.rate, l.burst)
		l.callers[caller] = b
	}
	r := b.Reserve()
	wait := r.Delay()
	if wait > 0 {
		r.Cancel()
	}
	return wait
}
