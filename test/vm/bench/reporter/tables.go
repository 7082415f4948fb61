// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/offloadd/offloadd/test/vm/bench/result"
)

// crypto is what AES-128-GCM itself costs, in instructions for each byte, in this emulated CPU: counted once, on 6.12,
// by a plugin of QEMU that knew the addresses of the kernel's code, and for the others by long runs of nothing else. It
// does not depend on who calls it.
var crypto = map[string]float64{"kernel": 2.195, "openssl": 2.36, "go": 2.35}

func write(runs []*result.Run) string {
	var out strings.Builder
	out.WriteString("# What offloadd and its peers cost\n\n")
	writeMachines(&out, runs)
	writeGoals(&out, runs)
	writeLosses(&out, runs)
	writeMissing(&out, runs)
	for _, run := range runs {
		fmt.Fprintf(&out, "# %s\n\n", title(run))
		for _, discipline := range run.Disciplines {
			writeDiscipline(&out, run, discipline)
		}
		writeSettings(&out, run)
	}
	return out.String()
}

func title(run *result.Run) string {
	if run.Mode == result.Instructions {
		return "Linux " + run.Series
	}
	return "Linux " + run.Series + ", by the clock"
}

func writeMachines(out *strings.Builder, runs []*result.Run) {
	out.WriteString("| | Kernel | Clock | offloadd | Go | Measured | Amount |\n|---|---|---|---|---|---|---|\n")
	for _, run := range runs {
		amount, clock := "full", "counts instructions, one a nanosecond"
		if run.Quick {
			amount = "quick: less work, fewer repetitions"
		}
		if run.Only != "" {
			// A bar would end the cell.
			amount += ", and only what matches `" + strings.ReplaceAll(run.Only, "|", "\\|") + "`"
		}
		if run.Mode == result.Wall {
			clock = "time, on an emulated machine: for ratios only, and roughly"
		}
		fmt.Fprintf(out, "| %s | %s | %s | %s | %s | %s, in %.0f min | %s |\n", title(run), run.Kernel, clock, run.Commit, run.Go, run.Started,
			run.Seconds/60, amount)
	}
	out.WriteString("\nInstructions are not cycles: copies and what waits for memory look too cheap, and this CPU has AES-NI and AVX2, but " +
		"not the wide AES of newer ones, so that ciphers weigh more here than there. Spreads (±) are half of the range.\n\n")
}

func writeMissing(out *strings.Builder, runs []*result.Run) {
	var lines []string
	for _, run := range runs {
		for _, missing := range run.Missing {
			lines = append(lines, fmt.Sprintf("- %s: %s", title(run), missing))
		}
		for _, failure := range run.Failures {
			why, _, _ := strings.Cut(failure.Why, "\n")
			lines = append(lines, fmt.Sprintf("- %s, %s, %s: %s", title(run), failure.Discipline, failure.Row, why))
		}
	}
	out.WriteString("## What could not be measured\n\n")
	if len(lines) > 0 {
		out.WriteString(strings.Join(lines, "\n") + "\n")
	}
	out.WriteString("- ghostunnel: neither a package nor a module that can be had. The small proxy of crypto/tls stands in for it.\n")
	out.WriteString("- Network devices that encrypt, and more CPUs than one at a time.\n\n")
}

// A column of a table; empty cells throughout leave it out.
type column struct {
	head string
	cell func(row result.Row) string
}

func writeDiscipline(out *strings.Builder, run *result.Run, d result.Discipline) {
	fmt.Fprintf(out, "## %s\n\n%s\n\n", d.Title, d.Work)
	if figure := run.Figure(d.Name, d.Baseline, d.Metric); figure.Count > 0 {
		fmt.Fprintf(out, "![%s](%s)\n\n", d.Title, plotName(run, d))
	}
	if d.Metric == percentiles {
		writePercentiles(out, run, d)
		return
	}
	columns := slices.DeleteFunc(columnsOf(run, d), func(c column) bool {
		return !slices.ContainsFunc(d.Rows, func(row result.Row) bool { return c.cell(row) != "" })
	})
	if len(columns) == 0 {
		out.WriteString("Nothing was measured.\n\n")
		return
	}
	out.WriteString("| |")
	for _, c := range columns {
		out.WriteString(" " + c.head + " |")
	}
	out.WriteString("\n|---|" + strings.Repeat("---:|", len(columns)) + "\n")
	for _, row := range d.Rows {
		out.WriteString("| " + emphasized(row) + " |")
		for _, c := range columns {
			out.WriteString(" " + c.cell(row) + " |")
		}
		out.WriteString("\n")
	}
	out.WriteString("\n")
}

// emphasized: what is ours is bold, what is only a limit is slanted.
func emphasized(row result.Row) string {
	switch row.Kind {
	case result.Ours:
		return "**" + row.Name + "**"
	case result.Limit:
		return "*" + row.Name + "*"
	}
	return row.Name
}

