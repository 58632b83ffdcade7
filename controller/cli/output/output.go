// Package output writes what a command answers: tables for people, aligned and in colours
// where a terminal takes them, JSON, YAML and CSV for programs, pages for browsers.
package output

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// Printer writes a command's result in the format that was asked for.
type Printer struct {
	Out, Err io.Writer
	Format   string // table, json, yaml, csv or html
	Terminal bool   // progress is drawn over itself
	Screen   bool   // Out can be drawn over
	color    bool
}

// New returns a printer of a format to out; progress and problems go to err.
func New(format string, out, err io.Writer) *Printer {
	p := &Printer{Out: out, Err: err, Format: format, Terminal: isTerminal(err), Screen: isTerminal(out)}
	p.color = p.Screen && os.Getenv("NO_COLOR") == ""
	return p
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("TERM") != "dumb"
}

// Show writes v: for people by table, for programs as it is.
func (p *Printer) Show(v any, table func(t *Table)) error {
	switch p.Format {
	case "json":
		enc := json.NewEncoder(p.Out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	case "yaml":
		data, err := YAML(v)
		if err != nil {
			return err
		}
		_, err = p.Out.Write(data)
		return err
	}
	t := Table{color: p.color}
	table(&t)
	return t.Write(p.Out)
}

// ShowPage is Show, and where a page was asked for writes that.
func (p *Printer) ShowPage(v any, page func(io.Writer) error, table func(t *Table)) error {
	if p.Format == "html" {
		return page(p.Out)
	}
	return p.Show(v, table)
}

// CSV writes records for spreadsheets: numbers without units, nothing as nothing.
func (p *Printer) CSV(head []string, rows [][]any) error {
	w := csv.NewWriter(p.Out)
	records := [][]string{head}
	for _, row := range rows {
		record := make([]string, len(row))
		for i, v := range row {
			switch v := v.(type) {
			case float64:
				record[i] = strconv.FormatFloat(v, 'f', -1, 64)
			case time.Time:
				if !v.IsZero() {
					record[i] = v.UTC().Format(time.RFC3339Nano)
				}
			default:
				record[i] = fmt.Sprint(v)
			}
		}
		records = append(records, record)
	}
	return w.WriteAll(records)
}

// YAML writes v with the names and the order that its JSON has.
func YAML(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var node yaml.Node
	if err := yaml.Unmarshal(data, &node); err != nil { // JSON is YAML
		return nil, err
	}
	plain(&node)
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(&node); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

// plain drops JSON's quotes and brackets.
func plain(n *yaml.Node) {
	n.Style &^= yaml.DoubleQuotedStyle | yaml.FlowStyle
	if len(n.Content) == 0 && n.Kind != yaml.ScalarNode {
		n.Style = yaml.FlowStyle // [] and {}
	}
	for _, c := range n.Content {
		plain(c)
	}
}

// Table is rows of cells and lines of text, in the order they were added.
type Table struct {
	parts []part
	color bool
}

// part is a block of rows that are aligned with each other, or a line of text.
type part struct {
	rows [][]string
	text string
}

// Head begins a new block.
func (t *Table) Head(cells ...string) { t.parts = append(t.parts, part{rows: [][]string{cells}}) }

// Row adds a row to the block.
func (t *Table) Row(cells ...any) {
	if len(t.parts) == 0 || t.parts[len(t.parts)-1].rows == nil {
		t.parts = append(t.parts, part{})
	}
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = Cell(c)
	}
	last := &t.parts[len(t.parts)-1]
	last.rows = append(last.rows, row)
}

// Line adds a line of text.
func (t *Table) Line(format string, args ...any) {
	t.parts = append(t.parts, part{text: fmt.Sprintf(format, args...)})
}

// Cell says a value as people read it; nothing is a dash.
func Cell(v any) string {
	var s string
	switch v := v.(type) {
	case time.Time:
		if !v.IsZero() {
			s = v.UTC().Format("2006-01-02 15:04:05Z")
		}
	case bool:
		s = map[bool]string{true: "yes", false: "no"}[v]
	case fmt.Stringer:
		if s = v.String(); s == "invalid IP" || s == "invalid Prefix" {
			s = ""
		}
	case float64:
		if v != 0 {
			s = fmt.Sprintf("%.3g", v)
		}
	default:
		s = fmt.Sprint(v)
	}
	if s == "" {
		return "-"
	}
	return strings.ReplaceAll(s, "\t", " ")
}

// Write writes the table.
func (t *Table) Write(w io.Writer) error {
	for _, p := range t.parts {
		if p.rows == nil {
			if _, err := fmt.Fprintln(w, p.text); err != nil {
				return err
			}
			continue
		}
		var b bytes.Buffer
		tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, row := range p.rows {
			fmt.Fprintln(tw, strings.Join(row, "\t"))
		}
		if err := tw.Flush(); err != nil {
			return err
		}
		for _, l := range strings.SplitAfter(b.String(), "\n") {
			l = strings.TrimRight(l, " \n")
			if l == "" {
				continue
			}
			if _, err := fmt.Fprintln(w, t.paint(l)); err != nil {
				return err
			}
		}
	}
	return nil
}

// paint colours the words that tell good from bad, where a terminal takes colours.
func (t *Table) paint(line string) string {
	if !t.color {
		return line
	}
	fields := strings.Fields(line)
	for _, f := range fields {
		if c, ok := colors[f]; ok {
			return c + line + "\x1b[0m"
		}
	}
	return line
}

// colors of lines by the first word of theirs that is here.
var colors = map[string]string{
	"down": "\x1b[31m", "lost": "\x1b[31m", "missing": "\x1b[31m", "crashed": "\x1b[31m", "Failed": "\x1b[31m", "Held": "\x1b[31m", "FAIL": "\x1b[31m", "ghost": "\x1b[31m",
	"degraded": "\x1b[33m", "RolledBack": "\x1b[33m", "expected": "\x1b[33m", "revoked": "\x1b[33m", "paused": "\x1b[33m",
}

// Join lists names with commas.
func Join[T ~string](names []T) string {
	s := make([]string, len(names))
	for i, n := range names {
		s[i] = string(n)
	}
	return strings.Join(s, ",")
}

// Bytes is a byte count with a decimal unit.
func Bytes(n uint64) string {
	if n == 0 {
		return "-"
	}
	for _, u := range []struct {
		name string
		size float64
	}{{"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}} {
		if float64(n) >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/u.size, u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

func Plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func Milliseconds(ms float64) string {
	if ms == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", ms)
}

func Seconds(s float64) string {
	if s == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f s", s)
}

// Percent is a share, 0 to 1.
func Percent(x float64) string { return fmt.Sprintf("%.0f%%", 100*x) }
