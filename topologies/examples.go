package topologies

import (
	"embed"
	"fmt"
)

//go:embed three-clouds.yaml two-sites.yaml backbone.yaml
var examples embed.FS

// Example returns one of the topologies that come with Heliotrope: three-clouds, two-sites
// or backbone.
func Example(name string) ([]byte, error) {
	data, err := examples.ReadFile(name + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("no example topology %q: there are three-clouds, two-sites and backbone", name)
	}
	return data, nil
}
