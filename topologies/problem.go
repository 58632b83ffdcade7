package topologies

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxProblems is how many problems are told; a file with more is not being written but broken.
const maxProblems = 200

// Problem is one thing that is wrong with a topology.
type Problem struct {
	File    string `json:"-"`
	Line    int    `json:"line,omitempty"`   // from 1; zero where there is no file
	Column  int    `json:"column,omitempty"` // from 1, in characters
	Path    string `json:"path"`             // for people: vms.web.nics[0].address; empty for the whole file
	Pointer string `json:"pointer"`          // for programs, RFC 6901: /vms/web/nics/0/address
	Message string `json:"message"`          // what is wrong
	Hint    string `json:"hint,omitempty"`   // how to mend it
}

// String is file:line:column: path: message (hint), without the parts that are not known.
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File + ":")
	}
	if p.Line > 0 {
		fmt.Fprintf(&b, "%d:%d:", p.Line, p.Column)
	}
	if b.Len() > 0 {
		b.WriteString(" ")
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	if p.Hint != "" {
		b.WriteString(" (" + p.Hint + ")")
	}
	return b.String()
}

// Errors is everything that is wrong with a file, in the order of its lines.
type Errors []Problem

// Error has one line for each problem.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, p := range e {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

func newErrors(file string, problems []Problem) Errors {
	for i := range problems {
		problems[i].File = file
	}
	return problems
}

// report collects problems up to maxProblems and counts the others.
type report struct {
	problems []Problem
	more     int
}

func (r *report) add(p Problem) {
	if r.full() {
		r.more++
		return
	}
	r.problems = append(r.problems, p)
}

// full says that a further problem will only be counted, so that its hint need not be searched.
func (r *report) full() bool { return len(r.problems) >= maxProblems }

func (r *report) finish() []Problem {
	slices.SortStableFunc(r.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	if r.more == 0 {
		return r.problems
	}
	last := r.problems[len(r.problems)-1]
	return append(r.problems, Problem{
		Line: last.Line, Column: last.Column,
		Message: fmt.Sprintf("%d more problems are not shown", r.more),
		Hint:    "mend these first",
	})
}

// path is a place in a topology; nil is the whole of it. It is a list and not a string,
// so that walking a hostile file with long keys copies none of them.
type path struct {
	up    *path
	name  string
	index int // where name is empty
	item  bool
}

func (p *path) key(name string) *path { return &path{up: p, name: name} }
func (p *path) at(index int) *path    { return &path{up: p, index: index, item: true} }

// String is the path as people write it.
func (p *path) String() string {
	switch {
	case p == nil:
		return ""
	case p.item:
		return p.up.String() + "[" + strconv.Itoa(p.index) + "]"
	case strings.Trim(p.name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" || p.name == "":
		return p.up.String() + "[" + quote(p.name) + "]"
	case p.up == nil:
		return shorten(p.name)
	}
	return p.up.String() + "." + shorten(p.name)
}

// pointer is the path as a JSON pointer (RFC 6901).
func (p *path) pointer() string {
	switch {
	case p == nil:
		return ""
	case p.item:
		return p.up.pointer() + "/" + strconv.Itoa(p.index)
	}
	return p.up.pointer() + "/" + escape.Replace(shorten(p.name))
}

var escape = strings.NewReplacer("~", "~0", "/", "~1")

// parentPointer is the pointer of what holds the thing at pointer.
func parentPointer(pointer string) string {
	return pointer[:max(0, strings.LastIndexByte(pointer, '/'))]
}

// quote shows foreign text in a message: quoted, escaped, and not too long.
func quote(s string) string { return strconv.Quote(shorten(s)) }

const longest = 80 // bytes of foreign text that are shown

func shorten(s string) string {
	if len(s) <= longest {
		return s
	}
	cut := longest
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
