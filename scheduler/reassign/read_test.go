package reassign

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

// Errors tell the line, and what is wrong there.
func TestReadErrors(t *testing.T) {
	good, err := os.ReadFile("testdata/model_example.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, says string }{
		{"1 100\n", "2 100\n", "line 2: transient is more than 1"},
		{"4\n0 0 30", "4\n0 0 -30", `line 5: capacity is no whole number: it has '-'`},
		{"1 1 0\n", "1 1 2\n", "line 11: dependency is more than 1"},
		{"1 10 100\n", "1 10\n", "line 20: machine move weight is missing"},
		{"1 10 100\n", "1 10 100\n7\n", "line 20: there is more than there should be"},
		{"4\n", "5001\n", "line 4: number of machines is more than 5000"},
		{"0 12 10 1000", "0 12 10 99999999999999999999", "line 13: process move cost is more than 4294967296"},
		{"0 10\n4\n0 0 30 400", "0 4294967296\n4\n0 0 30 4294967296", "costs do not fit"},
	} {
		text := strings.Replace(string(good), c.old, c.new, 1)
		if _, err := ReadProblem(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q for %q: %v, and not that %s", c.new, c.old, err, c.says)
		}
	}
	if _, err := ReadProblem(iotest.ErrReader(errors.New("no disk"))); err == nil || !strings.Contains(err.Error(), "no disk") {
		t.Error(err)
	}
	p, _ := example(t)
	for text, says := range map[string]string{"0 3": "line 1: machine is missing", "0\n4 0": "line 2: machine is more than 3", "0 3 0 0": "more than there should be"} {
		if _, err := p.ReadAssignment(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, and not that %s", text, err, says)
		}
	}
}

// What is read can be judged and searched, whatever it is.
func FuzzRead(f *testing.F) {
	for _, name := range []string{"example", "none"} {
		model, _ := os.ReadFile("testdata/model_" + name + ".txt")
		at, _ := os.ReadFile("testdata/assignment_" + name + ".txt")
		f.Add(model, at)
	}
	f.Fuzz(func(t *testing.T, model, at []byte) {
		p, err := ReadProblem(bytes.NewReader(model))
		if err != nil {
			return
		}
		a, err := p.ReadAssignment(bytes.NewReader(at))
		if err != nil {
			return
		}
		cost, broken := p.Check(a, a)
		if cost.Total() < p.Bound() || p.Bound() < 0 {
			t.Fatalf("cost %d, bound %d", cost.Total(), p.Bound())
		}
		if len(broken) > 0 || len(p.Services)*len(p.Machines) > 1<<20 {
			return
		}
		if _, after, err := p.Search(a, Options{Steps: 100}); err != nil || after.Total() > cost.Total() {
			t.Fatalf("from %d to %d: %v", cost.Total(), after.Total(), err)
		}
	})
}
