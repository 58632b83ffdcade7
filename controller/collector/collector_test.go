package collector

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/report"
)

// still is a world in which nothing changes.
type still struct {
	fabric Fabric
	leads  bool
	told   *[]string
}

func (w still) Fabric() Fabric                              { return w.fabric }
func (w still) Devices(heliotrope.HostID) map[string]string { return nil }
func (w still) Leads() bool                                 { return w.leads }
func (w still) Tell(kind, subject, message string) {
	*w.told = append(*w.told, kind+" "+subject+": "+message)
}
func (w still) Follow(ctx context.Context, _ heliotrope.HostID, f func()) error {
	f()
	<-ctx.Done()
	return context.Cause(ctx)
}

func open(t *testing.T, w still) *Collector {
	t.Helper()
	c, err := Open(t.Context(), Config{World: w, Log: slog.New(slog.DiscardHandler), History: Off})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func bin(h heliotrope.HostID, seq uint64, start time.Time, counts ...traffic.Count) traffic.Bin {
	return traffic.Bin{Host: h, Boot: "b", Seq: seq, Start: start, Source: traffic.SourcePackets, Sampling: 1, Ports: 1, Counts: counts}
}

func sent(from, to heliotrope.VMID, bytes uint64) traffic.Count {
	return traffic.Count{Key: traffic.Key{Src: traffic.VM(from), Dst: traffic.VM(to), Service: traffic.Service{Protocol: traffic.TCP, Port: 80}}, Packets: 1, Bytes: bytes}
}

// TestCountedOnce takes every bin once, also where a VM has moved, and leaves out what a
// host counted while others counted in its place.
func TestCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, still{fabric: fabric(), leads: true})
		start := time.Now().Truncate(time.Second)
		c.counts("us-1", true)
		c.counts("eu-1", true)
		time.Sleep(10 * time.Second) // virtual
		first := bin("us-1", 1, start.Add(time.Second), sent("web", "db", 100))
		c.Take(first)
		c.Take(first)                                                             // asked for again
		c.Take(bin("eu-1", 1, start.Add(2*time.Second), sent("web", "db", 1000))) // it moved there
		c.counts("eu-1", false)                                                   // given up: others count
		c.counts("eu-1", true)                                                    // it is back, with what it kept
		c.Take(bin("eu-1", 2, start.Add(3*time.Second), sent("web", "db", 10000)))

		m, err := c.Matrix(t.Context(), api.TrafficQuery{Window: 9 * time.Second})
		if err != nil || len(m.Cells) != 1 || m.Cells[0].Bytes != 1100 {
			t.Fatalf("cells %+v, %v: want one of 1,100 bytes", m.Cells, err)
		}
		if !c.fabric().Counting["eu-1"] {
			t.Error("eu-1 counts, and is not said to")
		}
	})
}

// TestLapse gives a host up once it has been away for longer than its agent keeps.
func TestLapse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, still{fabric: fabric(), leads: true})
		c.counts("us-1", true)
		c.change("us-1", func(f *host) { f.left = c.now() })
		time.Sleep(countsOn) // virtual
		c.lapse()
		if !c.fabric().Counting["us-1"] {
			t.Error("given up too early: its agent still has all")
		}
		time.Sleep(time.Second) // virtual
		c.lapse()
		if c.fabric().Counting["us-1"] {
			t.Error("not given up")
		}
	})
}

// TestLevels tells where all traffic changed for good.
func TestLevels(t *testing.T) {
	var line []report.Volume
	start := time.Date(2026, 11, 25, 13, 0, 0, 0, time.UTC)
	for i := range 60 {
		rate := 1000.0
		if i >= 40 {
			rate = 9000
		}
		line = append(line, report.Volume{At: start.Add(time.Duration(i) * time.Second), Rate: rate + float64(i%3)})
	}
	events := levels(line)
	if len(events) != 1 || !events[0].At.Equal(start.Add(40*time.Second)) || events[0].Kind != "volume" || !strings.Contains(events[0].What, "1 to 9 kB/s") {
		t.Errorf("got %+v, want one at the 40th second", events)
	}
	if none := levels(line[:30]); len(none) != 0 {
		t.Errorf("of a steady line: %+v", none)
	}
}

// TestAnswers makes a report of what came, and none where another controller leads.
func TestAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		w := still{fabric: fabric(), leads: true, told: &told}
		c := open(t, w)
		c.counts("us-1", true)
		for range 6 { // a group that talks on is found, and told as an event
			for range int(inferEvery / time.Second) {
				now := time.Now().Truncate(time.Second)
				c.Take(bin("us-1", uint64(now.Unix()), now.Add(-time.Second), sent("web", "db", 5000), sent("db", "web", 100000)))
				time.Sleep(time.Second) // virtual
			}
			c.infer()
		}
		r, err := c.Report(t.Context(), api.TrafficQuery{})
		if err != nil || len(r.Pairs) != 2 || r.Pairs[0].Src != traffic.VM("db") || len(r.Sources) != 1 || r.Sources[0].Host != "us-1" {
			t.Errorf("report %+v, %v", r, err)
		}
		if len(r.Groups) != 1 || !strings.HasPrefix(r.Groups[0].ID, "group-") || len(r.Groups[0].Phases) == 0 {
			t.Errorf("groups %+v: want one that is followed", r.Groups)
		}
		if len(told) != 1 || !strings.Contains(told[0], "2 VMs talk in a group") {
			t.Errorf("events %q, want that the group appeared, once", told)
		}
		none, err := c.Report(t.Context(), api.TrafficQuery{VMs: []heliotrope.VMID{"other"}})
		if err != nil || len(none.Pairs) != 0 {
			t.Errorf("of a VM that was silent: %+v, %v", none.Pairs, err)
		}
		page, err := c.Page(t.Context(), api.TrafficQuery{})
		if err != nil || !strings.Contains(string(page), "<svg") {
			t.Errorf("page of %d bytes, %v", len(page), err)
		}
		w.leads = false
		c.world = w
		if _, err := c.Report(t.Context(), api.TrafficQuery{}); err == nil || !strings.Contains(err.Error(), "leads") {
			t.Errorf("from one that does not lead: %v", err)
		}
		if _, err := json.Marshal(r); err != nil {
			t.Error(err)
		}
	})
}
