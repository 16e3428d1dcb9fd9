// Gateway-ext is the one address of a Thicket: it serves the OpenFaaS API, a
// registry of images and the functions themselves, and runs the functions'
// replicas.
//
//	gateway-ext serve          the gateway, as a service
//	gateway-ext up             a laptop: serve, build, push, deploy, follow the logs
//	gateway-ext build          make images of functions, without Docker
//	gateway-ext version
//
// This package only wires: it reads the settings, makes the parts, hands each
// what it needs, and stops them in order.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/caarlos0/env/v11"
	"github.com/spf13/cobra"
)

// version and commit are set by the Makefile's -ldflags.
var (
	version = ""
	commit  = ""
)

func main() {
	if os.Getenv("GOGC") == "" {
		// Twice as often as Go does by itself. A call leaves some hundred bytes:
		// at full load this costs 1.5 % of the CPU time, and what is kept for
		// 256 connections is 3 MB less.
		debug.SetGCPercent(50)
	}
	stop, hurry, restart := signals()
	c := &command{args: os.Args, environ: os.Environ(), hurry: hurry, restart: restart, stdout: os.Stdout, stderr: os.Stderr}
	err := c.run(stop)
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintf(os.Stderr, "gateway-ext: %v\n", err)
		os.Exit(1)
	}
}

// signals returns a context that ends with the first SIGINT or SIGTERM, which
// asks to stop, one that ends with the second, which asks to hurry, and a channel
// of SIGUSR2, which asks to restart.
func signals() (stop, hurry context.Context, restart chan os.Signal) {
	stop, cancelStop := context.WithCancel(context.Background())
	hurry, cancelHurry := context.WithCancel(context.Background())
	asked := make(chan os.Signal, 2)
	signal.Notify(asked, os.Interrupt, syscall.SIGTERM)
	go func() { // for as long as the program runs
		<-asked
		cancelStop()
		<-asked
		cancelHurry()
	}()
	restart = make(chan os.Signal, 1)
	signal.Notify(restart, syscall.SIGUSR2)
	return stop, hurry, restart
}

// run is the whole program. It returns when the command is done, or when it
// has stopped everything after ctx ended; once hurry ends it waits for nothing.
func (c *command) run(ctx context.Context) error {
	root := &cobra.Command{
		Use:   "gateway-ext",
		Short: "A function platform for small clusters that speaks OpenFaaS",
		Long: `Thicket runs functions on a few small machines. It speaks OpenFaaS: faas-cli,
stack.yml, images and templates work unchanged. On one machine this program is
all there is: gateway, registry of images, state, and the functions' processes.

Settings are environment variables that begin with THICKET_; the README has a
table of them.`,
		Example: `  gateway-ext up -f stack.yml        build, deploy and run a stack on this machine
  gateway-ext serve                  be the gateway of this machine
  gateway-ext build -f stack.yml --push --platforms linux/amd64,linux/arm64,linux/arm/v7`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.AddCommand(c.serve(), c.node(), c.token(), c.nodes(), c.doctor(), c.backup(), c.restore(), c.up(), c.build(), c.version())
	root.SetArgs(c.args[1:])
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	})
	return root.ExecuteContext(ctx)
}

// command is what every command is given: the world outside.
type command struct {
	args           []string // with the program's name
	environ        []string
	hurry          context.Context
	restart        chan os.Signal
	stdout, stderr io.Writer
}

// getenv returns a variable's value, or "".
func (c *command) getenv(name string) string { return env.ToMap(c.environ)[name] }

func (c *command) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v, rev := buildVersion()
			_, err := fmt.Fprintf(c.stdout, "gateway-ext %s (commit %s, %s, %s/%s)\n", v, rev, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// buildVersion returns the release and the commit this program was built from:
// what the Makefile wrote into it, else what the Go tool did.
func buildVersion() (release, rev string) {
	release, rev = version, commit
	info, ok := debug.ReadBuildInfo()
	if ok && release == "" && info.Main.Version != "(devel)" {
		release = info.Main.Version
	}
	if ok && rev == "" {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				rev = s.Value
			}
		}
	}
	if release == "" {
		release = "dev"
	}
	if rev == "" {
		rev = "unknown"
	}
	return release, rev
}
