// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/offloadd/offloadd/cmd/offloadd/internal/bench"
)

func benchHandoverCommand(env *environment) *cobra.Command {
	h := handover{env: env}
	var asJSON bool
	c := &cobra.Command{
		Use:   "handover [flags]",
		Short: "Measure how a connection gets from accept to its application",
		Long: `Starts a daemon of its own with one worker and an application, as "offloadd demo" does,
makes connections, and tells how long each step took: percentiles of what the daemon logs.
What it does not log, sealing and reading back, is measured in this process on keys of its
own.

Needs root and a kernel with TLS.`,
		Example: `  offloadd bench handover --count 1000
  offloadd bench handover --count 1000 --json | jq .accept_to_installed_us.p99`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if h.count < 1 || h.count > 1_000_000 || h.parallel < 1 {
				return usageError("--count=%d --parallel=%d, want 1 to 1000000 connections, and at least one at a time", h.count, h.parallel)
			}
			if os.Geteuid() != 0 {
				return machineError("bench handover needs root, as serve does")
			}
			if err := kernelReady(); err != nil {
				return machineError("bench handover: %w", err)
			}
			report, err := h.run(cmd.Context())
			if err != nil {
				return benchError(err)
			}
			if asJSON {
				return writeJSON(env.stdout, report)
			}
			return report.print(env.stdout)
		},
	}
	f := c.Flags()
	f.IntVar(&h.count, "count", 200, "`number` of connections")
	f.IntVarP(&h.parallel, "parallel", "P", 1, "`number` of connections at a time")
	f.StringVar(&h.choice.Group, "groups", "", "key agreement: x25519 or mlkem (X25519MLKEM768); else what crypto/tls prefers")
	f.BoolVar(&h.resumed, "resumed", false, "resume a session each time")
	f.BoolVar(&asJSON, "json", false, "print the report as JSON")
	return c
}

// handover is one run.
type handover struct {
	env             *environment
	count, parallel int
	choice          bench.Choice
	resumed         bool
}

// handoverReport is what it found. Its first percentiles are the daemon's.
type handoverReport struct {
	Schema   int        `json:"schema"`
	Mode     string     `json:"mode"`
	Kernel   string     `json:"kernel"`
	Guards   demoGuards `json:"guards"`
	Count    int        `json:"count"`
	Parallel int        `json:"parallel"`
	Resumed  int64      `json:"tls_resumed"`

	Steps         handoverSteps  `json:"steps"`
	Installed     *bench.Latency `json:"accept_to_installed_us"`
	Application   *bench.Latency `json:"accept_to_application_us"`
	FirstByte     *bench.Latency `json:"connect_to_first_byte_us"` // the client's
	PerSecond     float64        `json:"per_second"`
	ElapsedSecond float64        `json:"seconds"`
}

// handoverSteps are in their order.
type handoverSteps struct {
	Handshake *bench.Latency `json:"handshake_us"` // to the worker and back, with sealing
	Seal      *bench.Latency `json:"seal_us"`      // in this process
	Open      *bench.Latency `json:"open_us"`
	Enter     *bench.Latency `json:"enter_us"`     // into the ledger
	Install   *bench.Latency `json:"install_us"`   // with reading back
	ReadBack  *bench.Latency `json:"read_back_us"` // in this process
}

// run starts the processes, connects, and reads the daemon's log.
func (h *handover) run(ctx context.Context) (*handoverReport, error) {
	temporary, err := os.MkdirTemp("", "offloadd-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temporary)
	d := &demo{env: h.env, temporary: temporary, directory: filepath.Join(temporary, "files")}
	if err := prepareHandover(d); err != nil {
		return nil, err
	}
	demoReport := &demoReport{}
	stop, err := d.start(ctx, demoReport)
	if err != nil {
		return nil, err
	}
	defer stop()
	report := &handoverReport{Schema: bench.Schema, Mode: "handover", Kernel: kernelRelease(), Guards: demoReport.Guards,
		Count: h.count, Parallel: h.parallel}
	if err := h.connect(ctx, d, report); err != nil {
		return nil, err
	}
	if err := h.readLog(ctx, d.log, report); err != nil {
		return nil, err
	}
	config, err := bench.ServerConfig(d.path("certificate.pem"), d.path("key.pem"), h.choice, true)
	if err != nil {
		return nil, err
	}
	steps, err := bench.MeasureKeySteps(ctx, config, h.count)
	if err != nil {
		return nil, err
	}
	report.Steps.Seal, report.Steps.ReadBack = bench.NewLatency(steps.Seal), bench.NewLatency(steps.ReadBack)
	return report, nil
}

// prepareHandover writes what the demo's processes serve: one byte.
func prepareHandover(d *demo) error {
	if err := os.Chmod(d.temporary, 0o755); err != nil { // the application is another user
		return err
	}
	if err := os.Mkdir(d.directory, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.directory, "1"), []byte{1}, 0o644); err != nil {
		return err
	}
	return writeDemoCertificate(d.path("certificate.pem"), d.path("key.pem"))
}

