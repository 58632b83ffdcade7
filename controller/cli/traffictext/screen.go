package traffictext

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"heliotrope/controller/cli/output"
	"heliotrope/scheduler/traffic/report"
)

// Screen draws one report over the other on a screen; elsewhere each is a line.
type Screen struct {
	Out   *output.Printer
	drawn bool
}

// Show draws or writes r in the printer's format.
func (w *Screen) Show(r report.Report) error {
	switch {
	case w.Out.Format == "json":
		data, err := json.Marshal(r)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w.Out.Out, "%s\n", data)
		return err
	case w.Out.Format == "yaml":
		data, err := output.YAML(r)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w.Out.Out, "---\n%s", data)
		return err
	case w.Out.Screen:
		return w.draw(r)
	}
	_, err := fmt.Fprintln(w.Out.Out, lineOf(r))
	return err
}

// draw clears the screen once, and then only what is left of the last report: nothing flickers.
func (w *Screen) draw(r report.Report) error {
	var t output.Table
	t.Line("%s", windowText(r.From, r.To, r.Total))
	section(&t, len(r.Pairs), func() { pairsTable(&t, r.Pairs) })
	section(&t, len(r.Groups), func() { groupsTable(&t, r.Groups) })
	notes(&t, r.Notes)
	var text, screen bytes.Buffer
	if err := t.Write(&text); err != nil {
		return err
	}
	if !w.drawn {
		screen.WriteString("\x1b[2J")
	}
	w.drawn = true
	screen.WriteString("\x1b[H")
	rows, columns := screenSize(w.Out.Out)
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	for _, l := range lines[:min(len(lines), rows-1)] {
		runes := []rune(l)
		screen.WriteString(string(runes[:min(len(runes), columns)]) + "\x1b[K\n")
	}
	screen.WriteString("\x1b[J")
	_, err := w.Out.Out.Write(screen.Bytes())
	return err
}

// screenSize is that of the terminal, or what every terminal has.
func screenSize(w io.Writer) (rows, columns int) {
	if f, ok := w.(*os.File); ok {
		if s, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && s.Row > 1 && s.Col > 0 {
			return int(s.Row), int(s.Col)
		}
	}
	return 24, 80
}

// lineOf is a report in one line: the total, the largest pairs, the largest groups.
func lineOf(r report.Report) string {
	parts := []string{fmt.Sprintf("%s  %s, %s packets/s, %s", output.Cell(r.To), Rate(r.Total.BytesPerSecond), countText(r.Total.PacketsPerSecond), output.Plural(r.Total.VMs, "VM"))}
	for _, p := range r.Pairs[:min(3, len(r.Pairs))] {
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("%s→%s %s %s", p.Src, p.Dst, Rate(p.Rate), serviceText(p.Service, p.Reply))))
	}
	for _, g := range r.Groups[:min(2, len(r.Groups))] {
		parts = append(parts, fmt.Sprintf("%s %s", g.ID, patternText(g.Group)))
	}
	return strings.Join(parts, "; ")
}
