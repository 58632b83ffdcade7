package topologies

import (
	"embed"
	"fmt"
)

//go:embed three-clouds.yaml two-sites.yaml backbone.yaml traffic.yaml sun.yaml
var exampleFiles embed.FS

// Example returns one of the topologies that come with Heliotrope: three-clouds, two-sites,
// backbone, traffic or sun.
func Example(name string) ([]byte, error) {
	data, err := exampleFiles.ReadFile(name + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("no example topology %q: there are three-clouds, two-sites, backbone, traffic and sun", name)
	}
	return data, nil
}
