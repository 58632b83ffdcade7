package hostagent

import (
	"context"
	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/libvirt"
	"sync"
	"time"
)

// hub tells events to whoever listens. They are hints: one that listens too slowly misses some.
type hub struct {
	mu        sync.Mutex
	listeners map[chan agentapi.Event]bool
	resumed   map[heliotrope.VMID]time.Time // when libvirt last said that its vCPUs started
	news      chan struct{}                 // closed when resumed changes
}

func newHub() *hub {
	return &hub{listeners: map[chan agentapi.Event]bool{}, resumed: map[heliotrope.VMID]time.Time{}, news: make(chan struct{})}
}

func (h *hub) tell(e agentapi.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for l := range h.listeners {
		select {
		case l <- e:
		default:
		}
	}
}

// domain takes in what libvirt says.
func (h *hub) domain(e libvirt.Event) {
	if e.What == "resumed" {
		h.mu.Lock()
		h.resumed[e.VM] = e.At
		close(h.news)
		h.news = make(chan struct{})
		h.mu.Unlock()
	}
	h.tell(agentapi.Event{Kind: "vm", VM: e.VM, At: e.At, What: e.What})
}

// resumedSince waits up to d for word that vm's vCPUs started after t.
func (h *hub) resumedSince(ctx context.Context, vm heliotrope.VMID, t time.Time, d time.Duration) (time.Time, bool) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for {
		h.mu.Lock()
		at, news := h.resumed[vm], h.news
		h.mu.Unlock()
		if at.After(t) {
			return at, true
		}
		select {
		case <-news:
		case <-ctx.Done():
			return time.Time{}, false
		}
	}
}

// watch returns events from now on until ctx ends.
func (h *hub) watch(ctx context.Context) <-chan agentapi.Event {
	l := make(chan agentapi.Event, 256)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.listeners[l] = true
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.listeners, l)
		close(l)
	})
	return l
}
