package api

import (
	"fmt"
	"net/http"
	"strings"
)

// Problem is an error as the wire carries it (RFC 9457). The zero Status never leaves the server.
type Problem struct {
	Type     string         `json:"type" doc:"Stable name of the kind of problem." example:"urn:heliotrope:problem:not-found"`
	Title    string         `json:"title" doc:"The kind in words."`
	Status   int            `json:"status" doc:"The HTTP status."`
	Detail   string         `json:"detail,omitempty" doc:"What is wrong this time."`
	Instance string         `json:"instance,omitempty" doc:"Path of the request."`
	Hint     string         `json:"hint,omitempty" doc:"How to mend it."`
	Errors   []FieldProblem `json:"errors,omitempty" doc:"Every field that is wrong."`
}

// FieldProblem is what is wrong with one field of a body, a path or a query.
type FieldProblem struct {
	Detail  string `json:"detail" doc:"What is wrong."`
	Pointer string `json:"pointer,omitempty" doc:"JSON pointer into the body, or query.NAME, path.NAME, header.NAME." example:"/vms/web/nics/0/address"`
	Path    string `json:"path,omitempty" doc:"The same as an engineer says it." example:"vms.web.nics[0].address"`
	Line    int    `json:"line,omitempty" doc:"In a YAML body, from 1."`
	Column  int    `json:"column,omitempty" doc:"In a YAML body, from 1."`
	Hint    string `json:"hint,omitempty"`
}

// The kinds of problem. Each is stable: programs branch on it.
const (
	urn             = "urn:heliotrope:problem:"
	TypeBadRequest  = urn + "bad-request"          // 400: no JSON, no such query value
	TypeNoAuth      = urn + "unauthorized"         // 401: no token, or a wrong one
	TypeForbidden   = urn + "forbidden"            // 403: this user may not
	TypeNotFound    = urn + "not-found"            // 404
	TypeMethod      = urn + "method-not-allowed"   // 405
	TypeConflict    = urn + "conflict"             // 409: not in the state it is in
	TypeKeyBusy     = urn + "idempotency-busy"     // 409: the first request with this key still runs
	TypeStale       = urn + "stale"                // 412: somebody changed it since you read it
	TypeTooLarge    = urn + "too-large"            // 413
	TypeMediaType   = urn + "unsupported-media"    // 415
	TypeInvalid     = urn + "invalid"              // 422: fields are wrong; Errors has them all
	TypeKeyReused   = urn + "idempotency-reused"   // 422: this key was used with another body
	TypeNoCondition = urn + "precondition-missing" // 428: say If-Match
	TypeTooMany     = urn + "too-many-requests"    // 429: see Retry-After
	TypeInternal    = urn + "internal"             // 500
	TypeFull        = urn + "full"                 // 507: there is no room for it
	TypeUnavailable = urn + "unavailable"          // 503: the store is away; try again
)

// kind is what a status means where nobody said it better.
type kind struct{ typ, title, hint string }

func kindOf(status int) kind {
	switch status {
	case http.StatusUnauthorized:
		return kind{TypeNoAuth, "Unauthorized", "send Authorization: Bearer TOKEN, or use the unix socket as root"}
	case http.StatusForbidden:
		return kind{TypeForbidden, "Forbidden", ""}
	case http.StatusNotFound:
		return kind{TypeNotFound, "Not found", "/openapi.json lists what there is"}
	case http.StatusMethodNotAllowed:
		return kind{TypeMethod, "Method not allowed", "the Allow header lists what is"}
	case http.StatusConflict:
		return kind{TypeConflict, "Conflict", ""}
	case http.StatusPreconditionFailed:
		return kind{TypeStale, "Changed meanwhile", "read it again and send it with the new ETag"}
	case http.StatusRequestEntityTooLarge:
		return kind{TypeTooLarge, "Too large", "a body has at most 1 MiB, a part of an upload 8 MiB"}
	case http.StatusUnsupportedMediaType:
		return kind{TypeMediaType, "Unsupported media type", "send application/json; topologies also as application/yaml"}
	case http.StatusUnprocessableEntity:
		return kind{TypeInvalid, "Invalid", ""}
	case http.StatusPreconditionRequired:
		return kind{TypeNoCondition, "Precondition missing", ""}
	case http.StatusTooManyRequests:
		return kind{TypeTooMany, "Too many requests", "wait as Retry-After says"}
	case http.StatusInsufficientStorage:
		return kind{TypeFull, "No room", ""}
	case http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusRequestTimeout:
		return kind{TypeUnavailable, "Unavailable", "try again in a moment; running traffic is not affected"}
	}
	if status >= 500 {
		return kind{TypeInternal, "Internal error", ""}
	}
	return kind{TypeBadRequest, "Bad request", ""}
}

// NewProblem is a problem of the kind that the status has where nobody says it better.
func NewProblem(status int, detail string) *Problem {
	k := kindOf(status)
	return &Problem{Type: k.typ, Title: k.title, Status: status, Detail: detail, Hint: k.hint}
}

// Error is the detail with every field's problem, and the hint.
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.Title)
	if p.Detail != "" {
		b.WriteString(": " + p.Detail)
	}
	for _, f := range p.Errors {
		b.WriteString("\n  " + f.String())
	}
	if p.Hint != "" {
		b.WriteString("\n  hint: " + p.Hint)
	}
	return b.String()
}

// GetStatus is the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is that of problems.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// String is the problem on one line: place, what is wrong, hint.
func (f FieldProblem) String() string {
	var where string
	if f.Line > 0 {
		where = fmt.Sprintf("%d:%d: ", f.Line, f.Column)
	}
	if at := f.at(); at != "" {
		where += at + ": "
	}
	if f.Hint != "" {
		return where + f.Detail + " (" + f.Hint + ")"
	}
	return where + f.Detail
}

func (f FieldProblem) at() string {
	if f.Path != "" {
		return f.Path
	}
	return f.Pointer
}

// NotFound says that there is no such thing.
func NotFound(kind, name string) *Problem {
	return &Problem{Type: TypeNotFound, Title: "Not found", Status: http.StatusNotFound,
		Detail: fmt.Sprintf("there is no %s %q", kind, name),
		Hint:   fmt.Sprintf("heliotrope %s list shows what there is", kind)}
}

// Conflict says that the thing's state does not allow it.
func Conflict(detail, hint string) *Problem {
	return &Problem{Type: TypeConflict, Title: "Conflict", Status: http.StatusConflict, Detail: detail, Hint: hint}
}

// Stale says that somebody changed the thing since the caller read it; now is its revision.
func Stale(now int64) *Problem {
	return &Problem{Type: TypeStale, Title: "Changed meanwhile", Status: http.StatusPreconditionFailed,
		Detail: fmt.Sprintf("the topology is at revision %d, not the one that If-Match names", now),
		Hint:   "read it again, look at the difference, and send it with the new ETag"}
}

// Invalid says which fields are wrong.
func Invalid(detail string, fields ...FieldProblem) *Problem {
	return &Problem{Type: TypeInvalid, Title: "Invalid", Status: http.StatusUnprocessableEntity, Detail: detail, Errors: fields}
}

// Unavailable says that the controller cannot know or do it now.
func Unavailable(detail string) *Problem {
	return &Problem{Type: TypeUnavailable, Title: "Unavailable", Status: http.StatusServiceUnavailable,
		Detail: detail, Hint: "try again in a moment; running traffic is not affected"}
}
