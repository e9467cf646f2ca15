// Package cli is the command line of Lockstep: it runs a broker (serve), works
// with destinations (queue, topic), moves records from and to the terminal
// (produce, consume), measures (bench), looks at stored segments (log) and at the
// machine (doctor).
//
// Main builds a tree of cobra commands around one app value and runs it. Each
// command group has a file of its own; what they share is beside them: parse.go
// (sizes, durations, times), help.go (how help looks), errors.go (what an error
// says and which exit code it has), settings.go (flags, variables and the config file),
// output.go and progress.go (tables, JSON, progress on stderr).
//
// Rules for all commands:
//
//   - stdout is data, stderr is talk. A closed stdout ends a command quietly.
//   - Errors are one line that says what happened, to what, and what to do next.
//   - Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
//   - The first SIGINT or SIGTERM ends a command in order, the second at once.
//   - Client commands talk through package client only. The broker is started in
//     one place, serve.go.
package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitInterrupted = 130
)

// errInterrupted is the cause of the context after SIGINT or SIGTERM. A command
// that returns it ends with exit code 130 and without a message.
var errInterrupted = errors.New("interrupted")

// app is what the commands of one run share.
type app struct {
	stdin          io.Reader
	stdout         io.Writer
	stderr         io.Writer
	lookupEnv      func(string) (string, bool)
	environ        func() []string        // name=value, as os.Environ
	executable     func() (string, error) // path of this binary, started again by bench --embedded
	now            func() time.Time
	lookAt         func(ctx context.Context, dir string) *machine // what doctor judges
	requestTimeout time.Duration                                  // of one administrative request
	servers        string                                         // --server: host:port[,host:port...]
}

// Main runs one command line and returns its exit code. It handles SIGINT and
// SIGTERM, and ends the process itself on the second of them.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	// Without this, writing to a closed stdout would kill the process instead of
	// returning EPIPE. A signal that is ignored would be ignored by commands of --exec too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, stop := untilInterrupted(context.Background())
	defer stop()
	a := &app{
		stdin: stdin, stdout: stdout, stderr: stderr,
		lookupEnv: os.LookupEnv, environ: os.Environ, executable: os.Executable, now: time.Now, lookAt: lookAt, requestTimeout: defaultRequestTimeout,
	}
	return a.run(ctx, args)
}

// untilInterrupted returns a context that the first SIGINT or SIGTERM cancels
// with errInterrupted. The second one ends the process.
func untilInterrupted(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		select {
		case <-signals:
			cancel(errInterrupted)
		case <-done:
			return
		}
		select {
		case <-signals:
			os.Exit(exitInterrupted)
		case <-done:
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel(nil)
	}
}

// run executes one command line and reports its error.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.rootCommand()
	root.SetArgs(append([]string{}, args...)) // nil would mean the arguments of the process
	command, err := root.ExecuteContextC(ctx)
	return a.report(ctx, command, err)
}

func (a *app) rootCommand() *cobra.Command {
	root := a.group(&cobra.Command{
		Use:   "lockstep",
		Short: "Lockstep is a clustered message broker on a quorum log.",
		Example: `  lockstep serve
  lockstep queue create orders --partitions 4`,
		Version: version().Lockstep,
	}) // no Set…Template here: docs/dependencies.md tells what one costs
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SilenceErrors = true
	root.SilenceUsage = true
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		if err := refuseEmpty(c, "group", "origin", "publisher", "name"); err != nil {
			return err
		}
		return a.applySettings(c)
	}
	root.SetFlagErrorFunc(flagError)
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(a.helpCommand())
	installHelp(root)
	defer a.completeFlags(root)
	root.AddCommand(
		a.serveCommand(),
		a.destinationCommand(queueWords),
		a.destinationCommand(topicWords),
		a.aliasCommand(),
		a.produceCommand(),
		a.consumeCommand(),
		a.browseCommand(),
		a.requestCommand(),
		a.replyCommand(),
		a.groupCommand(),
		a.explainCommand(),
		a.keyCommand(),
		a.dlqCommand(),
		a.verifyCommand(),
		a.benchCommand(),
		a.logCommand(),
		a.doctorCommand(),
		a.configCommand(),
		a.devCommand(),
		a.clusterCommand(),
		a.nodeCommand(),
		a.partitionCommand(),
		a.versionCommand(),
		a.completionCommand(),
	)
	return root
}

// group makes a command that only holds others: alone it prints its help, with
// an unknown word it names the nearest known one.
func (a *app) group(c *cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		return unknownCommand(c, args[0])
	}
	return c
}
