package story

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// asked is what became of an asker's requests that were answered since the last time it was
// told how many to make.
type asked struct {
	Answered int     `json:"answered"`
	Failed   int     `json:"failed"` // not answered in a minute, however often asked
	Again    int     `json:"again"`  // had to be asked more than once
	MeanMS   float64 `json:"mean_ms"`
	MaxMS    float64 `json:"max_ms"`
}

// asker writes to a replica of an etcd cluster, as often as it is told to. What a replica
// refuses, since nobody leads for a moment, is asked again and counts from the first try.
type asker struct {
	server string
	client *http.Client

	mu  sync.Mutex
	sum asked
}

const (
	longestAsk = time.Minute
	oneTry     = 3 * time.Second // what is on its way as another leads is forgotten, and etcd waits for it
	askAgain   = 20 * time.Millisecond
	mostAsking = 1024 // at once
)

// ask reads how many requests to make a second, a line each time, and answers each line with
// what became of those before it. It ends with its input.
func ask(ctx context.Context, server string, in io.Reader, out io.Writer) error {
	a := &asker{server: server, client: &http.Client{Timeout: oneTry, Transport: &http.Transport{MaxIdleConnsPerHost: mostAsking}}}
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	paces := make(chan int)
	group.Go(func() { a.keep(ctx, paces) })
	lines := bufio.NewScanner(in)
	answers := json.NewEncoder(out)
	for lines.Scan() {
		n, err := strconv.Atoi(lines.Text())
		if err != nil || n < 0 {
			return fmt.Errorf("read pace: %q is no number of requests", lines.Text())
		}
		select {
		case paces <- n:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := answers.Encode(a.take()); err != nil {
			return fmt.Errorf("tell what was answered: %w", err)
		}
	}
	return lines.Err()
}

// keep makes requests at a pace, which changes.
func (a *asker) keep(ctx context.Context, paces <-chan int) {
	var group sync.WaitGroup
	defer group.Wait()
	free := make(chan struct{}, mostAsking)
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	pace, number := 0, 0
	for {
		select {
		case pace = <-paces:
			if pace > 0 {
				tick.Reset(time.Second / time.Duration(pace))
			}
		case <-tick.C:
			if pace == 0 {
				continue
			}
			number++
			key := number % 1000
			free <- struct{}{}
			group.Go(func() { a.once(ctx, key); <-free })
		case <-ctx.Done():
			return
		}
	}
}

// once has one request answered.
func (a *asker) once(ctx context.Context, key int) {
	began := time.Now()
	tries := 1
	err := a.put(ctx, key)
	for ; err != nil && ctx.Err() == nil && time.Since(began) < longestAsk; tries++ {
		select {
		case <-time.After(askAgain):
		case <-ctx.Done():
		}
		err = a.put(ctx, key)
	}
	if ctx.Err() != nil {
		return // nobody waits for it any more
	}
	took := time.Since(began).Seconds() * 1e3
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.sum.Failed++
		return
	}
	a.sum.Answered++
	a.sum.MeanMS += took
	a.sum.MaxMS = max(a.sum.MaxMS, took)
	if tries > 1 {
		a.sum.Again++
	}
}

// put writes one key over etcd's gateway for JSON.
func (a *asker) put(ctx context.Context, key int) error {
	text := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "key-%d", key))
	body := fmt.Appendf(nil, `{"key": %q, "value": %q}`, text, text)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.server+"/v3/kv/put", bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("put: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		return fmt.Errorf("put: %w", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16)); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("put: %s", resp.Status)
	}
	return nil
}

// take returns the sums, and begins anew.
func (a *asker) take() asked {
	a.mu.Lock()
	defer a.mu.Unlock()
	sum := a.sum
	sum.MeanMS /= float64(max(1, sum.Answered))
	a.sum = asked{}
	return sum
}
