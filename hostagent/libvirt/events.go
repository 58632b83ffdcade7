package libvirt

import (
	"context"
	"fmt"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"heliotrope"
)

// What happened to a domain, in an Event.
const (
	EventIncoming  = "incoming"  // a QEMU waits for the VM's stream
	EventStarted   = "started"   // it was started here
	EventSuspended = "suspended" // its vCPUs stopped
	EventReleased  = "released"  // its vCPUs stopped at the end of a move's copy
	EventResumed   = "resumed"   // its vCPUs run
	EventStopped   = "stopped"   // its QEMU has ended
	EventCrashed   = "crashed"   // its QEMU or its guest has crashed
)

// Event tells of a change of a domain's state, foreign ones included.
type Event struct {
	VM   heliotrope.VMID
	What string
	At   time.Time // when it was received, within about 1 ms of the fact
}

// Events returns the events from now on, until ctx or the connection ends; then the
// channel is closed. Events are hints: a receiver that is 64 behind loses some.
func (h *Hypervisor) Events(ctx context.Context) (<-chan Event, error) {
	events := make(chan Event, 64)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, fmt.Errorf("subscribe to events: %w", ErrClosed)
	}
	h.subscribers[events] = struct{}{}
	h.calls.Go(func() {
		select {
		case <-ctx.Done():
		case <-h.Done():
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.subscribers, events)
		close(events)
	})
	return events, nil
}

// listen passes libvirt's events on to the subscribers. There is one registration per
// connection, and it lasts as long: go-libvirt's reader blocks for good on an event that
// arrives while one is being withdrawn.
func (h *Hypervisor) listen(ctx context.Context) error {
	lifecycle, err := do(ctx, h, func() (<-chan rpc.DomainEventLifecycleMsg, error) {
		return h.control.LifecycleEvents(context.WithoutCancel(ctx))
	})
	if err != nil {
		return fmt.Errorf("register for events: %w", err)
	}
	h.spawn(func() {
		for e := range lifecycle {
			if what := whatOf(rpc.DomainEventType(e.Event), e.Detail); what != "" {
				h.publish(Event{VM: heliotrope.VMID(e.Dom.Name), What: what, At: time.Now()})
			}
		}
	})
	return nil
}

func (h *Hypervisor) publish(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subscribers {
		select {
		case s <- e:
		default:
		}
	}
}

func whatOf(event rpc.DomainEventType, detail int32) string {
	switch event {
	case rpc.DomainEventStarted:
		if rpc.DomainEventStartedDetailType(detail) == rpc.DomainEventStartedMigrated {
			return EventIncoming
		}
		return EventStarted
	case rpc.DomainEventSuspended:
		if rpc.DomainEventSuspendedDetailType(detail) == rpc.DomainEventSuspendedMigrated {
			return EventReleased
		}
		return EventSuspended
	case rpc.DomainEventResumed:
		return EventResumed
	case rpc.DomainEventStopped:
		if rpc.DomainEventStoppedDetailType(detail) == rpc.DomainEventStoppedCrashed {
			return EventCrashed
		}
		return EventStopped
	case rpc.DomainEventCrashed:
		return EventCrashed
	}
	return ""
}
