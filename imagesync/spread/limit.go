package spread

import (
	"context"
	"slices"
	"sync"
	"time"
)

// burst is for how long a Limit that was not used may be exceeded.
const burst = 50 * time.Millisecond

// Limit bounds the bytes a second of all that is sent over a link, which several images may
// share. Demand goes first: as long as somebody waits with it, Background gets nothing. A Limit
// must not be copied; a nil one is none.
//
// It is a token bucket that may be overdrawn: who finds it not empty may take what he needs at once,
// and the next one waits until that is paid. So a taker may need more than a burst.
type Limit struct {
	mu      sync.Mutex
	rate    float64 // bytes a second, 0: no limit; below 0: nothing passes
	tokens  float64 // bytes
	at      time.Time
	waiting [priorities][]*waiter
	timer   *time.Timer
}

type waiter struct {
	n     int
	ready chan struct{}
}

// Nothing is the limit of a Limit that lets nothing pass, until it is Set to something else.
const Nothing = -1

// NewLimit returns a Limit of so many bytes a second; 0 is no limit.
func NewLimit(bytesPerSecond int64) *Limit {
	return &Limit{rate: float64(bytesPerSecond), at: time.Now()}
}

// Set changes the limit, also for those who wait.
func (l *Limit) Set(bytesPerSecond int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill()
	l.rate = float64(bytesPerSecond)
	l.grant()
}

// Return gives back bytes that were waited for and are not sent.
func (l *Limit) Return(n int) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate != 0 {
		l.tokens += float64(n)
	}
	l.refill()
	l.grant()
}

// Wait returns once n bytes may be sent, or with why ctx ended.
func (l *Limit) Wait(ctx context.Context, n int, p Priority) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if l == nil {
		return nil
	}
	w := &waiter{n: n, ready: make(chan struct{})}
	l.mu.Lock()
	l.waiting[p] = append(l.waiting[p], w)
	l.refill()
	l.grant()
	l.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
		l.mu.Lock()
		defer l.mu.Unlock()
		l.waiting[p] = slices.DeleteFunc(l.waiting[p], func(o *waiter) bool { return o == w })
		return context.Cause(ctx)
	}
}

func (l *Limit) refill() {
	now, rate := time.Now(), max(0, l.rate)
	l.tokens = min(l.tokens+now.Sub(l.at).Seconds()*rate, rate*burst.Seconds())
	l.at = now
}

// grant lets through who may go, and has itself called again when the next one may.
func (l *Limit) grant() {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	for {
		w := l.next()
		if w == nil || l.rate < 0 {
			return
		}
		if l.rate > 0 && l.tokens < 0 {
			// A nanosecond more, lest rounding makes it a moment too early.
			l.timer = time.AfterFunc(time.Duration(-l.tokens/l.rate*float64(time.Second))+1, func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.refill()
				l.grant()
			})
			return
		}
		for p := range l.waiting {
			if len(l.waiting[p]) > 0 {
				l.waiting[p] = l.waiting[p][1:]
				break
			}
		}
		if l.rate > 0 {
			l.tokens -= float64(w.n)
		}
		close(w.ready)
	}
}

func (l *Limit) next() *waiter {
	for _, queue := range l.waiting {
		if len(queue) > 0 {
			return queue[0]
		}
	}
	return nil
}
