package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
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
		return kind{TypeTooLarge, "Too large", "a body has at most 1 MiB"}
	case http.StatusUnsupportedMediaType:
		return kind{TypeMediaType, "Unsupported media type", "send application/json; topologies also as application/yaml"}
	case http.StatusUnprocessableEntity:
		return kind{TypeInvalid, "Invalid", ""}
	case http.StatusPreconditionRequired:
		return kind{TypeNoCondition, "Precondition missing", ""}
	case http.StatusTooManyRequests:
		return kind{TypeTooMany, "Too many requests", "wait as Retry-After says"}
	case http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusRequestTimeout:
		return kind{TypeUnavailable, "Unavailable", "try again in a moment; running traffic is not affected"}
	}
	if status >= 500 {
		return kind{TypeInternal, "Internal error", ""}
	}
	return kind{TypeBadRequest, "Bad request", ""}
}

func newProblem(status int, detail string) *Problem {
	k := kindOf(status)
	return &Problem{Type: k.typ, Title: k.title, Status: status, Detail: detail, Hint: k.hint}
}

// humaProblem is a problem that huma found: a field that does not fit its schema, mostly.
func humaProblem(status int, msg string, errs []error) *Problem {
	p := newProblem(status, msg)
	for _, err := range errs {
		var d huma.ErrorDetailer
		if !errors.As(err, &d) {
			continue // the text of other errors is not for the caller
		}
		detail := d.ErrorDetail() // its Value is left out: it may be a secret
		p.Errors = append(p.Errors, FieldProblem{Detail: detail.Message, Pointer: pointer(detail.Location)})
	}
	return p
}

// pointer turns huma's body.a[0].b into /a/0/b; query.x and path.x stay.
func pointer(location string) string {
	rest, ok := strings.CutPrefix(location, "body")
	if !ok {
		return location
	}
	return strings.NewReplacer("[", "/", "]", "", ".", "/").Replace(rest)
}

// writeProblem answers outside of huma.
func writeProblem(w http.ResponseWriter, r *http.Request, p *Problem) {
	if p.Instance == "" {
		p.Instance = r.URL.Path
	}
	data, err := json.Marshal(p)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", p.ContentType(""))
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(p.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(data) // the caller is gone
	}
}
