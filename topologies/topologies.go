// Package topologies reads, checks, compares and writes topology files: one flat YAML
// file that says what sites, hosts, links, networks and virtual machines are to exist.
//
// A file goes through four steps, each of which knows nothing of the next:
//
//	bytes → tree      yaml.go      size, encoding and depth are capped; YAML's traps are refused
//	tree → Topology   decode.go    by reflection over the nouns' yaml tags; every position is kept
//	Topology → ok?    validate.go  what the nouns must be among themselves; needs no file
//	problems → Errors problem.go   all of them at once, by line and column
//
// The decoder is ours because a library's stops at the first error, knows no positions
// for what it accepted, and reads 010 as eight. Problems of the third step get their
// position from the second by JSON pointer, so the same check serves a REST body, which
// has pointers but no lines.
//
// The strict rule on addresses: no two underlays and subnets overlap, not even those of
// networks that never talk to each other, and every address has one owner in the whole
// file. That is more than packets need, and it makes each address in a log or a capture
// mean one thing.
package topologies

import (
	_ "embed"
	"fmt"
	"io"
	"os"

	"heliotrope"
)

// DefaultMaxBytes is the size that a file may have unless Options say otherwise.
const DefaultMaxBytes = 1 << 20

// Options of loading; the zero value is what a user wants who has said nothing.
type Options struct {
	MaxBytes int64    // largest file that is read; zero means DefaultMaxBytes
	_        struct{} // fields are named
}

func (o Options) maxBytes() int64 {
	if o.MaxBytes > 0 {
		return o.MaxBytes
	}
	return DefaultMaxBytes
}

// schema is what schema_test.go generates from the Go types.
//
//go:embed schema.json
var schema string

// Schema returns the JSON Schema (2020-12) of a topology file.
func Schema() string { return schema }

// LoadFile reads the topology in the file at path. An error about its content is an Errors.
func LoadFile(path string, opts Options) (heliotrope.Topology, error) {
	f, err := os.Open(path)
	if err != nil {
		return heliotrope.Topology{}, fmt.Errorf("open topology: %w", err)
	}
	defer f.Close()
	return Load(f, path, opts)
}

// Load reads a topology from r; name stands for the file in errors. An error about its
// content is an Errors. No more than the allowed size is read.
func Load(r io.Reader, name string, opts Options) (heliotrope.Topology, error) {
	data, err := io.ReadAll(io.LimitReader(r, opts.maxBytes()+1))
	if err != nil {
		return heliotrope.Topology{}, fmt.Errorf("read topology: %w", err)
	}
	return Parse(data, name, opts)
}

// Parse reads a topology from data; name stands for the file in errors. The error, if
// any, is an Errors with everything that is wrong, and the Topology is then empty. What
// Parse accepts is complete: no field is left for a default.
func Parse(data []byte, name string, opts Options) (heliotrope.Topology, error) {
	root, problems := readTree(data, opts.maxBytes())
	if len(problems) > 0 {
		return heliotrope.Topology{}, newErrors(name, problems)
	}
	d := newDecoder()
	t := d.file(root)
	c := checker{t: t, skip: d.spoiled}
	c.check()
	d.more += c.more
	for _, p := range c.problems {
		p.Line, p.Column = d.position(p.Pointer)
		d.add(p)
	}
	if problems := d.finish(); len(problems) > 0 {
		return heliotrope.Topology{}, newErrors(name, problems)
	}
	return t, nil
}

// Validate returns everything that is wrong with t, or nil. Problems have paths and
// JSON pointers, but no lines. A Topology from a REST body should go through Complete first.
func Validate(t heliotrope.Topology) []Problem {
	c := checker{t: t}
	c.check()
	return c.finish()
}
