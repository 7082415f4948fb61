// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/offloadd/offloadd/test/vm/bench/result"
)

// costs of a row in a run, in instructions a byte.
type costs map[string]float64

func runOf(series string, download costs) *result.Run {
	run := &result.Run{Schema: result.Schema, Only: "^a|b", Kernel: series + ".1", Series: series, Mode: result.Instructions,
		Packages: map[string][]string{"stable": {"nginx 1.2.3", "libc6 2"}}, Settings: []string{"one setting"}}
	d := result.Discipline{Name: "download-1", Title: "Bulk download", Work: "Much.", Unit: "byte", Metric: result.Server,
		Baseline: "bare program, sendfile"}
	kinds := map[string]result.Row{
		"bare program, sendfile": {Kind: result.Limit, Engine: "kernel"},
		"ktls.Conn, sendfile":    {Kind: result.Ours, Engine: "kernel"},
		"crypto/tls":             {Kind: result.Peer, Engine: "go"},
		"nginx, kernel TLS":      {Kind: result.Peer, Engine: "kernel"},
	}
	for _, name := range []string{"bare program, sendfile", "ktls.Conn, sendfile", "crypto/tls", "nginx, kernel TLS"} {
		row := kinds[name]
		row.Name = name
		d.Rows = append(d.Rows, row)
		value, measured := download[name]
		if !measured {
			run.Failures = append(run.Failures, result.Failure{Discipline: d.Name, Row: name, Why: "it broke\nin many lines"})
			continue
		}
		for repetition, factor := range []float64{0.99, 1, 1.01} {
			run.Samples = append(run.Samples, result.Sample{Discipline: d.Name, Row: name, Repetition: repetition,
				Values: map[string]float64{result.Server: value * factor * 1000, result.Client: 500, result.Units: 1e6}})
		}
	}
	run.Disciplines = []result.Discipline{d}
	return run
}

// table reads the rows of all tables below a heading.
func table(t *testing.T, text, heading string) map[string][]string {
	t.Helper()
	_, below, found := strings.Cut(text, heading+"\n")
	if !found {
		t.Fatalf("no heading %q in\n%s", heading, text)
	}
	rows := map[string][]string{}
	for line := range strings.Lines(below) {
		if strings.HasPrefix(line, "#") {
			break
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.Trim(cells[i], " *")
		}
		if len(cells) > 1 {
			rows[cells[0]] = cells[1:]
		}
	}
	return rows
}

