// Command heliotrope is the controller, its command line, and the lab.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"heliotrope/controller/cli"
	"heliotrope/controller/cli/images"
	"heliotrope/topologies/lab"
	"heliotrope/topologies/lab/bench"
	"heliotrope/topologies/lab/endpoints"
	"heliotrope/topologies/lab/imagebench"
	"heliotrope/topologies/lab/schedbench"
	"heliotrope/topologies/lab/story"
	"heliotrope/topologies/lab/trafficbench"
	"heliotrope/topologies/lab/wanbench"
)

// version is set by the linker.
var version = "devel"

func main() {
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := cli.Command(version)
	labs := lab.Command()
	labs.AddCommand(story.Commands()...)
	labs.AddCommand(bench.Command(), trafficbench.Command(), schedbench.Command(), imagebench.Command(), wanbench.Command(),
		endpoints.Command())
	root.AddCommand(controllerCommand(), images.Command(), labs)
	err := root.ExecuteContext(ctx)
	var exit lab.ExitError
	if errors.As(err, &exit) {
		return exit.Code
	}
	return cli.ExitCode(err)
}
