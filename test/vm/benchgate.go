// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/offloadd/offloadd/test/vm/bench/result"
)

// The gate: a few ratios of one kernel's instructions, compared with what they were.

// minTolerance is how much a ratio may rise at least. A change that costs less is not seen, and none of a compiler's
// that costs less is taken for ours.
const minTolerance = 0.08

// spreadsAllowed: a row whose boots differ may rise by so many times the most that one of them was off.
const spreadsAllowed = 3

// gatedRows are what the gate looks at, each with what it is a ratio of.
var gatedRows = []result.BaselineRow{
	{Discipline: "download-1", Row: "ktls.Conn, sendfile", Reference: "bare program, sendfile"},
	{Discipline: "upload-1", Row: "ktls.Conn, write", Reference: "bare program, write"},
	{Discipline: "upload-1", Row: "ktls.Conn, write", Reference: "crypto/tls"},
	{Discipline: "proxy-download", Row: "ktls.Conn", Reference: "crypto/tls"},
	{Discipline: "proxy-upload", Row: "ktls.Conn", Reference: "crypto/tls"},
	{Discipline: "echo-1", Row: "ktls.Conn, write", Reference: "bare program, write"},
	{Discipline: "echo-1", Row: "ktls.Conn, write", Reference: "crypto/tls"},
	{Discipline: "handshake-x25519", Row: "ktls.Conn in process", Reference: "crypto/tls"},
	{Discipline: "handshake-x25519", Row: "split, without BPF guards", Reference: "crypto/tls"},
}

// compare fails if a ratio has risen.
func (b *benchRun) compare(ctx context.Context) error {
	var baseline result.Baseline
	if found, err := readJSON(b.gate, &baseline); err != nil {
		return err
	} else if !found {
		return fmt.Errorf("there is no baseline %s; record one: make bench-baseline", b.gate)
	}
	verdicts, err := b.judge(ctx, &baseline)
	if err != nil {
		return err
	}
	if result.Failed(verdicts) > 0 {
		// What differs from boot to boot is not in what we do: a row must fail in two.
		fmt.Println("Measuring once more: a row has to be dearer in two boots.")
		again, err := b.judge(ctx, &baseline)
		if err != nil {
			return err
		}
		verdicts = result.InBoth(verdicts, again)
	}
	if err := result.PrintVerdicts(os.Stdout, verdicts); err != nil {
		return &exitError{code: 1, err: err}
	}
	return nil
}

// judge compares the rows of one boot.
func (b *benchRun) judge(ctx context.Context, baseline *result.Baseline) ([]result.Verdict, error) {
	run, err := b.boot(ctx, b.kernels[0])
	if err != nil {
		return nil, err
	}
	for _, failure := range run.Failures {
		fmt.Printf("%s, %s: %s\n", failure.Discipline, failure.Row, failure.Why)
	}
	fmt.Printf("Instructions of the server on kernel %s; the baseline is of %s.\n", run.Kernel, baseline.Kernel)
	return baseline.Judge(run), nil
}

// recordBaseline boots several times: ratios of one boot are alike, and what differs from boot to boot is what a
// tolerance must allow.
func (b *benchRun) recordBaseline(ctx context.Context) error {
	var runs []*result.Run
	for range b.boots {
		run, err := b.boot(ctx, b.kernels[0])
		if err != nil {
			return err
		}
		if len(run.Failures) > 0 {
			return fmt.Errorf("%s, %s: %s", run.Failures[0].Discipline, run.Failures[0].Row, run.Failures[0].Why)
		}
		runs = append(runs, run)
	}
	if len(runs) == 0 {
		return errors.New("--boots: want one at least")
	}
	baseline := result.Baseline{Kernel: runs[0].Kernel}
	for _, row := range gatedRows {
		var ratios, costs []float64
		for _, run := range runs {
			ratios = append(ratios, run.Ratio(row.Discipline, row.Row, row.Reference, result.Server))
			costs = append(costs, run.Figure(row.Discipline, row.Row, result.Server).Median)
		}
		figure := result.Summarize(ratios)
		row.Ratio, row.Cost = round(figure.Median, 4), round(result.Summarize(costs).Median, 3)
		row.Tolerance = round(max(minTolerance, spreadsAllowed*figure.Spread), 3)
		fmt.Printf("%s, %s to %s: %.4f, half range %.2f %%, may rise by %.1f %%\n", row.Discipline, row.Row, row.Reference, row.Ratio,
			100*figure.Spread, 100*row.Tolerance)
		baseline.Rows = append(baseline.Rows, row)
	}
	return writeJSON(b.record, baseline)
}

func round(value float64, digits int) float64 {
	scale := math.Pow10(digits)
	return math.Round(value*scale) / scale
}