func (h *handover) connect(ctx context.Context, d *demo, report *handoverReport) error {
	client, err := bench.NewClient(bench.Options{Address: d.address, Layer: bench.LayerCryptoTLS, Choice: h.choice, Streams: h.parallel,
		Handshakes: h.count, Resumed: h.resumed, Small: -1, RequestSize: 1, WriteSize: 1, NoUsage: true})
	if err != nil {
		return err
	}
	defer client.Close()
	result, err := client.Run(ctx)
	if err != nil {
		return err
	}
	report.FirstByte, report.PerSecond, report.ElapsedSecond, report.Resumed = result.Latency, result.PerSecond, result.Seconds, result.TLSResumed
	return nil
}

// readLog waits until the daemon has told of all connections. If sessions were resumed,
// the first was there to get one.
func (h *handover) readLog(ctx context.Context, log *serveLog, report *handoverReport) error {
	first := 0
	if h.resumed {
		first = 1
	}
	installed, err := log.entriesOf(ctx, "installed", first+h.count)
	if err != nil {
		return err
	}
	handed, err := log.entriesOf(ctx, "handed over", first+h.count)
	if err != nil {
		return err
	}
	installed, handed = installed[first:], handed[first:]
	for _, of := range []struct {
		into    **bench.Latency
		entries []logEntry
		field   string
	}{
		{&report.Steps.Handshake, installed, "handshake_us"}, {&report.Steps.Open, installed, "open_us"}, {&report.Steps.Enter, installed, "enter_us"},
		{&report.Steps.Install, installed, "install_us"}, {&report.Installed, installed, "accept_to_installed_us"},
		{&report.Application, handed, "accept_to_application_us"},
	} {
		var times []time.Duration
		for _, e := range of.entries {
			times = append(times, time.Duration(e.number(of.field))*time.Microsecond)
		}
		*of.into = bench.NewLatency(times)
	}
	return nil
}

// entriesOf waits for n entries with this message.
func (l *serveLog) entriesOf(ctx context.Context, message string, n int) ([]logEntry, error) {
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	for {
		all, ended := l.entriesSoFar(message)
		switch {
		case len(all) >= n:
			return all[:n], nil
		case ended:
			return nil, fmt.Errorf("the daemon ended after %d of %d connections", len(all), n)
		}
		select {
		case <-l.changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("the daemon has told of %d of %d connections that are %s: %w", len(all), n, message, context.Cause(ctx))
		}
	}
}

func (l *serveLog) entriesSoFar(message string) (all []logEntry, ended bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		if e.text("msg") == message {
			all = append(all, e)
		}
	}
	return all, l.ended
}

func (r *handoverReport) print(w io.Writer) error {
	fmt.Fprintf(w, "Hand-over on Linux %s, %d connections, %d at a time, %.1f/s\n", r.Kernel, r.Count, r.Parallel, r.PerSecond)
	if r.Guards.Off != "" {
		fmt.Fprintf(w, "No BPF guards: %s\n", r.Guards.Off)
	}
	fmt.Fprintf(w, "\n%-26s%9s%9s%9s%9s%9s\n", "MICROSECONDS", "MEDIAN", "90 %", "99 %", "99.9 %", "MOST")
	for _, row := range []struct {
		name string
		of   *bench.Latency
	}{
		{"handshake in the worker", r.Steps.Handshake}, {"  of that, seal", r.Steps.Seal}, {"open", r.Steps.Open},
		{"enter into the ledger", r.Steps.Enter}, {"install", r.Steps.Install}, {"  of that, read back", r.Steps.ReadBack}, {"accept to installed", r.Installed}, {"accept to application", r.Application},
		{"connect to first byte", r.FirstByte},
	} {
		if _, err := fmt.Fprintf(w, "%-26s%9.0f%9.0f%9.0f%9.0f%9.0f\n", row.name, row.of.P50, row.of.P90, row.of.P99, row.of.P999, row.of.Max); err != nil {
			return err
		}
	}
	return nil
}
