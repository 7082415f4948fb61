// SPDX-License-Identifier: Apache-2.0

// Command offloadd gives TLS connections to the kernel. An unprivileged worker
// process (offloadd handshake) completes the handshake and seals each traffic key
// into a blob of its own; the daemon (offloadd serve) opens the blobs, installs the
// keys into the kernel's TLS record layer, and hands the socket to an application,
// which reads and writes plain bytes and never sees a key.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func main() {
	env := &environment{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, reached: func(step) {}, exec: syscall.Exec}
	os.Exit(run(env, os.Args[1:]))
}

// environment is all that the process takes from outside, beside its arguments.
type environment struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	// reached is called at each step of a connection. It does nothing, but in the
	// tests, where processes die at a step of their choice.
	reached func(step)
	// exec replaces this process by another program; nil where it must not be.
	exec func(path string, args, env []string) error
	// workerEnv is added to the environment of workers; empty, but in the tests.
	workerEnv []string
	// leaveOut names parts of the confinement and capabilities that this process goes
	// without; empty, but in the tests.
	leaveOut []string
}

// Exit codes; the README lists them.
const (
	exitOK      = 0
	exitFailed  = 1 // something went wrong at work
	exitUsage   = 2 // a flag, an argument or the configuration is wrong
	exitMachine = 3 // this machine cannot do it: kernel, privilege, program, no daemon
	exitNone    = 4 // there is no such connection
)

// exitError carries an exit code with an error.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func usageError(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

func machineError(format string, args ...any) error {
	return &exitError{exitMachine, fmt.Errorf(format, args...)}
}

func run(env *environment, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	root := rootCommand(env)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(env.stderr, "offloadd: %v\n", err)
	var e *exitError
	switch {
	case errors.As(err, &e):
		return e.code
	case strings.HasPrefix(err.Error(), "unknown command"): // cobra has no type for it
		return exitUsage
	}
	return exitFailed
}

func rootCommand(env *environment) *cobra.Command {
	root := &cobra.Command{
		Use:   "offloadd",
		Short: "Kernel TLS for programs that never see a key",
		Long: `offloadd accepts TLS connections, lets an unprivileged worker process complete
the handshake, installs the keys into the kernel, and hands the sockets to your
application, which reads and writes plain bytes.`,
		Example: `  offloadd check                     what this machine can do, and how to fix the rest
  offloadd demo                      the whole way, with curl and openssl as clients
  offloadd serve -c /etc/offloadd.toml`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(env.stdin)
	root.SetOut(env.stdout)
	root.SetErr(env.stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError("%v; see %q", err, c.CommandPath()+" --help")
	})
	root.AddCommand(serveCommand(env), handshakeCommand(env), relayCommand(env), signCommand(env), checkCommand(env), inspectCommand(env),
		statusCommand(env), topCommand(env), revokeCommand(env), demoCommand(env), demoApplicationCommand(env), bpfCommand(env),
		inetdCommand(env), benchCommand(env))
	explainArguments(root.Commands())
	return root
}

// explainArguments gives cobra's own argument errors an exit code.
func explainArguments(commands []*cobra.Command) {
	for _, c := range commands {
		if args := c.Args; args != nil {
			c.Args = func(c *cobra.Command, a []string) error {
				if err := args(c, a); err != nil {
					return usageError("%v; see %q", err, c.CommandPath()+" --help")
				}
				return nil
			}
		}
	}
}
