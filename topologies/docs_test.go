package topologies

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestManual holds docs/topology.md to what the program does with its examples.
func TestManual(t *testing.T) {
	page, err := os.ReadFile("../docs/topology.md")
	if err != nil {
		t.Fatal(err)
	}
	right, wrong, said := 0, "", ""
	for _, block := range regexp.MustCompile("(?s)```(yaml|text)\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		switch text := block[2]; {
		case block[1] == "text":
			said = text
		case strings.HasPrefix(text, "# wrong.yaml\n"):
			wrong = text
		case strings.HasPrefix(text, "version: 1\n"):
			right++
			if _, err := Parse([]byte(text), "topology.md", Options{}); err != nil {
				t.Errorf("the example is wrong:\n%v", err)
			}
		}
	}
	if right == 0 || wrong == "" {
		t.Errorf("%d right examples, wrong one %q", right, wrong)
	}
	if _, err := Parse([]byte(wrong), "wrong.yaml", Options{}); err == nil || err.Error()+"\n" != said {
		t.Errorf("got\n%v\nthe page says\n%s", err, said)
	}
	for f := range strings.SplitSeq("version name controller sites links hosts networks vms peers clients capture pools policies rules demand images defaults", " ") {
		if !strings.Contains(string(page), "`"+f+"`") {
			t.Errorf("nothing about %s", f)
		}
	}
}
