package topologies

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxDepth is how deep lists and mappings may be nested; a topology needs six.
const maxDepth = 64

// readTree turns a file's bytes into its YAML tree, in which there are then only
// mappings, lists and scalars, at most maxDepth deep.
func readTree(data []byte, maxBytes int64) (*yaml.Node, []Problem) {
	if p, ok := refuseBytes(data, maxBytes); ok {
		return nil, []Problem{p}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	doc, err := nextDocument(dec)
	if errors.Is(err, io.EOF) {
		return nil, []Problem{{Line: 1, Column: 1, Message: "the file is empty", Hint: "start it with version: 1"}}
	}
	if err != nil {
		return nil, []Problem{syntaxProblem(err)}
	}
	switch second, err := nextDocument(dec); {
	case err == nil:
		return nil, []Problem{{Line: second.Line, Column: second.Column,
			Message: "a second document begins here; a file holds one", Hint: "remove the line --- above"}}
	case !errors.Is(err, io.EOF):
		return nil, []Problem{syntaxProblem(err)}
	}
	var r report
	refuseNodes(&r, doc.Content[0], nil, 1)
	return doc.Content[0], r.finish()
}

// nextDocument guards against a parser that panics on foreign bytes.
func nextDocument(dec *yaml.Decoder) (doc *yaml.Node, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: %v", r)
		}
	}()
	doc = new(yaml.Node)
	if err := dec.Decode(doc); err != nil {
		return nil, err
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, io.EOF
	}
	return doc, nil
}

// refuseBytes finds what makes a file not worth parsing. A file of nothing but commas
// costs the parser 200 bytes of memory for each of its own, hence the last check.
func refuseBytes(data []byte, maxBytes int64) (Problem, bool) {
	if int64(len(data)) > maxBytes {
		return Problem{Line: 1, Column: 1, Message: fmt.Sprintf("the file is larger than %d bytes", maxBytes),
			Hint: "raise the limit with --max-bytes"}, true
	}
	line, column, parts := 1, 1, 0
	for i := 0; i < len(data); {
		c, size := utf8.DecodeRune(data[i:])
		at := Problem{Line: line, Column: column, Hint: "save the file as plain UTF-8 text"}
		switch {
		case c == utf8.RuneError && size <= 1:
			at.Message = fmt.Sprintf("byte 0x%02x is no UTF-8", data[i])
			return at, true
		case !printable(c) && (c != '\uFEFF' || i > 0):
			at.Message = fmt.Sprintf("control character %U", c)
			return at, true
		}
		column++
		switch c {
		case '\n':
			line, column = line+1, 1
			parts++
		case ',', '[', '{':
			parts++
		}
		i += size
	}
	if most := 1000 + maxBytes/5; int64(parts) > most {
		return Problem{Line: 1, Column: 1, Message: fmt.Sprintf("the file has %d lines and list items, more than %d", parts, most),
			Hint: "raise the limit with --max-bytes"}, true
	}
	return Problem{}, false
}

// printable says whether YAML allows c outside of an escape.
func printable(c rune) bool {
	switch {
	case c < 0x20:
		return c == '\t' || c == '\n' || c == '\r'
	case c < 0xA0:
		return c < 0x7F || c == 0x85
	}
	return c != 0xFEFF && c != 0xFFFE && c != 0xFFFF
}

// syntaxHints says in our words what the parser's most frequent complaints mean.
var syntaxHints = []struct{ says, hint string }{
	{"mapping values are not allowed", "a text with a colon in it needs quotes, or this line is indented too far"},
	{"could not find expected ':'", "a key needs a colon and a space after it"},
	{"did not find expected key", "the lines of the block that begins here are not indented alike"},
	{"did not find expected '-'", "the items of the list that begins here are not indented alike"},
	{"cannot start any token", "indent with spaces, not tabs; quote a text that begins with @, ` or %"},
	{"did not find expected ',' or", "a bracket or brace is not closed"},
	{"found unexpected end of stream", "a quote is not closed"},
	{"unknown anchor", "a text that begins with * needs quotes"},
}

func syntaxProblem(err error) Problem {
	p := Problem{Line: 1, Column: 1, Message: strings.TrimPrefix(err.Error(), "yaml: ")}
	if rest, ok := strings.CutPrefix(p.Message, "line "); ok {
		number, message, _ := strings.Cut(rest, ": ")
		if n, err := strconv.Atoi(number); err == nil {
			p.Line, p.Message = n, message
		}
		// The library counts from 0 where its grammar, not its scanner, is unhappy.
		for _, what := range []string{"key", "node content", "'-'", "','"} {
			if strings.HasPrefix(p.Message, "did not find expected "+what) {
				p.Line++
			}
		}
	}
	for _, h := range syntaxHints {
		if strings.Contains(p.Message, h.says) {
			p.Hint = h.hint
		}
	}
	if strings.Contains(p.Message, "exceeded max depth") {
		p.Message = fmt.Sprintf("nested deeper than %d levels", maxDepth)
		return p
	}
	p.Message = "not YAML: " + shorten(p.Message)
	return p
}

// refuseNodes reports what YAML has and a topology must not: anything by which a file
// says less, or more, than it shows.
func refuseNodes(r *report, n *yaml.Node, at *path, depth int) {
	refuse := func(hint, message string) {
		r.add(Problem{Line: n.Line, Column: n.Column, Path: at.String(), Pointer: at.pointer(), Message: message, Hint: hint})
	}
	switch {
	case depth > maxDepth:
		refuse("", fmt.Sprintf("nested deeper than %d levels", maxDepth))
		return
	case n.Kind == yaml.AliasNode:
		refuse("write the value out, or use defaults", "aliases are not allowed")
		return
	case n.Anchor != "":
		refuse("write the value out, or use defaults", "anchors are not allowed")
	case n.Style&yaml.TaggedStyle != 0:
		refuse("remove it", "the tag "+quote(n.Tag)+" is not allowed")
	}
	switch n.Kind {
	case yaml.SequenceNode:
		for i, item := range n.Content {
			refuseNodes(r, item, at.at(i), depth+1)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if key.Tag == "!!merge" {
				r.add(Problem{Line: key.Line, Column: key.Column, Path: at.String(), Pointer: at.pointer(),
					Message: "merge keys are not allowed", Hint: "write the values out, or use defaults"})
				continue
			}
			refuseNodes(r, key, at, depth+1)
			refuseNodes(r, value, at.key(key.Value), depth+1)
		}
	}
}
