// SPDX-License-Identifier: Apache-2.0

// Vm makes a Linux kernel a parameter of go test. It boots kernels of Debian's packages in QEMU and runs one command
// in each virtual machine, with the command's output, input and exit code passed through:
//
//	go build -o /tmp/vm ./test/vm
//	go test -exec "/tmp/vm exec -kernel 6.12" ./ktls/...
//	go run ./test/vm test ./...
//
// The same program is the host's side and, as pid 1, the guest's. It needs Go and apt; QEMU, kernels and the guest's
// programs are fetched from the machine's own Debian mirror into a cache, and nothing is installed.
//
// It imports none of this module's packages but its own: it runs their tests and must not share their faults.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func main() {
	// QEMU is started from the main goroutine and is killed when the thread that started it ends: keep that thread.
	runtime.LockOSThread()
	if isGuest() {
		guestMain()
	}
	os.Exit(run(os.Args[1:]))
}

// run returns the exit code.
func run(args []string) int {
	ctx, stop := signalContext()
	defer stop()
	root := rootCommand()
	root.SetArgs(prepareArgs(root, args))
	err := root.ExecuteContext(ctx)
	var exit *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.err == nil:
		return exit.code
	}
	fmt.Fprintf(os.Stderr, "vm: %v\n", err)
	if exit != nil {
		return exit.code
	}
	return exitMachine
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "vm",
		Short: "A kernel as a parameter of go test",
		Long: `Boots Linux kernels of Debian's packages in QEMU and runs commands in them.

Exit codes: those of the command, and of our own
  120  the kernel panicked, warned or hung, whatever the command said
  121  the command did well, but the watch on kernel TLS found a rule broken
  124  the time was up
  125  the virtual machine could not be made, or ended without the command's status`,
		Example: `  go build -o /tmp/vm ./test/vm && go test -exec "/tmp/vm exec -kernel 6.12" ./ktls/...
  go run ./test/vm test ./...
  go run ./test/vm exec -kernel 6.1 -- /bin/sh`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(execCommand(), testCommand(), fetchCommand(), kernelsCommand(), nativeCommand(), bpfCommand(), benchCommand())
	return root
}

// prepareArgs lets flags be written with one dash, as go test's are, and ends ours where another program's arguments
// begin: at the first word that is not ours.
func prepareArgs(root *cobra.Command, args []string) []string {
	if len(args) == 0 {
		return args
	}
	for _, command := range root.Commands() {
		if command.Name() == args[0] {
			return append([]string{args[0]}, splitFlags(command.Flags(), args[1:])...)
		}
	}
	return args
}

func splitFlags(flags *pflag.FlagSet, args []string) []string {
	var ours []string
	for i := 0; i < len(args); i++ {
		name, _, hasValue := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		flag := flags.Lookup(name)
		switch {
		case args[i] == "--":
			return append(ours, args[i:]...)
		case args[i] == "-h" || args[i] == "-help" || args[i] == "--help":
			return append(ours, "--help")
		case !strings.HasPrefix(args[i], "-") || flag == nil:
			return append(append(ours, "--"), args[i:]...)
		}
		ours = append(ours, "--"+strings.TrimLeft(args[i], "-"))
		if !hasValue && flag.NoOptDefVal == "" && i+1 < len(args) {
			i++
			ours = append(ours, args[i])
		}
	}
	return ours
}

// An exitError ends the program with a code. Without an error inside, silently.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// A signalError says which signal asked us to end.
type signalError struct{ signal syscall.Signal }

func (e *signalError) Error() string { return "ended by signal: " + e.signal.String() }

// signalContext is cancelled by the signals that ask a program to end.
func signalContext() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		if received, ok := (<-signals).(syscall.Signal); ok {
			cancel(&signalError{received})
		}
	}()
	return ctx, func() { signal.Stop(signals); cancel(nil) }
}
