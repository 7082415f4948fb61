// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

type execOptions struct {
	kernel       string
	withoutTLS   bool
	append       string
	memory, cpus int
	timeout      time.Duration
	bootTimeout  time.Duration
	env          []string
	files, gets  []string
	testModules  []string
	stdin        bool
	noDir        bool
	accel        string
	icount       bool
	qemuArgs     []string
	ignoreKernel []string
	verbose      bool
	watch        bool
	languages    bool
	peers        bool
}

// native as the name of a kernel means the one that runs here.
const native = "native"

func execCommand() *cobra.Command {
	options := &execOptions{}
	command := &cobra.Command{
		Use:   "exec [flags] [--] COMMAND [ARGUMENT...]",
		Short: "Run a command in a virtual machine",
		Long: `Runs a command in a virtual machine as root, in a copy of the working directory, with standard output, standard
error and exit code passed through. On a terminal the command gets one too; ^] ends the machine.

The guest's environment has PATH, HOME, TERM, OFFLOADD_* and what configures the Go runtime (GODEBUG, ...), and
OFFLOADD_VM_KERNEL (uname -r) and OFFLOADD_KERNEL_SERIES (6.1, 6.12, 7). With --module there is OFFLOADD_TEST_MODULES,
the directory in which the modules lie.

With --icount the guest's clock counts instructions: a nanosecond is an instruction of its one CPU, user's and kernel's,
and time in which nothing runs is skipped. What the guest measures as time is then work, which hardly varies (0.1 to 2 %
for bulk data), whatever else the host does. Instructions are not cycles: what waits for memory looks too cheap. And
timeouts of the guest cost no time, so that what waits for the host may come too late.`,
		Example: `  go test -exec "/tmp/vm exec -kernel 6.12" ./ktls/...
  vm exec -kernel 6.1 -- /bin/sh
  vm exec -kernel 7 -- openssl version
  vm exec -icount -- sh -c 'time openssl speed -seconds 1 -evp aes-128-gcm'
  vm exec -file ./data:/data -get /tmp/result:./result -- sh -c 'wc -c /data > /tmp/result'`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			return options.run(command.Context(), command.Flags().Changed("timeout"), args)
		},
	}
	flags := command.Flags()
	flags.SetInterspersed(false)
	options.addMachineFlags(command)
	flags.StringVar(&options.kernel, "kernel", defaultKernel, "series (6.1, 6.12, 7), version or release; or native: no virtual machine")
	flags.StringArrayVar(&options.gets, "get", nil, "copy `GUESTPATH:HOSTPATH` from the guest after the command (repeatable)")
	flags.BoolVar(&options.stdin, "stdin", false, "pass on standard input (a terminal always is)")
	flags.BoolVar(&options.noDir, "no-dir", false, "do not copy the working directory")
	return command
}

// addMachineFlags are the flags that `vm test` hands on to `vm exec`.
func (o *execOptions) addMachineFlags(command *cobra.Command) {
	flags := command.Flags()
	flags.BoolVar(&o.withoutTLS, "without-tls", false, "leave the TLS module out of the guest")
	flags.StringArrayVar(&o.testModules, "module", nil,
		"build the kernel module in `DIRECTORY` and put it into the guest, not loaded (repeatable)")
	flags.StringArrayVar(&o.files, "file", nil, "copy `HOSTPATH[:GUESTPATH]` into the guest (repeatable)")
	flags.StringVar(&o.append, "append", "", "more kernel `PARAMETERS`")
	flags.IntVar(&o.memory, "memory", 2048, "memory in `MiB`")
	flags.IntVar(&o.cpus, "cpus", 2, "number of CPUs")
	flags.DurationVar(&o.timeout, "timeout", 10*time.Minute,
		"end the machine after this time; unless set, a test binary's -test.timeout and a minute")
	flags.DurationVar(&o.bootTimeout, "boot-timeout", defaultBootPatience,
		"boot again, twice at most, if the command has not started after this time")
	flags.StringArrayVar(&o.env, "env", nil, "set `NAME=VALUE`, or pass on NAME (repeatable)")
	flags.StringVar(&o.accel, "accel", "auto", "QEMU's accelerator; auto is kvm if it boots a kernel, else tcg")
	flags.BoolVar(&o.icount, "icount", false, "one CPU, emulated, and a clock that counts its instructions; --accel and --cpus do not count then")
	flags.StringArrayVar(&o.qemuArgs, "qemu-arg", nil, "one more `ARGUMENT` for QEMU (repeatable)")
	flags.StringArrayVar(&o.ignoreKernel, "ignore-kernel", nil, "do not fail for kernel messages that match `REGEXP` (repeatable)")
	flags.BoolVar(&o.languages, "languages", false, "attach a disk with compilers and interpreters, in /usr: gcc, python3, node, java")
	flags.BoolVar(&o.peers, "peers", false, "attach a disk with nginx, HAProxy, stunnel, hitch and iperf3, each release a root directory below "+peersMount)
	flags.BoolVar(&o.watch, "watch", false, "watch what kernel TLS does with its keys, and fail for a broken rule: see package watch")
	flags.BoolVar(&o.verbose, "verbose", false, "tell the kernel and the time it took to boot, on stderr")
}

