package wanbench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// qmp talks to a QEMU. One goroutine reads; answers go to who asks, events are kept.
type qmp struct {
	conn    net.Conn
	answers chan qmpMessage
	ended   chan struct{}

	mu     sync.Mutex
	events []qmpMessage
	woken  chan struct{} // closed at the next event
}

type qmpMessage struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
	Data  struct {
		Status string `json:"status"`
	} `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

func (m qmpMessage) at() time.Time {
	return time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)
}

// dialQMP connects to a QEMU that may not have made its socket yet.
func dialQMP(ctx context.Context, path string) (*qmp, error) {
	var conn net.Conn
	err := poll(ctx, 20*time.Second, func() (done bool, err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", path)
		return err == nil, nil
	})
	if err != nil {
		return nil, fmt.Errorf("reach QEMU: %w", err)
	}
	q := &qmp{conn: conn, answers: make(chan qmpMessage), ended: make(chan struct{}), woken: make(chan struct{})}
	go q.read()
	if _, err := q.do(ctx, "qmp_capabilities", nil); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

func (q *qmp) close() { q.conn.Close(); <-q.ended }

func (q *qmp) read() {
	defer close(q.ended)
	for d := json.NewDecoder(q.conn); ; {
		var m qmpMessage
		if d.Decode(&m) != nil {
			return
		}
		switch {
		case m.Event != "":
			q.mu.Lock()
			q.events = append(q.events, m)
			close(q.woken)
			q.woken = make(chan struct{})
			q.mu.Unlock()
		case m.Return != nil || m.Error != nil:
			q.answers <- m
		}
	}
}

// do runs one command. Nobody else may at the same time.
func (q *qmp) do(ctx context.Context, command string, args any) (json.RawMessage, error) {
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	line, err := json.Marshal(request)
	if err == nil {
		_, err = q.conn.Write(append(line, '\n'))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	select {
	case m := <-q.answers:
		if m.Error != nil {
			return nil, fmt.Errorf("%s: %s", command, m.Error.Desc)
		}
		return m.Return, nil
	case <-q.ended:
		return nil, fmt.Errorf("%s: QEMU has ended", command)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// wait returns the first event from number from on that is wanted.
func (q *qmp) wait(ctx context.Context, from int, wanted func(qmpMessage) bool) (qmpMessage, error) {
	for {
		q.mu.Lock()
		i := slices.IndexFunc(q.events[min(from, len(q.events)):], wanted)
		woken := q.woken
		if i >= 0 {
			m := q.events[from+i]
			q.mu.Unlock()
			return m, nil
		}
		q.mu.Unlock()
		select {
		case <-woken:
		case <-q.ended:
			return qmpMessage{}, errors.New("QEMU has ended")
		case <-ctx.Done():
			return qmpMessage{}, context.Cause(ctx)
		}
	}
}

// seen is how many events there were.
func (q *qmp) seen() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.events)
}

func is(event string) func(qmpMessage) bool {
	return func(m qmpMessage) bool { return m.Event == event }
}

// migrated says whether a migration has come to one of its ends.
func migrated(m qmpMessage) bool {
	return m.Event == "MIGRATION" && (m.Data.Status == "completed" || m.Data.Status == "failed" || m.Data.Status == "cancelled")
}

// capabilities turns them on, and those of other modes off.
func (q *qmp) capabilities(ctx context.Context, names ...string) error {
	names = append([]string{"events", "return-path", "validate-uuid"}, names...)
	every := append([]string{"xbzrle", "auto-converge", "multifd", "postcopy-ram"}, names...) // all that any mode turns on
	slices.Sort(every)
	var all []map[string]any
	for _, n := range slices.Compact(every) {
		all = append(all, map[string]any{"capability": n, "state": slices.Contains(names, n)})
	}
	_, err := q.do(ctx, "migrate-set-capabilities", map[string]any{"capabilities": all})
	return err
}

// poll asks every few milliseconds until done, an error, or the time is over.
func poll(ctx context.Context, limit time.Duration, ask func() (bool, error)) error {
	until := time.Now().Add(limit)
	for {
		done, err := ask()
		if done || err != nil {
			return err
		}
		if time.Now().After(until) {
			return fmt.Errorf("it did not come about in %v", limit)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// lastTick is what a guest counted to last on its console.
func lastTick(console string) (n int) {
	i := strings.LastIndex(console, "TICK ")
	if i >= 0 {
		fmt.Sscanf(console[i:], "TICK %d", &n)
	}
	return n
}
