package phases_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/phases"
)

// script runs windows through a tracker and writes down what it reports. A window is a
// list of groups, such as "ring:abcd star:xyz"; members are letters.
func script(tr *phases.Tracker, windows ...string) []string {
	var told []string
	for i, w := range windows {
		var a pattern.Analysis
		for _, g := range strings.Fields(w) {
			kind, members, _ := strings.Cut(g, ":")
			group := pattern.Group{Kind: pattern.Kind(kind), Confidence: 0.9}
			for _, m := range members {
				group.Ends = append(group.Ends, vm(int(m)))
			}
			a.Groups = append(a.Groups, group)
		}
		at := time.Unix(int64(60*(i+1)), 0)
		for _, c := range tr.Add(at, time.Minute, a) {
			s := fmt.Sprintf("%d: group %d %s", i+1, c.Group, c.Of)
			if c.From != "" || c.To != "" {
				s += fmt.Sprintf(" %s->%s", c.From, c.To)
			}
			if c.Of == phases.MembersChanged {
				s += " +" + letters(c.Joined) + " -" + letters(c.Left)
			}
			told = append(told, s)
		}
	}
	return told
}

func vm(i int) traffic.End { return traffic.VM(heliotrope.VMID(fmt.Sprintf("vm-%d", i))) }

func letters(ends []traffic.End) (s string) {
	for _, e := range ends {
		var n int
		fmt.Sscanf(e.String(), "vm-%d", &n)
		s += string(rune(n))
	}
	return s
}

func repeat(w string, n int) []string {
	return strings.Split(strings.Repeat(w+"|", n)[:n*(len(w)+1)-1], "|")
}

func join(parts ...[]string) (all []string) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func TestTracker(t *testing.T) {
	ring, star := repeat("ring:abcdef", 4), repeat("star:abcdef", 4)
	appears := "3: group 1 appeared ->ring"
	for _, c := range []struct {
		name    string
		windows []string
		want    []string
	}{
		{"a short group is none", []string{"ring:abc", "ring:abc", "", ""}, nil},
		{"life", join(ring, repeat("", 4)), []string{appears, "7: group 1 ended ring->"}},
		{"a short gap is none", join(ring, repeat("", 2), ring, repeat("", 2), ring), []string{appears}},
		{"pattern", join(ring, star), []string{appears, "7: group 1 pattern ring->star"}},
		{"one odd window", join(ring, star[:2], ring, star[:2], ring), []string{appears}},
		{"a pattern that flaps", join(ring, star[:2], ring[:1], star[:3], ring[:1], star[:3], ring), []string{appears}},
		{"unknown is no pattern", join(ring, repeat("unknown:abcdef", 9), ring), []string{appears}},
		{"first unknown", join(repeat("unknown:abcdef", 5), ring), []string{"3: group 1 appeared ->unknown", "8: group 1 pattern unknown->ring"}},
		{"members", join(ring, repeat("ring:abcdexy", 3)), []string{appears, "7: group 1 members +xy -f"}},
		{"an odd first window", join([]string{"star:abcdefg"}, ring), []string{"3: group 1 appeared ->ring"}},
		{"two that are one for a window", join(repeat("ring:abcdef star:uvwx", 4), []string{"ring:abcdefuvwx"}, repeat("ring:abcdef star:uvwx", 4)),
			[]string{appears, "3: group 2 appeared ->star"}},
		{"a split", join(repeat("ring:abcdef", 4), repeat("ring:abcd ring:ef", 3)),
			[]string{appears, "7: group 1 members + -ef", "7: group 2 appeared ->ring"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := script(&phases.Tracker{}, c.windows...); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(c.want, "\n\t"))
			}
		})
	}
}

// Phases say from when to when a group kept to a pattern, and are kept in bounds.
func TestPhases(t *testing.T) {
	var tr phases.Tracker
	script(&tr, join(repeat("ring:abc", 5), repeat("star:abc", 4))...)
	if len(tr.Live) != 1 || len(tr.Live[0].Phases) != 2 {
		t.Fatalf("live %+v", tr.Live)
	}
	for i, want := range []struct {
		kind     pattern.Kind
		from, to int64
	}{{pattern.Ring, 0, 300}, {pattern.Star, 300, 540}} {
		p := tr.Live[0].Phases[i]
		if p.Group.Kind != want.kind || p.From.Unix() != want.from || p.To.Unix() != want.to {
			t.Errorf("phase %d: %s from %d to %d, want %+v", i, p.Group.Kind, p.From.Unix(), p.To.Unix(), want)
		}
	}
	var many phases.Tracker
	var windows []string
	for i := range 200 {
		windows = append(windows, repeat([]string{"ring:abc", "star:abc"}[i%2], 5)...)
	}
	script(&many, windows...)
	if n := len(many.Live[0].Phases); n < 30 || n > 32 {
		t.Errorf("%d phases", n)
	}
}
