// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// A report is the outcome of all kernels.
type report struct {
	Kernels []*kernelReport `json:"kernels"`
	Passed  int             `json:"passed"`
	Failed  int             `json:"failed"`
	Skipped int             `json:"skipped"`
}

// A kernelReport is the outcome of one kernel. Tests include subtests.
type kernelReport struct {
	Series   string        `json:"series"`
	Release  string        `json:"release"` // uname -r
	Version  string        `json:"version"` // of Debian's package
	Passed   int           `json:"passed"`
	Failed   int           `json:"failed"`
	Skipped  int           `json:"skipped"`
	Packages int           `json:"packages"` // with tests
	Seconds  float64       `json:"seconds"`
	Failures []testOutcome `json:"failures,omitempty"`
	Skips    []testOutcome `json:"skips,omitempty"`
}

// A testOutcome names a test or package and says why.
type testOutcome struct {
	Name   string `json:"name"`
	Output string `json:"output"`
}

func (k *kernelReport) name() string {
	if k.Version == "" {
		return k.Release + " (native)"
	}
	return k.Release + " (" + k.Version + ")"
}

func (k *kernelReport) fail(name, output string) {
	k.Failed++
	k.Failures = append(k.Failures, testOutcome{Name: name, Output: output})
}

func (r *report) add(one *kernelReport) {
	r.Kernels = append(r.Kernels, one)
	r.Passed += one.Passed
	r.Failed += one.Failed
	r.Skipped += one.Skipped
}

// print ends with the line that every reader of test results understands.
func (r *report) print(out io.Writer) {
	fmt.Fprintln(out)
	for _, one := range r.Kernels {
		for _, failure := range one.Failures {
			fmt.Fprintf(out, "FAIL on %s: %s\n", one.Release, failure.Name)
		}
	}
	table := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "KERNEL\tPACKAGES\tPASSED\tFAILED\tSKIPPED\tSECONDS")
	for _, one := range r.Kernels {
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%.1f\n", one.name(), one.Packages, one.Passed, one.Failed, one.Skipped, one.Seconds)
	}
	table.Flush()
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", r.Passed, r.Failed, r.Skipped)
}

// A testEvent is a line of go test -json, see `go doc test2json`.
type testEvent struct {
	Action      string
	Package     string
	ImportPath  string // of a build
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

// An eventReader counts, and shows what fails as it fails.
type eventReader struct {
	report  *kernelReport
	out     io.Writer
	verbose bool

	output   map[string]*strings.Builder // by package and test
	failures map[string]int              // tests by package
	tests    map[string]int
}

func (e *eventReader) read(from io.Reader) error {
	e.output, e.failures, e.tests = map[string]*strings.Builder{}, map[string]int{}, map[string]int{}
	lines := bufio.NewReader(from)
	for {
		line, err := lines.ReadBytes('\n')
		var event testEvent
		if json.Unmarshal(line, &event) == nil {
			e.event(event)
		} else if len(line) > 0 {
			e.out.Write(line)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read go test's output: %w", err)
		}
	}
}

func (e *eventReader) event(event testEvent) {
	key := event.Package + event.ImportPath + " " + event.Test
	switch event.Action {
	case "output", "build-output":
		said := strings.HasPrefix(event.Output, watchPrefix)
		if e.verbose || said {
			io.WriteString(e.out, event.Output)
		}
		if said {
			return // of interest also if all is well, and said once
		}
		if e.output[key] == nil {
			e.output[key] = &strings.Builder{}
		}
		e.output[key].WriteString(event.Output)
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	said := ""
	if e.output[key] != nil {
		said = e.output[key].String()
		delete(e.output, key)
	}
	if event.Test == "" {
		e.packageEnded(event, said)
	} else {
		e.testEnded(event, said)
	}
}

func (e *eventReader) testEnded(event testEvent, said string) {
	name := event.Package + " " + event.Test
	e.tests[event.Package]++
	switch event.Action {
	case "pass":
		e.report.Passed++
	case "skip":
		e.report.Skipped++
		e.report.Skips = append(e.report.Skips, testOutcome{Name: name, Output: said})
	case "fail":
		e.failures[event.Package]++
		e.report.fail(name, said)
		e.show(said)
	}
}

// packageEnded also counts as a failure when no test of the package failed: it did not build, or its machine died.
func (e *eventReader) packageEnded(event testEvent, said string) {
	if event.Action == "skip" && e.tests[event.Package] == 0 {
		return // no test files
	}
	e.report.Packages++
	if event.Action == "fail" {
		build := ""
		if built := e.output[event.FailedBuild+" "]; event.FailedBuild != "" && built != nil {
			build = built.String()
		}
		if e.failures[event.Package] == 0 {
			e.report.fail(event.Package, build+said)
		}
		e.show(build + said)
	}
	word := map[string]string{"pass": "ok  ", "fail": "FAIL", "skip": "skip"}[event.Action]
	fmt.Fprintf(e.out, "%s  %s  %d tests  %.1f s\n", word, event.Package, e.tests[event.Package], event.Elapsed)
}

func (e *eventReader) show(output string) {
	if !e.verbose {
		io.WriteString(e.out, output)
	}
}
