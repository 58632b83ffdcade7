package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"heliotrope/controller/api"
)

// A long poll answers as soon as the migration has a newer revision; watching sees each.
func TestWatchMigration(t *testing.T) {
	s := serve(t, Options{})
	s.example(t)
	c := s.client(t)
	m, err := c.StartMigration(t.Context(), api.MigrationRequest{VM: "web", To: "eu"}, "")
	if err != nil {
		t.Fatal(err)
	}
	next := map[string]func(){
		"Pending": func() { s.memory.advance("PreCopy", 0.5) },
		"PreCopy": func() { s.memory.advance(api.PhaseSucceeded, 1) },
	}
	var phases []string
	last, err := c.WatchMigration(t.Context(), m.ID, func(m api.Migration) {
		phases = append(phases, m.Phase)
		if step := next[m.Phase]; step != nil {
			go step()
		}
	})
	if err != nil || last.Phase != api.PhaseSucceeded || fmt.Sprint(phases) != "[Pending PreCopy Succeeded]" {
		t.Errorf("saw %v, last %s, %v", phases, last.Phase, err)
	}
}

// A stream that is cut anywhere goes on with the next event, without gap or double.
func TestEventStream(t *testing.T) {
	s := serve(t, Options{Heartbeat: 20 * time.Millisecond})
	c := s.client(t)
	var want []int64
	for i := range 20 {
		want = append(want, s.memory.happen("vm", fmt.Sprint("event ", i)))
	}
	enough := errors.New("enough")
	collect := func(after int64, n int, kinds ...string) (ids []int64) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := c.FollowEvents(ctx, after, kinds, func(e api.Event) error {
			if ids = append(ids, e.ID); len(ids) == n {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) {
			t.Fatalf("%v after %v", err, ids)
		}
		return ids
	}
	for i := range want[1:] {
		if got := collect(want[i], 19-i); !reflect.DeepEqual(got, want[i+1:]) {
			t.Fatalf("after %d: %v, want %v", want[i], got, want[i+1:])
		}
	}
	s.memory.happen("host", "joined")
	last := s.memory.happen("vm", "more")
	if got := collect(want[19], 1, "vm"); got[0] != last {
		t.Errorf("kind vm: %v, want %d", got, last)
	}
	s.memory.mu.Lock()
	s.memory.trimmed, s.memory.events = want[10], s.memory.events[11:]
	s.memory.mu.Unlock()
	if got := collect(want[3], 2); got[0] != want[10] || got[1] != want[11] {
		t.Errorf("over a gap: %v, want %v", got, want[10:12])
	}
	page, err := c.Events(t.Context(), 0, 3, "vm")
	if err != nil || len(page.Events) != 3 || page.Events[2].ID != last {
		t.Errorf("%+v, %v", page, err)
	}
}

// The raw stream: a first id without data, heartbeats, and the header that browsers send.
func TestEventStreamWire(t *testing.T) {
	s := serve(t, Options{Heartbeat: 5 * time.Millisecond})
	first := s.memory.happen("vm", "one")
	second := s.memory.happen("vm", "two\nlines")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://x/v1/events", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Last-Event-ID", fmt.Sprint(first))
	resp, err := s.http(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var text strings.Builder
	buf := make([]byte, 4096)
	for strings.Count(text.String(), ":\n\n") < 2 || !strings.Contains(text.String(), "data") {
		n, err := resp.Body.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(buf[:n])
	}
	got := strings.ReplaceAll(text.String(), ":\n\n", "")
	want := fmt.Sprintf("id: %d\nretry: 1000\n\nid: %d\nevent: vm\ndata: {\"id\":%d,", first, second, second)
	if !strings.HasPrefix(got, want) || strings.Count(got, "data:") != 1 {
		t.Errorf("got %q\nwant %q…", got, want)
	}
}
