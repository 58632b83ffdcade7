package traffic

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"heliotrope"
)

func cell(src, dst heliotrope.VMID, bytes, low, high float64) Cell {
	return Cell{Src: VM(src), Dst: VM(dst), Bytes: bytes, Low: low, High: high,
		Services: []ServiceShare{{Service{TCP, 80}, false, bytes * 0.75}, {Service{UDP, 53}, true, bytes * 0.25}}}
}

func window(seconds int, cells ...Cell) Matrix {
	return Matrix{From: noon, To: noon.Add(time.Duration(seconds) * time.Second), Cells: cells}
}

func TestDiff(t *testing.T) {
	for _, c := range []struct {
		name   string
		before []Cell
		after  []Cell
		unseen float64 // before
		want   string
	}{
		{"the same rate in a window twice as long", []Cell{cell("a", "b", 100, 100, 100)}, []Cell{cell("a", "b", 200, 200, 200)}, 0, ""},
		{"new", nil, []Cell{cell("a", "b", 200, 200, 200)}, 0, "new"},
		{"gone", []Cell{cell("a", "b", 100, 100, 100)}, nil, 0, "gone"},
		{"grown", []Cell{cell("a", "b", 100, 100, 100)}, []Cell{cell("a", "b", 400, 400, 400)}, 0, "grown"},
		{"shrunk", []Cell{cell("a", "b", 100, 90, 110)}, []Cell{cell("a", "b", 100, 90, 110)}, 0, "shrunk"},
		{"intervals overlap", []Cell{cell("a", "b", 100, 20, 300)}, []Cell{cell("a", "b", 400, 300, 900)}, 0, ""},
		{"sure, and too little", []Cell{cell("a", "b", 100, 100, 100)}, []Cell{cell("a", "b", 220, 220, 220)}, 0, ""},
		{"new, or not sampled before", nil, []Cell{cell("a", "b", 200, 150, 250)}, 100, ""},
		{"three", []Cell{cell("a", "b", 1, 1, 1), cell("b", "c", 1, 1, 1)}, []Cell{cell("a", "c", 90, 90, 90), cell("b", "c", 8, 8, 8)}, 0, "new grown gone"},
	} {
		a, b := window(10, c.before...), window(20, c.after...)
		a.Unseen = c.unseen
		var kinds []string
		for _, ch := range Diff(a, b) {
			kinds = append(kinds, string(ch.Kind))
		}
		if got := strings.Join(kinds, " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestSavings(t *testing.T) {
	sites := map[heliotrope.VMID]heliotrope.SiteID{"web": "paris", "app": "paris", "db": "lyon", "log": "lyon"}
	where := func(e End) (heliotrope.SiteID, bool) { s, ok := sites[e.VM]; return s, ok }
	room := 1
	places := Places{
		Where: where, Sites: []heliotrope.SiteID{"lyon", "paris"},
		Price:  func(_, _ heliotrope.SiteID) float64 { return 0.1 },
		Room:   func(heliotrope.SiteID) int { return room },
		Groups: [][]heliotrope.VMID{{"web", "app"}},
	}
	const gb = 1e9
	// 1 GB/s and 2 GB/s back between app and db; less of web with app and db with log.
	m := window(1, cell("app", "db", gb, gb, gb), cell("db", "app", 2*gb, 2*gb, 2*gb), cell("db", "log", gb/2, 0, 0), cell("web", "app", gb/4, 0, 0),
		Cell{Src: VM("gone"), Dst: VM("app"), Bytes: 9 * gb})
	got := Savings(m, places)
	// app to lyon saves 3 GB/s less the 0.25 of web, at 0.1 USD.
	if len(got) == 0 || fmt.Sprint(got[0].VMs) != "[app]" || got[0].To != "lyon" || got[0].From != "paris" ||
		int(got[0].USDPerHour+0.5) != 990 || got[0].Bytes != 2.75*gb || got[0].Why == "" {
		t.Fatalf("%+v", got)
	}
	// Then lyon has no room for web.
	if len(got) != 1 {
		t.Errorf("%+v", got)
	}
	// With room for two, the group goes as one, and nothing is left.
	room = 2
	if got := Savings(m, places); len(got) != 1 || fmt.Sprint(got[0].VMs) != "[web app]" || int(got[0].USDPerHour+0.5) != 1080 {
		t.Errorf("%+v", got)
	}
	room = 0
	if got := Savings(m, places); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}
