//go:build lab

package proof

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
)

// peers has the guest in web begin or end a connection, and returns those that it has.
func peers(ctx context.Context, t *testing.T, verb, address string) (connected map[string]bool, err error) {
	t.Helper()
	v, err := world.client.VM(ctx, web)
	if err != nil {
		return nil, err
	}
	page := "http://" + v.NICs[0].Public.String() + "/peer?" + url.Values{verb: {address}}.Encode()
	out, err := in(ctx, visitor, world.self, "get", page)
	if err != nil {
		return nil, err
	}
	var list []struct {
		Peer      string `json:"peer"`
		Connected bool   `json:"connected"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("read peers: %w", err)
	}
	connected = map[string]bool{}
	for _, p := range list {
		connected[p.Peer] = p.Connected
	}
	return connected, nil
}

func hangUp(t *testing.T, address string) {
	t.Helper()
	if _, err := peers(context.WithoutCancel(t.Context()), t, "drop", address); err != nil {
		t.Error(err)
	}
}

// A connection to a device that may be used only where it is waits until web is there, and
// is made then. The device's address is the same before and after.
func TestLocalStub(t *testing.T) {
	calm(t)
	see := watch(t)
	const scanner = "10.1.0.200:7"
	if _, err := peers(t.Context(), t, "add", scanner); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hangUp(t, scanner) })
	took := until(t, followed, func(ctx context.Context) error {
		all, err := peers(ctx, t, "", "")
		if err == nil && !all[scanner] {
			err = fmt.Errorf("web has no connection to the scanner: %v", all)
		}
		return err
	})
	t.Logf("web has its connection after %v", took.Round(time.Millisecond))
	if v := vm(t); v.Host != there {
		t.Errorf("web is at %s", v.Host)
	}
	until(t, 10*time.Second, func(ctx context.Context) error {
		s, err := world.client.Stub(ctx, "scanner")
		if err == nil && (len(s.Uses) != 1 || s.Uses[0].VM != web || s.Uses[0].State != api.UseNear) {
			err = fmt.Errorf("%+v", s.Uses)
		}
		return err
	})
	if r := see(); r.UDP.Lost > 0 {
		t.Errorf("%d probes were lost", r.UDP.Lost)
	}
}

// What web exchanges with a device in the other cloud is carried there, until that has
// cost what moving web costs.
func TestAutoStub(t *testing.T) {
	calm(t)
	see := watch(t)
	steer(t, heliotrope.AutopilotOff, "closest", nil)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var talk sync.WaitGroup
	for range 6 { // each some 130 times 1,400 bytes a second, both ways
		talk.Go(func() { in(ctx, "tape", "ping", "-q", "-i", "0.002", "-s", "1400", vm(t).NICs[0].Address.String()) })
	}
	goes(t, "right")
	until(t, 10*time.Second, func(ctx context.Context) error {
		events, err := world.client.Events(ctx, 0, 1000, "stub")
		if err != nil {
			return err
		}
		for _, e := range events.Events {
			if strings.Contains(e.Message, "carried from left over the mesh") {
				t.Log(e.Message)
				return nil
			}
		}
		return fmt.Errorf("no event says that it was carried: %+v", events)
	})
	stop()
	talk.Wait()
	if r := see(); r.UDP.Lost > 0 {
		t.Errorf("%d probes were lost", r.UDP.Lost)
	}
}
