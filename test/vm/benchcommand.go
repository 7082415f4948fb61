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
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/offloadd/offloadd/test/vm/bench/result"
)

// Programs of this module that a bench needs, by their package.
const (
	modulePath     = "github.com/offloadd/offloadd"
	measuredPath   = modulePath + "/cmd/offloadd"
	benchGuestPath = modulePath + "/test/vm/bench"
	reporterPath   = modulePath + "/test/vm/bench/reporter"
)

// Where they are in the guest.
const (
	measuredProgram   = "/usr/bin/offloadd"
	benchGuestProgram = "/usr/bin/offloadd-bench"
)

type benchOptions struct {
	kernels  []string
	mode     string
	quick    bool
	only     string
	repeat   int
	out      string
	gate     string
	record   string
	boots    int
	timeout  time.Duration
	offloadd string
}

func benchCommand() *cobra.Command {
	o := &benchOptions{}
	command := &cobra.Command{
		Use:   "bench [flags]",
		Short: "Measure offloadd and its peers, and report",
		Long: `Boots each kernel, has offloadd and the programs it is compared with do the same work in turn, several times, and writes
a report with tables, plots and the raw figures.

The clock counts instructions, unless --mode is wall: see vm exec --help. With --gate, only the ratios of a recorded
baseline are measured and compared, and it fails for one that has risen beyond its tolerance.`,
		Example: `  go run ./test/vm bench -quick -kernels 6.12 -out /tmp/report
  go run ./test/vm bench -only '^download-1/' -kernels 7 -out /tmp/report
  go run ./test/vm bench -gate test/vm/bench/baseline.json`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error { return o.run(command.Context()) },
	}
	flags := command.Flags()
	flags.StringSliceVar(&o.kernels, "kernels", []string{"6.12", "7"}, "`SERIES` separated by commas")
	flags.StringVar(&o.mode, "mode", result.Instructions, "instructions or wall")
	flags.BoolVar(&o.quick, "quick", false, "less work, fewer repetitions")
	flags.StringVar(&o.only, "only", "", "only rows whose DISCIPLINE/ROW matches `REGEXP`")
	flags.IntVar(&o.repeat, "repeat", 0, "measure each row so `often`, and not as often as it is usual")
	flags.StringVar(&o.out, "out", "", "write the report into this `directory`")
	flags.StringVar(&o.gate, "gate", "", "compare with the baseline in this `file`, on one kernel")
	flags.StringVar(&o.record, "record", "", "record a baseline in this `file`")
	flags.IntVar(&o.boots, "boots", 5, "boots to record a baseline from")
	flags.DurationVar(&o.timeout, "timeout", 90*time.Minute, "end a machine after this time")
	flags.StringVar(&o.offloadd, "offloadd", "", "measure this `program`, and not one that is built now")
	return command
}

func (o *benchOptions) run(ctx context.Context) error {
	asked := 0
	for _, one := range []string{o.out, o.gate, o.record} {
		if one != "" {
			asked++
		}
	}
	switch {
	case asked != 1:
		return errors.New("bench: one of --out, --gate and --record says what is to be done")
	case o.mode != result.Instructions && o.mode != result.Wall:
		return fmt.Errorf("bench: --mode %s: want %s or %s", o.mode, result.Instructions, result.Wall)
	case o.mode == result.Wall && o.out == "":
		return errors.New("bench: a baseline is of instructions; what a clock shows varies too much")
	}
	fetcher, err := newFetcher()
	if err != nil {
		return err
	}
	programs, err := os.MkdirTemp("", "offloadd-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(programs)
	b := &benchRun{benchOptions: o, fetcher: fetcher, programs: programs}
	if err := b.build(ctx); err != nil {
		return err
	}
	switch {
	case o.gate != "":
		return b.compare(ctx)
	case o.record != "":
		return b.recordBaseline(ctx)
	}
	return b.report(ctx)
}

// A benchRun has what all boots need.
type benchRun struct {
	*benchOptions
	fetcher  *fetcher
	programs string
}

// build builds what runs in the guest, as it is shipped.
func (b *benchRun) build(ctx context.Context) error {
	b.fetcher.progress.step("programs")
	packages := map[string]string{"offloadd-bench": benchGuestPath}
	if b.offloadd == "" {
		b.offloadd, packages["offloadd"] = filepath.Join(b.programs, "offloadd"), measuredPath
	}
	for name, path := range packages {
		command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(b.programs, name), path)
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		if output, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", path, err, output)
		}
	}
	b.fetcher.progress.done(runtime.Version())
	return nil
}

