package cli

import (
	"io"
	"testing"

	"github.com/spf13/cobra"
)

// Commands that main adds check their arguments in cobra's way.
func TestUsageOfAddedCommands(t *testing.T) {
	for _, args := range [][]string{{"lab", "frob"}, {"lab", "up"}, {"lab", "up", "a", "b"}, {"lab", "logs"}, {"lab", "exec", "one"}} {
		root := Command("test")
		done := func(*cobra.Command, []string) error { return nil }
		lab := &cobra.Command{Use: "lab", Args: cobra.NoArgs, RunE: done}
		lab.AddCommand(&cobra.Command{Use: "up", Args: cobra.ExactArgs(1), RunE: done},
			&cobra.Command{Use: "logs", Args: cobra.RangeArgs(1, 2), RunE: done},
			&cobra.Command{Use: "exec", Args: cobra.MinimumNArgs(2), RunE: done})
		root.AddCommand(lab)
		root.SetArgs(args)
		if code := exitCode(io.Discard, root.Execute()); code != codeUsage {
			t.Errorf("%v: exit code %d, want %d", args, code, codeUsage)
		}
	}
}
