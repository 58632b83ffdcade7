//go:build lab

package proof

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/controller/api"
)

// The same key is the same move, however often and however much at once it is asked for.
func TestSameKey(t *testing.T) {
	calm(t)
	before, err := world.client.Migrations(t.Context(), web, false)
	if err != nil {
		t.Fatal(err)
	}
	key := fmt.Sprintf("proof-%d", time.Now().UnixNano())
	ids := make([]heliotrope.MoveID, 8)
	group, ctx := errgroup.WithContext(t.Context())
	for i := range ids {
		group.Go(func() error { // while the first one runs, the others are told to ask again
			return poll(ctx, func() error {
				m, err := world.client.StartMigration(ctx, api.MigrationRequest{VM: web, To: string(there)}, key)
				ids[i] = m.ID
				return err
			})
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Fatalf("one key gave the migrations %v", ids)
		}
	}
	if m := reach(t, ids[0], ended); m.Phase != api.PhaseSucceeded {
		t.Fatalf("the move ended as %s: %s", m.Phase, m.Error)
	}
	m, err := world.client.StartMigration(t.Context(), api.MigrationRequest{VM: web, To: string(there)}, key)
	if err != nil || m.ID != ids[0] {
		t.Errorf("after the end the key gave %s: %v", m.ID, err)
	}
	_, err = world.client.StartMigration(t.Context(), api.MigrationRequest{VM: web, To: string(here)}, key)
	refusedWith(t, err, http.StatusUnprocessableEntity)
	after, err := world.client.Migrations(t.Context(), web, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(after) != len(before)+1 {
		t.Errorf("there were %d migrations, and are %d", len(before), len(after))
	}
}

func refusedWith(t *testing.T, err error, status int) *api.Problem {
	t.Helper()
	var p *api.Problem
	if !errors.As(err, &p) || p.Status != status {
		t.Fatalf("got %v, want a refusal with %d", err, status)
	}
	return p
}

// A topology that is wrong, or meant for another state, changes nothing.
func TestTopologyRefused(t *testing.T) {
	calm(t)
	_, revision, err := world.client.Topology(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(topologyFile)
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Replace(file, []byte("left: {underlay"), []byte("left: {description: other, underlay"), 1)
	_, err = world.client.ApplyTopology(t.Context(), other, revision+1000)
	refusedWith(t, err, http.StatusPreconditionFailed)

	wrong := bytes.ReplaceAll(bytes.ReplaceAll(file, []byte("10.1.0.20}"), []byte("10.9.0.20}")), []byte("vni: 100"), []byte("vni: 0"))
	_, err = world.client.ApplyTopology(t.Context(), wrong, revision)
	p := refusedWith(t, err, http.StatusUnprocessableEntity)
	for _, pointer := range []string{"/networks/web/vni", "/vms/db/nics/0/address"} {
		found := false
		for _, f := range p.Errors {
			found = found || f.Pointer == pointer && f.Line > 0
		}
		if !found {
			t.Errorf("no error points to %s: %v", pointer, p.Errors)
		}
	}
	now, after, err := world.client.Topology(t.Context())
	if err != nil || after != revision || now.VMs["db"].NICs[0].Address.String() != "10.1.0.20" {
		t.Errorf("the topology went from revision %d to %d: %v", revision, after, err)
	}
	until(t, 5*time.Second, well)
}

// What the controller has said yes to is there after kill -9.
func TestTopologySurvives(t *testing.T) {
	calm(t)
	see := watch(t)
	file, err := os.ReadFile(topologyFile)
	if err != nil {
		t.Fatal(err)
	}
	mark := fmt.Sprintf("as of %d", time.Now().UnixNano())
	plan, err := world.client.ApplyTopology(t.Context(), bytes.Replace(file, []byte("left: {underlay"), []byte("left: {description: "+mark+", underlay"), 1), -1)
	if err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	kill(t, "controller", "controller")
	until(t, 20*time.Second, func(ctx context.Context) error {
		now, revision, err := world.client.Topology(ctx)
		if err == nil && (revision != plan.Revision || !strings.Contains(now.Sites["left"].Description, mark)) {
			t.Fatalf("revision %d was put in force, and after kill -9 it is %d with %q", plan.Revision, revision, now.Sites["left"].Description)
		}
		return err
	})
	t.Logf("the API answers %v after kill -9", time.Since(killed).Round(time.Millisecond))
	until(t, 20*time.Second, well)
	t.Logf("all is well after %v", time.Since(killed).Round(time.Millisecond))
	if r := see(); r.UDP.Lost > 0 {
		t.Errorf("%d probes were lost", r.UDP.Lost)
	}
}
