// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// A testRun runs go test once for each kernel.
type testRun struct {
	kernels    []string
	parallel   int
	together   int
	asJSON     bool
	machine    execOptions
	timeoutSet bool
	out        io.Writer // for people
}

func testCommand() *cobra.Command {
	run := &testRun{}
	command := &cobra.Command{
		Use:   "test [flags] [go test's arguments] [packages]",
		Short: "Run go test on each kernel and report",
		Long: `Runs go test once for each kernel, every package's tests in a virtual machine of their own. Our flags come first;
the first word that is none of them begins go test's arguments.

The last line is "N passed, N failed, N skipped", subtests included. The exit code is 1 if anything failed.`,
		Example: `  go run ./test/vm test ./...
  go run ./test/vm test -kernels 6.1,7 -run TestInstall -v ./ktls/...`,
		RunE: func(command *cobra.Command, args []string) error {
			run.timeoutSet = command.Flags().Changed("timeout")
			return run.run(command.Context(), args)
		},
	}
	flags := command.Flags()
	flags.SetInterspersed(false)
	run.machine.addMachineFlags(command)
	flags.Lookup("timeout").Usage = "go test's -timeout; the machine gets a minute more"
	flags.StringSliceVar(&run.kernels, "kernels", kernelSeries, "`SERIES` separated by commas, or native")
	flags.IntVar(&run.parallel, "parallel", 2, "packages, and so virtual machines, at a time")
	flags.IntVar(&run.together, "together", 1, "kernels at a time")
	flags.BoolVar(&run.asJSON, "json", false, "print the report as JSON on stdout, and all else on stderr")
	return command
}

func (t *testRun) run(ctx context.Context, args []string) error {
	t.out = os.Stdout
	if t.asJSON {
		t.out = os.Stderr
	}
	// go test starts each test in its package's directory.
	for i, dir := range t.machine.testModules {
		absolute, err := filepath.Abs(dir)
		if err != nil {
			return err
		}
		t.machine.testModules[i] = absolute
	}
	for i, value := range t.machine.files {
		pair, err := parsePut(value)
		if err != nil {
			return err
		}
		t.machine.files[i] = pair.host + ":" + pair.guest
	}
	report := &report{}
	all, err := t.runKernels(ctx, args)
	if err != nil {
		return err
	}
	for _, one := range all {
		report.add(one)
	}
	if t.asJSON {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "\t")
		if err := encoder.Encode(report); err != nil {
			return err
		}
	}
	report.print(t.out)
	if report.Failed > 0 {
		return &exitError{code: 1}
	}
	return nil
}

// runKernels runs as many kernels at a time as t.together says, and returns their
// reports in the order they were asked for.
func (t *testRun) runKernels(ctx context.Context, args []string) ([]*kernelReport, error) {
	reports, errs := make([]*kernelReport, len(t.kernels)), make([]error, len(t.kernels))
	output := &sharedOutput{w: t.out}
	slots := make(chan struct{}, max(1, t.together))
	var running sync.WaitGroup
	for i, word := range t.kernels {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			one := *t
			if t.together > 1 {
				one.out = &prefixWriter{prefix: fmt.Sprintf("%-5s| ", word), shared: output}
			}
			reports[i], errs[i] = one.runKernel(ctx, word, args)
		})
	}
	running.Wait()
	if ctx.Err() != nil {
		return nil, &exitError{code: exitMachine, err: context.Cause(ctx)}
	}
	return reports, errors.Join(errs...)
}

// runKernel resolves the kernel once, so that all packages meet the same one, and runs go test.
func (t *testRun) runKernel(ctx context.Context, word string, args []string) (*kernelReport, error) {
	one := &kernelReport{Series: native, Release: kernelRelease()}
	if word != native {
		k, err := t.prepare(ctx, word)
		if err != nil {
			return nil, err
		}
		one.Series, one.Release, one.Version = k.Series, k.Release, k.Version
		word = k.Release
	}
	fmt.Fprintf(t.out, "=== kernel %s\n", one.name())
	began := time.Now()
	err := t.goTest(ctx, word, args, one)
	one.Seconds = time.Since(began).Seconds()
	if err != nil && ctx.Err() == nil {
		return nil, err
	}
	return one, nil
}

func (t *testRun) prepare(ctx context.Context, word string) (*kernel, error) {
	fetcher, err := newFetcher()
	if err != nil {
		return nil, err
	}
	booted, err := fetcher.images(ctx, word)
	if err != nil {
		return nil, err
	}
	if t.machine.accel == "auto" && !t.machine.icount {
		if t.machine.accel, err = fetcher.accelerator(ctx, booted); err != nil {
			return nil, err
		}
	}
	// Once and in sight, before go test starts machines that would do it behind its output.
	if _, err := fetcher.modules(ctx, booted.kernel, t.machine.testModules); err != nil {
		return nil, err
	}
	if t.machine.languages {
		if _, err := fetcher.languages(ctx); err != nil {
			return nil, err
		}
	}
	return booted.kernel, nil
}

// goTest runs go test and counts. That tests fail is no error here.
func (t *testRun) goTest(ctx context.Context, word string, args []string, into *kernelReport) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	goArgs := []string{"test", "-json", "-p", strconv.Itoa(t.parallel), "-exec", t.execPrefix(self, word)}
	if t.timeoutSet {
		goArgs = append(goArgs, "-timeout", t.machine.timeout.String())
	}
	command := exec.CommandContext(ctx, "go", append(goArgs, args...)...)
	// In a group of their own, so that one signal ends go and all that it has started.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGTERM) }
	command.WaitDelay = 30 * time.Second
	command.Stderr = os.Stderr
	output, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return fmt.Errorf("start go test: %w", err)
	}
	events := &eventReader{report: into, out: t.out, verbose: t.machine.verbose}
	readErr := events.read(output)
	waitErr := command.Wait()
	if waitErr != nil && into.Failed == 0 {
		// Without a failed test or package: wrong arguments, or a package that does not exist.
		into.fail("go test", waitErr.Error())
	}
	return readErr
}

// execPrefix is what go test puts before a test binary. It splits it at spaces, and knows quotes.
func (t *testRun) execPrefix(self, word string) string {
	o := &t.machine
	words := []string{self, "exec", "--kernel", word, "--accel", o.accel, "--memory", strconv.Itoa(o.memory),
		"--cpus", strconv.Itoa(o.cpus), "--boot-timeout", o.bootTimeout.String()}
	if o.withoutTLS {
		words = append(words, "--without-tls")
	}
	if o.languages {
		words = append(words, "--languages")
	}
	if o.peers {
		words = append(words, "--peers")
	}
	if o.icount {
		words = append(words, "--icount")
	}
	if o.watch {
		words = append(words, "--watch")
	}
	if o.append != "" {
		words = append(words, "--append", o.append)
	}
	for flag, values := range map[string][]string{"--env": o.env, "--qemu-arg": o.qemuArgs, "--ignore-kernel": o.ignoreKernel,
		"--module": o.testModules, "--file": o.files} {
		for _, value := range values {
			words = append(words, flag, value)
		}
	}
	for i, word := range words {
		words[i] = quoteWord(word)
	}
	return strings.Join(words, " ")
}

// quoteWord quotes as the go command's -exec wants it: it knows no escapes.
func quoteWord(word string) string {
	switch {
	case !strings.ContainsAny(word, " \t\n'\"") && word != "":
		return word
	case !strings.Contains(word, "'"):
		return "'" + word + "'"
	default:
		return `"` + word + `"`
	}
}