func columnsOf(run *result.Run, d result.Discipline) []column {
	if d.Metric != result.Server {
		return namedColumns(run, d)
	}
	what := "insn/" + d.Unit
	if run.Mode == result.Wall {
		what = "ns/" + d.Unit
	}
	per := func(head, metric string, spread bool) column {
		return column{head, func(row result.Row) string {
			return cost(run.Figure(d.Name, row.Name, metric), spread)
		}}
	}
	columns := []column{
		per("server, "+what, d.Metric, true),
		{"of " + d.Baseline, func(row result.Row) string { return ratio(run.Ratio(d.Name, row.Name, d.Baseline, d.Metric)) }},
		per("of it in user space", result.ServerUser, false),
		{"without cipher", func(row result.Row) string { return withoutCipher(run, d, row) }},
		per("application", result.Application, false),
		per("client", result.Client, false),
		per("all", result.All, true),
	}
	for _, percentile := range []string{"p50", "p99", "p99.9"} {
		columns = append(columns, column{percentile + ", µs", func(row result.Row) string {
			return number(run.Figure(d.Name, row.Name, "latency_"+percentile))
		}})
	}
	return columns
}

// percentiles as the metric of a discipline: its one row has values named STEP_us_PERCENTILE.
const percentiles = "percentiles"

func writePercentiles(out *strings.Builder, run *result.Run, d result.Discipline) {
	var steps []string
	for _, sample := range run.Samples {
		for name := range sample.Values {
			if step, is := strings.CutSuffix(name, "_us_p50"); is && sample.Discipline == d.Name {
				steps = append(steps, step)
			}
		}
	}
	slices.Sort(steps)
	shown := []string{"p50", "p90", "p99", "max"}
	out.WriteString("| µs | " + strings.Join(shown, " | ") + " |\n|---|" + strings.Repeat("---:|", len(shown)) + "\n")
	for _, step := range slices.Compact(steps) {
		out.WriteString("| " + strings.ReplaceAll(strings.TrimPrefix(step, "steps_"), "_", " ") + " |")
		for _, percentile := range shown {
			out.WriteString(" " + number(run.Figure(d.Name, d.Rows[0].Name, step+"_us_"+percentile)) + " |")
		}
		out.WriteString("\n")
	}
	out.WriteString("\n")
}

// namedColumns has one for each value there is.
func namedColumns(run *result.Run, d result.Discipline) (columns []column) {
	var names []string
	for _, sample := range run.Samples {
		for name := range sample.Values {
			if sample.Discipline == d.Name && name != result.Units && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	for _, name := range names {
		head := strings.ReplaceAll(strings.TrimPrefix(name, "memory_"), "_", " ")
		columns = append(columns, column{head, func(row result.Row) string { return number(run.Figure(d.Name, row.Name, name)) }})
	}
	return columns
}

func withoutCipher(run *result.Run, d result.Discipline, row result.Row) string {
	figure := run.Figure(d.Name, row.Name, d.Metric)
	core, known := crypto[row.Engine]
	if !known || figure.Count == 0 || run.Mode != result.Instructions || d.Unit != "byte" {
		return ""
	}
	return fmt.Sprintf("%.2f", figure.Median-core)
}

// cost is short for bytes and for handshakes.
func cost(figure result.Figure, spread bool) string {
	if figure.Count == 0 {
		return ""
	}
	text := fmt.Sprintf("%.2f", figure.Median)
	if figure.Median >= 1000 {
		text = fmt.Sprintf("%.1f k", figure.Median/1000)
	}
	if spread && figure.Count > 1 {
		text += fmt.Sprintf(" ±%.1f %%", 100*figure.Spread)
	}
	return text
}

func ratio(value float64) string {
	if value == 0 {
		return ""
	}
	return fmt.Sprintf("%.3f", value)
}

func number(figure result.Figure) string {
	if figure.Count == 0 {
		return ""
	}
	return fmt.Sprintf("%.0f", figure.Median)
}

func writeSettings(out *strings.Builder, run *result.Run) {
	out.WriteString("## Settings\n\n- " + run.Emulator + "\n")
	for _, setting := range run.Settings {
		out.WriteString("- " + setting + "\n")
	}
	for _, root := range []string{"stable", "experimental"} {
		var named []string
		for _, one := range run.Packages[root] {
			name, _, _ := strings.Cut(one, " ")
			if slices.Contains([]string{"haproxy", "hitch", "iperf3", "nginx", "stunnel4", "libssl3t64"}, name) {
				named = append(named, one)
			}
		}
		if len(named) > 0 {
			out.WriteString("- Peers (" + root + "): " + strings.Join(named, ", ") + "\n")
		}
	}
	out.WriteString("\n")
}