func TestTheReportSaysWhatWasMeasured(t *testing.T) {
	directory := t.TempDir()
	good := costs{"bare program, sendfile": 3.3, "ktls.Conn, sendfile": 3.3, "crypto/tls": 4, "nginx, kernel TLS": 3.31}
	bad := costs{"bare program, sendfile": 3.3, "ktls.Conn, sendfile": 3.96, "crypto/tls": 4}
	for name, run := range map[string]*result.Run{"6.12-instructions.json": runOf("6.12", good), "7-instructions.json": runOf("7", bad)} {
		data, err := json.Marshal(run)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(directory, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := report(directory); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(directory, "REPORT.md"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	goals := table(t, text, "## Goals")
	for goal, want := range map[string][]string{
		"download by sendfile: 1.02 of the bare program":       {"1.000, reached", "1.200, **missed"},
		"download by sendfile: 0.85 of crypto/tls":             {"0.825, reached", "0.990, **missed"},
		"download by sendfile: level with nginx on kernel TLS": {"0.997, reached", "not measured"},
		"upload: 0.92 of crypto/tls":                           {"not measured", "not measured"},
		"user memory of the application: below 6000 B":         {"not measured", "not measured"},
	} {
		if got := goals[goal]; len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
			t.Errorf("%s: %q, want %q", goal, got, want)
		}
	}
	ours := table(t, text, "## Bulk download")["ktls.Conn, sendfile"]
	if want := []string{"3.30 ±1.0 %", "1.000", "1.11", "0.50", "3.80 ±0.9 %"}; strings.Join(ours, ";") != strings.Join(want, ";") {
		t.Errorf("our row is %q, want %q", ours, want)
	}
	for _, want := range []string{"- Linux 7, download-1, nginx, kernel TLS: it broke\n", "nginx 1.2.3", "one setting", "only what matches `^a\\|b`", "Linux 6.12 | 6.12.1 |"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, name := range []string{"download-1-6.12-instructions.svg", "download-1-7-instructions.svg"} {
		if !strings.Contains(text, "("+name+")") {
			t.Errorf("no link to %s", name)
		}
		wantDrawing(t, filepath.Join(directory, name))
	}
}

// The steps of a hand-over are rows, and their sum is judged as a part of a handshake.
func TestStepsAreGivenByPercentiles(t *testing.T) {
	run := &result.Run{Series: "7", Disciplines: []result.Discipline{{Name: "handover", Title: "Hand-over", Metric: percentiles,
		Rows: []result.Row{{Name: "offloadd"}}}},
		Samples: []result.Sample{
			{Discipline: "handover", Row: "offloadd", Values: map[string]float64{"steps_seal_us_p50": 30, "steps_seal_us_max": 90, "steps_open_us_p50": 40}},
			{Discipline: "handshake-x25519", Row: "split: handed over by the daemon", Values: map[string]float64{result.Server: 2000, result.Units: 1}},
		}}
	text := write([]*result.Run{run})
	if rows := table(t, text, "## Hand-over"); len(rows["seal"]) != 4 || strings.TrimSpace(rows["seal"][0]) != "30" || strings.TrimSpace(rows["seal"][3]) != "90" {
		t.Errorf("%q", rows)
	}
	if want := "seal, open together 70.0 of 2000 µs, 3.5 %, **missed**"; !strings.Contains(text, want) {
		t.Errorf("no %q in\n%s", want, text)
	}
}

// wantDrawing: well-formed, and each row is named.
func wantDrawing(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	decoder := xml.NewDecoder(strings.NewReader(string(data)))
	for {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	for _, want := range []string{"ktls.Conn, sendfile", "crypto/tls", "instructions of the server for each byte"} {
		if !strings.Contains(string(data), want) {
			t.Errorf("%s does not show %q", filepath.Base(path), want)
		}
	}
}

// The first page names each peer that is better by more than the measurement's noise, and no other.
func TestTheFirstPageTellsWhereWeLose(t *testing.T) {
	for name, test := range map[string]struct {
		run  *result.Run
		want string
	}{
		"to nobody":          {runOf("7", costs{"ktls.Conn, sendfile": 3.3, "crypto/tls": 4, "nginx, kernel TLS": 3.28}), "Nowhere"},
		"to one":             {runOf("7", costs{"ktls.Conn, sendfile": 3.3, "crypto/tls": 4, "nginx, kernel TLS": 3}), "costs 1.10 of nginx, kernel TLS\n"},
		"to both":            {runOf("7", costs{"ktls.Conn, sendfile": 3.3, "crypto/tls": 3, "nginx, kernel TLS": 3}), "costs 1.10 of crypto/tls; 1.10 of nginx, kernel TLS\n"},
		"a limit is no peer": {runOf("7", costs{"ktls.Conn, sendfile": 3.3, "bare program, sendfile": 1}), "Nowhere"},
	} {
		var out strings.Builder
		writeLosses(&out, []*result.Run{test.run})
		if !strings.Contains(out.String(), test.want) {
			t.Errorf("%s: %s", name, out.String())
		}
	}
}

// The upload through a proxy has another limit where the kernel's NO_PAD is unsound, and each goal names what exists.
func TestGoalsOfTheProxyDependOnTheKernel(t *testing.T) {
	var upload goal
	for _, g := range goals {
		if g.discipline == "proxy-upload" {
			upload = g
		}
	}
	for series, want := range map[string]bool{"6.12": true, "7": false} {
		run := &result.Run{Series: series, Disciplines: []result.Discipline{{Name: "proxy-upload", Metric: result.Server,
			Rows: []result.Row{{Name: "ktls.Conn", Kind: result.Ours}, {Name: "slow", Kind: result.Peer}, {Name: "fast", Kind: result.Peer}}}}}
		for row, value := range map[string]float64{"ktls.Conn": 4, "slow": 9, "fast": 4} {
			run.Samples = append(run.Samples, result.Sample{Discipline: "proxy-upload", Row: row,
				Values: map[string]float64{result.Server: value, result.Units: 1}})
		}
		if got := upload.judge(run); got.reached != want || got.to != "fast" || got.value != 1 {
			t.Errorf("%s: %+v", series, got)
		}
	}
}

func TestRunsOfAnotherSchemaAreRefused(t *testing.T) {
	directory := t.TempDir()
	if err := report(directory); err == nil {
		t.Error("an empty directory is a report")
	}
	if err := os.WriteFile(filepath.Join(directory, "old.json"), []byte(`{"schema":0}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := report(directory); err == nil || !strings.Contains(err.Error(), "schema 0") {
		t.Errorf("%v", err)
	}
}