func (o *execOptions) run(ctx context.Context, timeoutSet bool, args []string) error {
	if o.kernel == native {
		return runNative(o, args)
	}
	if !timeoutSet {
		o.timeout = timeoutFor(args, o.timeout)
	}
	fetcher, err := newFetcher()
	if err != nil {
		return err
	}
	images, err := fetcher.images(ctx, o.kernel)
	if err != nil {
		return err
	}
	built, err := fetcher.modules(ctx, images.kernel, o.testModules)
	if err != nil {
		return err
	}
	m, err := o.machine(fetcher, images, args)
	if err != nil {
		return err
	}
	m.addModules(built)
	if o.languages {
		disk, err := fetcher.languages(ctx)
		if err != nil {
			return err
		}
		m.addLanguages(disk)
	}
	if o.peers {
		if err := m.addPeers(ctx); err != nil {
			return err
		}
	}
	if o.icount {
		m.hw.countInstructions()
	}
	if m.hw.accel == "auto" {
		if m.hw.accel, err = fetcher.accelerator(ctx, images); err != nil {
			return err
		}
	}
	code, err := o.runMachine(ctx, m)
	if code == 0 && err == nil {
		return nil
	}
	return &exitError{code: code, err: err}
}

// machine turns the options into a machine.
func (o *execOptions) machine(fetcher *fetcher, images *images, args []string) (*machine, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	m := &machine{
		fetcher: fetcher, images: images, files: &runFiles{}, stdout: os.Stdout, stderr: os.Stderr,
		hw: hardware{accel: o.accel, memory: o.memory, cpus: o.cpus, append: o.append, extra: o.qemuArgs,
			bootPatience: o.bootTimeout},
		spec: guestSpec{
			Args:    slices.Clone(args),
			Dir:     dir,
			Env:     guestEnvironment(os.Environ(), o.env, dir, images.kernel),
			Modules: o.modules(images.kernel),
			Watch:   o.watch,
		},
	}
	for _, pattern := range o.ignoreKernel {
		ignored, err := regexp.Compile(pattern)
		if err != nil {
			return nil, fmt.Errorf("--ignore-kernel: %w", err)
		}
		m.console.ignore = append(m.console.ignore, ignored)
	}
	if err := o.addFiles(m, dir); err != nil {
		return nil, err
	}
	return m, addProgram(m, images.userland)
}

func (o *execOptions) modules(k *kernel) []string {
	modules := slices.Clone(k.Modules)
	if o.withoutTLS {
		modules = slices.DeleteFunc(modules, func(path string) bool { return moduleName(path) == tlsModule })
	}
	return modules
}

func (o *execOptions) addFiles(m *machine, dir string) error {
	if !o.noDir && inModule(dir) {
		m.files.tree = dir
	}
	for _, value := range o.files {
		pair, err := parsePut(value)
		if err != nil {
			return err
		}
		m.files.put = append(m.files.put, pair)
	}
	for _, value := range o.gets {
		pair, err := parseGet(value)
		if err != nil {
			return err
		}
		m.files.get = append(m.files.get, pair)
	}
	m.files.addTestResults(m.spec.Args, dir)
	m.spec.Get = m.files.wanted()
	return nil
}

// inModule says whether the directory belongs to a Go module. Others, like a home, are not copied.
func inModule(dir string) bool {
	for {
		if fileExists(filepath.Join(dir, "go.mod")) {
			return true
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return false
		}
		dir = parent
	}
}

// addProgram packs the command, if it is a path that the host has and the guest has not.
func addProgram(m *machine, userland string) error {
	program := m.spec.Args[0]
	if !strings.Contains(program, "/") {
		return nil
	}
	program, err := filepath.Abs(program)
	if err != nil {
		return err
	}
	var paths pathList
	if _, err := readJSON(filepath.Join(userland, "paths.json"), &paths); err != nil {
		return err
	}
	if paths.has(program) || !fileExists(program) {
		return nil
	}
	m.spec.Args[0] = program
	m.files.put = append(m.files.put, filePair{host: program, guest: program})
	return nil
}

// errAbandoned: whoever started us has gone.
var errAbandoned = errors.New("nobody waits for the result any more")

// errEscaped: the person at the terminal typed ^].
var errEscaped = errors.New("ended by ^]")

// runMachine runs with this process's standard streams.
func (o *execOptions) runMachine(ctx context.Context, m *machine) (int, error) {
	ctx, abandon := context.WithCancelCause(ctx)
	defer abandon(nil)
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	go watchReader(os.Stdout, func() { abandon(errAbandoned) })
	go watchParent(ctx, func() { abandon(errAbandoned) })

	var input io.Reader
	if o.stdin {
		input = os.Stdin
	}
	session := &session{machine: m, escape: func() { abandon(errEscaped) }}
	m.stdin = session.attach(input)
	m.onStart = session.start
	defer session.end()

	code, err := m.run(ctx)
	session.end()
	if o.verbose {
		fmt.Fprintf(os.Stderr, "vm: kernel %s, %s, command started after %.1f s, %.1f s in all\n", m.release, m.hw.accel,
			m.boot.Seconds(), time.Since(m.started).Seconds())
	}
	return code, err
}

// timeoutFor gives a test binary the time to say itself which test hangs.
func timeoutFor(args []string, otherwise time.Duration) time.Duration {
	for _, arg := range args[1:] {
		if value, found := strings.CutPrefix(arg, "-test.timeout="); found {
			if limit, err := time.ParseDuration(value); err == nil && limit > 0 {
				return limit + time.Minute
			}
		}
	}
	return otherwise
}

// runNative replaces this process by the command.
func runNative(o *execOptions, args []string) error {
	if len(o.testModules) > 0 {
		return &exitError{code: exitMachine, err: errors.New("--module needs a virtual machine: modules are built for Debian's kernels")}
	}
	if err := nativeTLS(); err != nil {
		return &exitError{code: exitMachine, err: fmt.Errorf("--kernel native: %w", err)}
	}
	program, err := exec.LookPath(args[0])
	if err != nil {
		return &exitError{code: exitNotFound, err: err}
	}
	return syscall.Exec(program, args, append(os.Environ(), expandEnv(o.env, os.Environ())...))
}
