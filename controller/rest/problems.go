package rest

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"heliotrope/controller/api"
)

// humaProblem is a problem that huma found: a field that does not fit its schema, mostly.
func humaProblem(status int, msg string, errs []error) *api.Problem {
	p := api.NewProblem(status, msg)
	for _, err := range errs {
		var d huma.ErrorDetailer
		if !errors.As(err, &d) {
			continue // the text of other errors is not for the caller
		}
		detail := d.ErrorDetail() // its Value is left out: it may be a secret
		f := api.FieldProblem{Detail: detail.Message, Pointer: pointer(detail.Location)}
		if strings.HasPrefix(f.Pointer, "query.") {
			f.Hint = "/openapi.json says what it takes"
		}
		p.Errors = append(p.Errors, f)
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
func writeProblem(w http.ResponseWriter, r *http.Request, p *api.Problem) {
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
