// Package cli is the heliotrope command for operators: nouns and verbs over the
// controller's REST API.
//
// Output is a table for people, JSON or YAML for programs (-o), on standard output;
// progress and errors go to standard error. A terminal gets a bar for each move, a pipe
// plain lines. Exit codes are stable: 0 done, 1 failed, 2 wrong usage or input, 3 nothing
// by that name. Every flag can be set in the environment: --max-downtime is
// HELIOTROPE_MAX_DOWNTIME.
//
// The controller is found by api.Find; topology validate, schema and the diff of two
// files need none.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
	"heliotrope/imagesync"
	"heliotrope/topologies"
)

// Exit codes.
const (
	codeOK      = 0
	codeFailed  = 1
	codeUsage   = 2
	codeNothing = 3
)

// usageError is a wrong command line or a wrong file.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// ExitCode says err, if there is one, on standard error and returns the exit code for it.
func ExitCode(err error) int { return exitCode(os.Stderr, err) }

func exitCode(w io.Writer, err error) int {
	if err == nil {
		return codeOK
	}
	var silent silentError
	if !errors.As(err, &silent) {
		fmt.Fprintln(w, "heliotrope:", err)
	}
	var usage usageError
	var wrong topologies.Errors
	var p *api.Problem
	switch {
	case errors.As(err, &usage), errors.As(err, &wrong), errors.Is(err, api.ErrServerName), isCobraUsage(err):
		return codeUsage
	case errors.As(err, &p) && p.Status == 404, errors.Is(err, imagesync.ErrNotFound):
		return codeNothing
	case errors.As(err, &p) && (p.Status == 400 || p.Status == 415 || p.Status == 422):
		return codeUsage
	}
	return codeFailed
}

// silentError is a failure that the output has told already.
type silentError struct{ error }

// isCobraUsage knows the errors that cobra makes without a type.
func isCobraUsage(err error) bool {
	for _, begin := range []string{"unknown command", "required flag", "accepts ", "requires at least ", "at least one of the flags", "if any flags in the group"} {
		if strings.HasPrefix(err.Error(), begin) {
			return true
		}
	}
	return false
}

// app is what the commands share.
type app struct {
	version string
	output  string
	place   api.Place
}

// Command is the root command with everything an operator needs. Other commands may be
// added to it; --help, environment and exit codes work for them as well.
func Command(version string) *cobra.Command {
	a := &app{version: version}
	home, err := os.UserHomeDir()
	if err == nil {
		a.place.Home = home
	}
	return a.command()
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "heliotrope",
		Short: "Move running virtual machines between clouds, with their networks",
		Long: `Heliotrope moves running virtual machines between clouds. A VM keeps its private
address, its public address and its open connections.

Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 nothing by that name.
Every flag can be set in the environment: --server is HELIOTROPE_SERVER.`,
		Example: `  heliotrope status                                the whole system on one screen
  heliotrope topology apply three-clouds.yaml      put a topology in force
  heliotrope vm migrate web --to eu --wait         move a VM, and watch it go
  heliotrope traffic report                        who talks to whom, and in which pattern
  heliotrope plan simulate                         where VMs ought to be, and why
  heliotrope route why 198.51.100.10               who believes what about an address`,
		SilenceUsage: true, SilenceErrors: true, Args: cobra.ArbitraryArgs, RunE: noVerb, SuggestionsMinimumDistance: 2,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return fromEnvironment(cmd) },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w\n  see: %s --help", err, cmd.CommandPath())
	})
	f := root.PersistentFlags()
	f.StringVarP(&a.output, "output", "o", "table", "output format: table, json or yaml; of traffic also csv, of plans, pools and moves also html")
	f.StringVar(&a.place.Server, "server", "", "controller: unix:///path/api.sock or https://host:port (default: found by itself)")
	f.StringVar(&a.place.Lab, "lab", "", "use the controller of this lab on this machine")
	f.StringVar(&a.place.TokenFile, "token-file", "", "file with the bearer token, for https")
	f.StringVar(&a.place.CAFile, "ca-file", "", "file with the CA's certificate, for https")
	root.AddCommand(a.topology(), a.site(), a.demand(), a.host(), a.network(), a.vm(), a.migration(), a.route(), a.mesh(), a.flows(),
		a.traffic(), a.plan(), a.policy(), a.pool(), a.stub(), a.leader(), a.events(), a.status(), a.versionCommand())
	complete(root, "output", "table", "json", "yaml", "csv", "html")
	return root
}

// Annotations of commands that know -o csv or -o html as well.
const (
	hasCSV  = "csv"
	hasHTML = "html"
)

func (a *app) printer(cmd *cobra.Command) (*output.Printer, error) {
	formats := []string{"table", "json", "yaml"}
	for _, more := range []string{hasCSV, hasHTML} {
		if _, ok := cmd.Annotations[more]; ok {
			formats = append(formats, more)
		}
	}
	if last := len(formats) - 1; !slices.Contains(formats, a.output) {
		return nil, usagef("-o %s: there are %s and %s", a.output, strings.Join(formats[:last], ", "), formats[last])
	}
	return output.New(a.output, cmd.OutOrStdout(), cmd.ErrOrStderr()), nil
}

// fromEnvironment sets the flags that were not given from HELIOTROPE_*.
func fromEnvironment(cmd *cobra.Command) error {
	v := viper.New()
	v.SetEnvPrefix("heliotrope")
	v.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	v.AutomaticEnv()
	var wrong error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		value := v.GetString(f.Name)
		if f.Changed || value == "" || f.Name == "help" {
			return
		}
		if err := cmd.Flags().Set(f.Name, value); err != nil {
			env := "HELIOTROPE_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
			wrong = errors.Join(wrong, usagef("%s=%q: %w", env, value, err))
		}
	})
	return wrong
}

// group is a noun: a command that only holds others.
func group(use, short, example string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Example: example, Args: cobra.ArbitraryArgs, RunE: noVerb, SuggestionsMinimumDistance: 2}
	cmd.AddCommand(verbs...)
	return cmd
}

// noVerb is run where none of the commands that cmd holds was named.
func noVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	hint := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf(" (did you mean %s?)", strings.Join(near, " or "))
	}
	return usagef("there is no %q in %s%s\n  see: %s --help", args[0], cmd.CommandPath(), hint, cmd.CommandPath())
}

// args wants exactly these arguments.
func args(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		switch {
		case len(got) < len(names):
			return usagef("say which %s: %s\n  see: %s --help", strings.Join(names[len(got):], " and "), cmd.UseLine(), cmd.CommandPath())
		case len(got) > len(names):
			return usagef("%q is one argument too many\n  see: %s --help", got[len(names)], cmd.CommandPath())
		}
		return nil
	}
}

// run is a command that talks to the controller.
func (a *app) run(fn func(ctx context.Context, c *api.Client, out *output.Printer, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		out, err := a.printer(cmd)
		if err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.Close()
		return fn(cmd.Context(), c, out, args)
	}
}

// client finds the controller. The token itself is taken from the environment only: a
// flag would show it to everybody who lists processes.
func (a *app) client() (*api.Client, error) {
	p := a.place
	p.Token = os.Getenv("HELIOTROPE_TOKEN")
	return api.Find(p)
}

// complete offers fixed values for a flag.
func complete(cmd *cobra.Command, flag string, values ...string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // no such flag: a mistake in this package
	}
}

// names offers what the controller knows, for the first argument or for a flag.
func (a *app) names(list func(context.Context, *api.Client) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
		defer cancel()
		c, err := a.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		names, err := list(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