// report measures each kernel, and then writes the report.
func (b *benchRun) report(ctx context.Context) error {
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return err
	}
	var early error
	for _, kernel := range b.kernels {
		run, err := b.boot(ctx, kernel)
		if run == nil {
			return err
		}
		if err != nil {
			// Hours of work may be in what was measured until then.
			early = errors.Join(early, err)
			run.Missing = append(run.Missing, "what came after the run's early end: "+firstLine(err))
		}
		// The report is made of all in the directory, so that kernels and modes can be measured one by one.
		if err := writeJSON(filepath.Join(b.out, fmt.Sprintf("%s-%s.json", run.Series, run.Mode)), run); err != nil {
			return err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(early, b.writeReport(context.WithoutCancel(ctx)))
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

func (b *benchRun) writeReport(ctx context.Context) error {
	command := exec.CommandContext(ctx, "go", "run", reporterPath, b.out)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	return command.Run()
}

// boot measures in one machine. With an error, a run is what was measured until then.
func (b *benchRun) boot(ctx context.Context, word string) (*result.Run, error) {
	images, err := b.fetcher.images(ctx, word)
	if err != nil {
		return nil, err
	}
	m, err := b.machine(ctx, images)
	if err != nil {
		return nil, err
	}
	run, err := b.describe(ctx, m)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	events, writer := io.Pipe()
	m.stdout, m.stderr = writer, os.Stderr
	read := make(chan error, 1)
	go func() {
		err := result.ReadEvents(events, b.seen(run))
		events.CloseWithError(err)
		read <- err
	}()
	began := time.Now()
	code, err := m.run(ctx)
	writer.Close()
	run.Seconds = time.Since(began).Seconds()
	if err := errors.Join(err, <-read); err != nil {
		return run, err
	}
	if code != 0 {
		return run, &exitError{code: code, err: fmt.Errorf("the bench on kernel %s ended with status %d", run.Kernel, code)}
	}
	b.fetcher.progress.done(fmt.Sprintf("%d measurements, %d rows failed", len(run.Samples), len(run.Failures)))
	return run, nil
}

// seen takes events into the run and shows how far it is.
func (b *benchRun) seen(run *result.Run) func(result.Event) {
	planned, progress := 1, b.fetcher.progress
	progress.step("kernel %s: booting", run.Kernel)
	return func(event result.Event) {
		run.Add(event)
		planned = max(planned, event.Planned)
		switch {
		case event.Discipline != nil:
			progress.step("kernel %s: %s", run.Kernel, event.Discipline.Title)
		case event.Failure != nil:
			progress.warn("%s, %s: %s", event.Failure.Discipline, event.Failure.Row, event.Failure.Why)
		}
		progress.percent(100 * float64(len(run.Samples)) / float64(planned))
	}
}

// benchMemory is in MiB: ten thousand connections, and a file of 64 MiB for each of a dozen servers.
const benchMemory = 5120

func (b *benchRun) machine(ctx context.Context, images *images) (*machine, error) {
	options := &execOptions{noDir: true, accel: accelTCG, memory: benchMemory, cpus: 2, bootTimeout: 2 * defaultBootPatience,
		files: []string{b.offloadd + ":" + measuredProgram, filepath.Join(b.programs, "offloadd-bench") + ":" + benchGuestProgram}}
	args := []string{benchGuestProgram, "-offloadd", measuredProgram, "-mode", b.mode, "-only", b.only, "-repeat", strconv.Itoa(b.repeat)}
	if b.quick {
		args = append(args, "-quick")
	}
	if b.out == "" {
		args = append(args, "-gate")
	}
	m, err := options.machine(b.fetcher, images, args)
	if err != nil {
		return nil, err
	}
	if b.mode == result.Instructions {
		m.hw.countInstructions()
	}
	if b.out == "" {
		return m, nil // the gate needs no peers
	}
	return m, m.addPeers(ctx)
}

// describe fills in what the host knows.
func (b *benchRun) describe(ctx context.Context, m *machine) (*result.Run, error) {
	arguments := slices.DeleteFunc(m.hw.arguments(), func(arg string) bool { return arg == "" })
	run := &result.Run{
		Schema: result.Schema, Kernel: m.images.kernel.Release, Series: m.images.kernel.Series, Mode: b.mode, Quick: b.quick, Only: b.only,
		Emulator: "QEMU " + b.fetcher.packageVersion(hostName, "qemu-system-x86") + " " + strings.Join(arguments, " "),
		Commit:   commit(ctx), Go: runtime.Version(), Started: time.Now().UTC().Format(time.RFC3339),
	}
	if b.out == "" {
		return run, nil
	}
	list, err := b.fetcher.peerList()
	if err != nil {
		return nil, err
	}
	run.Packages, run.Missing = list.Packages, list.Missing
	return run, nil
}

// measuredPlaces are what the program is built from.
var measuredPlaces = []string{"--", ":/cmd", ":/ktls", ":/handshaker", ":/blob", ":/bpf", ":(top,exclude)*_test.go"}

// commit is the last that changed what is measured, as far as git knows.
func commit(ctx context.Context) string {
	last, err := exec.CommandContext(ctx, "git", append([]string{"log", "-1", "--format=%h", "--abbrev=12"}, measuredPlaces...)...).Output()
	if err != nil {
		return "unknown"
	}
	changed, err := exec.CommandContext(ctx, "git", append([]string{"status", "--porcelain"}, measuredPlaces...)...).Output()
	name := strings.TrimSpace(string(last))
	if err != nil || len(changed) > 0 {
		name += ", changed"
	}
	return name
}
