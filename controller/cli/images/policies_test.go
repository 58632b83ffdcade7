package images

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/rest"
)

var rewrite = flag.Bool("rewrite", false, "write testdata anew")

// pictures is a controller's image store: image web has two versions, and a policy.
type pictures struct{ unasked }

// unasked is what the other methods are.
type unasked = api.Images

func (pictures) PushImage(_ context.Context, ref string, r api.PushRequest) ([]api.ImagePlace, error) {
	if ref != "web" {
		return nil, api.NotFound("image", ref)
	}
	place := api.ImagePlace{Host: "eu-1", Site: "eu", State: api.PlaceComing, ContentBytes: 16 << 20}
	switch {
	case r.DryRun:
		place.State, place.MissingBytes, place.WireBytes, place.ETAS, place.CostUSD = api.PlaceAbsent, 16<<20, 9_000_000, 1.5, 0.0125
	case r.Priority == heliotrope.ImageLow:
		place.State, place.Note = api.PlaceWaits, "shop@3 goes first over eu-us"
	case r.InWindow:
		place.Note = "its window opens Mon 22:00 UTC"
	}
	if ref == "web" && slices.Equal(r.Sites, []heliotrope.SiteID{"us"}) {
		return []api.ImagePlace{{Host: "us-2", Site: "us", State: api.PlaceFull, HereBytes: 1 << 20, ContentBytes: 16 << 20, Note: "the host keeps at most 9 MB of images (--image-cache), and has so many"}}, nil
	}
	return []api.ImagePlace{place, {Host: "us-1", Site: "us", State: api.PlaceHere, HereBytes: 16 << 20, ContentBytes: 16 << 20, Disks: 1}}, nil
}

func (pictures) ImagePolicies(_ context.Context, q api.ImagePolicyQuery) ([]api.ImagePolicy, error) {
	all := []api.ImagePolicy{
		{Image: "db", Policy: heliotrope.ImageOnDemand, Priority: heliotrope.ImageNormal, Version: 4, Note: "it comes as VMs read it", Open: true},
		{Image: "web", Policy: heliotrope.ImageFollow, Priority: heliotrope.ImageNormal, Version: 2, Until: time.Date(2099, 1, 5, 22, 0, 0, 0, time.UTC), Comes: []api.ImageComes{
			{Site: "eu", Why: "a plan has web go there", Hosts: 3, Coming: 1, Away: 1, At: time.Date(2099, 1, 5, 22, 0, 0, 0, time.UTC), MissingBytes: 32 << 20, WireBytes: 18_000_000, ETAS: 3, CostUSD: 0.025},
			{Site: "us", Why: "web runs there", Hosts: 1, Here: 1}}}}
	if q.Policy != "" {
		all[1].Policy, all[1].Priority, all[1].Open, all[1].Until = q.Policy, q.Priority, true, time.Time{}
		all[1].Comes[0].Why, all[1].Comes[0].At = q.Policy, time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	}
	return slices.DeleteFunc(all, func(p api.ImagePolicy) bool { return q.Image != "" && p.Image != q.Image }), nil
}

// answers keeps nothing: keys are tested where they are kept.
type answers struct{ api.Answers }

func (answers) Claim(context.Context, string, string) (string, []byte, error) {
	return api.Claimed, nil, nil
}
func (answers) Keep(context.Context, string, string, []byte) error { return nil }
func (answers) Release(context.Context, string, string) error      { return nil }

// script is command lines that ask a controller about images.
const script = `
push web --sites all --dry-run
push web --sites all
push web --sites all --in-window
push web --sites eu,mars --in-window -o json
push web --sites us --wait
push web --sites us --rate 5
push web --sites all --priority low
push web --sites all --priority urgent
push nix --sites all
push web
push web --to /nowhere --in-window
push web --to /nowhere --priority low
policies
policies web -o json
policies nix
policies web --policy everywhere --sites eu
policies web --policy everywhere --priority high
policies web --policy sometimes
policies web db
`

// What people and programs see of pushes and policies.
func TestScript(t *testing.T) {
	dir, err := os.MkdirTemp("", "h") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	handler, err := rest.NewHandler(api.Backend{Images: pictures{}, Answers: answers{},
		ParseTopology:  func([]byte, string) (t heliotrope.Topology, wrong []api.FieldProblem) { return t, nil },
		FormatTopology: func(heliotrope.Topology) ([]byte, error) { return nil, nil }}, rest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "api.sock")
	server, err := rest.Listen(t.Context(), rest.ServerConfig{Socket: socket, Handler: handler, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	var got strings.Builder
	for line := range strings.Lines(strings.TrimSpace(script)) {
		line = strings.TrimSpace(line)
		root := &cobra.Command{Use: "heliotrope", SilenceErrors: true, SilenceUsage: true}
		root.PersistentFlags().String("server", socket, "")
		root.PersistentFlags().StringP("output", "o", "table", "")
		root.AddCommand(Command())
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetArgs(append([]string{"image"}, strings.Fields(line)...))
		err := root.ExecuteContext(t.Context())
		fmt.Fprintf(&got, "$ heliotrope image %s\n%s", line, &out)
		if err != nil {
			fmt.Fprintf(&got, "! %v\n", err)
		}
		got.WriteByte('\n')
	}
	const file = "testdata/policies.golden"
	if *rewrite {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got\n%s\nwant %s (go test -rewrite, then read the diff)", &got, file)
	}
}
