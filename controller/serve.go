package controller

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"heliotrope/controller/api"
	"heliotrope/controller/rest"
	"heliotrope/topologies"
)

// serveAPI listens for engineers: on a unix socket, and with TLS and a bearer token.
func (c *Controller) serveAPI(ctx context.Context) error {
	hash, err := c.apiToken(ctx)
	if err != nil {
		return err
	}
	handler, err := rest.NewHandler(c.backend(), rest.Options{Version: buildVersion(c.cfg.Version), TokenHash: hash, Log: c.log})
	if err != nil {
		return err
	}
	s, err := rest.Listen(ctx, rest.ServerConfig{Socket: filepath.Join(c.cfg.RunDir, "api.sock"), TCP: []string{c.cfg.APIListen},
		TLS: c.members.WebServer(), Handler: handler, Log: c.log})
	if err != nil {
		return err
	}
	return s.Serve(ctx)
}

// apiToken returns the hash of the bearer token. The controller that makes the token
// writes it down with all that a CLI elsewhere needs, and forgets it.
func (c *Controller) apiToken(ctx context.Context) ([]byte, error) {
	hash, err := c.store.Secret(ctx, "api-token", func() ([]byte, error) {
		token, hash := api.NewToken()
		return hash, api.WriteCredentials(filepath.Join(c.cfg.Dir, "credentials"),
			api.Credentials{Server: "https://" + c.cfg.APIListen, Token: token, CA: string(c.members.CertPEM())})
	})
	if err != nil {
		return nil, fmt.Errorf("load API token: %w", err)
	}
	return hash, nil
}

func (c *Controller) backend() api.Backend {
	b := api.Backend{
		Topologies: desired{c}, Inventory: inventory{c}, Membership: c.members, Migrations: operations{c}, Routes: routes{c},
		Meshes: meshes{c}, Flows: pipelines{c}, Events: chronicle{c}, Health: health{c}, Answers: c.store, Traffic: c.traffic, Plans: c.pilot, Benchmarks: c.speeds,
		Metrics: promhttp.HandlerFor(c.metrics.registry, promhttp.HandlerOpts{}), ParseTopology: parseTopology, FormatTopology: topologies.Marshal,
	}
	if c.images != nil {
		b.Images, b.Snapshots = c.images, c.snapshots
	}
	return b
}

func buildVersion(version string) api.Version {
	v := api.Version{Version: version, Go: runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.Revision" {
				v.Commit = s.Value
			}
		}
	}
	return v
}
